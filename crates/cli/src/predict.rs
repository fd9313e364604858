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

/// What is said instead of what a recipe says of its training.
const ALONE: [&str; 10] = [
    "do_train=false",
    "do_predict=true",
    "do_eval=false",
    "eval_strategy=no",
    "eval_on_start=false",
    "load_best_model_at_end=false",
    "early_stopping_steps=null",
    "resume_from_checkpoint=null",
    "train_from_scratch=false",
    "show_answers=0",
];

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let recipe = ALONE.iter().fold(args.recipe, |recipe, key| recipe.with(key));
    train::run(train::Args::of(recipe))
}
