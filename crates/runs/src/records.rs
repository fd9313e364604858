//! What the training loop tells the recorder, and what it hears back: plain values.
//!
//! In: numbers of a step, an evaluation, a whole run → out: the arguments and results of [`crate::recorder`] (stage 14).

use crate::results::rounded;
use crate::trainer_log::LogLine;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What the recorder has to know of the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecorderOptions {
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// `num_train_epochs`, or what `max_steps` amounts to.
    pub num_train_epochs: f64,
    /// `logging_steps`: a line every so many steps (at least 1).
    pub logging_steps: u64,
    /// `logging_first_step`: a line after step 1 too.
    pub logging_first_step: bool,
    /// `save_steps`, for `trainer_state.json`.
    pub save_steps: u64,
    /// `eval_steps`, for `trainer_state.json`.
    pub eval_steps: Option<u64>,
    /// `per_device_train_batch_size`, for `trainer_state.json`.
    pub train_batch_size: u64,
    /// `metric_for_best_model` with `greater_is_better`; absent: no best model is tracked.
    pub best_metric: Option<BestMetric>,
    /// `plot_loss`: pictures at the end of the run.
    pub plot_loss: bool,
    /// `report_to: tensorboard`: event files in `runs/`.
    pub tensorboard: bool,
    /// Files that a model has beside its weights: a run from the beginning removes them with an earlier run's weights.
    pub model_files: &'static [&'static str],
    /// `run_name`: part of the name of the folder in `runs/`.
    pub run_name: Option<String>,
}

/// What makes an evaluation the best one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestMetric {
    /// The metric's name: `eval_loss`, `eval_accuracy` or `eval_perplexity`.
    pub name: String,
    /// Whether a greater value is better.
    pub greater_is_better: bool,
}

/// One optimizer step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRecord {
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Epochs done after this step, with the fraction.
    pub epoch: f64,
    /// Σ nll / Σ supervised tokens of this step.
    pub loss: f64,
    /// Learning rate used in this step.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: Option<f64>,
    /// Input tokens of this step.
    pub tokens: u64,
    /// Supervised tokens of this step.
    pub supervised_tokens: u64,
    /// Rows of this step.
    pub samples: u64,
    /// Floating-point operations of this step; 0 when not counted.
    pub flops: f64,
    /// Peak device memory so far, where the device tells.
    pub device_peak_bytes: Option<u64>,
    /// Whether the step changed nothing because its loss or gradient was not finite.
    pub skipped: bool,
}

/// One evaluation of one data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvalRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with the fraction.
    pub epoch: f64,
    /// Name of the data set when there are several (`eval_on_each_dataset`): keys become `eval_<name>_loss`, …
    pub dataset: Option<String>,
    /// Σ nll / Σ supervised tokens.
    pub loss: f64,
    /// Share of supervised tokens that the model puts first, 0 to 1.
    pub accuracy: Option<f64>,
    /// Seconds.
    pub runtime_s: f64,
    /// Rows.
    pub samples: u64,
    /// Batches.
    pub batches: u64,
}

impl EvalRecord {
    /// The metrics under transformers' names: `eval_loss` or, with a data set's name, `eval_<name>_loss`, and so on.
    pub fn metrics(&self) -> Map<String, Value> {
        let prefix = match &self.dataset {
            Some(dataset) => format!("eval_{dataset}_"),
            None => "eval_".to_owned(),
        };
        let runtime_s = self.runtime_s.max(1e-9);
        let mut metrics = Map::new();
        let mut insert = |name: &str, value: Value| metrics.insert(format!("{prefix}{name}"), value);
        insert("loss", self.loss.into());
        insert("perplexity", self.loss.exp().into());
        if let Some(accuracy) = self.accuracy {
            insert("accuracy", accuracy.into());
        }
        insert("runtime", rounded(runtime_s, 4));
        insert("samples_per_second", rounded(self.samples as f64 / runtime_s, 3));
        insert("steps_per_second", rounded(self.batches as f64 / runtime_s, 3));
        metrics
    }
}

/// The end of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Peak memory of the process or, on a GPU, of the device.
    pub peak_bytes: Option<u64>,
    /// Further keys for `train_results.json` and `all_results.json`.
    pub extra: Map<String, Value>,
}

/// What an evaluation meant for the run.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOutcome {
    /// The line that was written to the log.
    pub line: LogLine,
    /// Whether this is the best evaluation so far; false when no best model is tracked.
    pub is_best: bool,
    /// Evaluations since the best one; early stopping compares it with its patience.
    pub evals_since_best: u64,
}
