//! Several runs in one picture for each curve, and in one table.
//!
//! In: [`KeptRun`]s → out: `<stem>_loss.png`, `.svg` and so on, and the text of a table (stage 14).

use super::KeptRun;
use crate::curves::{Curves, Series};
use crate::error::{Result, RunError};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Curves that are drawn.
fn is_drawn(name: &str) -> bool {
    name == "loss" || (name.starts_with("eval_") && (name.ends_with("_loss") || name.ends_with("_accuracy")))
}

/// Draws every curve of losses and accuracies that one of the runs has; returns the pictures' paths without ending.
///
/// # Errors
/// Any I/O error, with the path.
pub fn draw(runs: &[KeptRun], stem: &Path) -> Result<Vec<PathBuf>> {
    if let Some(folder) = stem.parent() {
        fs::create_dir_all(folder).map_err(RunError::at(folder, "create the folder"))?;
    }
    let mut names: Vec<&String> =
        runs.iter().flat_map(|run| run.curves.keys()).filter(|name| is_drawn(name)).collect();
    names.sort();
    names.dedup();
    let mut drawn = Vec::new();
    for name in names {
        let series = runs.iter().enumerate().filter_map(|(colour, run)| {
            let points = run.curves.get(name)?.iter().map(|(step, value)| (*step as f64, *value)).collect();
            Some(Series { name: run.name(), points, colour, is_faint: false })
        });
        let picture = Curves {
            title: name.replace('_', " "),
            x_label: "step".into(),
            y_label: name.clone(),
            series: series.collect(),
        };
        let mut path = stem.as_os_str().to_owned();
        path.push(format!("_{}", name.replace('/', "_")));
        let path = PathBuf::from(path);
        picture.save(&path)?;
        drawn.push(path);
    }
    Ok(drawn)
}

/// A table: a row for each figure, a column for each run; keys of the configuration only where they differ.
pub fn table(runs: &[KeptRun]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: &str, value: &dyn Fn(&KeptRun) -> String| {
        rows.push([what.to_owned()].into_iter().chain(runs.iter().map(value)).collect());
    };
    row("", &KeptRun::name);
    row("status", &|run| run.status().to_owned());
    let steps = |run: &KeptRun| run.record.end.as_ref().map_or("-".to_owned(), |end| end.steps.to_string());
    row("steps", &steps);
    for curve in ["loss", "eval_loss", "eval_accuracy"] {
        if runs.iter().any(|run| run.curves.contains_key(curve)) {
            row(curve, &|run| run.last(curve).map_or("-".to_owned(), |value| format!("{value:.5}")));
        }
    }
    for result in ["train_loss", "train_runtime", "tokens_per_s", "peak_bytes", "skipped_steps"] {
        let value = |run: &KeptRun| run.record.end.as_ref().and_then(|end| end.results.get(result)).cloned();
        if runs.iter().any(|run| value(run).is_some()) {
            row(result, &|run| value(run).map_or("-".to_owned(), |value| shown(&value)));
        }
    }
    let digest = |run: &KeptRun| run.record.end.as_ref().map(|end| end.digest.chars().take(12).collect());
    row("weights", &|run| digest(run).unwrap_or("-".to_owned()));
    let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.record.config.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys.into_iter().filter(|key| *key != "output_dir") {
        let value = |run: &KeptRun| run.record.config.get(key).cloned().unwrap_or_default();
        if runs.windows(2).any(|two| value(&two[0]) != value(&two[1])) {
            row(key, &|run| shown(&value(run)));
        }
    }
    aligned(&rows)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => format!("{:.5}", number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns set one under the other, two blanks between.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
