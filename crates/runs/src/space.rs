//! Room on the disk, asked before a checkpoint is begun.
//!
//! In: a path and the bytes about to be written → out: free bytes, or an error that names both (stage 14).

use crate::error::{Result, RunError};
use std::path::Path;

/// Bytes that this user may still write on the file system of `path` (of its nearest existing parent).
///
/// # Errors
/// The file system does not answer.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let here = Path::new(".");
    let existing = path
        .ancestors()
        .map(|p| if p.as_os_str().is_empty() { here } else { p })
        .find(|p| p.exists())
        .unwrap_or(here);
    fs4::available_space(existing).map_err(RunError::at(path, "ask for the free space"))
}

/// Errors with [`RunError::NoRoom`] when fewer than `needed_bytes` are free at `path`.
///
/// # Errors
/// Too little room, or the file system does not answer.
pub fn require_room(path: &Path, needed_bytes: u64) -> Result<()> {
    let free_bytes = free_bytes(path)?;
    if free_bytes < needed_bytes {
        return Err(RunError::NoRoom { path: path.to_path_buf(), needed_bytes, free_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_yet_to_be_made_has_the_room_of_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
    }

    #[test]
    fn asking_for_more_than_any_disk_has_is_refused_with_both_amounts() {
        let folder = tempfile::tempdir().unwrap();
        let error = require_room(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, RunError::NoRoom { needed_bytes: u64::MAX, free_bytes: 1.., .. }), "{error}");
    }
}
