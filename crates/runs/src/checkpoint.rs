//! Checkpoint folders: complete or recognisably not.
//!
//! In: files that the training loop writes into a temporary folder → out: `checkpoint-N` with `manifest.json`
//! (name, size and SHA-256 of every file), which appears by one rename after everything is on the disk (stage 14).
//!
//! ```text
//! begin(run, 500) → checkpoint-500.partial/      the loop writes model, optimizer, cursor, … here
//! finish()        → hash, sync, manifest.json last, rename to checkpoint-500/
//! ```
//!
//! Names that are not checkpoints, and what happens to them when a run opens the folder:
//! `.partial` was being written and is removed (or completed, when only the rename was missing), `.removing` was being deleted and is removed,
//! `.previous` belongs to a run that is being overwritten and is removed once the new run has a checkpoint of its own.

use crate::atomic;
use crate::disk;
use crate::error::{Result, RunError};
use crate::folder::RunFolder;
use crate::manifest::{MANIFEST, Manifest};
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
const PARTIAL: &str = ".partial";
const REMOVING: &str = ".removing";
pub(crate) const PREVIOUS: &str = ".previous";

/// A complete checkpoint: its manifest is present and every file has the size that the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The optimizer step after which it was written.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Size of all its files.
    pub bytes: u64,
    /// False when only the weights were saved (`save_only_model`): usable, but not to be resumed.
    pub resumable: bool,
}

/// A `checkpoint-N` that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The step that its name says.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// What is missing or wrong.
    pub reason: String,
}

