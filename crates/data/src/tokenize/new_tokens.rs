//! Tokens that a run adds to its model's vocabulary: `add_tokens`, `add_special_tokens`, and those that a template ends
//! turns with.
//!
//! In: their texts → out: a tokenizer that has them, and what its model's files have to say of them.

use serde_json::{Map, Value, json};

/// What is added to a vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTokens {
    /// Tokens that are text.
    pub plain: Vec<String>,
    /// Tokens that are no text; answers are shown without them.
    pub special: Vec<String>,
    /// Whether a template may add the tokens that it ends turns with.
    pub may_grow: bool,
}

impl NewTokens {
    /// In the order of their ids, each with whether it is special.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, bool)> {
        let plain = self.plain.iter().map(|token| (token.as_str(), false));
        plain.chain(self.special.iter().map(|token| (token.as_str(), true)))
    }
}

/// A token that a model's files do not have, or not as one that is never split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether it is no text.
    pub special: bool,
    /// Whether the vocabulary had it as a piece of words: its row means something already.
    pub had_row: bool,
}

impl NewToken {
    /// As Hugging Face's files describe it. Texts of special tokens are never normalised.
    fn described(&self) -> Map<String, Value> {
        let described = json!({
            "content": self.content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": !self.special,
            "special": self.special,
        });
        match described {
            Value::Object(values) => values,
            _ => Map::new(),
        }
    }

    /// Puts tokens into a `tokenizer.json`.
    pub(crate) fn put_into_tokenizer(tokens: &[Self], tokenizer: &mut Map<String, Value>) {
        let list = tokenizer.entry("added_tokens").or_insert_with(|| json!([]));
        let Some(list) = list.as_array_mut() else { return };
        for token in tokens {
            let mut described = Map::from_iter([("id".to_owned(), token.id.into())]);
            described.extend(token.described());
            list.push(described.into());
        }
    }

    /// Puts tokens into a `tokenizer_config.json`, whose `added_tokens_decoder` counts where there is no `tokenizer.json`.
    pub(crate) fn put_into_config(tokens: &[Self], config: &mut Map<String, Value>) {
        let decoder = config.entry("added_tokens_decoder").or_insert_with(|| json!({}));
        let Some(decoder) = decoder.as_object_mut() else { return };
        decoder.extend(tokens.iter().map(|token| (token.id.to_string(), token.described().into())));
    }
}
