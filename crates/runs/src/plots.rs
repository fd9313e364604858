//! The pictures of a run: loss, evaluation loss, evaluation accuracy, each raw and smoothed.
//!
//! In: the log history of a [`TrainerState`] → out: `training_<key>.png` and `.svg` for every key that has values
//! (stage 14). Names, smoothing and look follow LLaMA-Factory's `extras/ploting.py`.

use crate::curves::{Curves, Series};
use crate::error::Result;
use crate::trainer_state::TrainerState;
use std::path::Path;

/// Draws a picture for every one of `keys` that the history has finite values of; returns the keys drawn.
///
/// # Errors
/// Any I/O error, with the path.
pub fn save(state: &TrainerState, output_dir: &Path, keys: &[String]) -> Result<Vec<String>> {
    let mut drawn = Vec::new();
    for key in keys {
        let points = state.curve(key);
        if points.is_empty() {
            continue;
        }
        picture(key, points).save(&output_dir.join(format!("training_{}", key.replace('/', "_"))))?;
        drawn.push(key.clone());
    }
    Ok(drawn)
}

/// The keys of LLaMA-Factory's `plot_loss`: `loss`, and loss and accuracy of every evaluated data set.
pub fn keys(state: &TrainerState) -> Vec<String> {
    let mut keys = vec!["loss".to_owned()];
    for key in state.log_history.iter().flat_map(|entry| entry.keys()) {
        let is_plotted = key.starts_with("eval_") && (key.ends_with("_loss") || key.ends_with("_accuracy"));
        if is_plotted && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// The picture of one key: raw values faint, smoothed on top.
pub fn picture(key: &str, points: Vec<(f64, f64)>) -> Curves {
    let values: Vec<f64> = points.iter().map(|point| point.1).collect();
    let smoothed = points.iter().zip(smooth(&values)).map(|(point, value)| (point.0, value)).collect();
    Curves {
        title: format!("training {}", key.replace('_', " ")),
        x_label: "step".into(),
        y_label: key.to_owned(),
        series: vec![
            Series { name: "original".into(), points, colour: 0, is_faint: true },
            Series { name: "smoothed".into(), points: smoothed, colour: 0, is_faint: false },
        ],
    }
}

/// Exponential moving average from the first value on, with weight 1.8 · (σ(0.05 · n) − 0.5) for n values.
pub fn smooth(values: &[f64]) -> Vec<f64> {
    let Some(&first) = values.first() else { return Vec::new() };
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * values.len() as f64).exp()) - 0.5);
    let mut last = first;
    let mut step = |&value: &f64| {
        last = last * weight + (1.0 - weight) * value;
        last
    };
    values.iter().map(&mut step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_matches_llama_factory() {
        // llamafactory 0.9.5, extras.ploting.smooth
        let expected: [f64; 5] =
            [3.0, 2.5559588507972184, 2.728283360566482, 1.1934255014185096, 0.5776065883457293];
        for (ours, theirs) in smooth(&[3.0, 2.5, 2.75, 1.0, 0.5]).iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-15, "{ours} {theirs}");
        }
    }

    #[test]
    fn nothing_smooths_to_nothing() {
        assert!(smooth(&[]).is_empty());
    }

    fn state(entries: &[&str]) -> TrainerState {
        let log_history = entries.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
        TrainerState { log_history, ..TrainerState::default() }
    }

    #[test]
    fn a_picture_is_drawn_for_every_key_that_has_values() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(&[
            r#"{"loss": 2.0, "step": 1}"#,
            r#"{"eval_loss": 2.0, "eval_runtime": 1.0, "step": 1}"#,
            r#"{"eval_accuracy": null, "step": 2}"#,
        ]);
        let drawn = save(&state, folder.path(), &keys(&state)).unwrap();
        assert_eq!(drawn, ["loss", "eval_loss"]);
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["training_eval_loss.png", "training_eval_loss.svg", "training_loss.png", "training_loss.svg"]
        );
    }

    #[test]
    fn every_evaluated_data_set_has_pictures_of_its_own() {
        let state = state(&[r#"{"eval_a_loss": 1.0, "step": 1}"#, r#"{"eval_b_loss": 1.0, "step": 1}"#]);
        assert_eq!(keys(&state), ["loss", "eval_a_loss", "eval_b_loss"]);
    }
}
