//! `sft data show`: what the model sees of a row, and which of it is trained. `sft data check` is in `check.rs`.

mod check;

use std::io::{BufWriter, IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;
use sft_config::Purpose;
use sft_data::conversation::Conversation;
use sft_data::dataset;
use sft_data::dataset::stream::Stream;
use sft_data::error::DataError;
use sft_data::labels::Reason;
use sft_data::pipeline::ExplainedToken;
use sft_train::{TrainError, setup};

use crate::recipe::Recipe;

/// Looks at data as training sees it.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print rows token by token, coloured by trained or ignored
    Show(Show),
    /// Count what is odd about the rows, with examples; an error above a limit
    Check(check::Check),
}

/// Prints rows token by token: what is trained, what is ignored, and why.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    recipe: Recipe,
    /// Rows, from 0: `3`, `0..10`, `5..`
    #[arg(long, value_name = "RANGE")]
    rows: Option<String>,
    /// One line of JSON a row: dataset, row, place, input_ids, labels, weights where not all are 1, and spans: runs of text with
    /// why they are trained or not
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(args) => show(args),
        Command::Check(args) => check::run(args),
    }
}

fn show(args: Show) -> anyhow::Result<ExitCode> {
    let (config, _) = args.recipe.read(Purpose::Data)?;
    let default = if args.json { ".." } else { "0..3" };
    let rows = parse_range(args.rows.as_deref().unwrap_or(default))?;
    // A stream is read as far as it is shown.
    let options = setup::dataset_options(&config);
    let (all, problems) = match options.streaming {
        None => {
            let data = dataset::load(&options)?;
            (data.train, data.problems)
        }
        Some(_) => {
            let stream = Stream::open(&options, false)?;
            let (mut good, mut problems) = (Vec::new(), Vec::new());
            for row in stream.epoch(0) {
                match row? {
                    Ok(row) => good.push(row),
                    Err(problem) => problems.push(problem),
                }
                if good.len() == rows.end {
                    break;
                }
            }
            (good, problems)
        }
    };
    let encoder = setup::encoder(&config)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut refused = 0;
    if rows.start > 0 && rows.start >= all.len() {
        bail!("there is no row {}: the data has {} rows, counted from 0", rows.start, all.len());
    }
    let selected = all.iter().skip(rows.start).take(rows.len());
    for conversation in selected {
        match encoder.explain(conversation) {
            Ok(examples) => {
                for tokens in &examples {
                    match args.json {
                        true => print_json(&mut out, conversation, tokens)?,
                        false => print_tokens(&mut out, conversation, tokens, colour)?,
                    }
                }
            }
            Err(problem) => {
                refused += 1;
                eprintln!("{problem}");
            }
        }
    }
    out.flush()?;
    for problem in &problems {
        eprintln!("dropped {problem}");
    }
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows the first row that breaks a rule, token by token.
pub fn show_violation(error: &TrainError) {
    let TrainError::Data(DataError::Unproved { proof }) = error else { return };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for violation in proof.violations.iter().take(1) {
        let mut err = std::io::stderr().lock();
        // The error itself is printed whatever becomes of this.
        let _ = writeln!(err, "{}", violation.row);
        let _ = print_runs(&mut err, &violation.tokens, colour);
    }
}

fn parse_range(text: &str) -> anyhow::Result<Range<usize>> {
    let number = |part: &str, default: usize| match part.trim() {
        "" => Ok(default),
        digits => digits.parse().with_context(|| format!("--rows {text}: `{digits}` is no row number")),
    };
    let range = match text.split_once("..") {
        None => {
            let row = number(text, 0)?;
            row..row + 1
        }
        Some((from, to)) => number(from, 0)?..number(to, usize::MAX)?,
    };
    if range.start >= range.end {
        bail!(
            "--rows {text}: an empty range\nhelp: rows count from 0 and the end is not included: 0..3 are three rows"
        );
    }
    Ok(range)
}

fn print_json(out: &mut impl Write, row: &Conversation, tokens: &[ExplainedToken]) -> anyhow::Result<()> {
    let spans: Vec<_> = runs(tokens)
        .map(|run| {
            let text: String = run.iter().map(|token| token.text.as_str()).collect();
            let (reason, trained) = (describe(run[0].reason), run[0].reason.is_trained());
            json!({"reason": reason, "trained": trained, "weight": run[0].weight, "tokens": run.len(), "text": text})
        })
        .collect();
    let tokens: Vec<_> = tokens.iter().filter(|t| t.reason != Reason::Cut).collect();
    let mut line = json!({
        "dataset": &*row.origin.dataset,
        "row": row.origin.row,
        "place": row.origin.to_string(),
        "input_ids": tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
        "labels": tokens.iter().map(|t| t.label).collect::<Vec<_>>(),
    });
    if tokens.iter().any(|token| token.weight != 1.0) {
        line["weights"] = tokens.iter().map(|t| t.weight).collect::<Vec<_>>().into();
    }
    line["spans"] = spans.into();
    Ok(writeln!(out, "{line}")?)
}

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Runs of tokens, coloured on a terminal, marked `[+reason: …]` or `[-reason: …]` elsewhere.
fn print_tokens(
    out: &mut impl Write,
    row: &Conversation,
    tokens: &[ExplainedToken],
    colour: bool,
) -> anyhow::Result<()> {
    let trained = tokens.iter().filter(|t| t.reason.is_trained()).count();
    writeln!(
        out,
        "{} row {} ({}): {} tokens, {trained} trained",
        row.origin.dataset,
        row.origin.row,
        row.origin,
        tokens.len()
    )?;
    print_runs(out, tokens, colour)
}

/// Runs of tokens that share a reason and a weight.
fn runs(tokens: &[ExplainedToken]) -> impl Iterator<Item = &[ExplainedToken]> {
    tokens.chunk_by(|a, b| (a.reason, a.weight) == (b.reason, b.weight))
}

fn print_runs(out: &mut impl Write, tokens: &[ExplainedToken], colour: bool) -> anyhow::Result<()> {
    for run in runs(tokens) {
        let reason: Reason = run[0].reason;
        let (sign, paint) = if reason.is_trained() { ('+', GREEN) } else { ('-', RED) };
        let plural = if run.len() == 1 { "" } else { "s" };
        let weight = match run[0].weight {
            1.0 => String::new(),
            weight => format!(", weight {weight}"),
        };
        let head = format!("{sign} {} ({} token{plural}{weight})", describe(reason), run.len());
        if colour {
            writeln!(out, "{DIM}{head}{RESET}")?;
            for (i, token) in run.iter().enumerate() {
                let shade = if i % 2 == 0 { "" } else { "\x1b[1m" };
                write!(out, "{paint}{shade}{}{RESET}", visible(&token.text))?;
            }
        } else {
            let text: String = run.iter().map(|token| visible(&token.text)).collect();
            write!(out, "{head}: {text}")?;
        }
        // A line break that was shown has ended the line.
        if !run[run.len() - 1].text.ends_with('\n') {
            writeln!(out)?;
        }
    }
    Ok(writeln!(out)?)
}

/// Why tokens are trained or not, in a few words.
fn describe(reason: Reason) -> &'static str {
    match reason {
        Reason::Answer => "answer",
        Reason::End => "end of the answer",
        Reason::PromptTrained => "prompt, trained (train_on_prompt)",
        Reason::EndOfLastAnswer => "stands for the end of the answer before",
        Reason::Prompt => "prompt",
        Reason::History => "earlier answer (mask_history)",
        Reason::Apart => "earlier answer, trained in an example of its own",
        Reason::SwitchedOff => "answer that the row switches off",
        Reason::NotShown => "end of an answer that the template leaves out",
        Reason::Border => "shares characters with an answer",
        Reason::Cut => "cut off (cutoff_len)",
    }
}

/// Line breaks and other control characters made visible; a line break is kept after its mark.
fn visible(text: &str) -> String {
    let mark = |c: char| match c {
        '\n' => "⏎\n".to_owned(),
        '\t' => "⇥".to_owned(),
        c if c.is_control() => format!("\\u{{{:x}}}", c as u32),
        c => c.to_string(),
    };
    text.chars().map(mark).collect()
}
