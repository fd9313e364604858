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
use crate::refusal::Refusal;

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
    Json(asked): Json<Asked>,
) -> Result<Json<Value>, Refusal> {
    let failed = |error: std::io::Error| Refusal::failed("the command cannot be run", error);
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
    let mut said = (said(&output.stdout), said(&output.stderr));
    if asked.what == What::Plan {
        said.0 = without_keys(&said.0);
    }
    Ok(Json(json!({"done": output.status.success(), "said": said.0, "errors": said.1})))
}

/// What a command says, in which the recipe is called by its name alone.
fn shown(bytes: &[u8], folder: &Path) -> String {
    let folder = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
    let text = String::from_utf8_lossy(bytes).replace(&folder, "");
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}\n… and more", &text[..end]),
        None => text,
    }
}

/// What `--dry-run` says behind the resolved keys: an empty line ends them.
fn without_keys(text: &str) -> String {
    text.split_once("\n\n").map_or(text, |(_, plan)| plan).to_owned()
}
