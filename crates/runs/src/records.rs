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
    /// How like the expected answers the model's are, if it was asked.
    pub scores: Option<Scores>,
    /// Seconds.
    pub runtime_s: f64,
    /// Rows.
    pub samples: u64,
    /// Batches.
    pub batches: u64,
}

/// How like the expected answers the model's are, in per cent, under LLaMA-Factory's names.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// BLEU-4 of characters.
    #[serde(rename = "eval_bleu-4")]
    pub bleu_4: f64,
    /// F1 of words.
    #[serde(rename = "eval_rouge-1")]
    pub rouge_1: f64,
    /// F1 of pairs of words.
    #[serde(rename = "eval_rouge-2")]
    pub rouge_2: f64,
    /// F1 of the longest common subsequence of words.
    #[serde(rename = "eval_rouge-l")]
    pub rouge_l: f64,
}

impl Scores {
    /// Names and figures.
    pub fn figures(&self) -> [(&'static str, f64); 4] {
        [
            ("bleu-4", self.bleu_4),
            ("rouge-1", self.rouge_1),
            ("rouge-2", self.rouge_2),
            ("rouge-l", self.rouge_l),
        ]
    }
}

/// Answers to all rows, in a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PredictRecord {
    /// How like the expected ones they are; `None` where no row has an expected one.
    pub scores: Option<Scores>,
    /// Seconds.
    pub runtime_s: f64,
    /// Rows.
    pub samples: u64,
    /// As many rows as are answered at a time.
    pub batches: u64,
}

impl PredictRecord {
    /// The metrics under LLaMA-Factory's names: `predict_bleu-4` and so on.
    pub fn metrics(&self) -> Map<String, Value> {
        let scores = self.scores.iter().flat_map(Scores::figures);
        let mut metrics: Map<String, Value> =
            scores.map(|(name, value)| (format!("predict_{name}"), value.into())).collect();
        speed(&mut metrics, "predict_", self.runtime_s, [self.samples, self.batches]);
        metrics
    }
}

/// What transformers' `speed_metrics` adds.
fn speed(metrics: &mut Map<String, Value>, prefix: &str, runtime_s: f64, [samples, batches]: [u64; 2]) {
    let runtime_s = runtime_s.max(1e-9);
    let mut insert = |name: &str, value: Value| metrics.insert(format!("{prefix}{name}"), value);
    insert("runtime", rounded(runtime_s, 4));
    insert("samples_per_second", rounded(samples as f64 / runtime_s, 3));
    insert("steps_per_second", rounded(batches as f64 / runtime_s, 3));
}

impl EvalRecord {
    /// The metrics under transformers' names: `eval_loss` or, with a data set's name, `eval_<name>_loss`, and so on.
    pub fn metrics(&self) -> Map<String, Value> {
        let prefix = match &self.dataset {
            Some(dataset) => format!("eval_{dataset}_"),
            None => "eval_".to_owned(),
        };
        let mut metrics = Map::new();
        let mut insert = |name: &str, value: Value| metrics.insert(format!("{prefix}{name}"), value);
        insert("loss", self.loss.into());
        insert("perplexity", self.loss.exp().into());
        if let Some(accuracy) = self.accuracy {
            insert("accuracy", accuracy.into());
        }
        for (name, value) in self.scores.iter().flat_map(Scores::figures) {
            insert(name, value.into());
        }
        speed(&mut metrics, &prefix, self.runtime_s, [self.samples, self.batches]);
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
