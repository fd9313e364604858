//! What the loop tells its observer. Libraries do not print: the command line shows these, others may record them.

use std::path::Path;

use sft_model::head::LossSums;
use sft_runs::trainer_log::LogLine;

/// Something that happened in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Weights are there, the first step is next.
    Ready {
        /// Updates done already, by the run that is resumed.
        resumed_at: u64,
        /// What the run's folder has to say (damaged checkpoints that were skipped, …).
        notes: &'a [String],
    },
    /// An update is done.
    Step(&'a Progress),
    /// The log got a line.
    Logged(&'a LogLine),
    /// An evaluation is done.
    Evaluated {
        /// Its line in the log.
        line: &'a LogLine,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// A row is answered.
    Answered {
        /// Rows that are.
        done: usize,
        /// Rows in all.
        of: usize,
    },
    /// All answers are written.
    Predicted {
        /// The file.
        path: &'a Path,
    },
    /// A checkpoint is written.
    Saved {
        /// Where.
        folder: &'a Path,
    },
    /// A step seemed wrong, or changed nothing because its numbers were not finite.
    Warned {
        /// The step, from 1; 0 before the first.
        step: u64,
        /// What, and why.
        text: &'a str,
    },
    /// Training ends before its last step because evaluations did not get better.
    StoppedEarly {
        /// Evaluations since the best.
        evaluations: u64,
    },
    /// The weights of the best evaluation are back.
    BestLoaded {
        /// Its step.
        step: u64,
    },
}

/// Where a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Epochs done, with the fraction.
    pub epoch: f64,
    /// Σ w·nll / Σ w of this step.
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Input tokens of this step.
    pub tokens: usize,
    /// Sums of this step.
    pub sums: LossSums,
    /// Seconds of this step.
    pub seconds: f64,
}

/// Whoever watches a run.
pub trait Observer: Send {
    /// Is told of everything that happens.
    fn on(&mut self, event: &Event<'_>);

    /// Whether the run is to end after the step in hand, with a checkpoint.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug)]
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _: &Event<'_>) {}
}
