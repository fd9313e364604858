//! What a person sees while models and data sets are fetched: a bar on a terminal, a line a file elsewhere; on standard
//! error, since standard output may be rows or answers.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use sft_hub::Event;

/// Smaller files come at once and are not shown.
const SHOWN: u64 = 1 << 20;

/// Shows what is fetched from now on.
pub fn show() {
    let on_terminal = std::io::stderr().is_terminal();
    // The file that is being fetched.
    let bar: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    sft_hub::watch(move |event| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Fetching { file, done, size, .. }
                if on_terminal && size.is_none_or(|size| size >= SHOWN) =>
            {
                if bar.as_ref().is_none_or(|(shown, _)| shown != file) {
                    *bar = Some(((*file).to_owned(), begin(file, *size)));
                }
                if let Some((_, bar)) = &*bar {
                    bar.set_position(*done);
                }
            }
            Event::Fetching { .. } => {}
            Event::Fetched { file, size, repo } => {
                if let Some((_, bar)) = bar.take() {
                    bar.finish_and_clear();
                }
                if *size >= SHOWN {
                    eprintln!("fetched {repo}: {file} ({})", DecimalBytes(*size));
                }
            }
            Event::Retrying { repo, reason, pause } => {
                eprintln!("{repo}: {reason}; asking again in {} s", pause.as_secs());
            }
            Event::Kept { repo, reason } => {
                eprintln!("{repo} {reason}; what was fetched before is used");
            }
        }
    });
}

fn begin(file: &str, size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{msg} {bar:24.cyan/blue} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} left {eta}",
        ),
        None => (ProgressBar::no_length(), "{msg} {decimal_bytes} {decimal_bytes_per_sec}"),
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(file.to_owned());
    bar
}
