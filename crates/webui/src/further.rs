//! What comes after training: the record of a run → a recipe to let it go on, to begin it again, to talk to what it trained, to
//! let that answer, or to merge it. Paths that were relative to another folder than `here` become absolute.

use std::path::Path;

use serde_json::{Map, Value};
use sft_config::{Problem, with_value};
use sft_runs::run_record::RunRecord;

use crate::jobs::Command;

/// Keys that name what lies in a folder.
const PATHS: [&str; 6] = [
    "model_name_or_path",
    "adapter_name_or_path",
    "dataset_dir",
    "cache_dir",
    "tokenized_path",
    "new_special_tokens_config",
];

/// Keys that decide what a trained model is and how it answers; what decides its training is left out.
const OF_ANSWERS: [&str; 33] = [
    "template",
    "default_system",
    "enable_thinking",
    "preserve_thinking",
    "tool_format",
    "cache_dir",
    "hf_hub_token",
    "ms_hub_token",
    "model_name_or_path",
    "model_revision",
    "adapter_name_or_path",
    "adapter_folder",
    "rope_scaling",
    "resize_vocab",
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
    "quantization_bit",
    "quantization_method",
    "quantization_type",
    "double_quantization",
    "infer_dtype",
    "finetuning_type",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "repetition_penalty",
    "skip_special_tokens",
    "compute_dtype",
    "device",
    "threads",
];