/// The checkpoints of a folder, each list by ascending step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Complete by names and sizes; [`Checkpoint::verify`] also compares the hashes.
    pub complete: Vec<Checkpoint>,
    /// Recognised as unusable.
    pub damaged: Vec<Damaged>,
    /// Folders of a write that did not finish.
    pub partial: Vec<PathBuf>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`, comparing names and sizes with its manifest.
    ///
    /// # Errors
    /// [`RunError::BadCheckpoint`] with what is missing and the complete checkpoints beside it.
    pub fn open(path: &Path) -> Result<Self> {
        read(path).map_err(|reason| bad(path, reason))
    }

    /// Reads every file and compares its SHA-256 with the manifest.
    ///
    /// # Errors
    /// [`RunError::BadCheckpoint`] naming the first file that differs.
    pub fn verify(&self) -> Result<()> {
        self.damage().map_or(Ok(()), |reason| Err(bad(&self.path, reason)))
    }

    /// What is wrong with the content, if anything.
    fn damage(&self) -> Option<String> {
        match Manifest::read(&self.path) {
            Ok(manifest) => manifest.differing_content(&self.path),
            Err(reason) => Some(reason),
        }
    }

    /// `checkpoint-500`.
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.step)
    }
}

/// A checkpoint being written. Dropped without [`finish`](CheckpointWriter::finish), nothing of it remains.
#[derive(Debug)]
pub struct CheckpointWriter<'run> {
    run: &'run RunFolder,
    step: u64,
    partial: PathBuf,
    resumable: bool,
}

impl<'run> CheckpointWriter<'run> {
    /// Makes the empty folder `checkpoint-<step>.partial`; leftovers of earlier writes are removed first.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn begin(run: &'run RunFolder, step: u64) -> Result<Self> {
        for leftover in with_suffix(run.path(), PARTIAL)? {
            remove(&leftover)?;
        }
        let partial = run.path().join(format!("{PREFIX}{step}{PARTIAL}"));
        disk::create_dir(&partial).map_err(RunError::at(&partial, "create the folder"))?;
        Ok(Self { run, step, partial, resumable: true })
    }

    /// The folder to write files into (subfolders are allowed).
    pub fn folder(&self) -> &Path {
        &self.partial
    }

    /// The step of this checkpoint.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Where the checkpoint will be once finished.
    pub fn final_path(&self) -> PathBuf {
        self.run.path().join(format!("{PREFIX}{}", self.step))
    }

    /// Marks the checkpoint as holding only weights (`save_only_model: true`): it is kept, rotated and loadable as a
    /// model, and automatic resume passes it by.
    pub fn set_model_only(&mut self) {
        self.resumable = false;
    }

    /// Hashes and syncs every file, writes the manifest last, renames the folder to `checkpoint-<step>`.
    ///
    /// A checkpoint already there under that name is replaced. The first checkpoint that a run finishes also removes
    /// what the run has set aside as overwritten.
    ///
    /// # Errors
    /// Any I/O error, with the path; the temporary folder is then removed and older checkpoints are untouched.
    pub fn finish(self) -> Result<Checkpoint> {
        let manifest = Manifest::write(&self.partial, self.step, self.resumable)?;
        let path = self.final_path();
        let replaced = path.exists().then(|| move_out_of_the_way(&path)).transpose()?;
        disk::rename(&self.partial, &path).map_err(RunError::at(&path, "put the checkpoint in place"))?;
        atomic::sync_folder(self.run.path())?;
        if let Some(replaced) = replaced {
            remove(&replaced)?;
        }
        self.run.checkpoint_written(self.step)?;
        Ok(Checkpoint { step: self.step, path, bytes: manifest.bytes(), resumable: self.resumable })
    }
}

impl Drop for CheckpointWriter<'_> {
    fn drop(&mut self) {
        // After `finish` the folder has another name and this does nothing; on the error path nobody can be told.
        let _ = disk::remove_dir_all(&self.partial);
    }
}

/// All checkpoints in `output_dir`: complete ones, damaged ones with the reason, unfinished ones.
///
/// # Errors
/// The folder cannot be read.
pub fn list(output_dir: &Path) -> Result<Listing> {
    let mut listing = Listing { partial: with_suffix(output_dir, PARTIAL)?, ..Listing::default() };
    for path in folders(output_dir)? {
        let Some(step) = step_of(&path, "") else {
            continue;
        };
        match read(&path) {
            Ok(checkpoint) => listing.complete.push(checkpoint),
            Err(reason) => listing.damaged.push(Damaged { step, path, reason }),
        }
    }
    listing.complete.sort_by_key(|checkpoint| checkpoint.step);
    listing.damaged.sort_by_key(|damaged| damaged.step);
    Ok(listing)
}

/// The newest checkpoint that can be resumed and whose hashes are right, and every newer or older one that is passed
/// by with the reason.
///
/// # Errors
/// The folder cannot be read.
pub fn last_good(output_dir: &Path) -> Result<(Option<Checkpoint>, Vec<Damaged>)> {
    let listing = list(output_dir)?;
    let mut passed_by = listing.damaged;
    for checkpoint in listing.complete.into_iter().rev() {
        let reason = if checkpoint.resumable {
            checkpoint.damage()
        } else {
            Some("it holds only the weights (written with `save_only_model: true`)".to_owned())
        };
        match reason {
            None => return Ok((Some(checkpoint), passed_by)),
            Some(reason) => passed_by.push(Damaged { step: checkpoint.step, path: checkpoint.path, reason }),
        }
    }
    passed_by.sort_by_key(|damaged| damaged.step);
    Ok((None, passed_by))
}

/// Deletes the oldest complete checkpoints beyond `save_total_limit`; returns the steps deleted.
///
/// Always kept: the newest one whose content is right, and `best` (`load_best_model_at_end`), which counts towards the
/// limit; with a limit of 1 and a best one that is not the newest, two remain, as in transformers. Damaged ones are
/// neither counted nor touched.
///
/// # Errors
/// Any I/O error, with the path.
pub fn rotate(run: &RunFolder, save_total_limit: Option<usize>, best: Option<u64>) -> Result<Vec<u64>> {
    let Some(limit) = save_total_limit.filter(|&limit| limit > 0) else {
        return Ok(Vec::new());
    };
    let mut complete = list(run.path())?.complete;
    if complete.len() <= limit {
        return Ok(Vec::new());
    }
    let newest_good = complete
        .iter()
        .rev()
        .find(|checkpoint| run.wrote(checkpoint.step) || checkpoint.damage().is_none())
        .map(|checkpoint| checkpoint.step);
    let is_protected = |step: u64| Some(step) == newest_good || Some(step) == best;
    let protected = complete.iter().filter(|checkpoint| is_protected(checkpoint.step)).count();
    let mut room = limit.saturating_sub(protected);
    let mut deleted = Vec::new();
    complete.reverse();
    for checkpoint in complete {
        if is_protected(checkpoint.step) {
            continue;
        }
        if room > 0 {
            room -= 1;
            continue;
        }
        remove(&checkpoint.path)?;
        deleted.push(checkpoint.step);
    }
    deleted.reverse();
    Ok(deleted)
}

/// The names of the complete checkpoints in `output_dir`, for messages.
pub(crate) fn complete_names(output_dir: &Path) -> Vec<String> {
    list(output_dir).map(|l| l.complete.iter().map(Checkpoint::name).collect()).unwrap_or_default()
}

/// The step in a folder name `checkpoint-<step><suffix>`.
pub(crate) fn step_of(path: &Path, suffix: &str) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(suffix)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The folders `checkpoint-<step><suffix>` in `output_dir`.
pub(crate) fn with_suffix(output_dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    Ok(folders(output_dir)?.into_iter().filter(|path| step_of(path, suffix).is_some()).collect())
}

/// Renames `checkpoint-N` out of the way, replacing one of the same name that was set aside before.
pub(crate) fn set_aside(path: &Path) -> Result<()> {
    let aside = with_ending(path, PREVIOUS);
    if aside.exists() {
        remove(&aside)?;
    }
    disk::rename(path, &aside).map_err(RunError::at(path, "set the checkpoint aside"))
}

/// Whether the folder has a manifest of ours, complete or not: only such folders are ever deleted.
pub(crate) fn is_ours(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Deletes a folder so that a kill in between leaves a `.removing` one, never half a checkpoint.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let is_checkpoint = step_of(path, "").is_some();
    let doomed = if is_checkpoint { move_out_of_the_way(path)? } else { path.to_path_buf() };
    disk::remove_dir_all(&doomed).map_err(RunError::at(path, "remove the folder"))
}

/// Renames `checkpoint-N` to `checkpoint-N.removing`.
fn move_out_of_the_way(path: &Path) -> Result<PathBuf> {
    let doomed = with_ending(path, REMOVING);
    if doomed.exists() {
        disk::remove_dir_all(&doomed).map_err(RunError::at(&doomed, "remove the folder"))?;
    }
    disk::rename(path, &doomed).map_err(RunError::at(path, "rename the folder"))?;
    Ok(doomed)
}

fn with_ending(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Clears what a killed process was writing or deleting. A write that only lacked its last rename is completed.
pub(crate) fn clear_leftovers(output_dir: &Path) -> Result<()> {
    for partial in with_suffix(output_dir, PARTIAL)? {
        let step = step_of(&partial, PARTIAL).expect("with_suffix returns only names with a step");
        let path = output_dir.join(format!("{PREFIX}{step}"));
        let is_whole =
            read(&partial).is_ok_and(|checkpoint| checkpoint.step == step && checkpoint.damage().is_none());
        if is_whole && !path.exists() {
            disk::rename(&partial, &path).map_err(RunError::at(&path, "put the checkpoint in place"))?;
        } else {
            remove(&partial)?;
        }
    }
    for leftover in with_suffix(output_dir, REMOVING)? {
        remove(&leftover)?;
    }
    Ok(())
}

fn folders(output_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(output_dir).map_err(RunError::at(output_dir, "read the folder"))? {
        let path = entry.map_err(RunError::at(output_dir, "read the folder"))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Manifest and sizes; the error is the reason in words.
fn read(path: &Path) -> std::result::Result<Checkpoint, String> {
    let manifest = Manifest::read(path)?;
    match manifest.differing_size(path) {
        Some(reason) => Err(reason),
        None => Ok(Checkpoint {
            step: manifest.step,
            path: path.to_path_buf(),
            bytes: manifest.bytes(),
            resumable: manifest.resumable,
        }),
    }
}

fn bad(path: &Path, reason: String) -> RunError {
    let good = path.parent().map(complete_names).unwrap_or_default();
    RunError::BadCheckpoint { path: path.to_path_buf(), reason, good }
}

#[cfg(test)]
mod tests;
