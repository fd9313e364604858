//! Stage 3 of the walk: a [`Row`] becomes a [`Conversation`], by the format its data set is written in.
//!
//! In: a row and the names of its columns. Out: messages with roles, checked so that every later
//! stage may rely on it: a system message only at the start, then questions (the user's or results of
//! tools) and answers in turn, an answer last. Whatever does not fit is a [`RowProblem`].
//!
//! The formats and the meaning of their columns are LLaMA-Factory's (`data/README.md` there), without
//! its traps: nothing is added to a system message, and no column or tag is lost because another one
//! was named.

pub mod alpaca;
mod calls;
mod detect;
pub mod openai;
pub mod plain;
pub mod sharegpt;
pub mod turns;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use alpaca::AlpacaColumns;
pub(crate) use calls::{calls_of, wide_integer};
pub use detect::detect;
pub use plain::PlainColumns;
pub use turns::{Tags, TurnColumns};

use crate::conversation::{Conversation, Message};
use crate::rows::{Row, RowProblem, kind_of};

/// The format of a data set with the names of its columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Text without roles, for `stage: pt`.
    Plain(PlainColumns),
    /// An instruction and its answer.
    Alpaca(AlpacaColumns),
    /// A list of turns `{from, value}`.
    Sharegpt(TurnColumns),
    /// A list of messages `{role, content}`, with OpenAI's fields.
    OpenAi(TurnColumns),
}

impl Format {
    /// The conversation that `row` holds.
    ///
    /// # Errors
    /// The row's problem, when it does not fit the format.
    pub fn convert(&self, row: Row) -> Result<Conversation, RowProblem> {
        let Row { mut columns, origin } = row;
        let converted = match self {
            Self::Plain(names) => plain::convert(names, &mut columns),
            Self::Alpaca(names) => alpaca::convert(names, &mut columns),
            Self::Sharegpt(names) => sharegpt::convert(names, &mut columns),
            Self::OpenAi(names) => openai::convert(names, &mut columns),
        };
        match converted {
            Ok(Talk { messages, tools }) => Ok(Conversation { messages, tools, origin }),
            Err(reason) => Err(RowProblem { origin, reason }),
        }
    }

    /// The names of the columns that are read, where a row has them.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Self::Plain(names) => names.read(),
            Self::Alpaca(names) => names.read(),
            Self::Sharegpt(names) | Self::OpenAi(names) => names.read(),
        }
    }

    /// The name that `formatting` has in `dataset_info.json`; plain text has none there.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plain(_) => "plain text",
            Self::Alpaca(_) => "alpaca",
            Self::Sharegpt(_) => "sharegpt",
            Self::OpenAi(_) => "openai",
        }
    }
}

/// What a row says, without where it was read.
struct Talk {
    messages: Vec<Message>,
    tools: Option<Value>,
}

/// Takes a column of text: `None` when it is absent or null.
fn take_text(columns: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match columns.get_mut(name).map(Value::take) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{name}` is {}, not a text", kind_of(&other))),
    }
}

/// [`take_text`] of a column that may not be named, with the empty text as none.
fn take_optional(columns: &mut Map<String, Value>, name: Option<&str>) -> Result<Option<String>, String> {
    match name {
        None => Ok(None),
        Some(name) => Ok(take_text(columns, name)?.filter(|text| !text.is_empty())),
    }
}

/// Takes a column that is an array, or the JSON text of one (csv and parquet files hold such):
/// `None` when it is absent, null or the empty text.
fn take_array(columns: &mut Map<String, Value>, name: &str) -> Result<Option<Vec<Value>>, String> {
    match columns.get_mut(name).map(Value::take) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Array(items)) => Ok(Some(items)),
            Ok(other) => Err(format!("`{name}` is {} in text, not an array", kind_of(&other))),
            Err(error) => Err(format!("`{name}` is a text that is no JSON array: {error}")),
        },
        Some(other) => Err(format!("`{name}` is {}, not an array", kind_of(&other))),
    }
}

/// Names, for a message: "`a`, `b`".
fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// What is in a row whose column is missing.
fn missing(columns: &Map<String, Value>, name: &str) -> String {
    format!("no `{name}` (the row has {})", quoted(columns.keys().take(12).map(String::as_str)))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Rows written in place, for the tests of the formats.

    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::conversation::Origin;

    pub(crate) fn row(json: &str) -> Row {
        let columns = serde_json::from_str(json).expect("the test's row is JSON");
        let origin =
            Origin { dataset: "test".into(), file: Arc::new(PathBuf::from("test.jsonl")), line: 1, row: 0 };
        Row { columns, origin }
    }

    pub(crate) fn reason(format: &Format, json: &str) -> String {
        format.convert(row(json)).expect_err("the row is malformed").reason
    }
}
