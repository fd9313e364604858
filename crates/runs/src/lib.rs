//! What a run leaves behind (stage 14 of the walk): plain structs in, files out.
//!
//! The training loop calls three things and knows nothing else of files:
//!
//! ```no_run
//! # use sft_runs::*;
//! # fn example(options: RecorderOptions, step: StepRecord, summary: Summary) -> Result<()> {
//! let run = RunFolder::open("saves/run".as_ref(), false, &ResumeFrom::Automatic)?; // locked until dropped
//! let mut recorder = Recorder::open(&run, options)?;                               // continues when resuming
//! recorder.record_step(&step)?;
//! let checkpoint = CheckpointWriter::begin(&run, step.step)?;
//! // … model, optimizer, cursor into checkpoint.folder() …
//! recorder.save(&checkpoint)?;
//! checkpoint.finish()?;
//! recorder.finish(&summary)?;
//! # Ok(()) }
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`folder`], [`lock`] | the output folder: automatic resume, what is in the way; one program at a time |
//! | [`atomic`], [`disk`], [`space`] | files that are whole or absent; the one way in which files change; room |
//! | [`checkpoint`], [`manifest`] | `checkpoint-N` with a manifest of hashes; list, verify, rotate |
//! | [`recorder`], [`records`] | the one façade of the loop, and what it is told |
//! | [`trainer_log`], [`trainer_state`], [`results`] | `trainer_log.jsonl`, `trainer_state.json`, `*_results.json` |
//! | [`curves`], [`plots`] | several named curves in one PNG or SVG; the loss pictures |
//! | [`run_record`], [`ledger`] | what a run was made of, in its folder and in one SQLite file; how runs differ |
//! | [`tensorboard`] | event files |
//! | [`model_card`] | `README.md` |
//! | [`timing`], [`memory`] | elapsed and remaining time; peak memory |
//!
//! This crate knows no tensor, no configuration and no data.

pub mod atomic;
pub mod checkpoint;
pub mod curves;
pub mod disk;
pub mod error;
pub mod folder;
pub mod ledger;
pub mod lock;
pub mod manifest;
pub mod memory;
pub mod model_card;
pub mod plots;
pub mod recorder;
pub mod records;
pub mod results;
pub mod run_record;
pub mod space;
pub mod tensorboard;
pub mod timing;
pub mod trainer_log;
pub mod trainer_state;

pub use checkpoint::{Checkpoint, CheckpointWriter, Damaged, Listing};
pub use curves::{Curves, Series};
pub use error::{Result, RunError};
pub use folder::{ResumeFrom, RunFolder, Start};
pub use lock::FolderLock;
pub use model_card::{Library, ModelCard};
pub use recorder::Recorder;
pub use records::{BestMetric, EvalOutcome, EvalRecord, RecorderOptions, StepRecord, Summary};
pub use trainer_log::LogLine;
pub use trainer_state::TrainerState;
