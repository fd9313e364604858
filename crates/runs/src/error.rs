//! What can go wrong around a run's folder: every message names the path, what was attempted and what to do.
//!
//! In: an I/O error and where it happened → out: [`RunError`]. Used by every file of this crate (stage 14).

use std::io;
use std::path::{Path, PathBuf};

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, RunError>;

/// An error of the run's folder, its checkpoints, logs or pictures.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process holds the lock of the output folder.
    #[error(
        "{}: the output folder is in use by another run{holder}\n\
         help: wait for that run to end, stop it, or choose another `output_dir`", .folder.display()
    )]
    FolderInUse {
        /// The output folder.
        folder: PathBuf,
        /// ` (process 123)` when the lock file says who holds it, else empty.
        holder: String,
    },

    /// The folder holds the final weights of an earlier run, which one from the beginning would replace.
    #[error(
        "{}: the output folder already holds a trained model ({weights}), and this run would begin anew\n\
         help: choose another `output_dir`, or set `overwrite_output_dir: true` to replace it", .folder.display()
    )]
    FinishedModel {
        /// The output folder.
        folder: PathBuf,
        /// The weights file that was found.
        weights: &'static str,
    },

    /// There are checkpoints, and none of them can be resumed.
    #[error(
        "{}: none of the checkpoints can be resumed:\n{reasons}\n\
         help: set `overwrite_output_dir: true` to start over, or choose another `output_dir`", .folder.display()
    )]
    NoUsableCheckpoint {
        /// The output folder.
        folder: PathBuf,
        /// One line a checkpoint: its name and what is wrong with it.
        reasons: String,
    },

    /// `resume_from_checkpoint: true`, and there is nothing to resume.
    #[error(
        "{}: `resume_from_checkpoint` asks for the last checkpoint and there is none\n\
         help: remove `resume_from_checkpoint` to start from the beginning, or check `output_dir`", .folder.display()
    )]
    NothingToResume {
        /// The output folder.
        folder: PathBuf,
    },

    /// A checkpoint named by the user is missing, incomplete or damaged.
    #[error(
        "{}: not a checkpoint that can be resumed: {reason}\n\
         help: {}", .path.display(), good_ones(.good)
    )]
    BadCheckpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is missing or damaged.
        reason: String,
        /// Complete checkpoints beside it.
        good: Vec<String>,
    },

    /// The output folder's path is taken by something that is not a folder.
    #[error("{}: not a folder\nhelp: choose another folder, or move the file away", .path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },

    /// The operating system refuses to write here.
    #[error(
        "{}: cannot {action}: {source}\n\
         help: check the owner and the permissions of the folder and whether its file system is mounted read-only, \
         or choose another folder", .path.display()
    )]
    NotWritable {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },

    /// The disk or the quota is full.
    #[error(
        "{}: cannot {action}: no space left ({source})\n\
         help: free space on this file system or choose another folder; a training run keeps less with `save_total_limit`, \
         `save_only_model: true` or `save_strategy: no`; what was complete before is untouched", .path.display()
    )]
    DiskFull {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },

    /// A check before writing found too little room.
    #[error(
        "{}: at least {} are needed here and {} are free\n\
         help: free space on this file system or choose another folder; a training run keeps less with `save_total_limit`, \
         `save_only_model: true` or `save_strategy: no`", .path.display(), bytes(*.needed_bytes), bytes(*.free_bytes)
    )]
    NoRoom {
        /// The folder that was about to be filled.
        path: PathBuf,
        /// Bytes about to be written.
        needed_bytes: u64,
        /// Bytes free for this user.
        free_bytes: u64,
    },

    /// Any other I/O error.
    #[error("{}: cannot {action}: {source}\nhelp: check the path and the state of its file system", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },

    /// A file that this program wrote does not read back.
    #[error(
        "{}: not the file that a run writes: {reason}\n\
         help: the file was changed or damaged; resume from an earlier checkpoint", .path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },

    /// A picture could not be drawn.
    #[error("{}: cannot draw the picture: {reason}", .path.display())]
    Drawing {
        /// The picture's file.
        path: PathBuf,
        /// What the drawing library says.
        reason: String,
    },
}

impl RunError {
    /// For `map_err`: sorts an I/O error at `path` into full disk, not writable, or other. Public for those who write
    /// files of their own into a checkpoint; `action` completes "cannot …".
    pub fn at<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> RunError + 'a {
        move |source| {
            let path = path.to_path_buf();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    RunError::DiskFull { path, action, source }
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    RunError::NotWritable { path, action, source }
                }
                _ => RunError::Io { path, action, source },
            }
        }
    }
}

fn good_ones(good: &[String]) -> String {
    if good.is_empty() {
        "there is no complete checkpoint beside it; remove `resume_from_checkpoint` to start from the beginning. Weights of \
         another trainer are trained further by naming their folder in `model_name_or_path`, an adapter's in \
         `adapter_name_or_path`"
            .into()
    } else {
        format!("complete beside it: {}", good.join(", "))
    }
}

/// `1.5 GiB`, for messages.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_read_only_one() {
        let path = Path::new("out/x.json");
        let full = RunError::at(path, "write")(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, RunError::DiskFull { .. }), "{full}");
        let read_only = RunError::at(path, "write")(io::ErrorKind::ReadOnlyFilesystem.into());
        assert!(matches!(read_only, RunError::NotWritable { .. }), "{read_only}");
    }

    #[test]
    fn every_message_about_room_names_the_path_both_amounts_and_what_to_do() {
        let text =
            RunError::NoRoom { path: "out".into(), needed_bytes: 3 << 30, free_bytes: 512 }.to_string();
        assert!(text.starts_with("out: at least 3.0 GiB are needed here and 512 bytes are free"), "{text}");
        assert!(text.contains("help:"), "{text}");
    }
}
