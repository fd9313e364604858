//! `sft config`: the configuration reference.

use std::process::ExitCode;

use sft_config::Language;

/// Prints every key with its default and meaning.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON schema instead, for editors
    #[arg(long)]
    schema: bool,
    /// Print it in Chinese (中文)
    #[arg(long, conflicts_with = "schema")]
    zh: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let language = if args.zh { Language::Chinese } else { Language::English };
    if args.schema {
        println!("{}", serde_json::to_string_pretty(&sft_config::json_schema())?);
    } else {
        print!("{}", sft_config::reference(language));
    }
    Ok(ExitCode::SUCCESS)
}
