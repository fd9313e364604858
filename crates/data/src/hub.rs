//! Data sets on the Hugging Face and ModelScope hubs: which of their files count, fetched once and kept.
//!
//! In: the name of a data set, a subset, the name of a split. Out: local files. What is fetched lies where Hugging Face's
//! own libraries look for it (`HF_HOME`), so either finds what the other has fetched. A token is sent to its hub and to no
//! other machine, and is never printed.

mod card;
mod download;
mod huggingface;
mod modelscope;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::rows::{FileKind, is_of_split};

/// Which hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Hugging Face's.
    HuggingFace,
    /// ModelScope's.
    ModelScope,
}

/// A secret: it can be compared and sent, and is shown as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where the hubs are, how to be let in, and where what is fetched lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the Hugging Face hub (`HF_ENDPOINT`).
    pub hf_endpoint: String,
    /// Its token (`hf_hub_token`, `HF_TOKEN`, or the file `HF_HOME/token`).
    pub hf_token: Option<Token>,
    /// Its folder (`cache_dir`, `HF_HUB_CACHE`, or `HF_HOME/hub`).
    pub hf_cache: PathBuf,
    /// Address of the ModelScope hub (`MODELSCOPE_DOMAIN`).
    pub ms_endpoint: String,
    /// Its token (`ms_hub_token`, `MODELSCOPE_API_TOKEN`).
    pub ms_token: Option<Token>,
    /// Its folder (`cache_dir`, `MODELSCOPE_CACHE`).
    pub ms_cache: PathBuf,
    /// ModelScope is asked first (`USE_MODELSCOPE_HUB`).
    pub prefer_modelscope: bool,
    /// Nothing is fetched (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The pause before a second attempt, doubled before each further one.
    pub pause: std::time::Duration,
}

/// What a configuration says of the hubs; the environment says the rest.
#[derive(Clone, Default)]
pub struct HubKeys {
    /// `hf_hub_token`.
    pub hf_hub_token: Option<String>,
    /// `ms_hub_token`.
    pub ms_hub_token: Option<String>,
    /// `cache_dir`.
    pub cache_dir: Option<PathBuf>,
}

impl fmt::Debug for HubKeys {
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubKeys").field("cache_dir", &self.cache_dir).finish_non_exhaustive()
    }
}

impl Default for HubOptions {
    /// Of an empty environment.
    fn default() -> Self {
        Self::new(&HubKeys::default(), |_| None)
    }
}

