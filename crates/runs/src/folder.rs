//! The run's folder: one run at a time, and where it starts.
//!
//! In: `output_dir`, `overwrite_output_dir`, `resume_from_checkpoint` → out: a locked [`RunFolder`] that says whether
//! the run starts fresh or from which checkpoint (stage 14).
//!
//! The rule is LLaMA-Factory's (`hparams/parser.py`): without `resume_from_checkpoint` and without
//! `overwrite_output_dir`, the last checkpoint is resumed; final weights without a checkpoint are an error. Added to it:
//! a checkpoint must be whole (manifest, sizes, hashes), and checkpoints beyond the starting step, which belong to the
//! run being overwritten, are set aside and deleted only when the new run has one of its own.

use crate::checkpoint::{self, Checkpoint, Damaged};
use crate::disk;
use crate::error::{Result, RunError};
use crate::lock::FolderLock;
use crate::model_card::MODEL_CARD;
use crate::results::{ALL_RESULTS, HELD_OUT_ANSWERS, PREDICT_RESULTS, PREDICTIONS};
use crate::space;
use crate::trainer_log::TRAINER_LOG;
use crate::trainer_state::TRAINER_STATE;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The weights files whose presence means that a run has ended here (LLaMA-Factory's `CHECKPOINT_NAMES`).
const FINAL_WEIGHTS: [&str; 6] = [
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// What a run writes beside weights and checkpoints, pictures apart. Of what is written anew before the first step
/// (`training_args.yaml`, `run_record.json`, …) nothing old can stay.
const FILES_OF_A_RUN: [&str; 10] = [
    TRAINER_LOG,
    TRAINER_STATE,
    "train_results.json",
    "eval_results.json",
    PREDICT_RESULTS,
    PREDICTIONS,
    ALL_RESULTS,
    HELD_OUT_ANSWERS,
    "pissa_converted/adapter_model.safetensors",
    "pissa_converted/adapter_config.json",
];

/// Where a run writes its adapter once more with `pissa_convert: true`.
pub const CONVERTED: &str = "pissa_converted";

/// What stands beside final weights of any kind. Only with such weights are these, and a model's other files, a run's: a
/// folder of somebody's own may hold a `config.json` or a `vocab.txt`, too.
const BESIDE_WEIGHTS: [&str; 3] = [MODEL_CARD, "adapter_config.json", "config.json"];

/// The key `resume_from_checkpoint`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ResumeFrom {
    /// Not given: resume the last checkpoint if there is one and `overwrite_output_dir` is off.
    #[default]
    Automatic,
    /// `true`: the last checkpoint, and an error when there is none.
    Last,
    /// A path: this checkpoint, also when it lies in another folder.
    Path(PathBuf),
    /// `false`: start from the beginning, where no finished model is in the way.
    Never,
}

/// Where a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// At step 0.
    Fresh,
    /// After the step of this checkpoint, whose hashes have been compared.
    Resume(Checkpoint),
    /// Nowhere, since nothing is trained: what lies in the folder stays.
    Beside,
}

/// An output folder that belongs to this process until the value is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    start: Start,
    notes: Vec<String>,
    /// 1 + the step of the newest checkpoint written by this process; 0 = none yet.
    written: AtomicU64,
    _lock: FolderLock,
}

impl RunFolder {
    /// Creates or opens `output_dir`, locks it and decides where the run starts.
    ///
    /// # Errors
    /// The folder is in use, not writable or not a folder; it holds a finished model; the checkpoint asked for is
    /// missing or damaged; no checkpoint is usable. See [`RunError`].
    pub fn open(output_dir: &Path, overwrite_output_dir: bool, resume_from: &ResumeFrom) -> Result<Self> {
        let lock = FolderLock::acquire(output_dir)?;
        let mut notes = Vec::new();
        if !lock.is_effective() {
            notes.push(format!(
                "{}: this file system has no locks; nothing prevents a second run from using the folder",
                output_dir.display()
            ));
        }
        // Safe under the lock: nobody else is at work here.
        checkpoint::clear_leftovers(output_dir)?;
        let start = choose_start(output_dir, overwrite_output_dir, resume_from, &mut notes)?;
        set_aside_later_checkpoints(output_dir, &start, &mut notes)?;
        Ok(Self { path: output_dir.to_path_buf(), start, notes, written: AtomicU64::new(0), _lock: lock })
    }

