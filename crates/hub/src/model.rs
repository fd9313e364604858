//! The files of a model or an adapter that are needed: what describes it at once, its weights when they are asked for.
//!
//! Never code, and never formats that can run code when they are read. A folder of this machine goes before any hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::HubError;
use crate::huggingface::is_commit;
use crate::options::HubOptions;
use crate::repository::{Kind, Repository, Site, Snapshot, is_safe, open};
use crate::space;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Files that say what a model is, how it tokenises and how it talks.
const DESCRIPTION: [&str; 17] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];
/// Where further named templates lie.
const MORE_TEMPLATES: &str = "additional_chat_templates/";

/// A model or an adapter that a configuration names, on this machine.
#[derive(Debug)]
pub struct Model {
    folder: PathBuf,
    name: String,
    /// Of one that comes from a hub.
    snapshot: Option<Box<dyn Snapshot>>,
}

impl Model {
    /// Finds a model: a folder of this machine, or one of a hub, of which what describes it is fetched.
    ///
    /// A name that no hub can have is taken for a folder, whether it is there or not.
    ///
    /// # Errors
    /// A name that is neither; a model whose weights are in another format; whatever fetching meets.
    pub fn find(options: &HubOptions, name: &str, revision: &str) -> Result<Self, HubError> {
        let Some(snapshot) = snapshot(options, name, revision)? else { return Ok(Self::local(name)) };
        let model =
            Self { folder: snapshot.folder().to_owned(), name: name.to_owned(), snapshot: Some(snapshot) };
        model.check_format()?;
        model.fetch(is_description)?;
        Ok(model)
    }

    /// Finds an adapter, all of it.
    ///
    /// # Errors
    /// As [`Model::find`].
    pub fn find_adapter(options: &HubOptions, name: &str) -> Result<Self, HubError> {
        // A revision of the model is none of its adapters.
        let Some(snapshot) = snapshot(options, name, "main")? else { return Ok(Self::local(name)) };
        let adapter =
            Self { folder: snapshot.folder().to_owned(), name: name.to_owned(), snapshot: Some(snapshot) };
        for file in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
            if !adapter.has(file) {
                return Err(adapter.lacks(file));
            }
        }
        // One that was trained with new tokens has a tokenizer of its own.
        adapter.fetch(|file| [ADAPTER_CONFIG, ADAPTER_WEIGHTS].contains(&file) || is_description(file))?;
        Ok(adapter)
    }

    fn local(name: &str) -> Self {
        Self { folder: PathBuf::from(name), name: name.to_owned(), snapshot: None }
    }

    /// Its folder on this machine.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fetches the weights; of a folder of this machine there is nothing to do.
    ///
    /// # Errors
    /// Too little room, found before anything is fetched; whatever fetching meets.
    pub fn fetch_weights(&self) -> Result<(), HubError> {
        if self.snapshot.is_none() {
            return Ok(());
        }
        if !self.has(INDEX) {
            return self.fetch(|file| file == WEIGHTS);
        }
        let shards = self.shards()?;
        self.fetch(|file| file == INDEX || shards.contains(file))
    }

    /// The files that the index of the weights names.
    fn shards(&self) -> Result<BTreeSet<String>, HubError> {
        let Some(snapshot) = &self.snapshot else { return Ok(BTreeSet::new()) };
        let path = snapshot.file(INDEX)?;
        let text = std::fs::read_to_string(&path).map_err(|source| HubError::io(&path, source, 0))?;
        let index: Value = serde_json::from_str(&text).unwrap_or_default();
        let files =
            index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
        let shards: BTreeSet<String> = files.filter(|file| is_safe(file)).map(str::to_owned).collect();
        match shards.iter().find(|shard| !self.has(shard)) {
            None if shards.is_empty() => Err(self.failed(
                format!("has an index that names no weights (`{INDEX}`)"),
                "tell the model's authors; its weights cannot be found",
            )),
            // Of what is kept, the files that are there are all that is known.
            Some(missing) => snapshot.file(missing).map(|_| shards.clone()),
            None => Ok(shards),
        }
    }

    fn names(&self) -> &[String] {
        self.snapshot.as_ref().map_or(&[], |snapshot| snapshot.names())
    }

    fn has(&self, file: &str) -> bool {
        self.names().binary_search_by(|name| name.as_str().cmp(file)).is_ok()
    }

    /// Fetches those of its files that are wanted, if there is room for them.
    fn fetch(&self, is_wanted: impl Fn(&str) -> bool) -> Result<(), HubError> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        let wanted: Vec<&String> = snapshot.names().iter().filter(|name| is_wanted(name)).collect();
        let missing = wanted.iter().filter(|name| !self.folder.join(name).exists());
        let needed = missing.filter_map(|name| snapshot.size(name)).sum();
        space::require(&self.folder, needed)?;
        wanted.into_iter().try_for_each(|name| snapshot.file(name).map(drop))
    }

    /// Refuses what cannot be used, before anything is fetched.
    fn check_format(&self) -> Result<(), HubError> {
        if !self.has(CONFIG) {
            return Err(match self.has(ADAPTER_CONFIG) {
                true => self.failed(
                    "is an adapter, no model".to_owned(),
                    "name it in `adapter_name_or_path`, and its base model (`base_model_name_or_path` in its adapter_config.json) in `model_name_or_path`",
                ),
                false => self.lacks(CONFIG),
            });
        }
        let is_python = |name: &&String| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
        let has_weights = self.has(INDEX) || self.has(WEIGHTS);
        match self.names().iter().find(is_python) {
            Some(file) if !has_weights => Err(self.failed(
                format!("has its weights as `{file}` alone, which can run code when it is read"),
                &format!(
                    "take a revision with safetensors (the hub's converter offers one as `model_revision: refs/pr/1` or the like), or convert it where it may run code: python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; [x.from_pretrained('{name}').save_pretrained('model') for x in (M, T)]\", then `model_name_or_path: model`",
                    name = self.name
                ),
            )),
            _ => Ok(()),
        }
    }

    fn lacks(&self, file: &str) -> HubError {
        let names: Vec<&str> = self.names().iter().take(12).map(String::as_str).collect();
        let reason = format!("has no `{file}`, only {}", names.join(", "));
        let help = match file {
            ADAPTER_WEIGHTS if self.has("adapter_model.bin") => {
                "adapter_model.bin can run code when it is read: load it with PEFT and save it again"
            }
            _ => "check the name; models are read in Hugging Face's layout, with safetensors",
        };
        self.failed(reason, help)
    }

    fn failed(&self, reason: String, help: &str) -> HubError {
        HubError::Failed { kind: Kind::Model, repo: self.name.clone(), reason, help: help.to_owned() }
    }
}

