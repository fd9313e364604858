//! Models for other programs (stage 16 of the walk), and the proof that they compute the same.
//!
//! In: a decoder with its adapters merged, and the folder of its base model → out: [`merged()`], a Hugging Face model
//! folder that appears whole or not at all; [`agree()`], how far the logits of two decoders are apart.
//!
//! Adapters in PEFT's format are written by [`sft_model::adapter::write()`].

mod agree;
mod error;
mod merged;

pub use agree::{Agreement, agree};
pub use error::ExportError;
pub use merged::{Exported, merged};
pub use sft_model::saving::SaveOptions;
