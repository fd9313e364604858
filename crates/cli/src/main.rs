//! The `sft` command: argv → one subcommand (stage 0 of the walk). Only this crate prints.
//!
//! Exit status: 0, also where a reader has gone away; 1 after an error; 2 for words that are no command; 130 of a run that
//! was interrupted.

/// As std's, but a reader that has gone away (`sft … | head`) is no reason to panic, least of all while training.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// As above.
macro_rules! print {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stdout(), $($text)*);
    }};
}

/// As above.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod answers;
mod bench;
mod chat;
mod config;
mod data;
mod doctor;
mod export;
mod fetching;
mod kept;
mod models;
mod parity;
mod predict;
mod progress;
mod recipe;
mod runs;
mod serve;
mod signals;
mod summary;
mod train;
mod webui;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use sft_kernels::OutOfMemory;

/// Supervised fine-tuning of language models in one program.
#[derive(Debug, Parser)]
#[command(name = "sft", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model: `sft train config.yaml [key=value …]`
    Train(train::Args),
    /// Answer the rows of `eval_dataset`, with BLEU-4 and ROUGE: `sft predict config.yaml [key=value …]`
    Predict(train::Args),
    /// Talk to a model, with or without an adapter
    Chat(chat::Args),
    /// Serve a model over HTTP as OpenAI's API does, with a page to try it
    Serve(serve::Args),
    /// Open a page to write recipes, start runs and watch them
    Webui(webui::Args),
    /// Merge an adapter into its model and write a Hugging Face folder
    Export(export::Args),
    /// Time a job on this machine, op by op
    Bench(bench::Args),
    /// Show what this machine has for training, and what a GPU still needs
    Doctor(doctor::Args),
    /// List the runs so far, say how two differ, draw several in one picture
    Runs(runs::Args),
    /// Look at what is trained
    #[command(subcommand)]
    Data(data::Command),
    /// List the models that are supported, or say what a model's folder is
    Models(models::Args),
    /// Prove that models are computed as transformers computes them
    Parity(parity::Args),
    /// Print the configuration reference or its JSON schema
    Config(config::Args),
}

/// Commands of LLaMA-Factory that are other ones here, or none, and what there is.
const ELSEWHERE: [(&str, &str); 5] = [
    (
        "api",
        "`sft serve` answers as OpenAI's API does; `API_HOST`, `API_PORT`, `API_KEY` and `API_MODEL_NAME` are read",
    ),
    (
        "webchat",
        "`sft serve` has a page to talk to a model, so has `sft webui`; `sft chat` does so in the terminal",
    ),
    (
        "eval",
        "benchmarks are not built; `sft train` with `do_train: false` and `do_eval: true` evaluates on rows",
    ),
    ("version", "`sft --version` prints it"),
    ("env", "`sft doctor` shows what this machine has"),
];

/// The words as a command; help, a version and wrong words end the program.
fn command() -> Command {
    let words = recipe::spelled(std::env::args_os(), &Cli::command());
    let error = match Cli::try_parse_from(words) {
        Ok(cli) => return cli.command,
        Err(error) => error,
    };
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::InvalidSubcommand => word,
        _ => error.exit(),
    };
    let Some((_, instead)) = ELSEWHERE.iter().find(|(name, _)| name == word) else { error.exit() };
    eprintln!("error: there is no command `{word}`\nhelp: {instead}");
    std::process::exit(error.exit_code());
}

/// Whether what was written has no reader any more (`sft … | head`): nothing is wrong then. Of an error of a connection,
/// which may be of the same kind, the outermost is the hub's.
fn has_no_reader(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn main() -> ExitCode {
    let command = command();
    signals::limits_are_errors();
    let done = OutOfMemory::caught(|| match command {
        Command::Train(args) => train::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Webui(args) => webui::run(args),
        Command::Export(args) => export::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Data(command) => data::run(command),
        Command::Models(args) => models::run(args),
        Command::Parity(args) => parity::run(args),
        Command::Config(args) => config::run(args),
    });
    match done.unwrap_or_else(|refused| Err(refused.into())) {
        Ok(code) => code,
        Err(error) if has_no_reader(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
