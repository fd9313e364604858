//! What can go wrong between a model folder and a model.

use std::path::PathBuf;

use thiserror::Error;

/// Why a model or an adapter could not be read, written or set up.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file was needed and is not there.
    #[error("{}: there is no {what} here\nhelp: {help}", folder.display())]
    Missing {
        /// The folder that was searched.
        folder: PathBuf,
        /// What was searched for.
        what: String,
        /// What to do.
        help: String,
    },
    /// A JSON file is malformed.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A safetensors file is malformed.
    #[error("{}: this is no valid safetensors file: {reason}\nhelp: download or write it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `config.json` has missing or impossible values.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Config {
        /// The file.
        path: PathBuf,
        /// All that was found.
        problems: Vec<String>,
    },
    /// `model_type` is not one of the families.
    #[error("{}: model_type `{model_type}` is not supported; nearest: {nearest}\nhelp: `sft models` lists what is; docs/families.md shows how to add a family and to prove it: `tools/make_parity_case.py` makes a case with transformers, `sft parity CASE` compares", path.display())]
    UnknownFamily {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// The most similar supported one.
        nearest: String,
    },
    /// `model_type` is known and not supported.
    #[error("{}: models of `{model_type}` are not supported: {reason}", path.display())]
    RefusedFamily {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// Why.
        reason: &'static str,
    },
    /// Weights are missing or have another shape than the configuration says.
    #[error("{}: {} of the weights do not fit config.json:\n{}\nhelp: is config.json of another model, or the download incomplete?", folder.display(), problems.len(), preview(problems))]
    Weights {
        /// The model folder.
        folder: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A weight is NaN or infinite.
    #[error("{}: {name} holds a value that is NaN or infinite (element {element})\nhelp: the file is damaged or the run that wrote it diverged; take another checkpoint", folder.display())]
    NonFinite {
        /// The model folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
        /// Its first bad element.
        element: usize,
    },
    /// An adapter does not fit this model, or is of a kind that is not supported.
    #[error("{}: {reason}\nhelp: {help}", folder.display())]
    Adapter {
        /// The adapter's folder.
        folder: PathBuf,
        /// What does not fit.
        reason: String,
        /// What to do.
        help: String,
    },
    /// Tensors of an adapter are missing, or fit no layer of the model.
    #[error("{}: {} of the adapter's tensors do not fit the model:\n{}\nhelp: {help}", folder.display(), problems.len(), preview(problems))]
    AdapterTensors {
        /// The adapter's folder.
        folder: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
        /// What to do.
        help: String,
    },
    /// The tuning method asks for something that this model lacks.
    #[error("{key}: {reason}\nhelp: {help}")]
    Method {
        /// The configuration key.
        key: &'static str,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },
    /// A token id is outside of the vocabulary.
    #[error(
        "token id {id} is outside of the model's vocabulary of {vocab_size}\nhelp: tokenizer and model do not belong together; check model_name_or_path"
    )]
    TokenOutside {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A row is longer than the model's learned positions.
    #[error(
        "a row reaches position {position}, and the model has learned {longest}\nhelp: set cutoff_len to {longest} or less"
    )]
    PositionOutside {
        /// The position.
        position: u32,
        /// How many there are.
        longest: usize,
    },
}

fn preview(problems: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = problems[..problems.len().min(SHOWN)].iter().map(|p| format!("  {p}")).collect::<Vec<_>>();
    if problems.len() > SHOWN {
        text.push(format!("  … and {} more", problems.len() - SHOWN));
    }
    text.join("\n")
}
