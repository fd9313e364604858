//! ModelScope's hub: its lists of files. What is fetched lies under its name in `datasets/OWNER/NAME`, or for models in
//! `models/OWNER--NAME/snapshots/REVISION`; models that its older library has fetched are found where that puts them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::download::{self, Client, Fetch, Header};
use crate::error::HubError;
use crate::options::HubOptions;
use crate::repository::{Kind, Repository, Site, Snapshot, is_safe, names_in};
use crate::watch::{Event, tell};

const MASTER: &str = "master";
/// Files of one answer.
const PAGE: usize = 200;
/// The list of files of the last fetch, for when nothing is fetched.
const LIST: &str = ".files.json";
/// Files up to here are compared by their check sum, larger ones by their size.
const SMALL: u64 = 16 << 20;
const ATTEMPTS: u32 = 5;

/// A repository at one revision.
#[derive(Debug)]
struct Repo {
    endpoint: String,
    header: Header,
    pause: Duration,
    kind: Kind,
    name: String,
    revision: String,
    folder: PathBuf,
    names: Vec<String>,
    /// What each of them holds.
    known: HashMap<String, Content>,
    /// Why nothing can be fetched: `Some(None)` offline, else what the hub said.
    closed: Option<Option<String>>,
}

/// Size and SHA-256 of a file, as far as the hub tells them.
type Content = (Option<u64>, Option<String>);

/// The newest state of a revision; where the hub cannot be asked, the one that was fetched last.
pub(crate) fn open(
    options: &HubOptions,
    repository: Repository<'_>,
) -> Result<impl Snapshot + use<>, HubError> {
    let revision = match repository.revision {
        None | Some("main") => MASTER,
        Some(revision) => revision,
    };
    let folder = folder(options, repository, revision);
    let mut repo = Repo {
        endpoint: options.ms_endpoint.clone(),
        header: options.ms_token.as_ref().map(|token| ("cookie", format!("m_session_id={}", token.0))),
        pause: options.pause,
        kind: repository.kind,
        name: repository.name.to_owned(),
        revision: revision.to_owned(),
        names: kept(repository.kind, &folder),
        folder,
        known: HashMap::new(),
        closed: None,
    };
    if options.offline {
        if repo.names.is_empty() {
            let cache = if repository.kind == Kind::Model { &options.ms_models } else { &options.ms_cache };
            return Err(repository.not_kept(cache));
        }
        repo.closed = Some(None);
        return Ok(repo);
    }
    let attempts = match (repo.names.is_empty(), repository.kind) {
        (false, _) => 1,
        (true, Kind::Model) => 2,
        (true, Kind::Dataset) => ATTEMPTS,
    };
    match repo.listed(attempts) {
        Ok(mut found) => {
            found.sort();
            repo.names = found.iter().map(|(name, _)| name.clone()).collect();
            repo.known = found.into_iter().collect();
            let list = serde_json::to_vec(&repo.names).expect("names are texts");
            download::write(&repo.folder.join(LIST), &list)?;
        }
        Err(HubError::Failed { reason, .. }) if !repo.names.is_empty() => {
            tell(&Event::Kept { repo: repository.name, reason: &reason });
            repo.closed = Some(Some(reason));
        }
        Err(error) => return Err(error),
    }
    Ok(repo)
}

fn folder(options: &HubOptions, repository: Repository<'_>, revision: &str) -> PathBuf {
    let name = repository.name;
    if repository.kind == Kind::Dataset {
        return options.ms_cache.join("datasets").join(name);
    }
    // The library wrote dots of a model's name as `___` before it had a folder for each revision.
    let older = name
        .split_once('/')
        .map_or(name.to_owned(), |(owner, name)| format!("{owner}/{}", name.replace('.', "___")));
    let older = ["", "hub"].map(|hub| options.ms_models.join(hub).join("models").join(&older));
    match older.into_iter().find(|folder| revision == MASTER && folder.join("config.json").is_file()) {
        Some(older) => older,
        None => {
            options.ms_models.join("models").join(name.replace('/', "--")).join("snapshots").join(revision)
        }
    }
}

