//! The learning rate of each step (stage 12 of the walk).
//!
//! Formulas as in transformers' `optimization.py`; `progress` is the share of the steps after warm-up that are done.

use std::f64::consts::PI;

use sft_config::{LrSchedule, RampShape};

/// A schedule over a run of known length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    shape: LrSchedule,
    learning_rate: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// A schedule that begins at 0, reaches `learning_rate` after `warmup_steps` and takes `shape` from there.
    pub fn new(shape: LrSchedule, learning_rate: f64, warmup_steps: u64, total_steps: u64) -> Self {
        Self { shape, learning_rate, warmup_steps, total_steps }
    }

    /// The rate of the update after `done` updates.
    pub fn rate(&self, done: u64) -> f64 {
        self.learning_rate * self.factor(done)
    }

    fn factor(&self, done: u64) -> f64 {
        let (step, warmup, total) = (done as f64, self.warmup_steps as f64, self.total_steps as f64);
        if let LrSchedule::WarmupStableDecay { .. } = self.shape {
            return self.warmup_stable_decay(done);
        }
        if let LrSchedule::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } = self.shape {
            return self.cosine_a_step_ahead(step, num_cycles, min_lr_rate, warmup_lr_rate);
        }
        if self.shape == LrSchedule::Constant {
            return 1.0;
        }
        if done < self.warmup_steps {
            return step / warmup.max(1.0);
        }
        let progress = (step - warmup) / (total - warmup).max(1.0);
        let cosine = |cycles: f64| (0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0);
        match self.shape {
            LrSchedule::Linear => (1.0 - progress).max(0.0),
            LrSchedule::Cosine { num_cycles } => cosine(num_cycles),
            LrSchedule::CosineWithRestarts { num_cycles } => {
                if progress >= 1.0 {
                    return 0.0;
                }
                (0.5 * (1.0 + (PI * (num_cycles * progress % 1.0)).cos())).max(0.0)
            }
            LrSchedule::Polynomial { lr_end, power } => {
                let end = lr_end / self.learning_rate;
                if done > self.total_steps { end } else { (1.0 - end) * (1.0 - progress).powf(power) + end }
            }
            LrSchedule::Constant | LrSchedule::ConstantWithWarmup => 1.0,
            LrSchedule::InverseSqrt { timescale } => {
                let without = if self.warmup_steps > 0 { warmup } else { 10_000.0 };
                let timescale = timescale.map_or(without, |t| t as f64);
                1.0 / ((step + timescale - warmup) / timescale).sqrt()
            }
            LrSchedule::CosineWithMinLr { num_cycles, min_lr_rate } => {
                cosine(num_cycles) * (1.0 - min_lr_rate) + min_lr_rate
            }
            LrSchedule::WarmupStableDecay { .. } | LrSchedule::CosineWarmupWithMinLr { .. } => {
                unreachable!("returned above")
            }
        }
    }

    fn cosine_a_step_ahead(&self, step: f64, cycles: f64, floor: f64, begin: Option<f64>) -> f64 {
        let (warmup, total) = (self.warmup_steps as f64, self.total_steps as f64);
        if step < warmup {
            return match begin {
                None => (step + 1.0) / warmup.max(1.0),
                Some(begin) => begin + (1.0 - begin) * step / (warmup - 1.0).max(1.0),
            };
        }
        let progress = (step - warmup + 1.0) / (total - warmup).max(1.0);
        let factor = 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
        (factor * (1.0 - floor) + floor).max(0.0)
    }

    /// The lengths of the plateau and of the decay. Given neither, LLaMA-Factory's thirds; given one, the other is what it
    /// leaves (where a decay is given, transformers' rule).
    fn plateau_and_decay(&self, stable: Option<u64>, decay: Option<u64>) -> (u64, u64) {
        let left = self.total_steps.saturating_sub(self.warmup_steps);
        match (stable, decay) {
            (None, None) => (left / 3, left - left / 3),
            (None, Some(decay)) => (left.saturating_sub(decay), decay),
            (Some(stable), None) => (stable, left.saturating_sub(stable)),
            (Some(stable), Some(decay)) => (stable, decay),
        }
    }

    fn warmup_stable_decay(&self, done: u64) -> f64 {
        let LrSchedule::WarmupStableDecay {
            num_stable_steps,
            num_decay_steps,
            warmup_type,
            decay_type,
            min_lr_ratio: floor,
            num_cycles,
        } = self.shape
        else {
            unreachable!("called for this shape alone");
        };
        let lifted = |factor: f64| (factor * (1.0 - floor) + floor).max(0.0);
        let (stable, num_decay_steps) = self.plateau_and_decay(num_stable_steps, num_decay_steps);
        if done < self.warmup_steps {
            let progress = done as f64 / (self.warmup_steps as f64).max(1.0);
            return lifted(match warmup_type {
                RampShape::Linear => progress,
                RampShape::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                RampShape::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            });
        }
        if done < self.warmup_steps + stable {
            return 1.0;
        }
        let decayed = done - self.warmup_steps - stable;
        if decayed >= num_decay_steps {
            return floor;
        }
        let progress = decayed as f64 / (num_decay_steps as f64).max(1.0);
        lifted(match decay_type {
            RampShape::Linear => 1.0 - progress,
            RampShape::Cosine => 0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos()),
            RampShape::OneMinusSqrt => 1.0 - progress.sqrt(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_gives_the_rates_of_transformers() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/schedules.json")).unwrap();
        for (name, rates) in golden.as_object().unwrap() {
            let shape = match name.as_str() {
                "linear" => LrSchedule::Linear,
                "cosine" => LrSchedule::Cosine { num_cycles: 0.5 },
                "cosine_with_restarts" => LrSchedule::CosineWithRestarts { num_cycles: 2.0 },
                "polynomial" => LrSchedule::Polynomial { lr_end: 0.1, power: 2.0 },
                "constant" => LrSchedule::Constant,
                "constant_with_warmup" => LrSchedule::ConstantWithWarmup,
                "inverse_sqrt" => LrSchedule::InverseSqrt { timescale: None },
                "cosine_with_min_lr" => LrSchedule::CosineWithMinLr { num_cycles: 0.5, min_lr_rate: 0.1 },
                "cosine_warmup_with_min_lr" => LrSchedule::CosineWarmupWithMinLr {
                    num_cycles: 0.5,
                    min_lr_rate: 0.1,
                    warmup_lr_rate: None,
                },
                "cosine_warmup_from_a_rate" => LrSchedule::CosineWarmupWithMinLr {
                    num_cycles: 0.5,
                    min_lr_rate: 0.1,
                    warmup_lr_rate: Some(0.2),
                },
                "warmup_stable_decay_of_llamafactory" => LrSchedule::WarmupStableDecay {
                    num_stable_steps: None,
                    num_decay_steps: None,
                    warmup_type: RampShape::Linear,
                    decay_type: RampShape::Cosine,
                    min_lr_ratio: 0.0,
                    num_cycles: 0.5,
                },
                "warmup_stable_decay" => LrSchedule::WarmupStableDecay {
                    num_stable_steps: None,
                    num_decay_steps: Some(6),
                    warmup_type: RampShape::Linear,
                    decay_type: RampShape::OneMinusSqrt,
                    min_lr_ratio: 0.1,
                    num_cycles: 0.5,
                },
                other => panic!("{other} is in the golden file and not here"),
            };
            let schedule = Schedule::new(shape, 2.0, 4, 20);
            for (step, expected) in rates.as_array().unwrap().iter().enumerate() {
                let (found, expected) = (schedule.rate(step as u64), expected.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-12, "{name} at {step}: {found} and not {expected}");
            }
        }
    }
}
