//! What can stop an answer, each with what to do about it.

use sft_data::error::DataError;
use sft_data::rows::RowProblem;
use sft_model::ModelError;
use thiserror::Error;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum InferError {
    /// The model refused a token.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The template refused the messages.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The prompt has no token: there is nothing to continue.
    #[error(
        "the prompt has no token\nhelp: type something, or choose a template that marks where the answer begins"
    )]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens and `{limit}` is {value}: there is no room for an answer\nhelp: {help}"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Name of what limits it.
        limit: &'static str,
        /// Its value, in tokens.
        value: usize,
        /// What to do.
        help: &'static str,
    },
    /// The model computed a number that is none.
    #[error(
        "the model's scores for token {position} are NaN: its weights or an adapter are damaged, or a value overflowed\nhelp: try `infer_dtype: float32`; if that does not help, take another checkpoint"
    )]
    NotANumber {
        /// Tokens before it.
        position: usize,
    },
    /// Of rows that are to be answered not one can be.
    #[error(
        "none of {rows} rows can be asked; the first: {first}\nhelp: look at `max_new_tokens` and `max_length`, at the template, and at the rows with `sft data show`"
    )]
    NothingToAsk {
        /// How many there are.
        rows: usize,
        /// What is wrong with the first.
        first: String,
    },
    /// The template refuses a row.
    #[error("{problem}")]
    Row {
        /// The row, and why.
        problem: RowProblem,
    },
}

impl InferError {
    /// Whether another row or question may have an answer all the same.
    pub fn is_of_the_row(&self) -> bool {
        !matches!(self, Self::Model(_) | Self::NotANumber { .. })
    }
}
