//! `sft train config.yaml [key=value …]`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sft_config::{Purpose, RunConfig};
use sft_train::Job;
use sft_train::run::Outcome;

use crate::answers::Comparison;
use crate::progress::Screen;
use crate::summary;

/// Trains by a configuration with LLaMA-Factory's keys; `sft config` lists them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// YAML or JSON file; `key=value` arguments after it win over what it says
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// `key=value`
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Show the resolved configuration, the data, the steps and the memory plan; train nothing
    #[arg(long)]
    dry_run: bool,
}

/// The exit status of a run that Ctrl-C ended, as shells have it: `sft train … && sft export …` stops there.
const INTERRUPTED: u8 = 130;

/// Splits `[CONFIG] key=value …`: a first word with `=` in it is an override, unless there is such a file.
pub fn read_config(
    path: Option<PathBuf>,
    overrides: Vec<String>,
    purpose: Purpose,
) -> anyhow::Result<RunConfig> {
    let (path, overrides) = match path {
        Some(word) if word.to_string_lossy().contains('=') && !word.exists() => {
            let first = word.to_string_lossy().into_owned();
            (None, [vec![first], overrides].concat())
        }
        path => (path, overrides),
    };
    Ok(sft_config::load(path.as_deref(), &overrides, purpose)?)
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = read_config(args.config, args.overrides, Purpose::Train)?;
    summary::no_effect(&config);
    if args.dry_run {
        println!("{}", config.resolved_yaml());
    }
    let job = Job::prepare(config).inspect_err(crate::data::show_violation)?;
    summary::job(&job);
    if args.dry_run {
        if let Err(error) = job.check_memory() {
            println!("\n{error}");
            return Ok(ExitCode::FAILURE);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let comparison = Comparison::begin(&job)?;
    let interrupts = count_interrupts()?;
    let mut screen = Screen::new(job.total_steps, interrupts);
    let output = job.config.output_dir.clone();
    let outcome = sft_train::run::run(job, &mut screen);
    screen.close();
    let outcome = outcome?;
    report(&outcome, &output);
    if outcome.interrupted_at.is_some() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(comparison) = comparison {
        comparison.finish(&outcome.decoder)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts Ctrl-C and SIGTERM; the third ends the program at once.
fn count_interrupts() -> anyhow::Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    ctrlc::set_handler(move || {
        if counted.fetch_add(1, Ordering::Relaxed) >= 2 {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(count)
}

fn report(outcome: &Outcome, output: &std::path::Path) {
    match &outcome.interrupted_at {
        Some(checkpoint) => {
            println!("interrupted after step {}; checkpoint: {}", outcome.steps, checkpoint.display());
            println!(
                "run the same command again to go on from there (resume_from_checkpoint is found by itself)"
            );
        }
        None => {
            println!("done: {} steps, results in {}", outcome.steps, output.display());
            for (key, value) in &outcome.results {
                println!("  {key:<32} {value}");
            }
        }
    }
    println!("digest of the trained weights: {}", outcome.digest);
}
