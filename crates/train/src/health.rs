//! Numbers that go wrong: a step whose loss or gradient is not finite is done a second time and looked at, op by op;
//! and signs that a run learns nothing or too much are said with their cause.
//!
//! In: the steps of a run. Out: [`NonFiniteStep`], [`Warning`]s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sft_data::loader::StepBatch;
use sft_kernels::random;
use sft_model::ModelError;
use sft_model::weights::first_non_finite;

use crate::job::Job;
use crate::schedule::Schedule;
use crate::step::{StepOutcome, as_batch, clear, scale_of};
use crate::trainer::Trainer;

/// Steps without an update in a row that end a run with `on_non_finite: skip_step` too: it learns nothing any more.
pub const MOST_SKIPPED_IN_A_ROW: u64 = 10;

/// A gradient norm so many times the mean of those before it has exploded.
const EXPLODES: f64 = 20.0;
/// Norms that there must be for a mean.
const FEWEST_NORMS: u64 = 8;
/// How much of the mean a norm is.
const NORM_WEIGHT: f64 = 0.05;

/// Where a step went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonFiniteStep {
    /// `loss`, `gradient` or `weights`.
    pub what: &'static str,
    /// The first op, and its layer.
    pub place: String,
    /// The rows that it can be blamed on: file:line.
    pub rows: Vec<String>,
}

impl NonFiniteStep {
    /// Does the step once more, every output looked at.
    ///
    /// # Errors
    /// What the pass itself refuses.
    pub fn find(
        trainer: &mut Trainer<'_>,
        job: &Job,
        step: u64,
        batch: &StepBatch,
        outcome: &StepOutcome,
    ) -> Result<Self, ModelError> {
        let what = if outcome.loss.is_finite() { "gradient" } else { "loss" };
        let rows = |micro_batches: &[sft_data::pack::PackedBatch]| {
            let step = StepBatch { micro_batches: micro_batches.to_vec(), ..batch.clone() };
            job.train.origins(&step).iter().map(ToString::to_string).collect()
        };
        let dev = trainer.dev;
        for parameter in trainer.decoder.trained_mut() {
            if let Some(at) = first_non_finite(dev, parameter.value()) {
                let place = format!("the weight {} itself, at element {at}", parameter.name());
                return Ok(Self { what: "weights", place, rows: rows(&batch.micro_batches) });
            }
        }
        let key = random::key(job.config.seed, &[random::name_part("dropout"), step]);
        let scale = scale_of(batch);
        let by_parts = trainer.optimizer.by_parts().is_some();
        clear(dev, &mut trainer.decoder, &mut trainer.work);
        for (i, packed) in batch.micro_batches.iter().enumerate() {
            let dropout = Some(random::key(key, &[i as u64]));
            trainer.work.set_share(packed.row_tokens() as f32 / batch.tokens().max(1) as f32);
            let (decoder, work) = (&mut trainer.decoder, &mut trainer.work);
            let found = decoder.first_non_finite(dev, as_batch(packed), scale, dropout, work, by_parts)?;
            let Some(found) = found else { continue };
            let of = if found.is_gradient { "the gradient from " } else { "" };
            let mut rows: Vec<String> = rows(&batch.micro_batches[i..=i]);
            // A gradient of one token comes from all later ones of its rows, a value from all earlier ones.
            if let Some(token) = found.token.filter(|_| rows.len() == packed.rows.len()) {
                let is_of = |row: usize| packed.row_places(row).any(|place| place as usize == token);
                rows = (0..).zip(rows).filter(|(row, _)| is_of(*row)).map(|(_, row)| row).collect();
            }
            return Ok(Self { what, place: format!("{of}{}", found.op), rows });
        }
        let place = "the sum over all micro-batches, each of which is finite by itself".to_owned();
        Ok(Self { what, place, rows: rows(&batch.micro_batches) })
    }

    /// The rows in words, the first of many.
    pub fn rows_in_words(&self) -> String {
        const SHOWN: usize = 8;
        let mut text = self.rows.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if self.rows.len() > SHOWN {
            text.push_str(&format!(", and {} more", self.rows.len() - SHOWN));
        }
        text
    }
}

/// A sign that something is wrong, though the numbers are finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Warning {
    /// The loss of a step is exactly 0.
    LossZero,
    /// No token of a step is supervised.
    NothingSupervised,
    /// The norm of the gradient is many times what it was.
    GradientExplodes,
    /// The gradient is exactly 0, though the loss is not.
    GradientVanished,
}

