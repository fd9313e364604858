//! The `sft` command: argv → one subcommand (stage 0 of the walk). Only this crate prints.

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
mod progress;
mod recipe;
mod runs;
mod signals;
mod summary;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    /// Talk to a model, with or without an adapter
    Chat(chat::Args),
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

fn main() -> ExitCode {
    let command = Cli::parse().command;
    signals::limits_are_errors();
    let done = OutOfMemory::caught(|| match command {
        Command::Train(args) => train::run(args),
        Command::Chat(args) => chat::run(args),
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
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
