//! What comes after training: the recipe of a run → one to talk to what it trained, to let it answer, or to merge it.

use std::path::Path;

use serde_json::{Map, Value};
use sft_config::Problem;

use crate::jobs::Command;

/// The recipe for `command` of what a run with these keys left in `output_dir`.
///
/// # Errors
/// Keys of which none can be changed by itself.
pub fn recipe(keys: &Map<String, Value>, output_dir: &Path, command: Command) -> Result<String, Problem> {
    let text = |key: &str| keys.get(key).and_then(Value::as_str).unwrap_or_default();
    let trained = output_dir.to_string_lossy();
    let mut recipe = sft_config::changed(keys);
    let mut set = |key: &str, value: Option<&str>| -> Result<(), Problem> {
        recipe = sft_config::with_value(&recipe, key, value)?;
        Ok(())
    };
    // The weights are there now, and the run is over.
    for key in ["train_from_scratch", "resume_from_checkpoint", "overwrite_output_dir", "create_new_adapter"]
    {
        set(key, None)?;
    }
    if matches!(text("finetuning_type"), "lora" | "oft") {
        set("adapter_name_or_path", Some(&adapters(keys, &trained)))?;
    } else {
        set("model_name_or_path", Some(&quoted(&trained)))?;
    }
    match command {
        Command::Train | Command::Chat => {}
        Command::Predict => {
            if keys.get("eval_dataset").and_then(Value::as_array).is_none_or(Vec::is_empty) {
                let trained_on = keys.get("dataset").cloned().unwrap_or_default();
                set("eval_dataset", Some(&trained_on.to_string()))?;
            }
            set("output_dir", Some(&quoted(&format!("{trained}-answers"))))?;
        }
        Command::Export => set("export_dir", Some(&quoted(&format!("{trained}-merged"))))?,
    }
    Ok(recipe)
}

/// The adapters that make the trained model: those below the one that was trained, and that.
fn adapters(keys: &Map<String, Value>, trained: &str) -> String {
    let given = keys.get("adapter_name_or_path").and_then(Value::as_array).into_iter().flatten();
    let mut names: Vec<&str> = given.filter_map(Value::as_str).collect();
    // Without a new one the last adapter was trained further.
    if keys.get("create_new_adapter") != Some(&Value::Bool(true)) {
        names.pop();
    }
    names.push(trained);
    Value::from(names).to_string()
}

/// A path as a value that is a text, whatever is in it.
fn quoted(path: &str) -> String {
    if path.contains('"') { path.to_owned() } else { format!("\"{path}\"") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sft_config::Draft;

    use super::*;

    fn further(keys: Value, command: Command) -> sft_config::RunConfig {
        let Value::Object(keys) = keys else { panic!("keys") };
        let text = recipe(&keys, Path::new("/saves/run 1"), command).unwrap();
        Draft::read(&text, "recipe", &command.overrides(), command.purpose()).config.unwrap()
    }

    #[test]
    fn an_adapter_is_asked_on_top_of_what_it_was_trained_on() {
        let keys = |given: Value, new: bool| {
            json!({"model_name_or_path": "base", "dataset": ["a"], "finetuning_type": "lora", "create_new_adapter": new,
                "adapter_name_or_path": given, "output_dir": "run 1"})
        };
        let chat = |given, new| further(keys(given, new), Command::Chat);
        assert_eq!(chat(json!([]), false).adapter_name_or_path, ["/saves/run 1"]);
        assert_eq!(chat(json!(["b", "c"]), false).adapter_name_or_path, ["b", "/saves/run 1"]);
        assert_eq!(chat(json!(["b"]), true).adapter_name_or_path, ["b", "/saves/run 1"]);
        assert_eq!(chat(json!([]), false).model_name_or_path, "base");
        let export = further(keys(json!([]), false), Command::Export);
        assert_eq!(export.export_dir, Path::new("/saves/run 1-merged"));
    }

    #[test]
    fn a_model_that_was_trained_whole_is_read_from_its_folder() {
        let keys = json!({"model_name_or_path": "base", "dataset": ["a", "b"], "finetuning_type": "full",
            "train_from_scratch": true, "output_dir": "run 1"});
        let config = further(keys, Command::Predict);
        assert_eq!(config.model_name_or_path, "/saves/run 1");
        assert!(!config.train_from_scratch && config.adapter_name_or_path.is_empty());
        assert_eq!(config.eval_dataset, ["a", "b"]);
        assert_eq!(config.output_dir, Path::new("/saves/run 1-answers"));
    }
}
