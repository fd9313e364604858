//! Short commands whose words are shown: what a recipe would do, what is trained of its rows, what this machine has.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::Shared;
use crate::refusal::{Body, Refusal};

/// Characters that are shown of one stream: the rest is said to be left out.
const MOST: usize = 1 << 20;

/// What is looked at.
#[derive(Debug, Deserialize)]
pub struct Asked {
    what: What,
    /// The recipe.
    #[serde(default)]
    text: String,
    /// The first row.
    #[serde(default)]
    from: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    /// Data, steps and memory of a run.
    Plan,
    /// What fits into memory.
    Fit,
    /// What is odd about the rows.
    Check,
    /// Rows, token by token.
    Rows,
    /// What this machine has.
    Machine,
}

/// Rows that are shown at a time.
const ROWS: u32 = 5;

/// Runs a command to its end, or until nobody waits for it any more: what it says, and whether all was well.
pub async fn look(
    State(shared): State<Arc<Shared>>,
    Body(asked): Body<Asked>,
) -> Result<Json<Value>, Refusal> {
    let failed = |error: std::io::Error| Refusal::failed("the command cannot be run", error);
    let turn = shared.looks.acquire().await;
    let _turn = turn.map_err(|error| Refusal::failed("the command cannot be run", error))?;
    let folder = tempfile::tempdir().map_err(failed)?;
    let recipe = folder.path().join("recipe.yaml");
    std::fs::write(&recipe, &asked.text).map_err(failed)?;
    let mut command = Command::new(&shared.options.program);
    match asked.what {
        What::Plan => command.arg("train").arg(&recipe).arg("--dry-run"),
        What::Fit => command.arg("train").arg(&recipe).arg("--fit"),
        What::Check => command.args(["data", "check"]).arg(&recipe),
        What::Rows => {
            let rows = format!("{}..{}", asked.from, asked.from.saturating_add(ROWS));
            command.args(["data", "show"]).arg(&recipe).args(["--json", "--rows", &rows])
        }
        What::Machine => command.arg("doctor"),
    };
    let command = command.current_dir(&shared.options.folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(failed)?;
    let said = |bytes: &[u8]| shown(bytes, folder.path());
    let (mut all, errors) = (said(&output.stdout), said(&output.stderr));
    let mut rows = None;
    match asked.what {
        What::Plan => all = without_keys(&all),
        What::Rows => rows = Some(examples(&std::mem::take(&mut all))),
        _ => {}
    }
    let (all, errors) = (cut(all), cut(errors));
    Ok(Json(json!({"done": output.status.success(), "said": all, "rows": rows, "errors": errors})))
}

/// What a command says, in which the recipe is called by its name alone.
fn shown(bytes: &[u8], folder: &Path) -> String {
    let folder = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
    String::from_utf8_lossy(bytes).replace(&folder, "")
}

/// A text that is not too long for a page.
fn cut(text: String) -> String {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}\n… and more", &text[..end]),
        None => text,
    }
}

/// The rows that `sft data show --json` writes: what is shown of each, without its ids.
fn examples(lines: &str) -> Vec<Value> {
    let rows = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let shown = |row: Value| {
        let tokens = row["input_ids"].as_array().map_or(0, Vec::len);
        json!({"dataset": row["dataset"], "row": row["row"], "place": row["place"], "tokens": tokens, "spans": row["spans"]})
    };
    rows.map(shown).collect()
}

/// What `--dry-run` says behind the resolved keys: an empty line ends them.
fn without_keys(text: &str) -> String {
    text.split_once("\n\n").map_or(text, |(_, plan)| plan).to_owned()
}
