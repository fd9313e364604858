//! Why something of a hub is not at hand, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::repository::Kind;

/// Why a repository or a file of it could not be had; messages end in a `help:` line.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A repository that is not there, closed, or cannot be fetched.
    #[error("{kind} `{repo}` {reason}\nhelp: {help}")]
    Failed {
        /// What it is.
        kind: Kind,
        /// Its name on the hub.
        repo: String,
        /// What happened.
        reason: String,
        /// What to do.
        help: String,
    },

    /// The operating system refused to read or write a file.
    #[error("{}: cannot be read or written: {source}\nhelp: check the permissions of the folder, or set `cache_dir` to another", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// A disk without room for what is to be fetched.
    #[error(
        "{}: {} are to be fetched, and {} are free\nhelp: make room, or set `cache_dir` or HF_HOME to a folder on a larger disk; what was fetched is kept",
        path.display(), bytes(*needed), bytes(*free)
    )]
    NoRoom {
        /// Where it was to lie.
        path: PathBuf,
        /// Bytes still to be fetched.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl HubError {
    /// What the operating system said of a file; a full disk has an error of its own.
    pub(crate) fn io(path: &Path, source: io::Error, left: u64) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let free = crate::space::free_bytes(path).unwrap_or(0);
                Self::NoRoom { path: path.to_owned(), needed: left, free }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// A number of bytes as people read it.
fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
