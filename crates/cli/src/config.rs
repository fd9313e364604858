//! `sft config`: the configuration reference.

use std::process::ExitCode;

/// Prints every key with its default and meaning.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON schema instead, for editors
    #[arg(long)]
    schema: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.schema {
        println!("{}", serde_json::to_string_pretty(&sft_config::json_schema())?);
    } else {
        print!("{}", sft_config::reference());
    }
    Ok(ExitCode::SUCCESS)
}
