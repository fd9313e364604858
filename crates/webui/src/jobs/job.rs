//! A job as it is kept: what was started, with what it began and how it ended.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sft_config::{Purpose, RunConfig};
use sft_runs::run_record;

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `sft train`.
    Train,
    /// `sft predict`.
    Predict,
    /// `sft export`.
    Export,
    /// `sft serve`, to talk to.
    Chat,
}

impl Command {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Predict => "predict",
            Self::Export => "export",
            Self::Chat => "serve",
        }
    }

    /// What its recipe is for.
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Train | Self::Predict => Purpose::Train,
            Self::Export => Purpose::Export,
            Self::Chat => Purpose::Chat,
        }
    }

    /// What the command says instead of a recipe.
    pub fn overrides(self) -> Vec<String> {
        match self {
            Self::Predict => ["do_train=false", "do_predict=true"].map(String::from).to_vec(),
            _ => Vec::new(),
        }
    }

    /// The folder that it writes into.
    pub fn output_dir(self, config: &RunConfig) -> Option<&Path> {
        match self {
            Self::Train | Self::Predict => Some(&config.output_dir),
            Self::Export => Some(&config.export_dir),
            Self::Chat => None,
        }
    }
}

/// A command that was started, or waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name: that of its folder.
    pub id: String,
    /// What it is.
    pub command: Command,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The machine that it was started on.
    pub host: String,
    /// What its paths are relative to.
    pub folder: PathBuf,
    /// Where its results go, absolute.
    pub output_dir: Option<PathBuf>,
    /// The model that it is about, as the recipe names it.
    pub model: String,
    /// Its process, once it has begun.
    pub process: Option<u32>,
    /// Whether it was asked to end.
    #[serde(default)]
    pub stopped: bool,
    /// How it ended, if somebody was there to see it.
    pub ended: Option<Ended>,
    /// Where a model is served.
    pub served: Option<Served>,
}

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Seconds since 1970.
    pub at: u64,
    /// Its exit status; `None` if it never began, a signal ended it or nobody saw it.
    pub status: Option<i32>,
    /// Whether this server, or one before, was there.
    pub seen: bool,
}

impl Ended {
    /// Of this moment.
    pub fn now(status: Option<i32>) -> Self {
        Self { at: run_record::now(), status, seen: true }
    }
}

/// Where and to whom a model answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The port, on this machine alone.
    pub port: u16,
    /// What it asks for.
    pub key: String,
}

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Others are at work.
    Waiting,
    /// Its process lives.
    Running,
    /// It does not.
    Ended,
}
