//! Data files that change while a run reads or may read them again.
//!
//! In: the files of a run's data sets as it began → out: those whose size or time of change is another one now. Rows
//! that are kept were read once and do not change with them; a stream, and any resume, reads them anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The data files of a run as they were.
#[derive(Debug, Default)]
pub struct DataFiles {
    files: Vec<(PathBuf, Stamp)>,
    said: BTreeSet<PathBuf>,
}

/// Size and time of the last change; `None` where a file is gone.
type Stamp = Option<(u64, Option<SystemTime>)>;

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()))
}

impl DataFiles {
    /// The files as they are now.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let files = paths.into_iter().map(|path| (path.clone(), stamp(path))).collect();
        Self { files, said: BTreeSet::new() }
    }

    /// Those that have changed since then, each once.
    pub fn changed(&mut self) -> Vec<PathBuf> {
        let changed = |(path, was): &&(PathBuf, Stamp)| stamp(path) != *was && !self.said.contains(path);
        let changed: Vec<PathBuf> = self.files.iter().filter(changed).map(|(path, _)| path.clone()).collect();
        self.said.extend(changed.iter().cloned());
        changed
    }
}
