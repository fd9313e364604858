//! The recorder: the one thing the training loop tells what happened.
//!
//! In: a [`StepRecord`] after every optimizer step, an [`EvalRecord`] after every evaluation, a [`Summary`] at the end →
//! out: `trainer_log.jsonl`, `trainer_state.json`, `train_results.json`, `all_results.json`, pictures, TensorBoard
//! events (stage 14). Nothing is printed; a written line is returned so that the caller can show it.
//!
//! A resumed recorder continues as if nothing had happened: log, history, sums, best metric, elapsed time and the
//! TensorBoard folder come from the checkpoint. The training loss is a mean over the steps of all sessions, and rates
//! are totals over the time of all sessions (transformers divides the totals by the last session's time).

use crate::atomic;
use crate::checkpoint::CheckpointWriter;
use crate::error::{Result, RunError};
use crate::folder::{self, RunFolder, Start};
use crate::plots;
use crate::records::{BestMetric, EvalOutcome, EvalRecord, RecorderOptions, StepRecord, Summary};
use crate::results::{self, rounded};
use crate::tensorboard::{self, EventWriter};
use crate::timing::{self, Stopwatch};
use crate::trainer_log::{LogLine, TrainerLog};
use crate::trainer_state::TrainerState;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// The file in a checkpoint that holds what `trainer_state.json` has no field for.
const RECORDER_STATE: &str = "recorder_state.json";

/// What is carried over a resume beside `trainer_state.json` and the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Carried {
    version: u32,
    elapsed_s: f64,
    /// Σ of the finite losses of all steps, and how many they are.
    loss_sum: f64,
    loss_steps: u64,
    /// The same since the last line.
    window_sum: f64,
    window_steps: u64,
    nonfinite_losses: u64,
    #[serde(default)]
    skipped_steps: u64,
    supervised_tokens: u64,
    samples: u64,
    evals_since_best: u64,
    /// What the best evaluation is the best by; of older checkpoints nobody knows.
    #[serde(default)]
    best_by: Option<BestMetric>,
    /// Step of the best evaluation that has a checkpoint.
    best_checkpoint_step: Option<u64>,
    /// Folder of the event files, relative to the output folder.
    tensorboard: Option<String>,
}

/// Records a run into its folder.
#[derive(Debug)]
pub struct Recorder {
    output_dir: PathBuf,
    options: RecorderOptions,
    state: TrainerState,
    carried: Carried,
    log: TrainerLog,
    events: Option<EventWriter>,
    stopwatch: Stopwatch,
}

impl Recorder {
    /// Starts or, when `run` resumes a checkpoint, continues recording.
    ///
    /// A fresh start removes what an earlier run has left in the folder: logs, results, pictures, weights.
    ///
    /// # Errors
    /// Any I/O error, or a state in the checkpoint that does not read back, with the path.
    pub fn open(run: &RunFolder, options: RecorderOptions) -> Result<Self> {
        let output_dir = run.path().to_path_buf();
        let (mut state, mut carried, log) = match run.start() {
            Start::Fresh => {
                folder::remove_earlier_run(&output_dir, options.model_files)?;
                let carried = Carried { version: 1, ..Carried::default() };
                (TrainerState::default(), carried, TrainerLog::create(&output_dir)?)
            }
            Start::Beside => {
                let carried = Carried { version: 1, ..Carried::default() };
                (TrainerState::default(), carried, TrainerLog::at(&output_dir))
            }
            Start::Resume(checkpoint) => {
                if !run.goes_on() {
                    folder::remove_earlier_run(&output_dir, options.model_files)?;
                }
                let carried = load_carried(&checkpoint.path)?;
                let log = TrainerLog::restore(&output_dir, &checkpoint.path)?;
                (TrainerState::load(&checkpoint.path)?, carried, log)
            }
        };
        if let (Some(was), Some(is)) = (&carried.best_by, &options.best_metric)
            && was != is
        {
            // Figures of another kind compare with nothing.
            (state.best_metric, state.best_global_step, state.best_model_checkpoint) = (None, None, None);
            (carried.best_checkpoint_step, carried.evals_since_best) = (None, 0);
        }
        carried.best_by = options.best_metric.clone().or(carried.best_by);
        state.is_local_process_zero = true;
        state.is_world_process_zero = true;
        state.max_steps = options.total_steps;
        state.num_train_epochs = options.num_train_epochs.ceil() as u64;
        state.logging_steps = options.logging_steps.max(1);
        state.save_steps = options.save_steps;
        state.eval_steps = options.eval_steps;
        state.train_batch_size = Some(options.train_batch_size);
        let events = if options.tensorboard {
            Some(open_events(&output_dir, run, &options, &mut carried)?)
        } else {
            None
        };
        let stopwatch = Stopwatch::start(carried.elapsed_s);
        Ok(Self { output_dir, options, state, carried, log, events, stopwatch })
    }