impl HubOptions {
    /// The keys of a configuration, and where they are silent the variables of `of`.
    pub fn new(keys: &HubKeys, of: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| of(name).filter(|value| !value.trim().is_empty());
        let is_on = |name: &str| {
            of(name).is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };
        let path = |name: &str| of(name).map(PathBuf::from);
        let home = path("HOME").unwrap_or_default();
        let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let hf_token = keys.hf_hub_token.clone().or_else(|| of("HF_TOKEN"));
        let hf_token = hf_token.or_else(|| std::fs::read_to_string(token_file).ok());
        let token = |text: String| Token(text.trim().to_owned());
        let domain = of("MODELSCOPE_DOMAIN").unwrap_or_else(|| "www.modelscope.cn".to_owned());
        let ms_endpoint = if domain.contains("://") { domain } else { format!("https://{domain}") };
        let hf_endpoint = of("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            hf_endpoint: hf_endpoint.trim_end_matches('/').to_owned(),
            hf_token: hf_token.map(token).filter(|token| !token.0.is_empty()),
            hf_cache: keys
                .cache_dir
                .clone()
                .or_else(|| path("HF_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            ms_endpoint: ms_endpoint.trim_end_matches('/').to_owned(),
            ms_token: keys.ms_hub_token.clone().or_else(|| of("MODELSCOPE_API_TOKEN")).map(token),
            ms_cache: keys
                .cache_dir
                .clone()
                .or_else(|| path("MODELSCOPE_CACHE"))
                .unwrap_or_else(|| cache.join("modelscope").join("hub")),
            prefer_modelscope: is_on("USE_MODELSCOPE_HUB"),
            offline: is_on("HF_HUB_OFFLINE") || is_on("HF_DATASETS_OFFLINE"),
            pause: std::time::Duration::from_secs(1),
        }
    }

    /// As [`HubOptions::new`], of this process's environment.
    pub fn from_env(keys: &HubKeys) -> Self {
        Self::new(keys, |name| std::env::var(name).ok())
    }
}

/// A data set on a hub.
#[derive(Debug, Clone, Copy)]
pub struct HubDataset<'a> {
    /// Which hub.
    pub site: Site,
    /// `owner/name`.
    pub repo: &'a str,
    /// A configuration of the data set, or a folder of it (`subset`).
    pub subset: Option<&'a str>,
    /// A folder of it (`folder`).
    pub folder: Option<&'a str>,
}

/// The files of a revision of a data set, and how one is fetched.
trait Snapshot {
    /// Their names, folders with `/`.
    fn names(&self) -> &[String];
    /// The local file of a name.
    fn file(&self, name: &str) -> Result<PathBuf, DataError>;
}

/// The local files of each of `splits`, fetched where they are not there yet.
///
/// # Errors
/// A data set that is not there or closed, a connection that fails, a split without files.
pub fn files(
    options: &HubOptions,
    dataset: HubDataset<'_>,
    splits: &[&str],
) -> Result<Vec<Vec<PathBuf>>, DataError> {
    if dataset.repo.split('/').count() > 2 || !is_safe(dataset.repo) {
        return Err(failed(dataset.repo, "is no name of a data set".to_owned(), "it is `owner/name`"));
    }
    let snapshot: Box<dyn Snapshot> = match dataset.site {
        Site::HuggingFace => Box::new(huggingface::open(options, dataset.repo)?),
        Site::ModelScope => Box::new(modelscope::open(options, dataset.repo)?),
    };
    let names = snapshot.names();
    let readme = names.iter().find(|name| *name == "README.md");
    let card = match readme {
        Some(readme) => {
            let path = snapshot.file(readme)?;
            let text = std::fs::read_to_string(&path).map_err(|source| DataError::Io { path, source })?;
            card::data_files(&text, dataset.subset)
                .map_err(|reason| failed(dataset.repo, reason, "set `subset` to one of them"))?
        }
        None => None,
    };
    let mut found = Vec::with_capacity(splits.len());
    for split in splits {
        let chosen = match &card {
            Some(card) => card.files_of(split, names),
            None => by_name(&dataset, split, names),
        };
        if chosen.is_empty() {
            let shown: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
            let (known, help) = match options.offline {
                true => ("was fetched with", "unset HF_HUB_OFFLINE once: nothing is fetched offline"),
                false => ("has", "change `split`, `subset` or `folder` of the entry"),
            };
            let reason = format!("{known} no files of the split `{split}`, only {}", shown.join(", "));
            return Err(failed(dataset.repo, reason, help));
        }
        found.push(chosen.into_iter().map(|name| snapshot.file(name)).collect::<Result<_, _>>()?);
    }
    Ok(found)
}

/// Files of a split where the data set's card names none: by their names, as in a local folder.
fn by_name<'a>(dataset: &HubDataset<'_>, split: &str, names: &'a [String]) -> Vec<&'a str> {
    let is_below = |name: &str, folder: &str| Path::new(name).starts_with(folder);
    let mut data: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_data(name)).collect();
    for folder in [dataset.folder, dataset.subset].into_iter().flatten() {
        if data.iter().any(|name| is_below(name, folder)) {
            data.retain(|name| is_below(name, folder));
        }
    }
    let of_split: Vec<&str> =
        data.iter().copied().filter(|name| is_of_split(Path::new(name), split)).collect();
    let is_named = ["train", "test", "validation", "valid", "dev", "eval"]
        .iter()
        .any(|split| data.iter().any(|name| is_of_split(Path::new(name), split)));
    // Files that do not tell their split are all `train`, as in Hugging Face's loaders.
    if of_split.is_empty() && split == "train" && !is_named { data } else { of_split }
}

fn is_data(name: &str) -> bool {
    const NOT_ROWS: [&str; 5] =
        ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];
    let file = Path::new(name).file_name().and_then(|file| file.to_str()).unwrap_or_default();
    !file.starts_with('.') && !NOT_ROWS.contains(&file) && FileKind::of(Path::new(name)).is_ok()
}

/// Whether a name from a hub stays inside of the folder that it is put into.
fn is_safe(name: &str) -> bool {
    let parts = || name.split('/');
    !name.is_empty()
        && !name.contains(['\\', '\0', ':', '?', '#'])
        && parts().all(|part| !matches!(part, "" | "." | ".."))
}

fn failed(repo: &str, reason: String, help: &str) -> DataError {
    DataError::Hub { repo: repo.to_owned(), reason, help: help.to_owned() }
}
