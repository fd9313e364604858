//! Room on the disk, asked before anything large is fetched.

use std::io;
use std::path::Path;

use crate::error::HubError;

/// Bytes that this user may still write on the file system of `path` (of its nearest folder that is there).
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let here = Path::new(".");
    let folders = path.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    fs4::available_space(folders.chain([here]).find(|folder| folder.exists()).unwrap_or(here))
}

/// Refuses to fetch what does not fit. A file system that does not answer is taken to have room.
pub(crate) fn require(path: &Path, needed: u64) -> Result<(), HubError> {
    match free_bytes(path) {
        Ok(free) if free < needed => Err(HubError::NoRoom { path: path.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_has_room_for_is_refused_with_both_amounts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/there/yet");
        require(&path, 1).unwrap();
        let message = require(&path, u64::MAX).unwrap_err().to_string();
        assert!(
            message.contains("18446744073.71 GB are to be fetched") && message.contains("\nhelp: make room")
        );
    }
}
