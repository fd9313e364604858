//! Plain text for `stage: pt`: a column of text, everything in it supervised.
//!
//! The conversation is a single assistant message that holds the text, and nothing else.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Talk, quoted, take_text};
use crate::conversation::{Message, Role};

/// Columns tried, in this order, when none is named.
const TEXT_COLUMNS: [&str; 3] = ["text", "prompt", "content"];

/// The column that holds the text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlainColumns {
    /// Its name (`columns: {prompt: …}` in `dataset_info.json`); `None`: `text`, `prompt` or
    /// `content`, whichever a row has first.
    pub text: Option<String>,
}

impl PlainColumns {
    pub(super) fn read(&self) -> Vec<&str> {
        match &self.text {
            Some(name) => vec![name],
            None => TEXT_COLUMNS.to_vec(),
        }
    }
}

pub(super) fn convert(names: &PlainColumns, columns: &mut Map<String, Value>) -> Result<Talk, String> {
    let tried = names.read();
    let Some(name) = tried.iter().find(|name| columns.contains_key(**name)) else {
        return Err(format!(
            "no text column {} (the row has {})",
            quoted(tried),
            quoted(columns.keys().take(12).map(String::as_str))
        ));
    };
    match take_text(columns, name)? {
        Some(text) if !text.is_empty() => {
            Ok(Talk { messages: vec![Message::text(Role::Assistant, text)], tools: None })
        }
        _ => Err(format!("`{name}` is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{reason, row};
    use super::*;

    #[test]
    fn a_text_is_one_supervised_message() {
        let format = Format::Plain(PlainColumns::default());
        for json in [r#"{"text": "a b", "id": 1}"#, r#"{"content": "a b"}"#] {
            let talk = format.convert(row(json)).expect("a good row");
            assert_eq!(talk.messages, [Message::text(Role::Assistant, "a b")]);
        }
    }

    #[test]
    fn a_named_column_is_the_only_one_tried() {
        let format = Format::Plain(PlainColumns { text: Some("raw".to_owned()) });
        assert_eq!(reason(&format, r#"{"text": "a"}"#), "no text column `raw` (the row has `text`)");
        assert_eq!(reason(&format, r#"{"raw": ""}"#), "`raw` is empty");
        assert_eq!(reason(&format, r#"{"raw": 3}"#), "`raw` is a number, not a text");
    }
}
