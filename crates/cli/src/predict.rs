//! `sft predict config.yaml [key=value …]`: a model's answers to the rows to evaluate on.

use std::process::ExitCode;

use anyhow::bail;
use sft_config::RunConfig;

use crate::train;

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

/// Runs the command: `sft train` with `do_train: false` and `do_predict: true`.
pub fn run(args: train::Args) -> anyhow::Result<ExitCode> {
    train::run_if(args.by_default(&ALONE), check)
}

fn check(config: &RunConfig) -> anyhow::Result<()> {
    if config.do_train || !config.do_predict {
        bail!(
            "`sft predict` answers and trains nothing\nhelp: leave `do_train` and `do_predict` out, or run `sft train`"
        );
    }
    if config.finetuning_type.is_adapter() && config.adapter_name_or_path.is_empty() {
        let folder = &config.output_dir;
        if folder.join("adapter_config.json").exists() {
            bail!(
                "output_dir: {0} holds an adapter that is not asked: `adapter_name_or_path` is empty\n\
                 help: `adapter_name_or_path={0}` asks it; for the answers of the model without it choose another folder",
                folder.display()
            );
        }
        println!("no adapter: the model itself answers (`adapter_name_or_path` names one)");
    }
    Ok(())
}