/// Names of the files that can be had without asking.
fn kept(kind: Kind, folder: &Path) -> Vec<String> {
    match kind {
        Kind::Dataset => {
            let list = fs::read(folder.join(LIST)).ok();
            list.and_then(|list| serde_json::from_slice(&list).ok()).unwrap_or_default()
        }
        Kind::Model => names_in(folder).into_iter().filter(|name| name != LIST).collect(),
    }
}

impl Repo {
    fn repository(&self) -> Repository<'_> {
        Repository {
            site: Site::ModelScope,
            kind: self.kind,
            name: &self.name,
            revision: Some(&self.revision),
        }
    }

    fn client(&self, attempts: u32) -> Client<'_> {
        Client { repository: self.repository(), header: self.header.clone(), attempts, pause: self.pause }
    }

    /// All files as the hub lists them.
    fn listed(&self, attempts: u32) -> Result<Vec<(String, Content)>, HubError> {
        let client = self.client(attempts);
        let mut files = Vec::new();
        for page in 1.. {
            let (endpoint, name, revision) = (&self.endpoint, &self.name, download::encoded(&self.revision));
            let url = match self.kind {
                Kind::Dataset => format!(
                    "{endpoint}/api/v1/datasets/{name}/repo/tree?Revision={revision}&Recursive=true&PageNumber={page}&PageSize={PAGE}"
                ),
                Kind::Model => {
                    format!("{endpoint}/api/v1/models/{name}/repo/files?Revision={revision}&Recursive=True")
                }
            };
            let answer = client.json(&url)?;
            let found = answer["Data"]["Files"].as_array().cloned().unwrap_or_default();
            if found.is_empty() && page == 1 {
                let reason = answer["Message"].as_str().unwrap_or("the hub names no files");
                return Err(self.repository().failed(
                    format!("cannot be read: {reason}"),
                    "check the name; a closed one needs `ms_hub_token`",
                ));
            }
            // Lists of models come in one answer.
            let is_last = found.len() < PAGE || self.kind == Kind::Model;
            files.extend(found);
            if is_last {
                break;
            }
        }
        Ok(files.iter().filter_map(content).collect())
    }
}

/// Name, size and check sum of a file in a list.
fn content(file: &Value) -> Option<(String, Content)> {
    let name = file["Path"].as_str().filter(|name| is_safe(name) && file["Type"] != "tree")?;
    let sha256 = file["Sha256"].as_str().filter(|sum| sum.len() == 64).map(str::to_lowercase);
    Some((name.to_owned(), (file["Size"].as_u64(), sha256)))
}

impl Snapshot for Repo {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn size(&self, name: &str) -> Option<u64> {
        self.known.get(name)?.0
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, name: &str) -> Result<PathBuf, HubError> {
        let path = self.folder.join(name);
        let (size, sha256) = self.known.get(name).cloned().unwrap_or_default();
        if let Ok(there) = fs::metadata(&path) {
            // A file of another size or sum is of another state of the revision.
            let same = size.is_none_or(|size| there.len() == size)
                && match sha256.as_ref().filter(|_| there.len() <= SMALL) {
                    Some(sum) => download::sha256_of(&path)? == *sum,
                    None => true,
                };
            if same {
                return Ok(path);
            }
            if self.closed.is_none() {
                fs::remove_file(&path).map_err(|source| HubError::io(&path, source, 0))?;
            }
        }
        if let Some(why) = &self.closed {
            let why = why.as_ref().map(|why| format!("now it {why}"));
            return Err(self.repository().file_not_kept(name, why.as_deref()));
        }
        let kinds = if self.kind == Kind::Dataset { "datasets" } else { "models" };
        let url = format!(
            "{}/api/v1/{kinds}/{}/repo?Revision={}&FilePath={}",
            self.endpoint,
            self.name,
            download::encoded(&self.revision),
            download::encoded(name)
        );
        self.client(ATTEMPTS).fetch(&Fetch { name, url: &url, size, sha256, to: &path })?;
        Ok(path)
    }
}
