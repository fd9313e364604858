//! The model card: `README.md` with the front matter that model hubs read.
//!
//! In: what was trained from what, on what and how, and the log history → out: Markdown (stage 14). The front matter has
//! the keys that transformers and PEFT write (`license: other` as LLaMA-Factory sets it, so that nobody is told a licence
//! that was not looked up); the sections are those of transformers' `modelcard.py`, without its empty ones.

use crate::atomic;
use crate::error::Result;
use crate::trainer_state::TrainerState;
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::Path;

/// The file's name.
pub const MODEL_CARD: &str = "README.md";

/// Which library loads the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// An adapter.
    Peft,
    /// A whole model.
    Transformers,
}

/// What a model card says beside the results.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// Heading: usually the output folder's name.
    pub title: String,
    /// What the folder holds.
    pub library: Library,
    /// `model_name_or_path`; absent when trained from scratch.
    pub base_model: Option<String>,
    /// The method (`lora`, `full`, `freeze`), a tag.
    pub method: String,
    /// Names of the data sets.
    pub datasets: Vec<String>,
    /// The step whose weights these are, if it is not the last one.
    pub step: Option<u64>,
    /// Name and value, in the order shown.
    pub hyperparameters: Vec<(String, String)>,
    /// Name and version of what made it: `sft`, and what else matters.
    pub versions: Vec<(String, String)>,
}

impl ModelCard {
    /// Writes `README.md` into `folder`.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn save(&self, folder: &Path, state: &TrainerState) -> Result<()> {
        atomic::write(&folder.join(MODEL_CARD), self.render(state).as_bytes())
    }

    /// The card as Markdown.
    pub fn render(&self, state: &TrainerState) -> String {
        let mut text = self.front_matter();
        let mut section = |content: String| {
            text.push('\n');
            text.push_str(&content);
        };
        section(format!("# {}\n", self.title));
        section(self.introduction());
        if let Some(results) = evaluation_results(state, self.step) {
            section(results);
        }
        section("## Training hyperparameters\n".into());
        section(list(&self.hyperparameters));
        if let Some(table) = results_table(state) {
            section("## Training results\n".into());
            section(table);
        }
        section("## Versions\n".into());
        section(list(&self.versions));
        text
    }

    fn front_matter(&self) -> String {
        let mut yaml = String::from("---\n");
        let library = match self.library {
            Library::Peft => "peft",
            Library::Transformers => "transformers",
        };
        yaml.push_str(&format!("library_name: {library}\nlicense: other\n"));
        let mut tags = vec!["sft".to_owned(), self.method.clone()];
        if let Some(base) = &self.base_model {
            yaml.push_str(&format!("base_model: {}\n", quoted(base)));
            if self.library == Library::Peft {
                tags.insert(0, format!("base_model:adapter:{base}"));
                tags.push("transformers".into());
            }
        }
        yaml.push_str(&yaml_list("tags", &tags));
        // `datasets` names data sets of a hub; local names are mentioned in the text instead.
        let hub_names: Vec<_> = self.datasets.iter().filter(|name| is_hub_name(name)).cloned().collect();
        yaml.push_str(&yaml_list("datasets", &hub_names));
        yaml.push_str("pipeline_tag: text-generation\n---\n");
        yaml
    }

    fn introduction(&self) -> String {
        let data = match self.datasets.as_slice() {
            [] => "data that is not named".to_owned(),
            [one] => format!("the {one} dataset"),
            [first @ .., last] => format!("the {} and {last} datasets", first.join(", ")),
        };
        match &self.base_model {
            Some(base) if is_hub_name(base) => format!(
                "A fine-tuned version ({}) of [{base}](https://huggingface.co/{base}), trained on {data}.\n",
                self.method
            ),
            Some(base) => format!("A fine-tuned version ({}) of `{base}`, trained on {data}.\n", self.method),
            None => format!("Trained from scratch on {data}.\n"),
        }
    }
}

/// The last evaluation, or the last after step `step`; one line a metric.
fn evaluation_results(state: &TrainerState, step: Option<u64>) -> Option<String> {
    let is_of_step = |entry: &&Map<String, Value>| match step {
        Some(step) => entry.get("step").and_then(Value::as_u64) == Some(step),
        None => true,
    };
    let is_evaluation = |entry: &&Map<String, Value>| entry.keys().any(|key| key.starts_with("eval_"));
    let last = state.log_history.iter().rev().filter(is_of_step).find(is_evaluation)?;
    let metrics: Vec<_> = shown_metrics(last).map(|(name, value)| (name, number(value))).collect();
    Some(format!("Results on the evaluation set:\n\n{}", list(&metrics)))
}

/// One row an evaluation: the training loss logged last, epoch, step, metrics.
fn results_table(state: &TrainerState) -> Option<String> {
    let mut training_loss = "no log".to_owned();
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for entry in &state.log_history {
        if let Some(loss) = entry.get("loss") {
            training_loss = number(loss);
        }
        if !entry.keys().any(|key| key.starts_with("eval_")) {
            continue;
        }
        let metrics: Vec<_> = shown_metrics(entry).map(|(name, value)| (name, number(value))).collect();
        for (name, _) in &metrics {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        let field = |key: &str| entry.get(key).map(number).unwrap_or_default();
        rows.push((vec![training_loss.clone(), field("epoch"), field("step")], metrics));
    }
    if rows.is_empty() {
        return None;
    }
    let fixed = ["Training Loss", "Epoch", "Step"].map(str::to_owned);
    let header: Vec<String> = fixed.into_iter().chain(columns.clone()).collect();
    let mut table = format!("| {} |\n|{}\n", header.join(" | "), ":---:|".repeat(header.len()));
    for (mut cells, metrics) in rows {
        let value = |column: &String| metrics.iter().find(|(name, _)| name == column).map(|(_, v)| v.clone());
        cells.extend(columns.iter().map(|column| value(column).unwrap_or_default()));
        let _ = writeln!(table, "| {} |", cells.join(" | ")); // writing into a String cannot fail
    }
    Some(table)
}

/// `eval_loss` → `Validation Loss`, `eval_token_accuracy` → `Token Accuracy`; times and rates are left out.
fn shown_metrics(entry: &Map<String, Value>) -> impl Iterator<Item = (String, &Value)> {
    entry.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("eval_")?;
        let is_speed = name.ends_with("runtime") || name.ends_with("per_second");
        let title = if name == "loss" { "Validation Loss".to_owned() } else { capitalised(name) };
        (!is_speed).then_some((title, value))
    })
}

