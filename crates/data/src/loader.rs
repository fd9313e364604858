//! The loader (stage 8 of the walk): examples → an endless stream of optimizer steps.
//!
//! In: [`Example`]s. Out: [`StepBatch`]es, epoch after epoch, in an order that depends on the seed,
//! the epoch and nothing else. The [`Cursor`] names the next step; a loader made from the same
//! examples and options continues from it exactly.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::labels::Example;
use crate::pack::{self, Joining, PackedBatch};
use crate::shuffle;

/// How examples become steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Rows of a micro-batch, or bins with `packing` (`per_device_train_batch_size`).
    pub batch_size: usize,
    /// Micro-batches of an optimizer step (`gradient_accumulation_steps`).
    pub accumulation: usize,
    /// Fills bins of this many tokens with whole rows (`packing`, `cutoff_len`).
    pub pack_to: Option<usize>,
    /// Rows in the order of the data in every epoch (`disable_shuffling`).
    pub in_order: bool,
    /// Seed of the order (`data_seed`, else `seed`).
    pub seed: u64,
}

/// The next step: all that has to be saved to continue the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch of the next step, from 0.
    pub epoch: u64,
    /// Number of the next step in its epoch, from 0.
    pub step_in_epoch: u64,
}

/// The micro-batches of one optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepBatch {
    /// Which step this is.
    pub at: Cursor,
    /// One to `accumulation` micro-batches: fewer in an epoch's last step, and where some are joined
    /// ([`Loader::set_joining`]).
    pub micro_batches: Vec<PackedBatch>,
}

impl StepBatch {
    /// Tokens of all rows, each counted for itself.
    pub fn tokens(&self) -> usize {
        self.micro_batches.iter().map(PackedBatch::row_tokens).sum()
    }

    /// Tokens that are computed: what rows share counts once.
    pub fn computed_tokens(&self) -> usize {
        self.micro_batches.iter().map(PackedBatch::tokens).sum()
    }

    /// Tokens that count in the loss of this step.
    pub fn supervised(&self) -> usize {
        self.micro_batches.iter().map(PackedBatch::supervised).sum()
    }

    /// The sum of their weights, 1 for most: what the step's loss and gradient are divided by.
    pub fn weight(&self) -> f64 {
        self.micro_batches.iter().map(PackedBatch::weight).sum()
    }
}

/// The stream of steps.
#[derive(Debug, Clone)]
pub struct Loader {
    examples: Arc<[Example]>,
    options: LoaderOptions,
    /// What is shuffled: a row, or the rows of a packed bin.
    items: Vec<Vec<usize>>,
    cursor: Cursor,
    /// Order of `items` in the cursor's epoch.
    order: Vec<usize>,
    joining: Joining,
}

impl Loader {
    /// A loader at the beginning of the first epoch.
    ///
    /// # Errors
    /// No examples, or an option that is 0.
    pub fn new(examples: impl Into<Arc<[Example]>>, options: LoaderOptions) -> Result<Self, DataError> {
        let examples = examples.into();
        let positive = |key, value| match value {
            0 => Err(DataError::Option {
                key,
                reason: "is 0, must be at least 1".into(),
                help: "1 is the smallest batch".into(),
            }),
            _ => Ok(()),
        };
        positive("per_device_train_batch_size", options.batch_size)?;
        positive("gradient_accumulation_steps", options.accumulation)?;
        positive("cutoff_len", options.pack_to.unwrap_or(1))?;
        if examples.is_empty() {
            return Err(DataError::NothingToTrain { reason: "no row is left after encoding".into() });
        }
        let items = match options.pack_to {
            Some(capacity) => {
                let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
                pack::bins(&lengths, capacity)
            }
            None => (0..examples.len()).map(|row| vec![row]).collect(),
        };
        let (cursor, order) = (Cursor::default(), Vec::new());
        let mut loader = Self { examples, options, items, cursor, order, joining: Joining::default() };
        loader.order = loader.epoch_order(0);
        Ok(loader)
    }

    /// One without rows, for an evaluation alone: it has no step.
    pub fn empty(options: LoaderOptions) -> Self {
        let (examples, items, order) = (Vec::new().into(), Vec::new(), Vec::new());
        Self { examples, options, items, cursor: Cursor::default(), order, joining: Joining::default() }
    }

    /// How rows are computed together from now on. Rows never see each other and the loss is a mean over the tokens of a
    /// step, so that only rounding tells, and what is drawn at random: masks of dropout, NEFTune's noise.
    pub fn set_joining(&mut self, joining: Joining) {
        self.joining = joining;
    }