/// Watches the steps of a run for signs that something is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    mean_norm: f64,
    norms: u64,
    counts: BTreeMap<Warning, u64>,
}

impl Health {
    /// What is to be said after a step, each sign in words the first time that it shows.
    pub fn after(&mut self, outcome: &StepOutcome, max_grad_norm: f64) -> Vec<String> {
        let mut said = Vec::new();
        if outcome.sums.supervised == 0 {
            said.extend(self.first(Warning::NothingSupervised).then(|| {
                "no token of this step is supervised, so it teaches nothing: all its answers were cut away, or are \
                 masked by `weight: 0` or `mask_history` (`sft data show` shows what is trained)"
                    .to_owned()
            }));
        } else if outcome.loss == 0.0 {
            said.extend(self.first(Warning::LossZero).then(|| {
                format!(
                    "the loss is exactly 0 on {} supervised tokens: the model gives each of them a probability of 1. \
                     The rows were learnt by heart, or the answer stands in the prompt; a lower learning_rate or fewer \
                     epochs keep a model from this",
                    outcome.sums.supervised
                )
            }));
        }
        if outcome.sums.supervised > 0 && outcome.loss != 0.0 && outcome.grad_norm == 0.0 {
            said.extend(self.first(Warning::GradientVanished).then(|| {
                format!(
                    "the gradient is exactly 0 at a loss of {:.3}: such a step teaches nothing. Weights that have grown \
                     too large make a model certain of every token, right or wrong; begin anew with a lower learning_rate",
                    outcome.loss
                )
            }));
        }
        said.extend(self.explodes(outcome.grad_norm, max_grad_norm));
        said
    }

    fn explodes(&mut self, norm: f64, max_grad_norm: f64) -> Option<String> {
        let mean = self.mean_norm;
        let has_exploded = self.norms >= FEWEST_NORMS && mean > 0.0 && norm > EXPLODES * mean;
        self.norms += 1;
        let weight = NORM_WEIGHT.max(1.0 / self.norms as f64);
        // One explosion must not make the next look small.
        let counted = if has_exploded { EXPLODES * mean } else { norm };
        self.mean_norm += weight * (counted - mean);
        if !has_exploded || !self.first(Warning::GradientExplodes) {
            return None;
        }
        let clipped = match max_grad_norm > 0.0 {
            true => format!("it is clipped to max_grad_norm {max_grad_norm}"),
            false => "nothing clips it, since max_grad_norm is 0".to_owned(),
        };
        Some(format!(
            "the gradient norm is {norm:.3e}, {:.0} times its mean of {mean:.3e}; {clipped}. The learning rate is too \
             high for these rows, or a row is unlike the others",
            norm / mean
        ))
    }

    fn first(&mut self, warning: Warning) -> bool {
        let count = self.counts.entry(warning).or_default();
        *count += 1;
        *count == 1
    }

    /// How often each sign showed.
    pub fn counts(&self) -> impl Iterator<Item = (Warning, u64)> {
        self.counts.iter().map(|(warning, count)| (*warning, *count))
    }
}

impl Warning {
    /// Its key in the results.
    pub fn key(self) -> &'static str {
        match self {
            Self::LossZero => "steps_with_loss_0",
            Self::NothingSupervised => "steps_without_supervised_tokens",
            Self::GradientExplodes => "steps_with_exploding_gradients",
            Self::GradientVanished => "steps_with_gradient_0",
        }
    }
}

