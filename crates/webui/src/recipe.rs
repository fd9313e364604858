//! A recipe as it is written: what is given and what is wrong, files of recipes, and what can be put into one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sft_config::{Draft, Language, NoEffect, Place, Problem};
use sft_data::dataset_info;
use sft_data::template::named;
use sft_runs::atomic;

use crate::Shared;
use crate::jobs::Command;
use crate::refusal::{Body, Params, Refusal, beside};

/// What a recipe is called in messages.
pub const NAME: &str = "recipe.yaml";
/// Folders below the working folder that are looked into.
const DEPTH: usize = 4;
/// Entries of folders that are looked at: a working folder can be the root of a disk.
const MOST_ENTRIES: usize = 20_000;
/// Bytes of a recipe's file.
const MOST_BYTES: u64 = 1 << 20;

/// The keys that the form shows at once, by what they are about; all others are below them.
pub const ESSENTIALS: [(&str, &[&str]); 6] = [
    (
        "Model",
        &[
            "model_name_or_path",
            "adapter_name_or_path",
            "template",
            "finetuning_type",
            "quantization_bit",
            "infer_dtype",
        ],
    ),
    ("Data", &["dataset_dir", "dataset", "eval_dataset", "val_size", "cutoff_len", "max_samples", "packing"]),
    (
        "Training",
        &[
            "learning_rate",
            "num_train_epochs",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "lr_scheduler_type",
            "warmup_ratio",
            "optim",
            "bf16",
        ],
    ),
    ("LoRA", &["lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora"]),
    ("Results", &["output_dir", "logging_steps", "save_steps", "eval_strategy", "eval_steps", "plot_loss"]),
    ("Export", &["export_dir", "export_size"]),
];

#[derive(Debug, Deserialize)]
pub struct Form {
    #[serde(default)]
    language: String,
}

/// Every key, and which of them are shown at once.
pub async fn form(Params(asked): Params<Form>) -> Json<Value> {
    let language = if asked.language == "zh" { Language::Chinese } else { Language::English };
    let essentials: Vec<Value> =
        ESSENTIALS.iter().map(|(about, keys)| json!({"about": about, "keys": keys})).collect();
    Json(json!({"essentials": essentials, "keys": sft_config::form(language)}))
}

/// A text and what to change in it.
#[derive(Debug, Deserialize)]
pub struct Asked {
    text: String,
    command: Command,
    /// The key to be changed, and its value; `None` leaves it out.
    set: Option<(String, Option<String>)>,
}

/// The text, changed if asked for, what it gives, and what is wrong with it.
pub async fn draft(
    State(shared): State<Arc<Shared>>,
    Body(asked): Body<Asked>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, |_| Ok(Json(drafted(asked)))).await
}

fn drafted(asked: Asked) -> Value {
    let (mut text, mut refused) = (asked.text, Vec::new());
    if let Some((key, value)) = &asked.set {
        match sft_config::with_value(&text, key, value.as_deref()) {
            Ok(changed) => text = changed,
            Err(problem) => refused.push(problem),
        }
    }
    let draft = Draft::read(&text, NAME, &asked.command.overrides(), asked.command.purpose());
    let no_effect = match draft.config {
        Ok(config) => config.no_effect,
        Err(errors) => {
            // A text that cannot be read is told once.
            refused.retain(|problem| errors.problems.iter().all(|other| other.error != problem.error));
            refused.extend(errors.problems);
            Vec::new()
        }
    };
    let note = |note: &NoEffect| json!({"key": note.key, "line": line(&note.place), "reason": note.reason});
    let given: Map<String, Value> = draft.given.into_iter().map(|(key, value)| (key, value.into())).collect();
    json!({
        "text": text,
        "given": given,
        "problems": refused.iter().map(told).collect::<Vec<_>>(),
        "notes": no_effect.iter().map(note).collect::<Vec<_>>(),
    })
}

/// A problem of a recipe.
fn told(problem: &Problem) -> Value {
    json!({"line": line(&problem.place), "reason": problem.error.to_string(), "help": problem.help})
}

fn line(place: &Place) -> Option<usize> {
    match place {
        Place::Line { line, .. } => Some(*line),
        _ => None,
    }
}

#[derive(Debug, Deserialize)]
pub struct Named {
    path: String,
}

#[derive(Debug, Deserialize)]
pub struct Saved {
    path: String,
    text: String,
    /// Whether a file that is there is replaced.
    #[serde(default)]
    replace: bool,
}

/// The text of a recipe's file.
pub async fn read(
    State(shared): State<Arc<Shared>>,
    Params(asked): Params<Named>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let path = within(&shared.options.folder, &asked.path)?;
        let refused = |error| Refusal::of_file(&asked.path, &error);
        let found = fs::metadata(&path).map_err(refused)?;
        if !found.is_file() || found.len() > MOST_BYTES {
            return Err(Refusal::bad(format!("{}: no file of at most {} MiB", asked.path, MOST_BYTES >> 20)));
        }
        Ok(Json(json!({"text": fs::read_to_string(&path).map_err(refused)?})))
    })
    .await
}

