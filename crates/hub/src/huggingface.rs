//! Hugging Face's hub: its list of files, and the folder that `huggingface_hub` keeps.
//!
//! `models--owner--name/` (`datasets--…`) holds `refs/main` (a revision's commit), `blobs/` (contents, each under its etag)
//! and `snapshots/COMMIT/` (links to them under their names).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::download::{self, Client, Fetch};
use crate::error::HubError;
use crate::options::{HubOptions, Token};
use crate::repository::{Kind, Repository, Site, Snapshot, is_safe, names_in};
use crate::watch::{Event, tell};

const MAIN: &str = "main";
const ATTEMPTS: u32 = 5;

/// A repository at one commit.
#[derive(Debug)]
struct Repo {
    endpoint: String,
    token: Option<Token>,
    pause: std::time::Duration,
    kind: Kind,
    name: String,
    /// The repository's folder.
    home: PathBuf,
    commit: String,
    snapshot: PathBuf,
    names: Vec<String>,
    sizes: HashMap<String, u64>,
    /// Why nothing can be fetched, where that is so.
    closed: Closed,
}

#[derive(Debug)]
enum Closed {
    No,
    Offline,
    Unreachable(String),
}

/// The newest commit of a revision; where the hub cannot be asked, the one that was fetched last.
pub(crate) fn open(
    options: &HubOptions,
    repository: Repository<'_>,
) -> Result<impl Snapshot + use<>, HubError> {
    let revision = repository.revision.unwrap_or(MAIN);
    let folder = match repository.kind {
        Kind::Dataset => "datasets",
        Kind::Model => "models",
    };
    let home = options.hf_cache.join(format!("{folder}--{}", repository.name.replace('/', "--")));
    let kept = kept(&home, revision);
    let commit_is_kept = kept.as_deref() == Some(revision) && is_commit(revision);
    let repo = |commit: String, closed: Closed| {
        let snapshot = home.join("snapshots").join(&commit);
        let names = listed(&home, &commit).unwrap_or_else(|| names_in(&snapshot));
        Repo {
            endpoint: options.hf_endpoint.clone(),
            token: options.hf_token.clone(),
            pause: options.pause,
            kind: repository.kind,
            name: repository.name.to_owned(),
            home: home.clone(),
            commit,
            snapshot,
            names,
            sizes: HashMap::new(),
            closed,
        }
    };
    if options.offline {
        let commit = kept.ok_or_else(|| repository.not_kept(&options.hf_cache))?;
        return Ok(repo(commit, Closed::Offline));
    }
    // What is kept need not wait for a hub that does not answer.
    let attempts = match (&kept, repository.kind) {
        (Some(_), _) => 1,
        (None, Kind::Model) => 2,
        (None, Kind::Dataset) => ATTEMPTS,
    };
    let header = options.hf_token.as_ref().map(bearer);
    let client = Client { repository, header, attempts, pause: options.pause };
    let url = format!(
        "{}/api/{folder}/{}/revision/{}?blobs=true",
        options.hf_endpoint,
        repository.name,
        download::encoded(revision).replace('/', "%2F")
    );
    let info = match (client.json(&url), kept) {
        (Ok(info), _) => info,
        (Err(HubError::Failed { reason, .. }), Some(commit)) => {
            // A commit never changes: there is nothing to be told of one that is here.
            if !commit_is_kept {
                tell(&Event::Kept { repo: repository.name, reason: &reason });
            }
            return Ok(repo(commit, Closed::Unreachable(reason)));
        }
        (Err(error), _) => return Err(error),
    };
    let mut repo = repo(String::new(), Closed::No);
    repo.read(&info).ok_or_else(|| {
        repository
            .failed("is described by the hub in a way that is not understood".to_owned(), "try again later")
    })?;
    download::write(&list_of(&home, &repo.commit), repo.names.join("\n").as_bytes())?;
    if !is_commit(revision) {
        download::write(&home.join("refs").join(revision), repo.commit.as_bytes())?;
    }
    Ok(repo)
}

/// Where the names of all files of a commit are kept, so that a part of them is not taken for all when the hub cannot be
/// asked. What huggingface_hub fetched has no such list.
fn list_of(home: &Path, commit: &str) -> PathBuf {
    home.join(".sft").join(commit)
}

