//! `trainer_state.json`: the state that Hugging Face tools read from a run and from each checkpoint.
//!
//! In: counters and the log history → out: a file that `transformers.TrainerState.load_from_json` loads (stage 14).
//! Field names and defaults are those of transformers' `trainer_callback.py`; an unknown key would make it refuse the
//! file, so nothing is added at the top level.

use crate::atomic;
use crate::error::{Result, RunError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// The file's name.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// transformers' `TrainerState`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerState {
    /// Step of the best evaluation.
    pub best_global_step: Option<u64>,
    /// Value of `metric_for_best_model` there.
    pub best_metric: Option<f64>,
    /// Path of the checkpoint written at that step.
    pub best_model_checkpoint: Option<String>,
    /// Epochs done, with the fraction.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: Option<u64>,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Always false here.
    pub is_hyper_param_search: bool,
    /// Always true here.
    pub is_local_process_zero: bool,
    /// Always true here.
    pub is_world_process_zero: bool,
    /// One object a logged step or evaluation, in order; each has `step`.
    pub log_history: Vec<Map<String, Value>>,
    /// Steps between logged losses.
    pub logging_steps: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Input tokens so far.
    pub num_input_tokens_seen: u64,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Callbacks of transformers: none.
    pub stateful_callbacks: Map<String, Value>,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// Rows of a micro-batch.
    pub train_batch_size: Option<u64>,
    /// Always absent here.
    pub trial_name: Option<String>,
    /// Always absent here.
    pub trial_params: Option<Map<String, Value>>,
}

impl TrainerState {
    /// Writes `trainer_state.json` into `folder`.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn save(&self, folder: &Path) -> Result<()> {
        atomic::write_json(&folder.join(TRAINER_STATE), self, 2)
    }

    /// Reads `trainer_state.json` from `folder`.
    ///
    /// # Errors
    /// Any I/O error, or content that is not such a state.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(TRAINER_STATE);
        let text = fs::read(&path).map_err(RunError::at(&path, "read the state"))?;
        serde_json::from_slice(&text).map_err(|e| RunError::Unreadable { path, reason: e.to_string() })
    }

    /// The points `(step, value)` of every log entry that has a finite `key`.
    pub fn curve(&self, key: &str) -> Vec<(f64, f64)> {
        let number = |entry: &Map<String, Value>, key: &str| entry.get(key).and_then(Value::as_f64);
        self.log_history
            .iter()
            .filter_map(|entry| Some((number(entry, "step")?, number(entry, key)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of transformers 5.6's dataclass, in alphabetical order as it writes them.
    const FIELDS: [&str; 20] = [
        "best_global_step",
        "best_metric",
        "best_model_checkpoint",
        "epoch",
        "eval_steps",
        "global_step",
        "is_hyper_param_search",
        "is_local_process_zero",
        "is_world_process_zero",
        "log_history",
        "logging_steps",
        "max_steps",
        "num_input_tokens_seen",
        "num_train_epochs",
        "save_steps",
        "stateful_callbacks",
        "total_flos",
        "train_batch_size",
        "trial_name",
        "trial_params",
    ];

    #[test]
    fn the_fields_are_exactly_those_of_transformers() {
        let Value::Object(object) = serde_json::to_value(TrainerState::default()).unwrap() else {
            panic!("a struct is an object")
        };
        assert_eq!(object.keys().collect::<Vec<_>>(), FIELDS);
    }

    #[test]
    fn a_state_survives_the_file_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let mut entry = Map::new();
        entry.insert("loss".into(), (0.1 + 0.2).into());
        entry.insert("step".into(), 3.into());
        let state = TrainerState {
            best_metric: Some(1.0 / 3.0),
            epoch: 2.999_999_999_999_999_6,
            log_history: vec![entry],
            ..TrainerState::default()
        };
        state.save(folder.path()).unwrap();
        assert_eq!(TrainerState::load(folder.path()).unwrap(), state);
    }

    #[test]
    fn a_curve_has_the_steps_that_have_the_key() {
        let entry = |json: &str| serde_json::from_str(json).unwrap();
        let state = TrainerState {
            log_history: vec![
                entry(r#"{"loss": 2.0, "step": 1}"#),
                entry(r#"{"eval_loss": 3.0, "step": 1}"#),
                entry(r#"{"loss": null, "step": 2}"#),
                entry(r#"{"loss": 1.0, "step": 3}"#),
            ],
            ..TrainerState::default()
        };
        assert_eq!(state.curve("loss"), [(1.0, 2.0), (3.0, 1.0)]);
    }

    #[test]
    fn a_damaged_state_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(TRAINER_STATE), "{\"epoch\": ").unwrap();
        assert!(TrainerState::load(folder.path()).unwrap_err().to_string().contains(TRAINER_STATE));
    }
}
