//! The lock of an output folder: two programs never write into the same one.
//!
//! In: `output_dir` → out: a [`FolderLock`] that belongs to this process until it is dropped, or the news of who holds
//! it (stage 14). It is the operating system's file lock on `.sft.lock`: it ends with the process, however that ends.

use crate::error::{Result, RunError};
use crate::run_record;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

const LOCK: &str = ".sft.lock";

/// An output folder that belongs to this process until the value is dropped.
///
/// Training and evaluation hold it inside a [`RunFolder`](crate::RunFolder).
#[derive(Debug)]
pub struct FolderLock {
    // Closing the file releases the lock. `None`: the file system has no locks.
    file: Option<File>,
}

impl FolderLock {
    /// Makes `output_dir` when it is missing and locks it.
    ///
    /// # Errors
    /// [`RunError::FolderInUse`], [`RunError::NotAFolder`], [`RunError::NotWritable`] or another I/O error.
    pub fn acquire(output_dir: &Path) -> Result<Self> {
        let not_a_folder = || RunError::NotAFolder { path: output_dir.to_path_buf() };
        fs::create_dir_all(output_dir).map_err(|source| match source.kind() {
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => not_a_folder(),
            _ => RunError::at(output_dir, "create the folder")(source),
        })?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(output_dir.join(LOCK))
            .map_err(RunError::at(output_dir, "write into the folder"))?;
        let mut locked = file.try_lock();
        if matches!(locked, Err(TryLockError::WouldBlock)) {
            // `is_held` may be looking at this moment.
            std::thread::sleep(Duration::from_millis(50));
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunError::FolderInUse { folder: output_dir.to_path_buf(), holder: holder(file) });
            }
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                return Ok(Self { file: None });
            }
            Err(TryLockError::Error(error)) => {
                return Err(RunError::at(output_dir, "lock the folder")(error));
            }
        }
        let sign = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "process {} on {}", std::process::id(), run_record::host())
        };
        sign(&mut file).map_err(RunError::at(output_dir, "write into the folder"))?;
        Ok(Self { file: Some(file) })
    }

    /// False when the file system has no locks, so that nothing keeps a second program out.
    pub fn is_effective(&self) -> bool {
        self.file.is_some()
    }
}

/// Whether a process holds the lock of a folder. Nothing is made or changed there.
pub fn is_held(output_dir: &Path) -> bool {
    let Ok(file) = File::open(output_dir.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The process that holds the lock of a folder and the machine that it runs on, where it has said so.
pub fn holder_of(output_dir: &Path) -> Option<(u32, String)> {
    let text = is_held(output_dir).then(|| fs::read_to_string(output_dir.join(LOCK)).ok())??;
    let (process, host) = text.trim().strip_prefix("process ")?.split_once(" on ")?;
    Some((process.parse().ok()?, host.to_owned()))
}

/// ` (process 123 on host)`, or nothing: who holds the lock is a courtesy of the message.
fn holder(file: File) -> String {
    let mut text = String::new();
    match file.take(64).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!(" ({})", text.trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::acquire(folder.path()).unwrap();
        assert!(first.is_effective());
        let error = FolderLock::acquire(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {} on ", std::process::id())), "{error}");
        assert_eq!(holder_of(folder.path()), Some((std::process::id(), run_record::host())));
        drop(first);
        assert_eq!(holder_of(folder.path()), None);
        FolderLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out");
        fs::write(&file, "x").unwrap();
        for path in [file.clone(), file.join("run")] {
            let error = FolderLock::acquire(&path).unwrap_err();
            assert!(matches!(error, RunError::NotAFolder { .. }), "{error}");
        }
    }
}