fn capitalised(name: &str) -> String {
    let word =
        |word: &str| word.get(..1).map_or_else(|| word.to_owned(), |first| first.to_uppercase() + &word[1..]);
    name.split('_').map(word).collect::<Vec<_>>().join(" ")
}

/// Whole numbers as they are, others with four decimals.
fn number(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => n.as_f64().map(|v| format!("{v:.4}")).unwrap_or_default(),
        Value::Null => "not finite".into(),
        other => other.to_string(),
    }
}

fn list(items: &[(String, String)]) -> String {
    items.iter().map(|(name, value)| format!("- {name}: {value}\n")).collect()
}

fn yaml_list(key: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let lines: String = items.iter().map(|item| format!("- {}\n", quoted(item))).collect();
    format!("{key}:\n{lines}")
}

/// A YAML string: plain where that is safe, otherwise double-quoted (JSON's quoting is YAML's).
fn quoted(text: &str) -> String {
    let is_plain_char = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_keyword = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if starts_plain && !is_keyword && text.chars().all(is_plain_char) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// `owner/name`, as hubs name models and data sets.
fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(owner, rest)| is_part(owner) && is_part(rest))
        && !Path::new(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> ModelCard {
        ModelCard {
            title: "lora-run".into(),
            library: Library::Peft,
            base_model: Some("Qwen/Qwen3-0.6B".into()),
            method: "lora".into(),
            datasets: vec!["identity".into(), "tatsu-lab/alpaca".into()],
            step: None,
            hyperparameters: vec![("learning_rate".into(), "0.0001".into()), ("seed".into(), "42".into())],
            versions: vec![("sft".into(), "0.1.0".into())],
        }
    }

    fn state() -> TrainerState {
        let entries = [
            r#"{"eval_loss": 3.0, "eval_runtime": 1.5, "epoch": 0.0, "step": 0}"#,
            r#"{"loss": 2.0, "learning_rate": 0.1, "epoch": 0.5, "step": 5}"#,
            r#"{"eval_loss": 1.5, "eval_accuracy": 0.625, "eval_runtime": 1.5, "epoch": 1.0, "step": 10}"#,
            r#"{"train_runtime": 3.0, "epoch": 1.0, "step": 10}"#,
        ];
        let log_history = entries.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
        TrainerState { log_history, ..TrainerState::default() }
    }

    #[test]
    fn the_results_are_those_of_the_weights_that_stay() {
        let results = |step| evaluation_results(&state(), step).unwrap();
        assert!(results(None).contains("Validation Loss: 1.5000"));
        assert!(results(Some(0)).contains("Validation Loss: 3.0000"));
    }

    #[test]
    fn a_card_has_front_matter_hyperparameters_and_a_results_table() {
        let expected = "\
---
library_name: peft
license: other
base_model: Qwen/Qwen3-0.6B
tags:
- \"base_model:adapter:Qwen/Qwen3-0.6B\"
- sft
- lora
- transformers
datasets:
- tatsu-lab/alpaca
pipeline_tag: text-generation
---

# lora-run

A fine-tuned version (lora) of [Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B), trained on the identity and tatsu-lab/alpaca datasets.

Results on the evaluation set:

- Validation Loss: 1.5000
- Accuracy: 0.6250

## Training hyperparameters

- learning_rate: 0.0001
- seed: 42

## Training results

| Training Loss | Epoch | Step | Validation Loss | Accuracy |
|:---:|:---:|:---:|:---:|:---:|
| no log | 0.0000 | 0 | 3.0000 |  |
| 2.0000 | 1.0000 | 10 | 1.5000 | 0.6250 |

## Versions

- sft: 0.1.0
";
        assert_eq!(card().render(&state()), expected);
    }

    #[test]
    fn a_card_without_evaluation_or_base_has_neither_results_nor_base_model() {
        let scratch =
            ModelCard { base_model: None, library: Library::Transformers, datasets: vec![], ..card() };
        let text = scratch.render(&TrainerState::default());
        assert!(
            text.contains("library_name: transformers") && text.contains("Trained from scratch"),
            "{text}"
        );
        assert!(
            !text.contains("base_model") && !text.contains("results") && !text.contains("datasets:"),
            "{text}"
        );
    }

    #[test]
    fn names_that_yaml_would_misread_are_quoted() {
        assert_eq!(quoted("a: b # \"c\"\n"), r##""a: b # \"c\"\n""##);
        assert_eq!(quoted("yes"), "\"yes\"");
        assert_eq!(quoted("1e5"), "\"1e5\"");
        assert_eq!(quoted("models/Qwen3-0.6B"), "models/Qwen3-0.6B");
    }

    #[test]
    fn a_local_path_is_no_hub_name() {
        assert!(!is_hub_name("./models/a"));
        assert!(!is_hub_name("models/a/b"));
        assert!(!is_hub_name("identity"));
        assert!(is_hub_name("Qwen/Qwen3-0.6B"));
    }
}
