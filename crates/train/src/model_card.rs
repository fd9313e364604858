//! What the run's README says of it.

use std::path::Path;

use sft_config::FinetuningType;
use sft_kernels::objective::Loss;
use sft_model::method::{AdapterOptions, OftBlocks};
use sft_runs::RunError;
use sft_runs::model_card::{Library, ModelCard};
use sft_runs::trainer_state::TrainerState;

use crate::job::Job;
use crate::optim::Rule;
use crate::setup;

/// Writes the model card into the run's folder.
///
/// # Errors
/// What the file system says.
pub fn write(
    job: &Job,
    adapter: Option<&AdapterOptions>,
    folder: &Path,
    (state, step): (&TrainerState, Option<u64>),
) -> Result<(), RunError> {
    let c = &job.config;
    let optimizer = match &job.optimizer.rule {
        Rule::AdamW(..) => format!("{} with betas ({}, {})", c.optim, c.adam_beta1, c.adam_beta2),
        rule => rule.name().to_owned(),
    };
    let mut hyperparameters: Vec<(String, String)> = vec![
        ("learning_rate".into(), format!("{:e}", c.learning_rate)),
        ("train_batch_size".into(), c.per_device_train_batch_size.to_string()),
        ("gradient_accumulation_steps".into(), c.gradient_accumulation_steps.to_string()),
        ("seed".into(), c.seed.to_string()),
        ("loss".into(), loss_in_words(setup::loss(c))),
        ("optimizer".into(), optimizer),
        ("lr_scheduler_type".into(), c.lr_scheduler_type.to_string()),
        ("num_epochs".into(), ((state.epoch * 100.0).round() / 100.0).to_string()),
        ("training_steps".into(), state.global_step.to_string()),
        ("compute_dtype".into(), c.compute_dtype.to_string()),
        ("cutoff_len".into(), c.cutoff_len.to_string()),
        ("template".into(), c.template.clone()),
    ];
    match adapter {
        Some(AdapterOptions::Lora(lora)) => {
            hyperparameters.push(("lora_rank".into(), lora.rank.to_string()));
            hyperparameters.push(("lora_alpha".into(), lora.alpha.to_string()));
        }
        Some(AdapterOptions::Oft(oft)) => hyperparameters.push(match oft.blocks {
            OftBlocks::Size(size) => ("oft_block_size".into(), size.to_string()),
            OftBlocks::Count(count) => ("oft_rank".into(), count.to_string()),
        }),
        None => {}
    }
    let card = ModelCard {
        title: folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned()),
        library: match c.finetuning_type {
            FinetuningType::Lora | FinetuningType::Oft => Library::Peft,
            FinetuningType::Full | FinetuningType::Freeze => Library::Transformers,
        },
        base_model: (!c.train_from_scratch).then(|| c.model_name_or_path.clone()),
        method: c.finetuning_type.to_string(),
        datasets: c.dataset.clone(),
        step,
        hyperparameters,
        versions: vec![("sft".into(), env!("CARGO_PKG_VERSION").into())],
    };
    card.save(folder, state)
}

fn loss_in_words(loss: Loss) -> String {
    match loss {
        Loss::CrossEntropy => "cross-entropy".into(),
        Loss::Dft => "DFT".into(),
        Loss::Eaft { alpha } => format!("EAFT with alpha {alpha}"),
        Loss::Asft { alpha } => format!("ASFT with alpha {alpha}"),
        Loss::Smoothed { factor } => format!("cross-entropy with labels smoothed by {factor}"),
    }
}