/// Writes a recipe's file, whole or not at all.
pub async fn write(
    State(shared): State<Arc<Shared>>,
    Body(asked): Body<Saved>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let path = within(&shared.options.folder, &asked.path)?;
        if asked.text.len() as u64 > MOST_BYTES {
            return Err(Refusal::bad(format!("a recipe has {} MiB at most", MOST_BYTES >> 20)));
        }
        if path.exists() && !asked.replace {
            return Err(Refusal::not_now(format!("{}: there is such a file", asked.path)));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| Refusal::of_file(&asked.path, &error))?;
        }
        atomic::write(&path, asked.text.as_bytes()).map_err(|error| Refusal::failed("the recipe", error))?;
        Ok(Json(json!({})))
    })
    .await
}

/// The path of a recipe in the working folder, which links may lead out of.
fn within(folder: &Path, path: &str) -> Result<PathBuf, Refusal> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let ending = relative.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !plain || !matches!(ending, "yaml" | "yml") {
        return Err(Refusal::bad(format!(
            "`{path}` is no name for a recipe: it ends in .yaml and lies in the working folder or below it"
        )));
    }
    Ok(folder.join(relative))
}

#[derive(Debug, Deserialize)]
pub struct DatasetDir {
    #[serde(default)]
    dataset_dir: String,
}

/// What lies in the working folder that a recipe can name, and the templates that there are.
pub async fn suggestions(
    State(shared): State<Arc<Shared>>,
    Params(asked): Params<DatasetDir>,
) -> Json<Value> {
    let folder = shared.options.folder.clone();
    let found = tokio::task::spawn_blocking(move || {
        let dataset_dir = if asked.dataset_dir.is_empty() { "data" } else { &asked.dataset_dir };
        // What is wrong with the file is told where it is used.
        let datasets = dataset_info::names(&folder.join(dataset_dir)).unwrap_or_default();
        (Found::below(&folder), datasets)
    });
    let (found, datasets) = found.await.unwrap_or_default();
    let templates: Vec<&str> = ["auto"].into_iter().chain(named::names()).collect();
    Json(json!({
        "recipes": found.recipes,
        "model_name_or_path": found.models,
        "adapter_name_or_path": found.adapters,
        "dataset": datasets,
        "eval_dataset": datasets,
        "template": templates,
    }))
}

/// What lies in a folder and those below it.
#[derive(Debug, Default, PartialEq)]
struct Found {
    recipes: BTreeSet<String>,
    models: BTreeSet<String>,
    adapters: BTreeSet<String>,
}

impl Found {
    /// What lies there, the upper folders first: where there is too much, what lies deep is left out.
    fn below(folder: &Path) -> Self {
        let (mut found, mut left) = (Self::default(), MOST_ENTRIES);
        let mut folders = vec![(folder.to_path_buf(), String::new())];
        for _ in 0..=DEPTH {
            let mut deeper = Vec::new();
            for (folder, name) in folders {
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten().take(left) {
                    left -= 1;
                    let Ok(file) = entry.file_name().into_string() else { continue };
                    let path = if name.is_empty() { file.clone() } else { format!("{name}/{file}") };
                    match file.as_str() {
                        file if file.starts_with('.') || PASSED_BY.contains(&file) => {}
                        // Links that lead in circles end at the depth.
                        _ if entry.path().is_dir() => deeper.push((entry.path(), path)),
                        file => found.take(file, &name, path),
                    }
                }
            }
            folders = deeper;
        }
        found
    }

    /// Takes a file of a folder.
    fn take(&mut self, file: &str, folder: &str, path: String) {
        match file {
            "config.json" if !folder.is_empty() => drop(self.models.insert(folder.to_owned())),
            "adapter_config.json" if !folder.is_empty() => drop(self.adapters.insert(folder.to_owned())),
            // Of a run, which has its own page.
            "training_args.yaml" => {}
            file if file.ends_with(".yaml") || file.ends_with(".yml") => drop(self.recipes.insert(path)),
            _ => {}
        }
    }
}

/// Folders that hold programs and what they are made of.
const PASSED_BY: [&str; 4] = ["target", "node_modules", "venv", "site-packages"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_the_form_shows_at_once_is_one() {
        for key in ESSENTIALS.iter().flat_map(|(_, keys)| keys.iter()) {
            assert!(sft_config::is_key(key), "{key}");
        }
    }

    #[test]
    fn a_recipe_lies_in_the_working_folder() {
        let folder = Path::new("/home/me");
        assert_eq!(within(folder, "a/b.yaml").unwrap(), folder.join("a/b.yaml"));
        for path in ["", "../b.yaml", "/etc/b.yaml", "a/../../b.yml", "a.txt", "yaml", ".bashrc"] {
            assert!(within(folder, path).is_err(), "{path}");
        }
    }

    #[test]
    fn recipes_models_and_adapters_of_a_folder_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            "a.yaml",
            "models/tiny/config.json",
            "saves/run/adapter_config.json",
            "saves/run/training_args.yaml",
            ".git/b.yaml",
            "target/c.yaml",
            "1/2/3/4/d.yml",
            "1/2/3/4/5/e.yml",
        ];
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let found = Found {
            recipes: names(&["1/2/3/4/d.yml", "a.yaml"]),
            models: names(&["models/tiny"]),
            adapters: names(&["saves/run"]),
        };
        assert_eq!(Found::below(folder.path()), found);
    }
}
