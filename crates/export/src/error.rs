//! What can go wrong between a decoder and a folder of its own.

use std::path::PathBuf;

use sft_data::error::DataError;
use sft_model::ModelError;
use sft_runs::RunError;
use thiserror::Error;

/// Why a model was not exported, or not compared.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A layer still carries an adapter, which the weights do not show.
    #[error("the model carries an adapter that is not merged\nhelp: merge it before the model is exported")]
    NotMerged,
    /// The folder to write is the base model's own, or lies inside.
    #[error("export_dir: {} is the base model's own folder\nhelp: choose another folder; the base model is never overwritten", folder.display())]
    OverBase {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder to write has files in it.
    #[error("export_dir: {} is not empty: `{found}` is in it\nhelp: choose another folder, or empty this one", folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
        /// One of the files.
        found: String,
    },
    /// The two decoders to be compared have nothing in common.
    #[error(
        "the models have vocabularies of {left} and {right} tokens: their logits cannot be compared\nhelp: compare a model with its own merged one"
    )]
    Vocabularies {
        /// Of the first.
        left: usize,
        /// Of the second.
        right: usize,
    },
    /// Tokenizer files and chat template.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Model, weights, configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Folder, lock, room on the disk.
    #[error(transparent)]
    Run(#[from] RunError),
}
