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
use crate::error::{Result, RunError};
use crate::lock::FolderLock;
use crate::space;
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
    /// `false`: start from the beginning.
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
        ResumeFrom::Never => return Ok(Start::Fresh),
        ResumeFrom::Automatic if overwrite_output_dir => return Ok(Start::Fresh),
        ResumeFrom::Path(path) => return explicit(path, notes),
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
    match FINAL_WEIGHTS.into_iter().find(|name| output_dir.join(name).is_file()) {
        Some(weights) => Err(RunError::FinishedModel { folder, weights }),
        None => Ok(Start::Fresh),
    }
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
