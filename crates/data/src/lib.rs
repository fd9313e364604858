//! Rows of instruction data → token ids, labels and padding-free batches (stages 2–8 of the walk).

pub mod conversation;
pub mod shuffle;