/// The recipe for `command` of what a run left in its folder.
///
/// # Errors
/// Keys of which none can be changed by itself.
pub fn recipe(record: &RunRecord, here: &Path, command: Command) -> Result<String, Problem> {
    let mut keys = found_from(record, here);
    match command {
        Command::Chat => keys.retain(|key, _| OF_ANSWERS.contains(&key.as_str())),
        // Codes of four or eight bits are no weights to add an adapter to.
        Command::Export => {
            keys.retain(|key, _| OF_ANSWERS.contains(&key.as_str()) && !key.contains("quantization"))
        }
        Command::Train | Command::Predict => {}
    }
    let text = |key: &str| keys.get(key).and_then(Value::as_str).unwrap_or_default();
    let trained = record.output_dir.to_string_lossy();
    let mut recipe = sft_config::changed(&keys);
    let mut set = |key: &str, value: Option<&str>| -> Result<(), Problem> {
        recipe = with_value(&recipe, key, value)?;
        Ok(())
    };
    // The weights are there now, and the run is over.
    for key in ["train_from_scratch", "resume_from_checkpoint", "overwrite_output_dir", "create_new_adapter"]
    {
        set(key, None)?;
    }
    if matches!(text("finetuning_type"), "lora" | "oft") {
        set("adapter_name_or_path", Some(&adapters(&keys, record)))?;
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

/// The recipe of a run that is begun again: another folder is its writer's choice.
///
/// # Errors
/// As [`recipe`].
pub fn again(record: &RunRecord, here: &Path) -> Result<String, Problem> {
    Ok(sft_config::changed(&found_from(record, here)))
}

/// The resolved recipe of a run, as it goes on.
///
/// # Errors
/// As [`recipe`].
pub fn resumed(text: &str, record: &RunRecord) -> Result<String, Problem> {
    let text = with_value(text, "output_dir", Some(&quoted(&record.output_dir.to_string_lossy())))?;
    // Whatever was said of it then: the same recipe could begin anew, or where it began the last time.
    with_value(&text, "resume_from_checkpoint", Some("true"))
}

/// The keys of a run, with paths that are found from `here`.
fn found_from(record: &RunRecord, here: &Path) -> Map<String, Value> {
    let mut keys = record.config.clone();
    if record.folder == here || record.folder.as_os_str().is_empty() {
        return keys;
    }
    // A name on a hub is no folder there.
    let absolute = |value: &mut Value| {
        let path = value.as_str().map(|path| record.folder.join(path)).filter(|path| path.exists());
        if let Some(path) = path {
            *value = path.to_string_lossy().into();
        }
    };
    for key in PATHS {
        match keys.get_mut(key) {
            Some(Value::Array(items)) => items.iter_mut().for_each(absolute),
            Some(value) => absolute(value),
            None => {}
        }
    }
    keys.insert("output_dir".into(), record.output_dir.to_string_lossy().into());
    keys
}

/// The adapters that make the trained model: those below the one that was trained, and that.
fn adapters(keys: &Map<String, Value>, record: &RunRecord) -> String {
    let given = keys.get("adapter_name_or_path").and_then(Value::as_array).into_iter().flatten();
    let mut names: Vec<&str> = given.filter_map(Value::as_str).collect();
    // Without a new one the last adapter was trained further.
    if record.config.get("create_new_adapter") != Some(&Value::Bool(true)) {
        names.pop();
    }
    let trained = record.output_dir.to_string_lossy();
    names.push(&trained);
    Value::from(names).to_string()
}

/// A path as a value that is a text, whatever is in it.
fn quoted(path: &str) -> String {
    match path.contains('"') {
        true if path.contains('\'') => path.to_owned(),
        true => format!("'{path}'"),
        false => format!("\"{path}\""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sft_config::{Draft, Resume, RunConfig};

    use super::*;

    fn record(keys: Value, folder: &Path) -> RunRecord {
        let Value::Object(config) = keys else { panic!("keys") };
        RunRecord { config, output_dir: "/saves/run 1".into(), folder: folder.into(), ..RunRecord::default() }
    }

    fn read(text: &str, command: Command) -> RunConfig {
        Draft::read(text, "recipe", &command.overrides(), command.purpose()).config.unwrap()
    }

    fn further(keys: Value, command: Command) -> RunConfig {
        read(&recipe(&record(keys, Path::new("/here")), Path::new("/here"), command).unwrap(), command)
    }

    #[test]
    fn every_key_that_is_kept_is_one() {
        for key in OF_ANSWERS.iter().chain(&PATHS) {
            assert!(sft_config::is_key(key), "{key}");
        }
    }

    #[test]
    fn an_adapter_is_asked_on_top_of_what_it_was_trained_on() {
        let keys = |given: Value, new: bool| {
            json!({"model_name_or_path": "base", "dataset": ["a"], "finetuning_type": "lora", "create_new_adapter": new,
                "adapter_name_or_path": given, "output_dir": "run 1", "temperature": 0.5})
        };
        let chat = |given, new| further(keys(given, new), Command::Chat);
        assert_eq!(chat(json!([]), false).adapter_name_or_path, ["/saves/run 1"]);
        assert_eq!(chat(json!(["b", "c"]), false).adapter_name_or_path, ["b", "/saves/run 1"]);
        assert_eq!(chat(json!(["b"]), true).adapter_name_or_path, ["b", "/saves/run 1"]);
        let config = chat(json!([]), false);
        assert_eq!(config.model_name_or_path, "base");
        assert!(
            config.temperature == 0.5 && config.dataset.is_empty(),
            "what decides answers is kept, and no more"
        );
        let export = further(keys(json!([]), false), Command::Export);
        assert_eq!(export.export_dir, Path::new("/saves/run 1-merged"));
        let codes = json!({"model_name_or_path": "base", "dataset": ["a"], "finetuning_type": "lora", "quantization_bit": 4});
        assert_eq!(further(codes.clone(), Command::Chat).quantization_bit, Some(4));
        assert_eq!(further(codes, Command::Export).quantization_bit, None);
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

    #[test]
    fn paths_of_another_folder_are_found_from_here_and_names_on_hubs_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["base", "data", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let keys = json!({"model_name_or_path": "base", "dataset": ["a"], "dataset_dir": "data", "output_dir": "run 1",
            "adapter_name_or_path": ["b", "org/name"]});
        let config = read(&again(&record(keys, folder.path()), Path::new("/here")).unwrap(), Command::Train);
        let there = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        assert_eq!(config.model_name_or_path, there("base"));
        assert_eq!(config.adapter_name_or_path, [there("b"), "org/name".into()]);
        assert_eq!(config.dataset_dir, folder.path().join("data"));
        assert_eq!(config.output_dir, Path::new("/saves/run 1"));
    }

    #[test]
    fn a_run_that_goes_on_does_not_begin_anew() {
        let text = "model_name_or_path: base\ndataset: a\noutput_dir: run\n";
        for said in [
            "overwrite_output_dir: true\n",
            "resume_from_checkpoint: false\n",
            "resume_from_checkpoint: old\n",
        ] {
            let text = resumed(&format!("{text}{said}"), &record(json!({}), Path::new("/"))).unwrap();
            let config = read(&text, Command::Train);
            assert_eq!(config.output_dir, Path::new("/saves/run 1"));
            assert_eq!(config.resume_from_checkpoint, Resume::Newest, "{said}");
        }
    }
}
