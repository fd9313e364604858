//! Files that are whole or absent: written beside, synced, renamed over the old one.
//!
//! In: bytes → out: a file that a reader, a kill or a power cut sees either as it was before or as it is after.
//! Used for everything a run leaves behind except the append-only logs (stage 14).

use crate::disk::{self, DiskFile};
use crate::error::{Result, RunError};
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file under construction: [`Write`] to it, then [`commit`](AtomicFile::commit).
///
/// The bytes go to a hidden neighbour (`.NAME.partial`); dropped without `commit`, the neighbour is removed and the
/// file at `path` stays as it was. One writer a path at a time: the run's lock sees to that.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    neighbour: PathBuf,
    file: Option<BufWriter<DiskFile>>,
}

impl AtomicFile {
    /// Opens the neighbour of `path` for writing; the folder must exist.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let neighbour = path.with_file_name(format!(".{name}.partial"));
        let file = DiskFile::create(&neighbour).map_err(RunError::at(&path, "create the file"))?;
        Ok(Self { path, neighbour, file: Some(BufWriter::new(file)) })
    }

    /// Flushes, syncs and renames: after this the file at `path` is the new one, also after a power cut.
    ///
    /// # Errors
    /// Any I/O error, with the path; the old file is then untouched.
    pub fn commit(mut self) -> Result<()> {
        let writer = self.file.take().expect("the file is taken only here, and commit takes self by value");
        let file = writer.into_inner().map_err(|e| RunError::at(&self.path, "write")(e.into_error()))?;
        file.sync_all().map_err(RunError::at(&self.path, "sync to disk"))?;
        drop(file);
        disk::rename(&self.neighbour, &self.path)
            .map_err(RunError::at(&self.path, "put the new file in place"))?;
        sync_parent(&self.path)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the neighbour is gone and this does nothing; on the error path nobody can be told.
        let _ = disk::remove_file(&self.neighbour);
    }
}

/// Writes `bytes` to `path` as one atomic replacement.
///
/// # Errors
/// Any I/O error, with the path; the old file is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(RunError::at(path, "write"))?;
    file.commit()
}

/// Writes `value` to `path` as JSON indented by `indent` spaces with a final newline.
///
/// # Errors
/// As [`write()`].
pub fn write_json<T: Serialize>(path: &Path, value: &T, indent: usize) -> Result<()> {
    let spaces = " ".repeat(indent);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
    let mut text = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        .map_err(|e| RunError::at(path, "write")(e.into()))?;
    text.push(b'\n');
    write(path, &text)
}

/// Makes a finished rename in the folder of `path` survive a power cut (a no-op where folders cannot be synced).
///
/// # Errors
/// Any I/O error, with the folder.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Syncs a folder's own entries (a no-op where folders cannot be synced).
///
/// # Errors
/// Any I/O error, with the folder.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    disk::sync_folder(folder).map_err(RunError::at(folder, "sync the folder to disk"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_appears_whole_and_leaves_no_neighbour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_abandoned_file_leaves_the_old_one_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("a.json");
        assert!(write(&path, b"x").unwrap_err().to_string().contains("a.json"));
    }
}