fn listed(home: &Path, commit: &str) -> Option<Vec<String>> {
    let names = fs::read_to_string(list_of(home, commit)).ok().filter(|_| is_safe(commit))?;
    Some(names.lines().filter(|name| is_safe(name)).map(str::to_owned).collect())
}

/// The commit that was fetched last for a revision.
fn kept(home: &Path, revision: &str) -> Option<String> {
    let is_there = |commit: &String| {
        is_safe(commit) && !commit.contains('/') && home.join("snapshots").join(commit).is_dir()
    };
    let named = fs::read_to_string(home.join("refs").join(revision)).ok();
    let named = named.map(|commit| commit.trim().to_owned());
    named
        .filter(is_there)
        .or_else(|| Some(revision.to_owned()).filter(|revision| is_commit(revision) && is_there(revision)))
}

/// Whether a revision is a whole commit hash, whose files never change.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn bearer(token: &Token) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", token.0))
}

impl Repo {
    /// Takes commit, names and sizes from the hub's answer.
    fn read(&mut self, info: &Value) -> Option<()> {
        self.commit = info["sha"].as_str().filter(|sha| is_safe(sha) && !sha.contains('/'))?.to_owned();
        self.snapshot = self.home.join("snapshots").join(&self.commit);
        self.names.clear();
        for file in info["siblings"].as_array()? {
            let Some(name) = file["rfilename"].as_str().filter(|name| is_safe(name)) else { continue };
            self.names.push(name.to_owned());
            if let Some(size) = file["size"].as_u64().or_else(|| file["lfs"]["size"].as_u64()) {
                self.sizes.insert(name.to_owned(), size);
            }
        }
        self.names.sort();
        Some(())
    }

    fn repository(&self) -> Repository<'_> {
        Repository {
            site: Site::HuggingFace,
            kind: self.kind,
            name: &self.name,
            revision: Some(&self.commit),
        }
    }
}

impl Snapshot for Repo {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn size(&self, name: &str) -> Option<u64> {
        self.sizes.get(name).copied()
    }

    fn folder(&self) -> &Path {
        &self.snapshot
    }

    fn file(&self, name: &str) -> Result<PathBuf, HubError> {
        let path = self.snapshot.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let repository = self.repository();
        match &self.closed {
            Closed::No => {}
            Closed::Offline => return Err(repository.file_not_kept(name, None)),
            Closed::Unreachable(why) => {
                return Err(repository.file_not_kept(name, Some(&format!("now it {why}"))));
            }
        }
        let datasets = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        let url = format!(
            "{}/{datasets}{}/resolve/{}/{}",
            self.endpoint,
            self.name,
            self.commit,
            download::encoded(name)
        );
        let header = self.token.as_ref().map(bearer);
        let client = Client { repository, header, attempts: ATTEMPTS, pause: self.pause };
        let known = client.head(&url)?;
        let etag = known.etag.filter(|etag| is_safe(etag) && !etag.contains('/'));
        let etag =
            etag.ok_or_else(|| repository.failed(format!("gives no etag for `{name}`"), "try again later"))?;
        let blob = self.home.join("blobs").join(&etag);
        if !blob.is_file() {
            // Large files have their SHA-256 for an etag; of small ones it is git's.
            let sha256 = (etag.len() == 64).then(|| etag.clone());
            client.fetch(&Fetch { name, url: &url, size: known.size, sha256, to: &blob })?;
        }
        link(&blob, &path)?;
        Ok(path)
    }
}

/// Makes `path` name what `blob` holds: a relative link, or a copy where there are none.
fn link(blob: &Path, path: &Path) -> Result<(), HubError> {
    let failed = |source| HubError::io(path, source, 0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    #[cfg(unix)]
    {
        // Up from the file's folder to the repository's, which has `snapshots` and `blobs`.
        let root = blob.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        let depth = folder.strip_prefix(root).map_or(0, |below| below.components().count());
        let up: PathBuf = std::iter::repeat_n("..", depth).collect();
        let target = up.join("blobs").join(blob.file_name().unwrap_or_default());
        match std::os::unix::fs::symlink(target, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {}
            _ => return Ok(()),
        }
    }
    fs::copy(blob, path).map(drop).map_err(failed)
}
