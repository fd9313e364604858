//! What a model takes that answers several rows at a time, known before anything is loaded.

use sft_config::RunConfig;
use sft_infer::slots::Slots;
use sft_kernels::DType;
use sft_model::loading;
use sft_model::method::Method;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::{Purpose, Workspace};

use super::{card, infer_dtype, quantization, threads};
use crate::TrainError;
use crate::job::available_bytes;
use crate::memory_plan::program_bytes;

/// Bytes of a model that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnsweringPlan {
    /// Its weights.
    pub weights: usize,
    /// Keys, values and logits of all rows.
    pub rows: usize,
    /// What passes work in, and the program.
    pub work: usize,
}

impl AnsweringPlan {
    /// Of the model that `config` names, for `rows` rows at a time of up to `longest` tokens.
    ///
    /// # Errors
    /// What is wrong with the model; more than is free.
    pub fn new(
        config: &RunConfig,
        spec: &DecoderSpec,
        rows: usize,
        longest: usize,
    ) -> Result<Self, TrainError> {
        let (method, on_card) = (Method::Inference, card(config).is_some());
        let (dtype, quantization) = (infer_dtype(config, &config.model_folder())?, quantization(config)?);
        let counts = loading::count(spec, &method, quantization)?;
        let (adapters, tokens) = (method.adapters(spec)?, Slots::tokens(rows, longest));
        let work = Workspace::plan(spec, &adapters, dtype, tokens, Purpose::Forward, on_card);
        let plan = Self {
            weights: counts.quantized_bytes + (counts.frozen - counts.quantized) * dtype.bytes(),
            rows: Slots::bytes(spec, dtype, (rows, on_card), longest),
            work: work.total() + program_bytes(threads(config), on_card),
        };
        match available_bytes(config)? {
            Some(available) if plan.total() as u64 > available => {
                let can_shrink = (dtype == DType::F32, quantization.is_none());
                let (needed, advice) = (plan.total() as u64, plan.advice((rows, longest), can_shrink));
                Err(TrainError::Memory { needed, available, advice })
            }
            _ => Ok(plan),
        }
    }

    /// The sum.
    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.rows).saturating_add(self.work)
    }

    fn advice(&self, (rows, longest): (usize, usize), (in_f32, is_whole): (bool, bool)) -> String {
        let gib = |bytes: usize| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64);
        let mut help = vec!["fewer rows at a time (`--rows`)", "shorter ones (`--context`)"];
        help.extend(in_f32.then_some("`infer_dtype: bfloat16`"));
        help.extend((is_whole && self.weights > self.rows).then_some("`quantization_bit: 4`"));
        format!(
            "weights {}, {rows} rows of {longest} tokens {}, workspace {}\nhelp: {}",
            gib(self.weights),
            gib(self.rows),
            gib(self.work),
            help.join(", ")
        )
    }
}
