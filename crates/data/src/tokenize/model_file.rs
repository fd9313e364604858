//! Which file of a model's folder says how it tokenises: `tokenizer.json`, else SentencePiece's or tiktoken's.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{files, sentencepiece, tiktoken};
use crate::error::DataError;

/// The tokenizer of the folder `dir`, whose `tokenizer_config.json` is `config`.
///
/// # Errors
/// No file that is read, or one that is broken.
pub(super) fn load(dir: &Path, config: &Value) -> Result<tokenizers::Tokenizer, DataError> {
    let file = dir.join("tokenizer.json");
    if file.is_file() {
        return tokenizers::Tokenizer::from_file(&file)
            .map_err(|error| files::broken(&file, error.to_string()));
    }
    let file = other_file(dir).ok_or_else(|| files::no_tokenizer_json(dir))?;
    let broken = |reason: String| files::broken(&file, reason);
    let bytes = std::fs::read(&file).map_err(|source| DataError::Io { path: file.clone(), source })?;
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    // tiktoken's files are text; a message of protobuf begins with the mark of its first field.
    let converted = match std::str::from_utf8(&bytes) {
        Ok(text) if !text.starts_with('\n') => tiktoken::convert(text, class),
        _ => sentencepiece::convert(&bytes),
    };
    let mut description = converted.map_err(broken)?;
    let added = add_tokens(&mut description, dir, config)?;
    let text = serde_json::to_vec(&description).map_err(|error| broken(error.to_string()))?;
    let tokenizer =
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| files::broken(&file, error.to_string()))?;
    for (id, token) in added {
        if tokenizer.token_to_id(&token) != Some(id) {
            return Err(files::broken(
                &file,
                format!("the added token `{token}` cannot have the id {id}, which leaves a gap"),
            ));
        }
    }
    Ok(tokenizer)
}

/// `tokenizer.model`, `tiktoken.model`, or a file that ends in `.tiktoken`.
fn other_file(dir: &Path) -> Option<PathBuf> {
    let named = ["tokenizer.model", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model"];
    if let Some(file) = named.iter().map(|name| dir.join(name)).find(|file| file.is_file()) {
        return Some(file);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "tiktoken"));
    files.sort();
    files.into_iter().next()
}

/// Adds the tokens of `tokenizer_config.json` and `added_tokens.json`; those with their ids.
fn add_tokens(description: &mut Value, dir: &Path, config: &Value) -> Result<Vec<(u32, String)>, DataError> {
    let mut tokens: Vec<Value> = description["added_tokens"].as_array().cloned().unwrap_or_default();
    let older = files::read_json(&dir.join("added_tokens.json"))?;
    let mut more: Vec<Value> = Vec::new();
    for (content, id) in older.as_object().into_iter().flatten() {
        more.push(
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}),
        );
    }
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        let Ok(id) = id.parse::<u32>() else { continue };
        more.push(json!({"id": id, "content": token["content"], "single_word": flag("single_word"),
            "lstrip": flag("lstrip"), "rstrip": flag("rstrip"), "normalized": flag("normalized"),
            "special": flag("special")}));
    }
    tokens.retain(|token| !more.iter().any(|other| other["content"] == token["content"]));
    // Of a token that both name, what `tokenizer_config.json` says counts.
    let last = |at: usize| !more[at + 1..].iter().any(|other| other["content"] == more[at]["content"]);
    let more: Vec<Value> = (0..more.len()).filter(|&at| last(at)).map(|at| more[at].clone()).collect();
    tokens.extend(more);
    tokens.sort_by_key(|token| token["id"].as_u64());
    let named = tokens.iter().filter_map(|token| {
        Some((u32::try_from(token["id"].as_u64()?).ok()?, token["content"].as_str()?.to_owned()))
    });
    let named = named.collect();
    description["added_tokens"] = Value::Array(tokens);
    Ok(named)
}
