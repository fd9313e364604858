//! The resolved configuration as YAML: what a run writes down so that it can be run again.
//!
//! Every supported key with its value, grouped as in the documentation; it is valid input and
//! resolves to the same [`RunConfig`]. Keys without effect are left out, and with them any token.

use serde_json::{Map, Value as Json};

use crate::choices::FinetuningType;
use crate::keys::{KEYS, Key, RunConfig};

impl RunConfig {
    /// The resolved configuration as YAML, one key a line; reads back to an equal configuration.
    pub fn resolved_yaml(&self) -> String {
        let mut yaml = String::new();
        let mut group = "";
        for (key, value) in self.set_keys() {
            if group != key.group {
                group = key.group;
                yaml.push_str(&format!("# {group}\n"));
            }
            // JSON is YAML: strings are quoted as JSON, which no YAML reader takes for anything else.
            yaml.push_str(&format!("{}: {}\n", key.name, written(&value)));
        }
        yaml
    }

    /// The same as keys and values, for comparisons.
    pub fn values(&self) -> Map<String, Json> {
        self.set_keys().map(|(key, value)| (key.name.to_owned(), value)).collect()
    }

    /// The values of keys that cannot change between a checkpoint and what goes on from it: what is trained, in which
    /// numbers, and by which optimizer.
    pub fn decided(&self) -> Map<String, Json> {
        let mut keys = vec!["finetuning_type", "optim", "compute_dtype", "quantization_bit"];
        let fresh = self.adapter_name_or_path.is_empty() || self.create_new_adapter;
        if self.finetuning_type == FinetuningType::Lora && fresh {
            keys.extend(["lora_rank", "lora_alpha", "use_rslora", "use_dora"]);
        }
        keys.extend(["use_galore", "use_apollo", "use_badam"]);
        // What the frozen weights are, and which rows come when.
        keys.extend(["pissa_init", "pissa_iter", "quantization_type", "double_quantization"]);
        keys.extend(["rope_scaling", "create_new_adapter", "data_seed", "disable_shuffling"]);
        if self.rope_scaling.is_some() {
            keys.push("cutoff_len");
        }
        if self.streaming {
            // A stream is not read through to see whether it is still the same.
            keys.extend([
                "dataset",
                "mix_strategy",
                "interleave_probs",
                "buffer_size",
                "template",
                "cutoff_len",
            ]);
        }
        keys.into_iter().filter_map(|key| Some((key.to_owned(), self.get(key)?))).collect()
    }

    fn set_keys(&self) -> impl Iterator<Item = (&'static Key, Json)> {
        KEYS.iter().map(|key| (key, self.get(key.name).unwrap_or(Json::Null))).filter(|(key, value)| {
            let unset = match value {
                Json::String(text) => text.is_empty() && !key.required.is_empty(),
                Json::Array(items) => items.is_empty(),
                _ => false,
            };
            // warmup_steps already says what warmup_ratio set.
            !unset && key.name != "warmup_ratio"
        })
    }
}

/// A value as JSON. Exponents get a decimal point: YAML 1.1 readers take `1e-8` for a text.
pub(crate) fn written(value: &Json) -> String {
    let text = value.to_string();
    match value.is_f64() && !text.contains('.') {
        true => text.replacen('e', ".0e", 1),
        false => text,
    }
}
