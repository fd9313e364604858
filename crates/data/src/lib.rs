//! Rows of instruction data → token ids, labels and padding-free batches (stages 2–8 of the walk).

pub mod batches;
pub mod cache;
pub mod conversation;
pub mod dataset;
pub mod dataset_info;
pub mod encoder;
pub mod error;
pub mod formats;
pub mod hub;
pub mod labels;
pub mod lint;
pub mod loader;
pub mod pack;
pub mod pipeline;
pub mod prefixes;
pub mod pretrain;
pub mod proof;
pub mod rows;
pub mod shuffle;
pub mod template;
pub mod tokenize;
