//! The loss on held-out rows.

use sft_data::loader::Loader;
use sft_kernels::Device;
use sft_model::head::LossSums;
use sft_model::workspace::Workspace;
use sft_model::{Decoder, ModelError};

use crate::step::as_batch;

/// What an evaluation came to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evaluation {
    /// Sums over all rows.
    pub sums: LossSums,
    /// Micro-batches.
    pub batches: u64,
    /// Whether it was broken off.
    pub stopped: bool,
}

impl Evaluation {
    /// Σ w·nll / Σ w.
    pub fn loss(&self) -> f64 {
        self.sums.mean()
    }

    /// Share of supervised tokens that the model puts first.
    pub fn accuracy(&self) -> f64 {
        self.sums.correct as f64 / self.sums.supervised.max(1) as f64
    }
}

impl std::ops::AddAssign for Evaluation {
    /// Further rows of the same evaluation.
    fn add_assign(&mut self, further: Self) {
        self.sums += further.sums;
        self.batches += further.batches;
        self.stopped |= further.stopped;
    }
}

/// Evaluates every row of `rows` once; `stop` is asked before every micro-batch.
///
/// # Errors
/// A token id outside of the vocabulary.
pub fn evaluate(
    dev: &Device,
    decoder: &Decoder,
    rows: &Loader,
    work: &mut Workspace,
    mut stop: impl FnMut() -> bool,
) -> Result<Evaluation, ModelError> {
    let mut evaluation = Evaluation::default();
    for packed in rows.pass() {
        if stop() {
            evaluation.stopped = true;
            break;
        }
        evaluation.sums += decoder.evaluate(dev, as_batch(&packed), work)?;
        evaluation.batches += 1;
    }
    Ok(evaluation)
}
