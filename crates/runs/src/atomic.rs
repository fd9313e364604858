//! Files that are whole or absent: written beside, synced, renamed over the old one.
//!
//! In: bytes → out: a file that a reader, a kill or a power cut sees either as it was before or as it is after.
//! Used for everything a run leaves behind except the append-only logs (stage 14).

use crate::disk;
use crate::error::{Result, RunError};
use serde::Serialize;
use std::path::Path;

/// Writes `bytes` to `path` as one atomic replacement.
///
/// # Errors
/// Any I/O error, with the path; the old file is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    disk::write(path, bytes).map_err(RunError::at(path, "write"))
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
    use std::io::Write;

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
        let half = |file: &mut std::io::BufWriter<disk::DiskFile>| {
            file.write_all(b"half")?;
            Err(std::io::ErrorKind::BrokenPipe.into())
        };
        assert!(disk::replace(&path, half).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_keeps_its_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("a.json");
        assert!(write(&path, b"x").unwrap_err().to_string().contains("a.json"));
    }
}
