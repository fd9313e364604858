//! `manifest.json`: what a complete checkpoint consists of.
//!
//! In: a folder of files → out: their names, sizes and SHA-256, written last; and back: the manifest of a folder, and
//! what differs from it in words (stage 14). Hashes are those that `sha256sum` prints.

use crate::atomic;
use crate::checkpoint::step_of;
use crate::disk;
use crate::error::{Result, RunError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

/// The file that makes a checkpoint complete.
pub const MANIFEST: &str = "manifest.json";

/// The layout that this program writes and reads.
const LAYOUT: u32 = 1;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// The optimizer step of the checkpoint.
    pub step: u64,
    /// False when only the weights were saved (`save_only_model`).
    pub resumable: bool,
    /// Every file of the folder, sorted by name.
    files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestFile {
    /// Path relative to the checkpoint, with `/`.
    name: String,
    bytes: u64,
    /// Lower-case hexadecimal.
    sha256: String,
}

impl Manifest {
    /// Syncs every file and folder in `folder` to the disk and writes their manifest.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn write(folder: &Path, step: u64, resumable: bool) -> Result<Self> {
        let mut names = Vec::new();
        collect_and_sync(folder, folder, &mut names)?;
        names.retain(|name| name != MANIFEST);
        names.sort();
        let describe = |name: String| {
            let path = folder.join(&name);
            let bytes = fs::metadata(&path).map_err(RunError::at(&path, "read the size"))?.len();
            let sha256 = sha256(&path).map_err(RunError::at(&path, "read back"))?;
            Ok(ManifestFile { name, bytes, sha256 })
        };
        let files = names.into_iter().map(describe).collect::<Result<_>>()?;
        let manifest = Self { version: LAYOUT, step, resumable, files };
        atomic::write_json(&folder.join(MANIFEST), &manifest, 2)?;
        Ok(manifest)
    }

    /// Reads the manifest of `folder`; the error is the reason in words.
    pub fn read(folder: &Path) -> std::result::Result<Self, String> {
        if !folder.is_dir() {
            return Err("there is no such folder".into());
        }
        let text = fs::read(folder.join(MANIFEST)).map_err(|_| {
            format!("it has no readable {MANIFEST}: it was not finished, or another program wrote it")
        })?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|e| format!("{MANIFEST} is damaged: {e}"))?;
        if manifest.version != LAYOUT {
            let found = manifest.version;
            return Err(format!("{MANIFEST} has layout {found}, this program reads layout {LAYOUT}"));
        }
        if let Some(step) = step_of(folder, "").filter(|&step| step != manifest.step) {
            return Err(format!("{MANIFEST} says step {}, the folder's name says {step}", manifest.step));
        }
        match manifest.files.iter().find(|file| !is_inside(&file.name)) {
            Some(file) => Err(format!("{MANIFEST} names a file outside the checkpoint: {:?}", file.name)),
            None => Ok(manifest),
        }
    }

    /// The first file of `folder` that is missing or has another size.
    pub fn differing_size(&self, folder: &Path) -> Option<String> {
        self.files.iter().find_map(|file| match fs::metadata(folder.join(&file.name)) {
            Ok(found) if found.len() == file.bytes => None,
            Ok(found) => Some(format!("{} has {} bytes instead of {}", file.name, found.len(), file.bytes)),
            Err(_) => Some(format!("{} is missing", file.name)),
        })
    }

    /// The first file of `folder` whose content is another one.
    pub fn differing_content(&self, folder: &Path) -> Option<String> {
        self.files.iter().find_map(|file| match sha256(&folder.join(&file.name)) {
            Ok(found) if found == file.sha256 => None,
            Ok(_) => {
                Some(format!("{} does not have the content that was written (SHA-256 differs)", file.name))
            }
            Err(error) => Some(format!("{} cannot be read: {error}", file.name)),
        })
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A name from a manifest is as untrusted as the folder it lies in.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn collect_and_sync(root: &Path, folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(RunError::at(folder, "read the folder"))? {
        let path = entry.map_err(RunError::at(folder, "read the folder"))?.path();
        if path.is_dir() {
            collect_and_sync(root, &path, names)?;
            continue;
        }
        disk::sync_file(&path).map_err(RunError::at(&path, "sync to disk"))?;
        let relative = path.strip_prefix(root).expect("read_dir yields paths below the folder it was given");
        let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
        names.push(parts.join("/"));
    }
    atomic::sync_folder(folder)
}

pub(crate) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
