//! Training (stages 12 and 13 of the walk): a configuration becomes a [`job::Job`], a job is run to its end.
//!
//! There is one loop, [`run::run`], and one place where the loss is normalised, [`step::gradients`]. This crate asks
//! neither which method is on nor whether rows are packed.

mod answers;
pub mod bench;
pub mod checkpoint;
mod data_files;
pub mod digest;
mod error;
pub mod evaluate;
pub mod events;
pub mod fit;
pub mod health;
pub mod job;
pub mod memory_plan;
mod model_card;
pub mod optim;
pub mod parity;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod setup;
pub mod step;
pub mod trainer;

pub use error::TrainError;
pub use job::Job;