    /// The examples, in the order of the data.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Micro-batches of an epoch; the last may be smaller.
    pub fn micro_batches_per_epoch(&self) -> u64 {
        self.items.len().div_ceil(self.options.batch_size) as u64
    }

    /// Optimizer steps of an epoch; the last may have fewer micro-batches, as in transformers.
    pub fn steps_per_epoch(&self) -> u64 {
        self.micro_batches_per_epoch().div_ceil(self.options.accumulation as u64)
    }

    /// Epochs behind the first so many steps: whole ones, and of the last one the part of its micro-batches that they
    /// took, as transformers counts them.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        let (of_epoch, micro_batches) =
            (self.steps_per_epoch().max(1), self.micro_batches_per_epoch().max(1));
        let seen = steps % of_epoch * self.options.accumulation as u64;
        (steps / of_epoch) as f64 + seen as f64 / micro_batches as f64
    }

    /// Part of the packed bins that holds tokens, 0 to 1; `None` without packing.
    pub fn fill(&self) -> Option<f64> {
        let capacity = self.options.pack_to?;
        let tokens: usize = self.examples.iter().map(Example::len).sum();
        Some(tokens as f64 / (capacity * self.items.len()) as f64)
    }

    /// The next step to come.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to a saved place; a step past the end of its epoch counts on into the next ones.
    pub fn seek(&mut self, cursor: Cursor) {
        let steps = self.steps_per_epoch();
        self.cursor = Cursor {
            epoch: cursor.epoch + cursor.step_in_epoch / steps,
            step_in_epoch: cursor.step_in_epoch % steps,
        };
        self.order = self.epoch_order(self.cursor.epoch);
    }

    /// The step at the cursor; the cursor moves on, into the next epoch after the last step of one.
    pub fn next_step(&mut self) -> StepBatch {
        let at = self.cursor;
        let per_step = self.options.batch_size * self.options.accumulation;
        let from = at.step_in_epoch as usize * per_step;
        let to = (from + per_step).min(self.order.len());
        let items: Vec<&[usize]> = self.order[from..to].iter().map(|item| &self.items[*item][..]).collect();
        let micro_batches =
            pack::micro_batches(&self.examples, &items, self.options.batch_size, self.joining);
        self.cursor.step_in_epoch += 1;
        if self.cursor.step_in_epoch == self.steps_per_epoch() {
            self.cursor = Cursor { epoch: at.epoch + 1, step_in_epoch: 0 };
            self.order = self.epoch_order(self.cursor.epoch);
        }
        StepBatch { at, micro_batches }
    }

    /// Every example once, in the order of the data: a pass of evaluation, whose micro-batches are not joined. The cursor
    /// stays.
    pub fn pass(&self) -> impl Iterator<Item = PackedBatch> + '_ {
        let (batch_size, joining) = (self.options.batch_size, Joining { room: 0, ..self.joining });
        self.items.chunks(batch_size).flat_map(move |items| {
            let items: Vec<&[usize]> = items.iter().map(|rows| &rows[..]).collect();
            pack::micro_batches(&self.examples, &items, batch_size, joining)
        })
    }

    fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        if self.options.in_order {
            (0..self.items.len()).collect()
        } else {
            shuffle::permutation(self.items.len(), self.options.seed, epoch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::example;

    #[test]
    fn joined_micro_batches_hold_the_same_rows_in_the_same_steps() {
        let rows: Vec<Example> = rows(11);
        let options = LoaderOptions { batch_size: 1, accumulation: 4, ..options() };
        let mut apart = Loader::new(rows.clone(), options.clone()).unwrap();
        let mut joined = Loader::new(rows, options).unwrap();
        joined.set_joining(Joining { room: 1 << 20, ..Joining::default() });
        for _ in 0..6 {
            let (apart, joined) = (apart.next_step(), joined.next_step());
            assert_eq!(joined.micro_batches.len(), 1);
            let of = |step: &StepBatch| -> Vec<usize> {
                step.micro_batches.iter().flat_map(|batch| batch.rows.clone()).collect()
            };
            assert_eq!((apart.at, of(&apart)), (joined.at, of(&joined)));
            assert_eq!(
                (apart.tokens(), apart.supervised(), apart.weight()),
                (joined.tokens(), joined.supervised(), joined.weight())
            );
        }
        assert_eq!(apart.epochs_after(2), joined.epochs_after(2));
    }

    fn options() -> LoaderOptions {
        LoaderOptions { batch_size: 2, accumulation: 2, pack_to: None, in_order: false, seed: 42 }
    }

    fn rows(n: u32) -> Vec<Example> {
        (0..n).map(|id| example(&[id, id], &[-100, id as i32])).collect()
    }

    fn rows_of(step: &StepBatch) -> Vec<usize> {
        step.micro_batches.iter().flat_map(|m| m.rows.clone()).collect()
    }

    #[test]
    fn an_epoch_shows_every_row_once() {
        let mut loader = Loader::new(rows(11), options()).unwrap();
        assert_eq!(loader.steps_per_epoch(), 3);
        for epoch in 0..3 {
            let steps: Vec<StepBatch> = (0..3).map(|_| loader.next_step()).collect();
            assert!(steps.iter().all(|step| step.at.epoch == epoch));
            let sizes: Vec<usize> = steps.iter().map(|s| s.micro_batches.len()).collect();
            assert_eq!(sizes, [2, 2, 2]);
            let mut seen: Vec<usize> = steps.iter().flat_map(rows_of).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..11));
        }
    }

    #[test]
    fn epochs_are_counted_by_micro_batches_as_transformers_does() {
        // transformers 5.6, 36 rows, batches of 1, 8 accumulated: 0.2222 after a step, 0.8889 after four, 1 after five.
        let options = LoaderOptions { batch_size: 1, accumulation: 8, ..options() };
        let loader = Loader::new(rows(36), options).unwrap();
        let epochs = [0, 1, 4, 5, 6].map(|steps| (loader.epochs_after(steps) * 1e4).round() / 1e4);
        assert_eq!(epochs, [0.0, 0.2222, 0.8889, 1.0, 1.2222]);
    }

    #[test]
    fn the_last_step_of_an_epoch_may_be_short() {
        let mut loader = Loader::new(rows(5), options()).unwrap();
        assert_eq!(loader.next_step().micro_batches.len(), 2);
        let last = loader.next_step();
        assert_eq!(last.micro_batches.len(), 1);
        assert_eq!(last.supervised(), 1);
    }

    #[test]
    fn epochs_differ_in_order_and_repeat_by_seed() {
        let mut a = Loader::new(rows(40), options()).unwrap();
        let mut b = Loader::new(rows(40), options()).unwrap();
        let steps = a.steps_per_epoch();
        let epoch = |loader: &mut Loader| -> Vec<usize> {
            (0..steps).flat_map(|_| rows_of(&loader.next_step())).collect()
        };
        let first = epoch(&mut a);
        assert_eq!(first, epoch(&mut b));
        assert_ne!(first, epoch(&mut a));
    }

    #[test]
    fn rows_keep_their_order_when_shuffling_is_off() {
        let in_order = LoaderOptions { in_order: true, ..options() };
        let mut loader = Loader::new(rows(6), in_order).unwrap();
        assert_eq!(rows_of(&loader.next_step()), [0, 1, 2, 3]);
        assert_eq!(rows_of(&loader.next_step()), [4, 5]);
        assert_eq!(rows_of(&loader.next_step()), [0, 1, 2, 3]);
    }

    #[test]
    fn a_saved_cursor_continues_the_stream_exactly() {
        for pack_to in [None, Some(5)] {
            let options = LoaderOptions { pack_to, ..options() };
            let mut whole = Loader::new(rows(23), options.clone()).unwrap();
            for done in 0..9 {
                let saved = serde_json::to_string(&whole.cursor()).unwrap();
                let mut resumed = Loader::new(rows(23), options.clone()).unwrap();
                resumed.seek(serde_json::from_str(&saved).unwrap());
                let expected = whole.clone().next_step();
                assert_eq!(resumed.next_step(), expected, "after {done} steps");
                whole.next_step();
            }
        }
    }

    #[test]
    fn packed_rows_stay_whole() {
        let options = LoaderOptions { pack_to: Some(5), batch_size: 1, ..options() };
        let mut loader = Loader::new(rows(4), options).unwrap();
        assert_eq!(loader.fill(), Some(0.8));
        let step = loader.next_step();
        assert_eq!(step.micro_batches.len(), 2);
        for batch in &step.micro_batches {
            assert_eq!(batch.cu_seqlens, [0, 2, 4]);
        }
    }

    #[test]
    fn a_pass_visits_the_rows_in_order() {
        let loader = Loader::new(rows(5), options()).unwrap();
        let rows: Vec<usize> = loader.pass().flat_map(|batch| batch.rows).collect();
        assert_eq!(rows, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn no_rows_is_an_error() {
        assert!(Loader::new(Vec::new(), options()).is_err());
    }
}
