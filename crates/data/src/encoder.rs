//! Rows → examples, whatever the stage: conversations with a template, or plain text.

use crate::conversation::Conversation;
use crate::labels::Example;
use crate::pipeline::{EncodeReport, ExplainedToken, Pipeline};
use crate::pretrain::Pretrain;
use crate::rows::RowProblem;
use crate::tokenize::Tokenizer;

/// What makes examples of rows.
#[derive(Debug, Clone)]
pub enum Encoder {
    /// Questions and answers (`stage: sft`).
    Conversations(Box<Pipeline>),
    /// Plain text (`stage: pt`).
    Text(Box<Pretrain>),
}

impl Encoder {
    /// The examples of all rows, in order, made on all cores, and what became of the rows.
    pub fn encode(&self, rows: &[Conversation]) -> (Vec<Example>, EncodeReport) {
        match self {
            Self::Conversations(pipeline) => pipeline.encode_all(rows),
            Self::Text(text) => text.encode_all(rows),
        }
    }

    /// The examples of a row, token by token.
    ///
    /// # Errors
    /// The template refuses the row, or its text cannot be encoded.
    pub fn explain(&self, row: &Conversation) -> Result<Vec<Vec<ExplainedToken>>, RowProblem> {
        match self {
            Self::Conversations(pipeline) => pipeline.explain_all(row),
            Self::Text(text) => Ok(vec![text.explain(row)?]),
        }
    }

    /// What makes ids of texts.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Conversations(pipeline) => pipeline.tokenizer(),
            Self::Text(text) => text.tokenizer(),
        }
    }

    /// Template and policy, where rows are conversations.
    pub fn pipeline(&self) -> Option<&Pipeline> {
        match self {
            Self::Conversations(pipeline) => Some(pipeline),
            Self::Text(_) => None,
        }
    }
}
