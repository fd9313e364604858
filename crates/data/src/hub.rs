//! Data sets on the Hugging Face and ModelScope hubs: which of their files count.
//!
//! In: the name of a data set, a subset, the name of a split. Out: local files, which `sft_hub` has fetched and kept.

mod card;

use std::path::{Path, PathBuf};

pub use sft_hub::{HubKeys, HubOptions, Site};
use sft_hub::{Kind, Repository};

use crate::error::DataError;
use crate::rows::{FileKind, is_of_split};

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

/// The local files of each of `splits`, fetched where they are not there yet.
///
/// # Errors
/// A data set that is not there or closed, a connection that fails, a split without files.
pub fn files(
    options: &HubOptions,
    dataset: HubDataset<'_>,
    splits: &[&str],
) -> Result<Vec<Vec<PathBuf>>, DataError> {
    let repository =
        Repository { site: dataset.site, kind: Kind::Dataset, name: dataset.repo, revision: None };
    let snapshot = sft_hub::open(options, repository)?;
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

fn failed(repo: &str, reason: String, help: &str) -> DataError {
    let error = sft_hub::HubError::Failed {
        kind: Kind::Dataset,
        repo: repo.to_owned(),
        reason,
        help: help.to_owned(),
    };
    DataError::Hub(error)
}