/// What is to be said of a schedule in which more steps than the first of a warmup, and the last, change nothing.
pub fn idle_steps(schedule: &Schedule, total_steps: u64, learning_rate: f64) -> Option<String> {
    /// Steps that are looked at; of more, every so many.
    const MOST: u64 = 1 << 20;
    let every = total_steps.div_ceil(MOST).max(1);
    let looked_at = (0..total_steps.div_ceil(every)).map(|i| i * every);
    let idle = looked_at.filter(|step| schedule.rate(*step) == 0.0).count() as u64;
    if learning_rate == 0.0 {
        return Some("learning_rate is 0: no step changes a weight".to_owned());
    }
    let warms_up = u64::from(total_steps > 0 && schedule.rate(0) == 0.0);
    (idle > warms_up + 1).then(|| {
        format!(
            "the learning rate is 0 in {}{} of {total_steps} steps: the schedule ends, or its warmup does, too early \
             or too late (lr_scheduler_type, lr_scheduler_kwargs, warmup_steps)",
            if every > 1 { "about " } else { "" },
            idle * every,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sft_config::LrSchedule;
    use sft_model::head::LossSums;

    fn outcome(loss: f64, grad_norm: f64, supervised: usize) -> StepOutcome {
        let sums = LossSums {
            nll: loss * supervised as f64,
            loss: loss * supervised as f64,
            supervised,
            weight: supervised as f64,
            correct: 0,
        };
        StepOutcome { loss, grad_norm, sums }
    }

    #[test]
    fn a_loss_of_exactly_0_and_a_step_without_supervised_tokens_are_two_causes() {
        let mut health = Health::default();
        assert!(health.after(&outcome(0.5, 1.0, 7), 1.0).is_empty());
        let said = health.after(&outcome(0.0, 0.0, 7), 1.0);
        assert!(said[0].starts_with("the loss is exactly 0 on 7 supervised tokens"), "{said:?}");
        let said = health.after(&outcome(0.0, 0.0, 0), 1.0);
        assert!(said[0].starts_with("no token of this step is supervised"), "{said:?}");
        assert!(health.after(&outcome(0.0, 0.0, 7), 1.0).is_empty(), "said once, counted always");
        let counts: Vec<_> = health.counts().collect();
        assert_eq!(counts, [(Warning::LossZero, 2), (Warning::NothingSupervised, 1)]);
    }

    #[test]
    fn a_gradient_norm_of_many_times_its_mean_explodes_and_a_slow_rise_does_not() {
        let mut health = Health::default();
        for step in 0..40 {
            let norm = 1.0 + f64::from(step) * 0.2;
            assert!(health.after(&outcome(1.0, norm, 7), 1.0).is_empty(), "step {step}");
        }
        let said = health.after(&outcome(1.0, 500.0, 7), 0.0);
        assert!(said[0].contains("max_grad_norm is 0") && said[0].contains("times its mean"), "{said:?}");
    }

    #[test]
    fn a_gradient_of_exactly_0_is_said_where_the_loss_is_not_0_and_tokens_are_supervised() {
        let mut health = Health::default();
        let said = health.after(&outcome(11.93, 0.0, 7), 1.0);
        assert!(said[0].starts_with("the gradient is exactly 0 at a loss of 11.930"), "{said:?}");
        assert_eq!(said.len(), 1);
        assert!(health.after(&outcome(11.93, 0.0, 7), 1.0).is_empty(), "said once, counted always");
        health.after(&outcome(0.0, 0.0, 7), 1.0);
        health.after(&outcome(0.0, 0.0, 0), 1.0);
        assert_eq!(health.counts().find(|(warning, _)| *warning == Warning::GradientVanished).unwrap().1, 2);
    }

    #[test]
    fn norms_of_the_first_steps_are_never_an_explosion() {
        let mut health = Health::default();
        assert!(health.after(&outcome(1.0, 1e-3, 7), 1.0).is_empty());
        assert!(health.after(&outcome(1.0, 1e3, 7), 1.0).is_empty());
    }

    #[test]
    fn a_schedule_that_stands_still_is_said_and_the_ends_of_a_good_one_are_not() {
        let idle = |shape, learning_rate, warmup, total| {
            idle_steps(&Schedule::new(shape, learning_rate, warmup, total), total, learning_rate)
        };
        assert_eq!(idle(LrSchedule::Linear, 1e-3, 3, 10), None);
        assert_eq!(idle(LrSchedule::Cosine { num_cycles: 0.5 }, 1e-3, 0, 10), None);
        assert!(idle(LrSchedule::Constant, 0.0, 0, 10).unwrap().contains("learning_rate is 0"));
        // Of very many steps some are looked at.
        let many = 1 << 40;
        assert_eq!(idle(LrSchedule::Linear, 1e-3, 3, many), None);
        let late = idle(LrSchedule::Cosine { num_cycles: 0.5 }, 1e-3, many * 2, many);
        assert_eq!(late, None);
        let restarts = LrSchedule::Cosine { num_cycles: 5.0 };
        assert!(idle(restarts, 1e-3, 0, 10).unwrap().starts_with("the learning rate is 0 in 5 of 10 steps"));
    }
}
