//! What goes on while something is fetched, for whoever shows it.

use std::sync::OnceLock;
use std::time::Duration;

/// What goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// Bytes of a file have come.
    Fetching {
        /// The repository.
        repo: &'a str,
        /// The file's name there.
        file: &'a str,
        /// Bytes that are here.
        done: u64,
        /// Bytes of all of it, where the hub says so.
        size: Option<u64>,
    },
    /// A file is here, whole and checked.
    Fetched {
        /// The repository.
        repo: &'a str,
        /// The file's name there.
        file: &'a str,
        /// Its bytes.
        size: u64,
    },
    /// An attempt failed, and another will be made.
    Retrying {
        /// The repository.
        repo: &'a str,
        /// What happened.
        reason: &'a str,
        /// When.
        pause: Duration,
    },
    /// The hub did not answer as it should, and what was fetched before is used.
    Kept {
        /// The repository.
        repo: &'a str,
        /// What the hub said, or why it could not be reached.
        reason: &'a str,
    },
}

type Watcher = Box<dyn Fn(&Event<'_>) + Send + Sync>;

static WATCHER: OnceLock<Watcher> = OnceLock::new();

/// Tells `watcher` of everything that is fetched in this process from now on. The first one stays.
pub fn watch(watcher: impl Fn(&Event<'_>) + Send + Sync + 'static) {
    // A second watcher is not heard: one program shows one thing.
    let _ = WATCHER.set(Box::new(watcher));
}

pub(crate) fn tell(event: &Event<'_>) {
    if let Some(watcher) = WATCHER.get() {
        watcher(event);
    }
}