    /// Creates or locks `output_dir` for an evaluation without training, whose results join what is there.
    ///
    /// # Errors
    /// The folder is in use, not writable or not a folder.
    pub fn beside(output_dir: &Path) -> Result<Self> {
        let lock = FolderLock::acquire(output_dir)?;
        let (path, start, notes) = (output_dir.to_path_buf(), Start::Beside, Vec::new());
        Ok(Self { path, start, notes, written: AtomicU64::new(0), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run starts.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Whether the run that is in the folder goes on: its start is a checkpoint there, and not one of another folder.
    pub fn goes_on(&self) -> bool {
        goes_on(&self.start, &self.path)
    }

    /// Lines for the start of the run: what is resumed, which checkpoints were passed by and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Errors when fewer than `needed_bytes` are free here.
    ///
    /// # Errors
    /// [`RunError::NoRoom`], or the file system does not answer.
    pub fn require_room(&self, needed_bytes: u64) -> Result<()> {
        space::require_room(&self.path, needed_bytes)
    }

    /// Remembers a checkpoint of this run; the first one makes those set aside superfluous.
    pub(crate) fn checkpoint_written(&self, step: u64) -> Result<()> {
        if self.written.swap(step + 1, Ordering::Relaxed) == 0 {
            for aside in checkpoint::with_suffix(&self.path, checkpoint::PREVIOUS)? {
                if checkpoint::is_ours(&aside) {
                    checkpoint::remove(&aside)?;
                }
            }
        }
        Ok(())
    }

    /// Whether this process wrote the checkpoint of `step` last (its hashes come from its files a moment ago).
    pub(crate) fn wrote(&self, step: u64) -> bool {
        self.written.load(Ordering::Relaxed) == step + 1
    }
}

fn choose_start(
    output_dir: &Path,
    overwrite_output_dir: bool,
    resume_from: &ResumeFrom,
    notes: &mut Vec<String>,
) -> Result<Start> {
    let is_required = match resume_from {
        ResumeFrom::Never | ResumeFrom::Automatic if overwrite_output_dir => return Ok(Start::Fresh),
        ResumeFrom::Never => return fresh(output_dir),
        ResumeFrom::Path(path) => {
            let start = explicit(path, notes)?;
            if !overwrite_output_dir && !goes_on(&start, output_dir) {
                fresh(output_dir)?;
            }
            return Ok(start);
        }
        ResumeFrom::Last => true,
        ResumeFrom::Automatic => false,
    };
    let (good, passed_by) = checkpoint::last_good(output_dir)?;
    let resumed = good.as_ref().map_or(0, |checkpoint| checkpoint.step);
    let skipped = passed_by.iter().filter(|damaged| damaged.step > resumed);
    notes.extend(skipped.map(|damaged| format!("skipped {}", line(damaged))));
    if let Some(checkpoint) = good {
        notes.push(format!(
            "resuming from {} (to start over: `overwrite_output_dir: true` or another `output_dir`)",
            checkpoint.path.display()
        ));
        return Ok(Start::Resume(checkpoint));
    }
    let folder = output_dir.to_path_buf();
    if !passed_by.is_empty() {
        let reasons =
            passed_by.iter().map(|damaged| format!("  {}", line(damaged))).collect::<Vec<_>>().join("\n");
        return Err(RunError::NoUsableCheckpoint { folder, reasons });
    }
    if is_required {
        return Err(RunError::NothingToResume { folder });
    }
    fresh(output_dir)
}

/// A start from the beginning, unless it would replace a finished model.
fn fresh(output_dir: &Path) -> Result<Start> {
    match FINAL_WEIGHTS.into_iter().find(|name| output_dir.join(name).is_file()) {
        Some(weights) => Err(RunError::FinishedModel { folder: output_dir.to_path_buf(), weights }),
        None => Ok(Start::Fresh),
    }
}

/// Removes what an earlier run has left in the folder of one that starts from the beginning: neither an interrupted run
/// nor one that fails may be read together with an older one's end. Checkpoints are set aside, not removed.
pub(crate) fn remove_earlier_run(output_dir: &Path, model_files: &[&str]) -> Result<()> {
    let unreadable = |source| RunError::at(output_dir, "list the folder")(source);
    let (mut pictures, mut shards) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(output_dir).map_err(unreadable)? {
        let Ok(name) = entry.map_err(unreadable)?.file_name().into_string() else { continue };
        if is_picture(&name) {
            pictures.push(name);
        } else if is_shard(&name) {
            shards.push(name);
        }
    }
    // Of these only what this program writes; they are there only where `overwrite_output_dir` let the run begin.
    let is_ours = |name: &&str| !name.contains(".bin") && output_dir.join(name).is_file();
    let weights: Vec<&str> = FINAL_WEIGHTS.into_iter().filter(is_ours).collect();
    let mut names: Vec<&str> =
        FILES_OF_A_RUN.into_iter().chain(pictures.iter().map(String::as_str)).collect();
    if !weights.is_empty() {
        names.extend(BESIDE_WEIGHTS.iter().chain(model_files).copied());
        names.extend(shards.iter().map(String::as_str));
    }
    // Weights go last: who breaks this off leaves a folder that the next start clears all the same.
    for name in names.into_iter().chain(weights) {
        let path = output_dir.join(name);
        match disk::remove_file(&path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(RunError::at(&path, "remove the file of an earlier run")(error));
            }
            _ => {}
        }
    }
    let converted = output_dir.join(CONVERTED);
    // With a file of somebody's own in it, it stays.
    if fs::read_dir(&converted).is_ok_and(|mut entries| entries.next().is_none()) {
        disk::remove_dir_all(&converted)
            .map_err(RunError::at(&converted, "remove the folder of an earlier run"))?;
    }
    Ok(())
}

/// `training_loss.png`, `training_eval_NAME_accuracy.svg` and the like.
fn is_picture(name: &str) -> bool {
    let stem = name.strip_suffix(".png").or_else(|| name.strip_suffix(".svg"));
    let key = stem.and_then(|stem| stem.strip_prefix("training_"));
    key.is_some_and(|key| {
        key == "loss" || key.starts_with("eval_") && (key.ends_with("_loss") || key.ends_with("_accuracy"))
    })
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once("-of-"))
        .is_some_and(|(number, of)| is_number(number) && is_number(of))
}

fn explicit(path: &Path, notes: &mut Vec<String>) -> Result<Start> {
    let checkpoint = Checkpoint::open(path)?;
    if !checkpoint.resumable {
        return Err(RunError::BadCheckpoint {
            path: path.to_path_buf(),
            reason: "it holds only the weights (written with `save_only_model: true`)".into(),
            good: path.parent().map(checkpoint::complete_names).unwrap_or_default(),
        });
    }
    checkpoint.verify()?;
    notes.push(format!("resuming from {}", path.display()));
    Ok(Start::Resume(checkpoint))
}

/// Checkpoints after the starting step are not this run's: out of the way of rotation and of the next resume.
fn set_aside_later_checkpoints(output_dir: &Path, start: &Start, notes: &mut Vec<String>) -> Result<()> {
    let step_of_start = match start {
        Start::Fresh | Start::Beside => None,
        Start::Resume(checkpoint) => Some(checkpoint.step),
    };
    // A checkpoint of another folder says nothing about the ones here.
    let own = goes_on(start, output_dir);
    for path in checkpoint::with_suffix(output_dir, "")? {
        let step = checkpoint::step_of(&path, "").expect("with_suffix returns only names with a step");
        if own && Some(step) <= step_of_start {
            continue;
        }
        checkpoint::set_aside(&path)?;
        notes.push(format!(
            "set aside {} as {} (removed once this run has a checkpoint of its own)",
            path.display(),
            checkpoint::PREVIOUS
        ));
    }
    Ok(())
}

fn goes_on(start: &Start, folder: &Path) -> bool {
    let Start::Resume(checkpoint) = start else { return false };
    let parent = checkpoint.path.canonicalize().ok().and_then(|p| p.parent().map(Path::to_path_buf));
    parent.is_some() && parent == folder.canonicalize().ok()
}

fn line(damaged: &Damaged) -> String {
    format!("{}: {}", damaged.path.display(), damaged.reason)
}

#[cfg(test)]
mod tests;
