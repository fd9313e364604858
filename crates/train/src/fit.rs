//! The largest micro-batch and the longest rows that fit into the memory that is free.
//!
//! In: a job → out: [`Fit`], from the same plan that a run is refused by. Rows of a step stay as many: a larger
//! micro-batch takes fewer of them, so that the loss of each step is the same one.

use sft_data::batches::Batches;

use crate::TrainError;
use crate::job::{Job, largest_batch, pack_to};

/// No micro-batch that is asked for is larger.
const MOST_TOKENS: usize = 1 << 26;

/// What fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Tokens of the largest micro-batch that fits; 0 if not even one token does.
    pub max_tokens: usize,
    /// `cutoff_len` of the job, and the largest micro-batch with it that parts the rows of a step evenly; `None` if no
    /// row of this length fits.
    pub batch: Option<BatchFit>,
    /// The largest `cutoff_len` with micro-batches of one row; `None` if nothing fits.
    pub cutoff_len: Option<usize>,
}

/// A micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFit {
    /// `per_device_train_batch_size`.
    pub rows: usize,
    /// `gradient_accumulation_steps` that goes with it.
    pub accumulation: usize,
    /// Its tokens, at most.
    pub tokens: usize,
}

impl Fit {
    /// What of a job fits into the memory that is free; `None` where the system does not say how much that is.
    ///
    /// # Errors
    /// As [`Job::plan_of`].
    pub fn of(job: &Job) -> Result<Option<Self>, TrainError> {
        let Some(available) = job.available else { return Ok(None) };
        let fits = |tokens: usize| Ok::<_, TrainError>(job.plan_of(tokens)?.total() as u64 <= available);
        let (mut fitting, mut too_many) = (0, MOST_TOKENS);
        while too_many - fitting > 1 {
            let middle = fitting + (too_many - fitting) / 2;
            match fits(middle)? {
                true => fitting = middle,
                false => too_many = middle,
            }
        }
        let config = &job.config;
        let rows_of_a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps;
        let tokens_of = |rows: usize| match &job.train {
            Batches::Kept(loader) => largest_batch(loader.examples(), rows, pack_to(config)),
            Batches::Streamed(_) => rows * config.cutoff_len,
        };
        let even = (1..=rows_of_a_step).rev().filter(|rows| rows_of_a_step.is_multiple_of(*rows));
        let batch = even.map(|rows| (rows, tokens_of(rows))).find(|(_, tokens)| *tokens <= fitting);
        let batch = batch.filter(|_| fitting > 0).map(|(rows, tokens)| BatchFit {
            rows,
            accumulation: rows_of_a_step / rows,
            tokens,
        });
        let learned = job.spec.positions.map_or(usize::MAX, |positions| positions.rows - positions.offset);
        // Rotations go on, and nobody has trained them there; a recipe that asks for more knows why.
        let positions = job.spec.max_position_embeddings.max(config.cutoff_len).min(learned);
        let cutoff_len = Some(fitting.min(positions)).filter(|tokens| *tokens > 0);
        Ok(Some(Self { max_tokens: fitting, batch, cutoff_len }))
    }
}
