//! `sft predict config.yaml [key=value …]`: a model's answers to the rows to evaluate on.

use std::process::ExitCode;

use crate::recipe::Recipe;
use crate::train;

/// Answers the rows of `eval_dataset` and says how like the expected answers they are: `sft train` with `do_train: false`
/// and `do_predict: true`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Whatever else the file is for.
    let alone = [
        "do_train=false",
        "do_predict=true",
        "eval_strategy=no",
        "do_eval=false",
        "load_best_model_at_end=false",
    ];
    train::run(train::Args::of(alone.iter().fold(args.recipe, |recipe, key| recipe.with(key))))
}
