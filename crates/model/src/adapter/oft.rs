//! `adapter_config.json` of rotations: what PEFT 0.18 writes for OFT, and which of its kinds are computed here.

use serde_json::{Map, Value, json};

use super::config::{MERGE, is_set, number, shortest, version};
use crate::method::{OftBlocks, OftOptions};

/// Powers of the series that ends the Cayley transform, and the unit matrix.
const TERMS: f64 = 5.0;

/// Keys that say nothing of what is computed from the tensors.
const WITHOUT_EFFECT: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eps",
    "inference_mode",
    "init_weights",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read, here or for all adapters.
const READ: [&str; 11] = [
    "bias",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "module_dropout",
    "modules_to_save",
    "num_cayley_neumann_terms",
    "oft_block_size",
    "peft_type",
    "r",
    "target_modules",
];

/// Refuses tensors that do not mean x·R with R as in [`sft_kernels::oft`].
pub(super) fn check(values: &Map<String, Value>) -> Result<(), (String, &'static str)> {
    // PEFT before 0.18 ended the series otherwise; the key came with that version.
    if version(values) < [0, 18] {
        let version = values.get("peft_version").and_then(Value::as_str).unwrap_or("");
        return Err((
            format!("peft_version is `{version}`, and OFT meant something else before 0.18"),
            "train it again with a newer PEFT, or merge it with the one that it was trained with",
        ));
    }
    if values.get("use_cayley_neumann") == Some(&Value::Bool(false)) {
        return Err(("`use_cayley_neumann` is false, and its series alone is supported".into(), MERGE));
    }
    let malformed = |reason| (reason, MERGE);
    let terms = number(values, "num_cayley_neumann_terms").map_err(malformed)?.unwrap_or(TERMS);
    if terms != TERMS {
        return Err((
            format!("`num_cayley_neumann_terms` is {terms}, and only {TERMS} are supported"),
            MERGE,
        ));
    }
    let known =
        |key: &str| key == "use_cayley_neumann" || WITHOUT_EFFECT.contains(&key) || READ.contains(&key);
    match values.iter().find(|(key, value)| !known(key) && is_set(Some(value))) {
        None => Ok(()),
        Some((key, value)) => Err((format!("`{key}` is {value}, which is not supported"), MERGE)),
    }
}

/// `r` or `oft_block_size`, one of which is 0.
pub(super) fn blocks(values: &Map<String, Value>) -> Result<OftBlocks, String> {
    /// No layer is wider.
    const MOST: f64 = 1_048_576.0;
    let count = number(values, "r")?.unwrap_or(0.0);
    let size = number(values, "oft_block_size")?.unwrap_or(0.0);
    match (count, size) {
        (0.0, size) if (1.0..=MOST).contains(&size) => Ok(OftBlocks::Size(size as usize)),
        (count, 0.0) if (1.0..=MOST).contains(&count) => Ok(OftBlocks::Count(count as usize)),
        _ => {
            Err(format!("`r` is {count} and `oft_block_size` {size}: one of them is 0, and the other is not"))
        }
    }
}

/// The file's text, with all of PEFT's keys in its order.
pub(super) fn text(options: &OftOptions, base_model: &str, target_modules: &[String]) -> String {
    let OftOptions { blocks, dropout, modules_to_save, .. } = options;
    let (count, size) = match blocks {
        OftBlocks::Count(count) => (*count, 0),
        OftBlocks::Size(size) => (0, *size),
    };
    let values = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "block_share": false,
        "coft": false,
        "eps": 6e-5,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "module_dropout": shortest(*dropout),
        "modules_to_save": if modules_to_save.is_empty() { Value::Null } else { json!(modules_to_save) },
        "num_cayley_neumann_terms": TERMS as u32,
        "oft_block_size": size,
        "peft_type": "OFT",
        "peft_version": "0.18.1",
        "r": count,
        "revision": null,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_cayley_neumann": true,
    });
    format!("{values:#}")
}
