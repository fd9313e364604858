//! How fast a job trains on this machine: its own steps, timed as a whole and op by op.
//!
//! In: a [`Job`]. Out: a [`Report`]; nothing is written.

use std::collections::BTreeMap;
use std::time::Instant;

use sft_kernels::limits::Limits;
use sft_kernels::profile::{Cost, Op};
use sft_kernels::{DType, Isa};
use sft_runs::memory::peak_rss_bytes;

use crate::trainer::Trainer;
use crate::{Job, TrainError, setup};

/// One timed step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimedStep {
    /// Wall time.
    pub seconds: f64,
    /// Tokens.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub supervised: usize,
}

/// What was measured.
#[derive(Debug)]
pub struct Report {
    /// What it ran on, in words.
    pub device: String,
    /// The CPU's instruction set.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// Type of activations and of frozen weights.
    pub compute: DType,
    /// What the machine can do at most.
    pub limits: Limits,
    /// Loading the model and making room, in seconds.
    pub load_s: f64,
    /// The first step, in seconds: pages and buffers are touched for the first time.
    pub first_step_s: f64,
    /// The steps that were timed.
    pub steps: Vec<TimedStep>,
    /// Steps whose ops were timed: on a GPU others, since events between the ops take time there.
    pub profiled: Vec<TimedStep>,
    /// All ops of those steps.
    pub ops: BTreeMap<Op, Cost>,
    /// Loss of the last step.
    pub loss: f64,
    /// Peak memory of the process.
    pub peak_bytes: Option<u64>,
}

impl Report {
    /// The most arithmetic a second that the machine does with this job's numbers.
    pub fn flops_limit(&self) -> f64 {
        match self.compute {
            DType::F32 => self.limits.f32_flops,
            DType::BF16 | DType::F16 => self.limits.bf16_flops,
        }
    }

    /// Wall time of all steps whose ops were timed.
    pub fn profiled_s(&self) -> f64 {
        self.profiled.iter().map(|step| step.seconds).sum()
    }

    /// Tokens a second of the median step.
    pub fn tokens_per_s(&self) -> f64 {
        self.median(|step| step.tokens as f64 / step.seconds)
    }

    /// Supervised tokens a second of the median step.
    pub fn supervised_per_s(&self) -> f64 {
        self.median(|step| step.supervised as f64 / step.seconds)
    }

    /// Wall time of the median step.
    pub fn step_s(&self) -> f64 {
        self.median(|step| step.seconds)
    }

    /// Multiplications and additions of a step.
    pub fn flops_per_step(&self) -> f64 {
        self.ops.values().map(|cost| cost.flops).sum::<f64>() / self.profiled.len().max(1) as f64
    }

    /// Multiplications and additions a second of the median step.
    pub fn flops_per_s(&self) -> f64 {
        self.flops_per_step() / self.step_s()
    }

    fn median(&self, of: impl Fn(&TimedStep) -> f64) -> f64 {
        let mut values: Vec<f64> = self.steps.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Takes `warm_up` + `steps` steps of a job, at least one of each, and times the latter.
///
/// # Errors
/// A model that does not fit or cannot be read.
pub fn bench(mut job: Job, warm_up: u64, steps: u64) -> Result<Report, TrainError> {
    job.check_memory()?;
    let dev = setup::device(&job.config)?;
    dev.install(|| {
        let limits = Limits::measure(&dev);
        let started = Instant::now();
        let mut trainer = Trainer::new(&dev, &job)?;
        let load_s = started.elapsed().as_secs_f64();
        let (warm_up, steps) = (warm_up.max(1), steps.max(1));
        let (mut first_step_s, mut timed, mut profiled, mut loss) = (0.0, Vec::new(), Vec::new(), f64::NAN);
        // On the CPU timing the ops costs nothing, and all steps are timed both ways.
        let apart = dev.cuda().is_some();
        let first_profiled = warm_up + if apart { steps } else { 0 };
        for step in 0..first_profiled + steps {
            if step == first_profiled {
                dev.profile().start();
            }
            let batch = job.train.next_step()?;
            let started = Instant::now();
            let outcome = trainer.step(&job, step, &batch)?;
            let seconds = started.elapsed().as_secs_f64();
            loss = outcome.loss;
            if step == 0 {
                first_step_s = seconds;
            }
            let measured = TimedStep { seconds, tokens: batch.tokens(), supervised: outcome.sums.supervised };
            if step >= warm_up && timed.len() < steps as usize {
                timed.push(measured);
            }
            if step >= first_profiled {
                profiled.push(measured);
            }
        }
        Ok(Report {
            device: dev.name(),
            isa: dev.isa(),
            threads: dev.threads(),
            compute: job.precision.compute,
            limits,
            load_s,
            first_step_s,
            steps: timed,
            profiled,
            ops: dev.profile().take(),
            loss,
            peak_bytes: dev.peak_bytes().or_else(peak_rss_bytes),
        })
    })
}
