//! `train_results.json`, `eval_results.json`, `predict_results.json` and `all_results.json`.
//!
//! In: the metrics of one part of a run → out: its file, and the same keys merged into `all_results.json`, as
//! transformers' `save_metrics` does (stage 14).

use crate::atomic;
use crate::disk;
use crate::error::{Result, RunError};
use crate::records::{EvalRecord, PredictRecord};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The file that has the metrics of every part.
pub const ALL_RESULTS: &str = "all_results.json";

/// The file of how like the expected answers a model's are.
pub const PREDICT_RESULTS: &str = "predict_results.json";

/// The file of all answers: a line `{prompt, predict, label}` each, as LLaMA-Factory writes it.
pub const PREDICTIONS: &str = "generated_predictions.jsonl";

/// The file of answers to held-out questions: a line `{prompt, expected, before, after}` each.
pub const HELD_OUT_ANSWERS: &str = "held_out_answers.jsonl";

/// Writes `<split>_results.json` (`split` is `train`, `eval` or `predict`) and merges it into `all_results.json`.
///
/// # Errors
/// Any I/O error, with the path, or an `all_results.json` that is not a JSON object.
pub fn save(output_dir: &Path, split: &str, metrics: &Map<String, Value>) -> Result<()> {
    write_sorted(&output_dir.join(format!("{split}_results.json")), metrics)?;
    let mut all = load(&output_dir.join(ALL_RESULTS))?;
    all.extend(metrics.clone());
    write_sorted(&output_dir.join(ALL_RESULTS), &all)
}

/// Writes `eval_results.json` of an evaluation after training or without any (a record for each data set that was
/// evaluated by itself), and merges it into `all_results.json`.
///
/// # Errors
/// As [`save`].
pub fn save_eval(output_dir: &Path, records: &[EvalRecord]) -> Result<()> {
    let mut metrics: Map<String, Value> = records.iter().flat_map(EvalRecord::metrics).collect();
    metrics.extend(records.iter().map(|record| ("epoch".to_owned(), record.epoch.into())));
    save(output_dir, "eval", &metrics)
}

/// Writes `predict_results.json` of answers to all rows, and merges it into `all_results.json`.
///
/// # Errors
/// As [`save`].
pub fn save_predictions(output_dir: &Path, record: &PredictRecord) -> Result<()> {
    save(output_dir, "predict", &record.metrics())
}

/// Removes the answers of earlier weights, before new ones are asked for.
///
/// # Errors
/// Any I/O error, with the path.
pub fn forget_predictions(output_dir: &Path) -> Result<()> {
    for name in [PREDICTIONS, PREDICT_RESULTS] {
        let path = output_dir.join(name);
        match disk::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(RunError::at(&path, "remove")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads a results file; empty when there is none.
///
/// # Errors
/// Any other I/O error, or content that is not a JSON object.
pub fn load(path: &Path) -> Result<Map<String, Value>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|e| RunError::Unreadable { path: path.to_path_buf(), reason: e.to_string() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(RunError::at(path, "read the results")(error)),
    }
}

/// `value` rounded to `decimals`, as Python's `round` leaves it in these files; null when not finite.
pub(crate) fn rounded(value: f64, decimals: i32) -> Value {
    let factor = 10_f64.powi(decimals);
    let scaled = (value * factor).round() / factor;
    if scaled.is_finite() { scaled.into() } else { value.into() }
}

fn write_sorted(path: &Path, metrics: &Map<String, Value>) -> Result<()> {
    let mut sorted = metrics.clone();
    sorted.sort_keys();
    atomic::write_json(path, &sorted, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_split_has_its_own_file_and_its_keys_in_all_results() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "train", &metrics(r#"{"train_loss": 1.5, "epoch": 3.0}"#)).unwrap();
        save(folder.path(), "eval", &metrics(r#"{"eval_loss": 2.0, "epoch": 3.0}"#)).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("eval_results.json")).unwrap(),
            "{\n    \"epoch\": 3.0,\n    \"eval_loss\": 2.0\n}\n"
        );
        assert_eq!(
            load(&folder.path().join(ALL_RESULTS)).unwrap(),
            metrics(r#"{"train_loss": 1.5, "eval_loss": 2.0, "epoch": 3.0}"#)
        );
    }

    #[test]
    fn an_evaluation_has_its_own_results_file() {
        let folder = tempfile::tempdir().unwrap();
        let record = EvalRecord {
            accuracy: Some(0.5),
            runtime_s: 2.0,
            samples: 8,
            batches: 4,
            ..EvalRecord::default()
        };
        save_eval(folder.path(), &[record]).unwrap();
        let written = load(&folder.path().join("eval_results.json")).unwrap();
        let expected = r#"{"epoch": 0.0, "eval_accuracy": 0.5, "eval_loss": 0.0, "eval_perplexity": 1.0,
            "eval_runtime": 2.0, "eval_samples_per_second": 4.0, "eval_steps_per_second": 2.0}"#;
        assert_eq!(written, metrics(expected));
    }

    #[test]
    fn a_damaged_all_results_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(ALL_RESULTS), "[1").unwrap();
        assert!(save(folder.path(), "train", &Map::new()).unwrap_err().to_string().contains(ALL_RESULTS));
    }

    #[test]
    fn rounding_leaves_the_decimals_asked_for() {
        assert_eq!(rounded(12.345_678, 3), 12.346);
        assert_eq!(rounded(f64::NAN, 3), Value::Null);
    }
}
