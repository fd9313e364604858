//! ModelScope's hub: its tree of files; what is fetched lies in `datasets/OWNER/NAME` under its name.

use std::fs;
use std::path::PathBuf;

use super::download::{self, Fetch};
use super::{HubOptions, Snapshot, failed, is_safe};
use crate::error::DataError;

const REVISION: &str = "master";
/// Files of one answer.
const PAGE: usize = 200;
/// The list of files of the last fetch, for when nothing is fetched.
const LIST: &str = ".files.json";

pub(super) struct Repo<'a> {
    options: &'a HubOptions,
    repo: &'a str,
    folder: PathBuf,
    names: Vec<String>,
    /// What each of them holds.
    known: Vec<Content>,
}

/// Size and SHA-256 of a file, as far as the hub tells them.
type Content = (Option<u64>, Option<String>);

pub(super) fn open<'a>(options: &'a HubOptions, repo: &'a str) -> Result<Repo<'a>, DataError> {
    let folder = options.ms_cache.join("datasets").join(repo);
    if options.offline {
        let names = fs::read(folder.join(LIST)).ok().and_then(|list| serde_json::from_slice(&list).ok());
        let names: Vec<String> = names.ok_or_else(|| {
            let reason =
                format!("is not in `{}`, and nothing is fetched offline", options.ms_cache.display());
            failed(repo, reason, "unset HF_HUB_OFFLINE once, or set `cache_dir` to the folder that has it")
        })?;
        let known = vec![(None, None); names.len()];
        return Ok(Repo { options, repo, folder, names, known });
    }
    let mut files = Vec::new();
    for page in 1.. {
        let url = format!(
            "{}/api/v1/datasets/{repo}/repo/tree?Revision={REVISION}&Recursive=true&PageNumber={page}&PageSize={PAGE}",
            options.ms_endpoint
        );
        let answer = download::json(options, repo, &url, header(options))?;
        let found = answer["Data"]["Files"].as_array().cloned().unwrap_or_default();
        if found.is_empty() && page == 1 {
            let reason = answer["Message"].as_str().unwrap_or("the hub names no files").to_owned();
            return Err(failed(
                repo,
                format!("cannot be read: {reason}"),
                "check the name; a closed one needs `ms_hub_token`",
            ));
        }
        let is_last = found.len() < PAGE;
        files.extend(found);
        if is_last {
            break;
        }
    }
    let mut found: Vec<(String, Content)> = files
        .iter()
        .filter(|file| file["Type"] != "tree")
        .filter_map(|file| {
            let name = file["Path"].as_str().filter(|name| is_safe(name))?;
            let sha256 = file["Sha256"].as_str().filter(|sum| sum.len() == 64).map(str::to_owned);
            Some((name.to_owned(), (file["Size"].as_u64(), sha256)))
        })
        .collect();
    found.sort();
    let (names, known): (Vec<String>, Vec<_>) = found.into_iter().unzip();
    let list = serde_json::to_vec(&names).expect("names are texts");
    download::write(&folder.join(LIST), &list)?;
    Ok(Repo { options, repo, folder, names, known })
}

fn header(options: &HubOptions) -> Option<(&'static str, String)> {
    options.ms_token.as_ref().map(|token| ("cookie", format!("m_session_id={}", token.0)))
}

impl Snapshot for Repo<'_> {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn file(&self, name: &str) -> Result<PathBuf, DataError> {
        let path = self.folder.join(name);
        let known = self.names.iter().position(|other| other == name).map(|at| self.known[at].clone());
        let (size, sha256) = known.unwrap_or_default();
        // A file of another size is of another revision.
        let is_there = fs::metadata(&path).is_ok_and(|file| size.is_none_or(|size| file.len() == size));
        if is_there {
            return Ok(path);
        }
        if self.options.offline {
            let reason =
                format!("has `{name}`, which was not fetched before, and nothing is fetched offline");
            return Err(failed(self.repo, reason, "unset HF_HUB_OFFLINE once"));
        }
        let url = format!(
            "{}/api/v1/datasets/{}/repo?Revision={REVISION}&FilePath={}",
            self.options.ms_endpoint,
            self.repo,
            download::encoded(name)
        );
        let header = header(self.options);
        download::fetch(&Fetch {
            options: self.options,
            repo: self.repo,
            url: &url,
            header,
            size,
            sha256,
            to: &path,
        })?;
        Ok(path)
    }
}
