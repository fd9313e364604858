//! `new_special_tokens_config`: special tokens, and what each of them means.
//!
//! In: the path of a YAML file that maps tokens to descriptions. Out: the tokens in its order.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::source::{self, Node};
use crate::value::{KeyType, Reject, scalar};

/// Special tokens with descriptions, from a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DescribedTokens {
    file: Option<PathBuf>,
    /// Each token and its description, in the file's order.
    pub tokens: Vec<(String, String)>,
}

const LOOKS_LIKE: &str = "each line of it is a token in quotes, a colon and what the token means, as in \
                          `\"<think>\": the beginning of a thought`";

fn read(file: &Path) -> Result<Vec<(String, String)>, Reject> {
    let refused = |reason: String| Reject::because(format!("{}: {reason}", file.display()), LOOKS_LIKE);
    let bytes = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?.len();
    if bytes > source::MAX_BYTES as u64 {
        return Err(refused(format!("{bytes} bytes, and at most {} are read", source::MAX_BYTES)));
    }
    let text = std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
    let (entries, problems) = source::read_text(&text, file);
    if let Some(problem) = problems.first() {
        let said = problem.to_string();
        return Err(Reject::because(said.lines().next().unwrap_or_default(), LOOKS_LIKE));
    }
    let described = entries.into_iter().map(|entry| match entry.node.text() {
        Some(description) if !entry.key.is_empty() => Ok((entry.key, description.to_owned())),
        _ => Err(refused(format!("`{}` has no description", entry.key))),
    });
    described.collect()
}

impl KeyType for DescribedTokens {
    fn parse(node: &Node) -> Result<Self, Reject> {
        if node.is_null() {
            return Ok(Self::default());
        }
        let file = PathBuf::from(scalar(node)?);
        Ok(Self { tokens: read(&file)?, file: Some(file) })
    }
    fn to_json(&self) -> Json {
        json!(self.file)
    }
    fn takes() -> String {
        "the path of a YAML file, or null".into()
    }
    fn schema() -> Json {
        json!({"type": ["string", "null"]})
    }
}
