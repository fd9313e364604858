//! What the run's README says of it.

use std::path::Path;

use sft_config::FinetuningType;
use sft_runs::RunError;
use sft_runs::model_card::{Library, ModelCard};
use sft_runs::trainer_state::TrainerState;

use crate::job::Job;

/// Writes the model card into the run's folder.
///
/// # Errors
/// What the file system says.
pub fn write(job: &Job, folder: &Path, state: &TrainerState) -> Result<(), RunError> {
    let c = &job.config;
    let mut hyperparameters: Vec<(String, String)> = vec![
        ("learning_rate".into(), format!("{:e}", c.learning_rate)),
        ("train_batch_size".into(), c.per_device_train_batch_size.to_string()),
        ("gradient_accumulation_steps".into(), c.gradient_accumulation_steps.to_string()),
        ("seed".into(), c.seed.to_string()),
        ("optimizer".into(), format!("{} with betas ({}, {})", c.optim, c.adam_beta1, c.adam_beta2)),
        ("lr_scheduler_type".into(), c.lr_scheduler_type.to_string()),
        ("num_epochs".into(), format!("{}", job.epochs)),
        ("training_steps".into(), job.total_steps.to_string()),
        ("compute_dtype".into(), c.compute_dtype.to_string()),
        ("cutoff_len".into(), c.cutoff_len.to_string()),
        ("template".into(), c.template.clone()),
    ];
    if c.finetuning_type == FinetuningType::Lora {
        hyperparameters.push(("lora_rank".into(), c.lora_rank.to_string()));
        hyperparameters.push(("lora_alpha".into(), c.lora_alpha.to_string()));
    }
    if c.finetuning_type == FinetuningType::Oft {
        hyperparameters.push(("oft_rank".into(), c.oft_rank.to_string()));
        hyperparameters.push(("oft_block_size".into(), c.oft_block_size.to_string()));
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
        hyperparameters,
        versions: vec![("sft".into(), env!("CARGO_PKG_VERSION").into())],
    };
    card.save(folder, state)
}
