//! What a checkpoint holds, and how a run goes on from it (stage 13 of the walk).
//!
//! | file | content |
//! |---|---|
//! | `adapter_model.safetensors`, `adapter_config.json` | LoRA: the adapter, float32, in PEFT's format |
//! | `model*.safetensors`, `config.json` | full and freeze: the model; trained weights float32, so that nothing is lost |
//! | tokenizer files | copied from the model folder |
//! | `optimizer.safetensors` | the optimizer's state, and the weights that training goes on from where these are others |
//! | `training_state.json` | step, data cursor, what the run was |
//!
//! Random numbers come from counters (seed, step), so the step is all there is to save of them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sft_config::RunConfig;
use sft_data::loader::Cursor;
use sft_data::pack::Joining;
use sft_kernels::DType;
use sft_model::adapter;
use sft_model::method::{AdapterOptions, Method};
use sft_model::parameter::Parameter;
use sft_model::saving::{self, SaveOptions};
use sft_model::weights::{StoredTensor, WeightFiles, write_file};
use sft_model::{Decoder, ModelError};
use sft_runs::disk;

use crate::health::Health;
use crate::job::Job;
use crate::optim::Optimizer;
use crate::{TrainError, setup};

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "training_state.json";
const ADAPTER: &str = "adapter_model.safetensors";
/// Bytes of a shard of a model in a checkpoint: transformers' default.
const SHARD_BYTES: usize = 5_000_000_000;

/// Where a run is, and what must be the same when it goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Steps done.
    pub step: u64,
    /// How many of them changed nothing (`on_non_finite: skip_step`).
    #[serde(default)]
    pub skipped: u64,
    /// Whether the evaluation after this step was broken off and is still to be made.
    #[serde(default)]
    pub owes_evaluation: bool,
    /// Digest of the rows, where they are all kept.
    #[serde(default)]
    pub rows: Option<String>,
    /// What was seen of loss and gradient.
    #[serde(default)]
    pub health: Health,
    /// The next step in the data.
    pub cursor: Cursor,
    /// Tokens up to which micro-batches are joined.
    #[serde(default)]
    pub room: usize,
    /// Whether rows share what they begin with.
    #[serde(default)]
    pub shares_prefixes: bool,
    /// Seed of order and dropout.
    pub seed: u64,
    /// Steps of an epoch, which change when data or batch size do.
    pub steps_per_epoch: u64,
    /// Number of trained elements.
    pub trained_elements: u64,
    /// Fingerprint of the model that stays beside what is trained, where it is needed to go on.
    #[serde(default)]
    pub base: Option<String>,
    /// Keys that decide what is trained and how.
    #[serde(default)]
    pub decided: Map<String, Value>,
}

impl TrainingState {
    /// The state of a run before its first step, with what must be the same in a checkpoint that it goes on from.
    pub fn beginning(job: &Job, trained_elements: u64, rows: &Option<String>, base: &Option<String>) -> Self {
        Self {
            step: 0,
            skipped: 0,
            owes_evaluation: false,
            rows: rows.clone(),
            health: Health::default(),
            cursor: job.train.cursor(),
            room: job.joining.room,
            shares_prefixes: job.joining.shares_prefixes,
            seed: job.config.seed,
            // Of a stream nobody knows; more steps than before are no other run.
            steps_per_epoch: job.train.steps_per_epoch().unwrap_or(0),
            trained_elements,
            base: base.clone(),
            decided: job.config.decided(),
        }
    }
}

/// The model that was trained further.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Its name, as an adapter tells others what it belongs to: `model_name_or_path`.
    pub name: &'a str,
}

/// Writes the weights of a run: the adapter, or the whole model, in `dtype` or each weight as it is (trained ones in
/// float32, so that nothing is lost).
///
/// # Errors
/// What the file system says.
pub fn write_weights(
    folder: &Path,
    decoder: &Decoder,
    base: Base<'_>,
    adapter: Option<&AdapterOptions>,
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    if let Some(options) = adapter {
        saving::copy_model_files(base.folder, folder)?;
        return adapter::write(decoder, options, base.name, folder);
    }
    saving::save(
        decoder,
        base.folder,
        folder,
        SaveOptions { dtype, shard_bytes: SHARD_BYTES, num_expand: 0 },
    )?;
    Ok(())
}

/// Writes what a run needs besides its weights to go on.
///
/// # Errors
/// What the file system says.
pub fn write_state(
    folder: &Path,
    state: &TrainingState,
    optimizer: &dyn Optimizer,
    trained: &[&mut Parameter],
) -> Result<(), ModelError> {
    let mut tensors: Vec<(String, StoredTensor<'_>)> =
        optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
    if optimizer.evaluates_elsewhere() {
        tensors.extend(trained.iter().map(|parameter| (trained_name(parameter), parameter.as_used())));
    }
    write_file(
        &folder.join(OPTIMIZER),
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())),
    )?;
    let path = folder.join(STATE);
    let text = serde_json::to_string_pretty(state).unwrap_or_default();
    disk::write(&path, text.as_bytes()).map_err(|source| ModelError::File { path, source })
}

