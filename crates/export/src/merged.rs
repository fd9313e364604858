//! A decoder as a model folder of its own.
//!
//! In: a decoder without adapters (merged before), its base model's folder, a folder that is missing or empty. Out:
//! that folder, with everything that transformers loads. It is written as `<out>.partial`, synced, and renamed: a kill
//! or a full disk leaves nothing under the name that was asked for, and the next export clears the partial one away.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sft_data::template::saved::Told;
use sft_model::Decoder;
use sft_model::saving::{self, SaveOptions};
use sft_runs::{FolderLock, RunError, space};

use crate::ExportError;

/// Room beside the weights: tokenizer and JSON files, and what a file system takes for itself.
const OTHER_FILES_BYTES: u64 = 64 << 20;

/// What an export has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Names of all files.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes a decoder as a Hugging Face model folder; `source` is its base model's folder. `told` changes the
/// files that say how the model is talked to ([`sft_data::template::saved`]).
///
/// # Errors
/// An adapter that is not merged; an `out` that is the base model's folder or not empty; too little room on the disk;
/// what the file system says. Nothing remains of a folder that could not be finished.
pub fn merged(
    decoder: &Decoder,
    source: &Path,
    out: &Path,
    options: SaveOptions,
    told: Option<&Told>,
) -> Result<Exported, ExportError> {
    if !decoder.adapters().is_empty() {
        return Err(ExportError::NotMerged);
    }
    require_free_name(source, out)?;
    space::require_room(out, options.weight_bytes(decoder) + OTHER_FILES_BYTES)?;
    let partial = with_suffix(out, ".partial");
    let lock = FolderLock::acquire(&partial)?;
    let written = write(decoder, source, &partial, options, told);
    drop(lock);
    let moved = written.and_then(|exported| move_to(&partial, out).map(|()| exported));
    moved.inspect_err(|_| _ = fs::remove_dir_all(&partial))
}

fn write(
    decoder: &Decoder,
    source: &Path,
    partial: &Path,
    options: SaveOptions,
    told: Option<&Told>,
) -> Result<Exported, ExportError> {
    let at = |action| RunError::at(partial, action);
    // What a killed export left behind, the lock apart.
    for entry in fs::read_dir(partial).map_err(at("list the folder"))? {
        let path = entry.map_err(at("list the folder"))?.path();
        if !is_lock(&path) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at("clear what an earlier export left"))?;
        }
    }
    let mut files = saving::save(decoder, source, partial, options)?;
    if let Some(told) = told {
        for name in saving::copy_model_files(told.tokenizer_folder(), partial)? {
            if !files.contains(&name) {
                files.push(name);
            }
        }
    }
    for (name, text) in told.map_or(Ok(Vec::new()), |told| told.files(partial))? {
        fs::write(partial.join(name), text).map_err(at("write a tokenizer file"))?;
        if !files.iter().any(|file| file == name) {
            files.push(name.to_owned());
        }
    }
    let mut bytes = 0;
    for name in &files {
        let path = partial.join(name);
        let sync = || -> io::Result<u64> {
            // Opened for writing, which some systems need for a sync; nothing is changed.
            let file = File::options().append(true).open(&path)?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        bytes += sync().map_err(RunError::at(&path, "sync to disk"))?;
    }
    Ok(Exported { files, bytes })
}

/// The last step: one rename.
fn move_to(partial: &Path, out: &Path) -> Result<(), ExportError> {
    let put = || -> io::Result<()> {
        for entry in fs::read_dir(partial)? {
            let path = entry?.path();
            if is_lock(&path) {
                fs::remove_file(path)?;
            }
        }
        if out.is_dir() {
            fs::remove_dir(out)?;
        }
        fs::rename(partial, out)
    };
    Ok(put().map_err(RunError::at(out, "put the finished folder in place"))?)
}

/// Refuses a folder that holds something.
fn require_free_name(source: &Path, out: &Path) -> Result<(), ExportError> {
    let folder = out.to_owned();
    if let (Ok(source), Ok(out)) = (source.canonicalize(), out.canonicalize())
        && source == out
    {
        return Err(ExportError::OverBase { folder });
    }
    if out.exists() && !out.is_dir() {
        return Err(RunError::NotAFolder { path: folder }.into());
    }
    let Ok(mut entries) = fs::read_dir(out) else { return Ok(()) };
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let found = entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
            Err(ExportError::NotEmpty { folder, found: found.unwrap_or_default() })
        }
    }
}

fn is_lock(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == ".sft.lock")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    // `out/` and `out` are the same folder.
    let mut name: OsString = path.components().as_path().as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
