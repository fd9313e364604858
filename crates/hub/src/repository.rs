//! A repository of a hub, and its files at one revision.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::HubError;
use crate::options::HubOptions;
use crate::{huggingface, modelscope};

/// Which hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Hugging Face's.
    HuggingFace,
    /// ModelScope's.
    ModelScope,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows.
    Dataset,
    /// A model or an adapter.
    Model,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dataset => "data set",
            Self::Model => "model",
        })
    }
}

/// A repository of a hub.
#[derive(Debug, Clone, Copy)]
pub struct Repository<'a> {
    /// Which hub.
    pub site: Site,
    /// What it holds.
    pub kind: Kind,
    /// `owner/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit; null is the hub's main branch.
    pub revision: Option<&'a str>,
}

impl Repository<'_> {
    pub(crate) fn failed(&self, reason: String, help: &str) -> HubError {
        HubError::Failed { kind: self.kind, repo: self.name.to_owned(), reason, help: help.to_owned() }
    }

    /// The error of a repository that is not kept here while nothing is fetched.
    pub(crate) fn not_kept(&self, cache: &Path) -> HubError {
        let reason = format!("is not in `{}`, and nothing is fetched offline", cache.display());
        self.failed(reason, "unset HF_HUB_OFFLINE once, or set `cache_dir` to the folder that has it")
    }

    /// The error of a file that is not kept here, while nothing is fetched for `why` (null: offline).
    pub(crate) fn file_not_kept(&self, file: &str, why: Option<&str>) -> HubError {
        let (why, help) = match why {
            None => ("nothing is fetched offline", "unset HF_HUB_OFFLINE once"),
            Some(why) => (why, "check the connection and HF_ENDPOINT, then start again"),
        };
        self.failed(format!("has `{file}`, which was not fetched before, and {why}"), help)
    }
}

/// The files of a repository at one revision.
pub trait Snapshot: fmt::Debug + Send {
    /// Their names, sorted, folders with `/`; of what cannot be asked for, those that it had, or where nobody wrote them
    /// down, the files that are there.
    fn names(&self) -> &[String];
    /// Bytes of a file, where the hub tells them.
    fn size(&self, name: &str) -> Option<u64>;
    /// The folder that has them under their names.
    fn folder(&self) -> &Path;
    /// The local file of a name, fetched if it is not there yet.
    ///
    /// # Errors
    /// A connection that fails, a file that is not there, a full disk.
    fn file(&self, name: &str) -> Result<PathBuf, HubError>;
}

/// The newest state of a revision. If the hub cannot be asked, the one that was fetched last.
///
/// # Errors
/// A name that is none; a repository that is not there or closed, a connection that fails, where nothing is kept.
pub fn open(options: &HubOptions, repository: Repository<'_>) -> Result<Box<dyn Snapshot>, HubError> {
    if repository.name.split('/').count() > 2 || !is_safe(repository.name) {
        let reason = format!("is no name of a {}", repository.kind);
        return Err(repository.failed(reason, "it is `owner/name`"));
    }
    if let Some(revision) = repository.revision.filter(|revision| !is_safe(revision)) {
        return Err(repository
            .failed(format!("cannot have a revision `{revision}`"), "name a branch, a tag or a commit"));
    }
    Ok(match repository.site {
        Site::HuggingFace => Box::new(huggingface::open(options, repository)?),
        Site::ModelScope => Box::new(modelscope::open(options, repository)?),
    })
}

/// Whether a name from a hub stays inside of the folder that it is put into.
pub fn is_safe(name: &str) -> bool {
    let parts = || name.split('/');
    !name.is_empty()
        && !name.contains(['\\', '\0', ':', '?', '#'])
        && parts().all(|part| !matches!(part, "" | "." | ".."))
}

/// The files below a folder, as names with `/`, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    names_below(folder, folder, &mut names);
    names.sort();
    names
}

fn names_below(folder: &Path, root: &Path, names: &mut Vec<String>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            names_below(&path, root, names);
        } else if path.is_file() && path.extension().is_none_or(|end| end != "incomplete") {
            names.extend(path.strip_prefix(root).ok().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
}
