//! The conversation: what every data format becomes (stage 3 → 4 of the walk).
//!
//! A [`Conversation`] knows its messages, the tools offered to the model, and where it came from.
//! It knows nothing of templates or tokens.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a row was read: every message about data names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the data set in the configuration (`alpaca_en_demo`, or the path it was given as).
    pub dataset: Arc<str>,
    /// File that holds the row.
    pub file: Arc<PathBuf>,
    /// 1-based line where the row begins; for columnar files (parquet) the 1-based row number.
    pub line: u64,
    /// 0-based row in the data set, before shuffling and before malformed rows are dropped.
    pub row: u64,
}

/// `file:line`, as editors take it, and the row where the line cannot tell.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        // A file that is one line: only the number tells its rows apart.
        if self.line == 1 && self.row > 0 {
            write!(f, " (row {})", self.row)?;
        }
        Ok(())
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person asking.
    User,
    /// The model: the only role whose words are trained.
    Assistant,
    /// The result of a tool call (LLaMA-Factory's `observation`).
    Tool,
}

/// A call of a tool by the assistant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Identifier that the tool's answer refers to, if the data has one.
    pub id: Option<String>,
    /// Name of the function.
    pub name: String,
    /// Arguments as JSON, keys in the order of the data.
    pub arguments: Value,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The words; empty when the message only calls tools.
    pub content: String,
    /// Reasoning kept apart from the answer (`reasoning_content`), if the data has it.
    pub reasoning: Option<String>,
    /// Tools called by an assistant message, in order.
    pub tool_calls: Vec<ToolCall>,
    /// White space between the words and the calls, where the data has both in one text: a named template writes it, a
    /// model's own has its own.
    #[serde(default)]
    pub gap: Option<String>,
    /// Name and call identifier of a tool message, if the data has them.
    pub name: Option<String>,
    /// Identifier of the call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// Overrides the supervision policy for this message: how much each of its tokens counts in the loss; `Some(0.0)` is
    /// never trained, 1 is the weight of messages that say nothing. Finite and not negative.
    pub weight: Option<f32>,
}

impl Message {
    /// A message of plain text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            gap: None,
            name: None,
            tool_call_id: None,
            weight: None,
        }
    }
}

/// A row of instruction data, whatever format it was written in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns; a system message, if any, is the first.
    pub messages: Vec<Message>,
    /// Tools offered to the model: a JSON array of function descriptions, keys in the order of the data.
    pub tools: Option<Value>,
    /// Where it was read.
    pub origin: Origin,
}