    /// Records an optimizer step; returns the line when one is due and was written.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn record_step(&mut self, record: &StepRecord) -> Result<Option<LogLine>> {
        self.state.global_step = record.step;
        self.state.epoch = record.epoch;
        self.state.num_input_tokens_seen += record.tokens;
        self.state.total_flos += record.flops;
        let carried = &mut self.carried;
        carried.supervised_tokens += record.supervised_tokens;
        carried.samples += record.samples;
        if record.loss.is_finite() {
            carried.loss_sum += record.loss;
            carried.loss_steps += 1;
            carried.window_sum += record.loss;
            carried.window_steps += 1;
        } else {
            carried.nonfinite_losses += 1;
        }
        carried.skipped_steps += u64::from(record.skipped);
        let is_due = record.step.is_multiple_of(self.state.logging_steps)
            || (record.step == 1 && self.options.logging_first_step);
        if is_due { self.write_step(record).map(Some) } else { Ok(None) }
    }

    fn write_step(&mut self, record: &StepRecord) -> Result<LogLine> {
        // 0/0 is NaN: a window in which no loss was finite is written as null.
        let loss = self.carried.window_sum / self.carried.window_steps as f64;
        (self.carried.window_sum, self.carried.window_steps) = (0.0, 0);

        let mut entry = Map::new();
        entry.insert("loss".into(), loss.into());
        if let Some(grad_norm) = record.grad_norm {
            entry.insert("grad_norm".into(), grad_norm.into());
        }
        entry.insert("learning_rate".into(), record.learning_rate.into());
        self.add_history(entry)?;

        let line = LogLine {
            loss: Some(loss),
            lr: Some(record.learning_rate),
            grad_norm: record.grad_norm,
            vram_allocated: record.device_peak_bytes.map(|b| round2(b as f64 / (1_u64 << 30) as f64)),
            ..self.progress()
        };
        self.log.append(&line)?;
        Ok(line)
    }

    /// Writes what was said of the current step, as a line of its own.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn record_warning(&mut self, text: &str) -> Result<()> {
        self.log.append(&LogLine { warning: Some(text.to_owned()), ..self.progress() })
    }

    /// Records an evaluation and compares it with the best one so far.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn record_eval(&mut self, record: &EvalRecord) -> Result<EvalOutcome> {
        self.state.global_step = record.step;
        self.state.epoch = record.epoch;
        let metrics = record.metrics();
        let is_best = self.compare_with_best(record.step, &metrics);
        self.add_history(metrics)?;
        let line = LogLine {
            eval_loss: Some(record.loss),
            eval_accuracy: record.accuracy,
            eval_perplexity: Some(record.loss.exp()),
            eval_scores: record.scores,
            eval_dataset: record.dataset.clone(),
            ..self.progress()
        };
        self.log.append(&line)?;
        Ok(EvalOutcome { line, is_best, evals_since_best: self.carried.evals_since_best })
    }

    fn compare_with_best(&mut self, step: u64, metrics: &Map<String, Value>) -> bool {
        let Some(wanted) = &self.options.best_metric else { return false };
        // Of a data set by itself the names are others: the evaluation of all rows decides.
        let Some(value) = metrics.get(&wanted.name) else { return false };
        let value = value.as_f64().unwrap_or(f64::NAN);
        // A comparison with NaN is false: such an evaluation is never the best one.
        let is_best = value.is_finite()
            && self
                .state
                .best_metric
                .is_none_or(|best| if wanted.greater_is_better { value > best } else { value < best });
        if is_best {
            self.state.best_metric = Some(value);
            self.state.best_global_step = Some(step);
            self.carried.evals_since_best = 0;
        } else {
            self.carried.evals_since_best += 1;
        }
        is_best
    }

    /// Writes the recorder's files into a checkpoint that is being written; resuming that checkpoint continues here.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn save(&mut self, checkpoint: &CheckpointWriter<'_>) -> Result<()> {
        if self.state.best_global_step == Some(checkpoint.step()) {
            self.state.best_model_checkpoint = Some(checkpoint.final_path().to_string_lossy().into_owned());
            self.carried.best_checkpoint_step = Some(checkpoint.step());
        }
        self.carried.elapsed_s = self.stopwatch.elapsed_s();
        self.state.save(checkpoint.folder())?;
        self.log.save(checkpoint.folder())?;
        atomic::write_json(&checkpoint.folder().join(RECORDER_STATE), &self.carried, 2)
    }

    /// Ends the run: last line, `train_results.json`, `all_results.json`, `trainer_state.json`, and the pictures with
    /// `plot_loss`. Returns what `train_results.json` has.
    ///
    /// # Errors
    /// Any I/O error, with the path. The pictures come last: when they fail, everything else is written.
    pub fn finish(&mut self, summary: &Summary) -> Result<Map<String, Value>> {
        let speed = self.speed_metrics();
        self.add_history(speed.clone())?;
        self.log.append(&self.progress())?;
        let mut metrics = speed;
        metrics.insert("epoch".into(), self.state.epoch.into());
        self.add_token_metrics(&mut metrics);
        if let Some(peak_bytes) = summary.peak_bytes {
            metrics.insert("peak_bytes".into(), peak_bytes.into());
        }
        if self.carried.nonfinite_losses > 0 {
            metrics.insert("nonfinite_losses".into(), self.carried.nonfinite_losses.into());
        }
        if self.carried.skipped_steps > 0 {
            metrics.insert("skipped_steps".into(), self.carried.skipped_steps.into());
        }
        metrics.extend(summary.extra.clone());
        results::save(&self.output_dir, "train", &metrics)?;
        self.state.save(&self.output_dir)?;
        if self.options.plot_loss {
            plots::save(&self.state, &self.output_dir, &plots::keys(&self.state))?;
        }
        Ok(metrics)
    }

    /// The state as `trainer_state.json` has it.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// Step of the best evaluation that has a checkpoint: what `load_best_model_at_end` loads and rotation keeps.
    pub fn best_checkpoint_step(&self) -> Option<u64> {
        self.carried.best_checkpoint_step
    }

    /// Evaluations since the best one.
    pub fn evals_since_best(&self) -> u64 {
        self.carried.evals_since_best
    }

    /// Seconds of all sessions so far.
    pub fn elapsed_s(&self) -> f64 {
        self.stopwatch.elapsed_s()
    }

    /// The part of a line that every kind of line has.
    fn progress(&self) -> LogLine {
        let (done, total) = (self.state.global_step, self.options.total_steps);
        let elapsed_s = self.stopwatch.elapsed_s();
        let tokens = Some(self.state.num_input_tokens_seen).filter(|&tokens| tokens > 0);
        LogLine {
            current_steps: done,
            total_steps: total,
            epoch: Some(self.state.epoch),
            // A checkpoint that is resumed may be beyond the last step of the run that goes on from it.
            percentage: if done >= total { 100.0 } else { round2(done as f64 / total as f64 * 100.0) },
            elapsed_time: timing::format_seconds(elapsed_s),
            remaining_time: timing::format_seconds(timing::remaining_s(elapsed_s, done, total)),
            throughput: tokens.map(|tokens| round2(tokens as f64 / elapsed_s.max(1e-9))),
            total_tokens: tokens,
            skipped_steps: Some(self.carried.skipped_steps).filter(|&steps| steps > 0),
            ..LogLine::default()
        }
    }

    fn add_history(&mut self, mut entry: Map<String, Value>) -> Result<()> {
        entry.insert("epoch".into(), self.state.epoch.into());
        if entry.contains_key("loss") {
            entry.insert("num_input_tokens_seen".into(), self.state.num_input_tokens_seen.into());
        }
        entry.insert("step".into(), self.state.global_step.into());
        if let Some(events) = &mut self.events {
            let number = |(key, value): (&String, &Value)| Some((tensorboard::tag(key), value.as_f64()?));
            let scalars: Vec<_> = entry.iter().filter(|(key, _)| *key != "step").filter_map(number).collect();
            events.scalars(self.state.global_step, &scalars)?;
        }
        self.state.log_history.push(entry);
        Ok(())
    }

    fn speed_metrics(&self) -> Map<String, Value> {
        let runtime_s = self.stopwatch.elapsed_s().max(1e-9);
        let mut metrics = Map::new();
        metrics.insert("train_runtime".into(), rounded(runtime_s, 4));
        metrics
            .insert("train_samples_per_second".into(), rounded(self.carried.samples as f64 / runtime_s, 3));
        metrics
            .insert("train_steps_per_second".into(), rounded(self.state.global_step as f64 / runtime_s, 3));
        metrics.insert("total_flos".into(), self.state.total_flos.into());
        let loss = if self.carried.loss_steps == 0 && self.carried.nonfinite_losses == 0 {
            0.0 // No step at all, as transformers reports it.
        } else {
            self.carried.loss_sum / self.carried.loss_steps as f64
        };
        metrics.insert("train_loss".into(), loss.into());
        metrics
    }

    fn add_token_metrics(&self, metrics: &mut Map<String, Value>) {
        let runtime_s = self.stopwatch.elapsed_s().max(1e-9);
        let (tokens, supervised) = (self.state.num_input_tokens_seen, self.carried.supervised_tokens);
        metrics.insert("num_input_tokens_seen".into(), tokens.into());
        metrics.insert("num_supervised_tokens_seen".into(), supervised.into());
        metrics.insert("tokens_per_s".into(), rounded(tokens as f64 / runtime_s, 3));
        metrics.insert("supervised_tokens_per_s".into(), rounded(supervised as f64 / runtime_s, 3));
    }
}

fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A fresh run has a folder of its own in `runs/`; a resumed one adds a file to the folder it had.
fn open_events(
    output_dir: &Path,
    run: &RunFolder,
    options: &RecorderOptions,
    carried: &mut Carried,
) -> Result<EventWriter> {
    let continued_after = match run.start() {
        Start::Fresh | Start::Beside => None,
        Start::Resume(checkpoint) => Some(checkpoint.step),
    };
    let name =
        carried.tensorboard.get_or_insert_with(|| tensorboard::folder_name(options.run_name.as_deref()));
    EventWriter::create(&output_dir.join(&*name), continued_after)
}

fn load_carried(checkpoint: &Path) -> Result<Carried> {
    let path = checkpoint.join(RECORDER_STATE);
    let text = fs::read(&path).map_err(RunError::at(&path, "read the state"))?;
    let carried: Carried = serde_json::from_slice(&text)
        .map_err(|e| RunError::Unreadable { path: path.clone(), reason: e.to_string() })?;
    if carried.version != 1 {
        let reason = format!("it has layout {}, this program reads layout 1", carried.version);
        return Err(RunError::Unreadable { path, reason });
    }
    Ok(carried)
}

#[cfg(test)]
mod tests;
