//! One decoder described by data, with its weights, forward and backward (stages 9 to 11 of the walk).
//!
//! A family maps a `config.json` to a [`spec::DecoderSpec`]; [`decoder::Decoder`] computes any of them. LoRA lives
//! inside [`linear::Linear`], and nothing else asks which method is on. This crate knows no data set.

pub mod adapter;
mod arena;
mod attention;
mod balance;
mod block;
pub mod cache;
mod column;
pub mod decoder;
pub mod dora;
pub mod entry;
mod error;
mod expansion;
mod experts;
pub mod families;
mod feed_forward;
pub mod head;
pub mod hf_config;
mod inputs;
mod latent;
pub mod linear;
pub mod loading;
pub mod method;
mod mixer;
mod mlp;
mod moe;
pub mod new_rows;
pub mod norm;
mod norms;
pub mod oft;
pub mod parameter;
pub mod pass;
pub mod per_layer;
pub mod quantization;
mod recurrent;
pub mod reference;
pub mod rotary;
pub mod saving;
mod short_conv;
pub mod spec;
mod svd;
pub mod watch;
pub mod weights;
pub mod workspace;

pub use decoder::Decoder;
pub use error::ModelError;
pub use pass::{Batch, Shared};