/// Takes the trained weights of a checkpoint.
///
/// # Errors
/// Files that are missing or do not fit.
pub fn read_weights(folder: &Path, decoder: &mut Decoder, method: &Method) -> Result<(), TrainError> {
    let is_adapter = method.adapter_options().is_some();
    let files = if is_adapter {
        WeightFiles::open(folder, &[folder.join(ADAPTER)])?
    } else {
        WeightFiles::open_model(folder)?
    };
    let mut problems = Vec::new();
    for parameter in decoder.trained_mut() {
        let (name, form) = (parameter.name(), parameter.stored_as());
        let (stored, form) = match is_adapter {
            true => (adapter::stored_name(name), form.in_modules()),
            false => (name.to_owned(), form),
        };
        match files.weight(&stored, parameter.shape(), form) {
            Ok(tensor) => parameter.set(tensor.view()),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(ModelError::Weights { folder: folder.to_owned(), problems }.into())
    }
}

/// A weight that training goes on from, beside the optimizer's state.
fn trained_name(parameter: &Parameter) -> String {
    format!("param.{}", parameter.name())
}

/// Takes the weights that training goes on from, where the checkpoint's weights are others.
///
/// # Errors
/// Files that are missing or do not fit.
pub fn read_trained(folder: &Path, decoder: &mut Decoder) -> Result<(), TrainError> {
    let files = WeightFiles::open(folder, &[folder.join(OPTIMIZER)])?;
    let mut problems = Vec::new();
    for parameter in decoder.trained_mut() {
        match files.tensor(&trained_name(parameter), parameter.shape()) {
            Ok(tensor) => parameter.set(tensor.view()),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(ModelError::Weights { folder: folder.to_owned(), problems }.into())
    }
}

fn state_of(folder: &Path) -> Result<TrainingState, TrainError> {
    let path: PathBuf = folder.join(STATE);
    let text = fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
    Ok(serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })?)
}

/// Tokens up to which the run of a checkpoint joined micro-batches.
///
/// # Errors
/// A file that is missing or cannot be read.
pub(crate) fn joining_of(folder: &Path) -> Result<Joining, TrainError> {
    let TrainingState { room, shares_prefixes, .. } = state_of(folder)?;
    Ok(Joining { room, shares_prefixes })
}

/// Where a checkpoint was, if it belongs to this run.
///
/// # Errors
/// A missing file; a checkpoint of other data or of another method.
pub fn read_state(folder: &Path, expected: &TrainingState) -> Result<TrainingState, TrainError> {
    let refuse = |reason| refused(folder, reason);
    let state = state_of(folder)?;
    let same = [
        ("seed", state.seed, expected.seed),
        ("steps of an epoch", state.steps_per_epoch, expected.steps_per_epoch),
        ("trained weights", state.trained_elements, expected.trained_elements),
    ];
    for (key, is) in &expected.decided {
        if let Some(was) = state.decided.get(key).filter(|was| *was != is) {
            return Err(refuse(format!("it belongs to another run: `{key}` was {was}, and is {is} now")));
        }
    }
    for (what, was, is) in same {
        if was != is {
            return Err(refuse(format!("it belongs to another run: {what} {was}, now {is}")));
        }
    }
    if let (Some(was), Some(is)) = (&state.base, &expected.base)
        && was != is
    {
        let reason = "it was trained on another model: `model_name_or_path` names other weights than when the run began";
        return Err(refuse(reason.into()));
    }
    if let (Some(was), Some(is)) = (&state.rows, &expected.rows)
        && was != is
    {
        let reason = "it was trained on other rows: a data file, the tokenizer, the template or a key that decides \
                      tokens or labels has changed since";
        return Err(refuse(reason.into()));
    }
    Ok(state)
}

/// Takes the optimizer's state of a checkpoint.
///
/// # Errors
/// A missing file, or one of another method.
pub fn read_optimizer(
    folder: &Path,
    state: &TrainingState,
    optimizer: &mut dyn Optimizer,
) -> Result<(), TrainError> {
    let files = WeightFiles::open(folder, &[folder.join(OPTIMIZER)])?;
    let updates = state.step.saturating_sub(state.skipped);
    optimizer.restore(&files, updates).map_err(|reason| refused(folder, reason))
}

fn refused(folder: &Path, reason: String) -> TrainError {
    TrainError::Checkpoint {
        folder: folder.to_owned(),
        reason,
        help: "resume with the configuration and data that the run began with, or begin anew with \
               `overwrite_output_dir: true`"
            .into(),
    }
}

/// What to say of the keys that had other values in the run of a checkpoint.
pub(crate) fn changed_keys(checkpoint: &Path, now: &RunConfig) -> Option<String> {
    // How a run is started, and not what it does.
    const OF_THE_START: [&str; 5] =
        ["resume_from_checkpoint", "overwrite_output_dir", "output_dir", "threads", "ledger"];
    let text = std::fs::read_to_string(checkpoint.parent()?.join("training_args.yaml")).ok()?;
    let now = now.values();
    let changed = |line: &str| {
        let (key, was) = line.split_once(": ")?;
        let (was, is) = (serde_json::from_str::<Value>(was).ok()?, now.get(key)?);
        (was != *is && !OF_THE_START.contains(&key)).then(|| format!("`{key}` was {was}, and is {is}"))
    };
    let changed: Vec<String> = text.lines().filter_map(changed).collect();
    (!changed.is_empty()).then(|| format!("changed since last time: {}", changed.join("; ")))
}

/// Fingerprint of the model of a job whose checkpoints hold a part of the weights alone, and of the adapters that were
/// merged into it.
pub(crate) fn base_fingerprint(job: &Job) -> Result<Option<String>, TrainError> {
    let drawn = job.config.train_from_scratch || job.random_weights;
    if drawn || !job.config.do_train || job.method == Method::Full {
        return Ok(None);
    }
    let mut of = vec![WeightFiles::open_model(&job.base)?.fingerprint()];
    let continued = setup::continued_adapter(&job.config);
    for folder in job.config.adapter_folders().into_iter().filter(|folder| continued.as_ref() != Some(folder))
    {
        of.push(adapter::PeftAdapter::read(&folder)?.fingerprint());
    }
    Ok(Some(of.join("+")))
}
