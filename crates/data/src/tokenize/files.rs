//! What a model directory says about its tokenizer beside `tokenizer.json`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use crate::error::DataError;

/// transformers 5 does not take a Llama tokenizer's normalizer from tokenizer.json: it marks the
/// beginnings of words with `▁` itself, never twice, and unless `legacy` is set only at the very
/// beginning of a text, not after each special token.
pub(super) fn mark_words_as_transformers_does(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
) -> tokenizers::Result<()> {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let is_llama = matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast");
    let normalizer = serde_json::to_value(inner.get_normalizer()).unwrap_or_default();
    let steps = normalizer["normalizers"].as_array().cloned().unwrap_or_default();
    let prepends = steps.iter().any(|step| step["type"] == "Prepend");
    if !is_llama || !prepends || inner.get_pre_tokenizer().is_some() {
        return Ok(());
    }
    let scheme = match (&config["add_prefix_space"], &config["legacy"]) {
        (Value::Bool(false), _) => PrependScheme::Never,
        (_, Value::Bool(true)) => PrependScheme::Always,
        _ => PrependScheme::First,
    };
    inner.with_normalizer(None::<tokenizers::NormalizerWrapper>)?;
    inner.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    Ok(())
}

pub(super) fn broken(path: &Path, reason: String) -> DataError {
    if is_git_lfs_pointer(path) {
        return DataError::Tokenizer {
            path: path.to_owned(),
            reason: "it is a pointer of Git LFS and not the file itself".into(),
            help: "fetch what it points to: `git lfs pull` in the repository's folder".into(),
        };
    }
    DataError::Tokenizer {
        path: path.to_owned(),
        reason,
        help: "download the file again; if it is whole, it was written by a newer version of the tokenizers library".into(),
    }
}

fn is_git_lfs_pointer(path: &Path) -> bool {
    const BEGINNING: &[u8] = b"version https://git-lfs";
    let mut beginning = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(BEGINNING.len() as u64).read_to_end(&mut beginning));
    read.is_ok() && beginning == BEGINNING
}

pub(super) fn no_tokenizer_json(dir: &Path) -> DataError {
    if !dir.is_dir() {
        return DataError::Tokenizer {
            path: dir.to_owned(),
            reason: "there is no such folder".into(),
            help: "`model_name_or_path` is a folder, or a name on a hub such as `Qwen/Qwen3-0.6B`".into(),
        };
    }
    let others = ["vocab.json", "vocab.txt"];
    let found: Vec<&str> = others.into_iter().filter(|name| dir.join(name).is_file()).collect();
    let reason = match found.as_slice() {
        [] => "no tokenizer.json and no tokenizer.model".to_owned(),
        found => {
            format!("no tokenizer.json and no tokenizer.model (only {}, which is not read)", found.join(", "))
        }
    };
    DataError::Tokenizer {
        path: dir.to_owned(),
        reason,
        help: "take tokenizer.json from the model's repository, or write it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)".into(),
    }
}

/// The JSON of a file; `null` if there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Value, DataError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|error| broken(path, format!("not JSON: {error}")))
}

fn read_text(path: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(path).map_err(|source| DataError::Io { path: path.to_owned(), source })
}

pub(super) fn ids_of(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}

/// Every `*_token` that is a string or an added token; the configuration wins over the older map.
pub(super) fn special_tokens(config: &Value, map: &Value) -> BTreeMap<String, String> {
    let mut tokens = BTreeMap::new();
    for source in [map, config] {
        for (key, value) in source.as_object().into_iter().flatten() {
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let Some(text) = text.filter(|text| key.ends_with("_token") && !text.is_empty()) {
                tokens.insert(key.clone(), text.to_owned());
            }
        }
    }
    tokens
}

/// Tokens that a class has in transformers where the files name none; without a class, those of GPT-2, whose own files are
/// like that.
pub(super) fn tokens_of_class(config: &Value) -> &'static [(&'static str, &'static str)] {
    match config["tokenizer_class"].as_str().unwrap_or_default().trim_end_matches("Fast") {
        "" | "GPT2Tokenizer" | "GPTNeoXTokenizer" | "CodeGenTokenizer" => {
            &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")]
        }
        "Qwen2Tokenizer" => &[("eos_token", "<|endoftext|>")],
        "LlamaTokenizer" => &[("bos_token", "<s>"), ("eos_token", "</s>")],
        _ => &[],
    }
}

/// `chat_template.jinja` (and `additional_chat_templates/NAME.jinja`), else `chat_template` of the
/// configuration (one text, or a list of named ones), else the older `chat_template.json`.
pub(super) fn chat_templates(dir: &Path, config: &Value) -> Result<BTreeMap<String, String>, DataError> {
    let mut templates = BTreeMap::new();
    let single = dir.join("chat_template.jinja");
    if single.is_file() {
        templates.insert("default".to_owned(), read_text(&single)?);
    }
    if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(name), Some("jinja")) = (name, path.extension().and_then(|e| e.to_str())) {
                templates.insert(name.to_owned(), read_text(&path)?);
            }
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let older = read_json(&dir.join("chat_template.json"))?;
    for value in [&config["chat_template"], &older["chat_template"]] {
        match value {
            Value::String(text) => {
                templates.insert("default".to_owned(), text.clone());
            }
            Value::Array(named) => templates.extend(named.iter().filter_map(|entry| {
                let (name, text) = (entry["name"].as_str()?, entry["template"].as_str()?);
                Some((name.to_owned(), text.to_owned()))
            })),
            _ => continue,
        }
        break;
    }
    Ok(templates)
}
