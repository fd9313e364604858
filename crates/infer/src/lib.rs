//! Using a model (stage 15 of the walk): prompts → answers, token by token, with a key/value cache.
//!
//! [`sampler`] picks the next token from its logits, [`generate`] does so until an answer ends, [`chat`] holds a
//! conversation, [`questions`] asks a list of them; [`slots`] has several in work. Prompts are rendered by [`sft_data::pipeline::Pipeline`],
//! the same code that training used.

pub mod chat;
mod error;
pub mod generate;
pub mod questions;
pub mod sampler;
pub mod similarity;
pub mod slots;
pub mod together;

pub use chat::{Answer, ChatSession};
pub use error::InferError;
pub use generate::{Context, Continuation, Generation, GenerationOptions, Generator, Progress, StopReason};
pub use questions::{Answered, Questions, exact_match, similarity};
pub use sampler::{Sampler, SamplingOptions};
