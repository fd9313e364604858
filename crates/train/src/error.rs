//! Why a run could not begin or go on.

use std::path::PathBuf;

use sft_data::error::DataError;
use sft_infer::InferError;
use sft_kernels::{DeviceError, OutOfMemory};
use sft_model::ModelError;
use sft_runs::RunError;
use thiserror::Error;

/// Why a run could not begin or go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// Data or tokenizer.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Model, weights or adapter.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's answers.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The run's folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Threads or instruction set.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Memory that was free when the run was planned is not there.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// No row is left to train on.
    #[error("{what}\nhelp: {help}")]
    NothingToTrain {
        /// How it came to that.
        what: String,
        /// What to do.
        help: String,
    },
    /// The tokenizer knows ids that the model has no row for.
    #[error("{}: the tokenizer gives ids up to {largest}, and the model's vocabulary ends at {}\nhelp: tokenizer and model do not belong together, or tokens were added to the tokenizer alone", folder.display(), vocab_size - 1)]
    Vocabulary {
        /// The model folder.
        folder: PathBuf,
        /// The largest id in the data.
        largest: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// What is read would be written over, or removed with the checkpoints around it.
    #[error("output_dir: {} holds what `{key}` names\nhelp: choose another folder; a model that is trained further is never overwritten", folder.display())]
    OverBase {
        /// `output_dir`.
        folder: PathBuf,
        /// The key that names what lies there.
        key: &'static str,
    },
    /// More memory is needed than there is.
    #[error("this run needs {} of memory, and {} are free\n{advice}", gib(*needed), gib(*available))]
    Memory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
        /// What makes it fit.
        advice: String,
    },
    /// A loss or a gradient is NaN or infinite.
    #[error(
        "step {step}: the {what} is not finite, first in {place}; rows: {rows}\n\
         help: lower learning_rate, set max_grad_norm, look at these rows with `sft data show`, or go on without such \
         steps with `on_non_finite: skip_step`; {last_good}"
    )]
    NonFinite {
        /// The step, from 1.
        step: u64,
        /// Loss, gradient or weights.
        what: &'static str,
        /// The first op, and its layer.
        place: String,
        /// file:line of the rows.
        rows: String,
        /// Where the last good state is.
        last_good: String,
    },
    /// A checkpoint does not belong to this run.
    #[error("{}: {reason}\nhelp: {help}", folder.display())]
    Checkpoint {
        /// The checkpoint.
        folder: PathBuf,
        /// What does not fit.
        reason: String,
        /// What to do.
        help: String,
    },
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}
