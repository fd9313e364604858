//! Hugging Face's hub: its list of files, and the folder that `huggingface_hub` keeps.
//!
//! `datasets--owner--name/` holds `refs/main` (a revision's hash), `blobs/` (contents, each under its etag) and
//! `snapshots/HASH/` (links to them under their names).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::download::{self, Fetch};
use super::{HubOptions, Snapshot, failed, is_safe};
use crate::error::DataError;

const REVISION: &str = "main";

pub(super) struct Repo<'a> {
    options: &'a HubOptions,
    repo: &'a str,
    folder: PathBuf,
    revision: String,
    names: Vec<String>,
}

/// The newest revision of a data set; offline the one that was fetched last.
pub(super) fn open<'a>(options: &'a HubOptions, repo: &'a str) -> Result<Repo<'a>, DataError> {
    let folder = options.hf_cache.join(format!("datasets--{}", repo.replace('/', "--")));
    let reference = folder.join("refs").join(REVISION);
    if options.offline {
        let revision = fs::read_to_string(&reference).map_err(|_| {
            let reason =
                format!("is not in `{}`, and nothing is fetched offline", options.hf_cache.display());
            failed(repo, reason, "unset HF_HUB_OFFLINE once, or set `cache_dir` to the folder that has it")
        })?;
        let revision = revision.trim().to_owned();
        let mut names = Vec::new();
        let snapshot = folder.join("snapshots").join(&revision);
        names_below(&snapshot, &snapshot, &mut names);
        names.sort();
        return Ok(Repo { options, repo, folder, revision, names });
    }
    let url = format!("{}/api/datasets/{repo}/revision/{REVISION}", options.hf_endpoint);
    let info = download::json(options, repo, &url, options.hf_token.as_ref().map(bearer))?;
    let wrong = || {
        failed(repo, "is described by the hub in a way that is not understood".to_owned(), "try again later")
    };
    let revision =
        info["sha"].as_str().filter(|sha| is_safe(sha) && !sha.contains('/')).ok_or_else(wrong)?.to_owned();
    let files = info["siblings"].as_array().ok_or_else(wrong)?;
    let name = |file: &Value| file["rfilename"].as_str().filter(|name| is_safe(name)).map(str::to_owned);
    let mut names: Vec<String> = files.iter().filter_map(name).collect();
    names.sort();
    download::write(&reference, revision.as_bytes())?;
    Ok(Repo { options, repo, folder, revision, names })
}

fn bearer(token: &super::Token) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", token.0))
}

fn names_below(folder: &Path, root: &Path, names: &mut Vec<String>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => names_below(&path, root, names),
            false => {
                names.extend(path.strip_prefix(root).ok().and_then(|name| name.to_str()).map(str::to_owned))
            }
        }
    }
}

impl Snapshot for Repo<'_> {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn file(&self, name: &str) -> Result<PathBuf, DataError> {
        let path = self.folder.join("snapshots").join(&self.revision).join(name);
        if path.is_file() {
            return Ok(path);
        }
        if self.options.offline {
            let reason =
                format!("has `{name}`, which was not fetched before, and nothing is fetched offline");
            return Err(failed(self.repo, reason, "unset HF_HUB_OFFLINE once"));
        }
        let url = format!(
            "{}/datasets/{}/resolve/{}/{}",
            self.options.hf_endpoint,
            self.repo,
            self.revision,
            download::encoded(name)
        );
        let header = self.options.hf_token.as_ref().map(bearer);
        let known = download::head(self.options, self.repo, &url, header.clone())?;
        let etag = known.etag.filter(|etag| is_safe(etag) && !etag.contains('/'));
        let blob = match etag {
            Some(etag) => self.folder.join("blobs").join(etag),
            None => return Err(failed(self.repo, format!("gives no etag for `{name}`"), "try again later")),
        };
        if !blob.is_file() {
            let digest = blob.file_name().and_then(|etag| etag.to_str()).unwrap_or_default();
            // Large files have their SHA-256 for an etag; of small ones it is git's.
            let sha256 = (digest.len() == 64).then(|| digest.to_owned());
            download::fetch(&Fetch {
                options: self.options,
                repo: self.repo,
                url: &url,
                header,
                size: known.size,
                sha256,
                to: &blob,
            })?;
        }
        link(&blob, &path)?;
        Ok(path)
    }
}

/// Makes `path` name what `blob` holds: a relative link, or a copy where there are none.
fn link(blob: &Path, path: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::Io { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    #[cfg(unix)]
    {
        // Up from the file's folder to the data set's, which has `snapshots` and `blobs`.
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