/// The files of a name on a hub; `None` for a folder of this machine.
fn snapshot(options: &HubOptions, name: &str, revision: &str) -> Result<Option<Box<dyn Snapshot>>, HubError> {
    if Path::new(name).exists() || !is_hub_name(name) {
        return Ok(None);
    }
    let (site, place) = match options.prefer_modelscope {
        true => (Site::ModelScope, &options.ms_endpoint),
        false => (Site::HuggingFace, &options.hf_endpoint),
    };
    let repository = Repository { site, kind: Kind::Model, name, revision: Some(revision) };
    // A commit never changes: one that is here whole needs nobody asked.
    if site == Site::HuggingFace && is_commit(revision) {
        let offline = HubOptions { offline: true, ..options.clone() };
        if let Ok(kept) = open(&offline, repository)
            && is_whole(kept.folder())
        {
            return Ok(Some(kept));
        }
    }
    let opened = open(options, repository).map_err(|error| match error {
        HubError::Failed { kind, repo, reason, help } => {
            let reason = format!("is no folder here, and asked for at {place} it {reason}");
            HubError::Failed { kind, repo, reason, help }
        }
        other => other,
    });
    opened.map(Some)
}

/// Whether all weights that a folder's index names are there.
fn is_whole(folder: &Path) -> bool {
    if folder.join(WEIGHTS).is_file() || folder.join(ADAPTER_WEIGHTS).is_file() {
        return true;
    }
    let index = std::fs::read(folder.join(INDEX)).ok();
    let index: Option<Value> = index.and_then(|text| serde_json::from_slice(&text).ok());
    let files = index.as_ref().and_then(|index| index["weight_map"].as_object());
    files.is_some_and(|files| {
        files
            .values()
            .all(|file| file.as_str().is_some_and(|file| is_safe(file) && folder.join(file).is_file()))
    })
}

/// Whether a hub can have this name: `name` or `owner/name` of letters, digits, `-`, `_` and `.`.
fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && !part.contains("..")
    };
    name.len() <= 96 && name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// Whether a file says what a model is, how it tokenises or how it talks: these are fetched as soon as a model is found.
pub fn is_description(name: &str) -> bool {
    let is_template = |name: &str| {
        name.strip_prefix(MORE_TEMPLATES).is_some_and(|file| !file.contains('/') && file.ends_with(".jinja"))
    };
    DESCRIPTION.contains(&name)
        || is_template(name)
        || (name.ends_with(".tiktoken") || name == "tiktoken.model") && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hubs_are_told_from_paths() {
        for name in ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c-d.e"] {
            assert!(is_hub_name(name), "{name}");
        }
        for name in ["/models/x", "./x", "../x", "a/b/c", "~/x", "a//b", "a/", "C:\\x", "a/..b", "ä/b", ""] {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn code_and_weights_of_other_formats_are_no_description() {
        for name in [
            "config.json",
            "qwen.tiktoken",
            "additional_chat_templates/tool_use.jinja",
            "tiktoken.model",
            "spiece.model",
        ] {
            assert!(is_description(name), "{name}");
        }
        for name in [
            "modeling_x.py",
            "pytorch_model.bin",
            "original/tokenizer.model",
            "a/b.tiktoken",
            "x.gguf",
            "README.md",
        ] {
            assert!(!is_description(name), "{name}");
        }
    }
}
