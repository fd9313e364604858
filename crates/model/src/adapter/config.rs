//! `adapter_config.json` as PEFT writes it: which layers carry adapters, of which rank and scale.
//!
//! In: the file of an adapter's folder → out: an [`AdapterConfig`], or why the adapter cannot be computed here. A key
//! that would change what is computed is never passed over: it is known, or at its neutral value, or refused by name.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::oft;
use crate::ModelError;
use crate::method::{
    AdapterOptions, LoraInit, LoraOptions, OftBlocks, OftOptions, Targets, has_ending, has_part,
};

/// Name of the file.
pub(super) const FILE: &str = "adapter_config.json";

/// What an adapter's configuration says.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// R, unless `rank_pattern` says otherwise.
    pub rank: usize,
    /// Scale is alpha / R (or alpha / √R), unless `alpha_pattern` says otherwise.
    pub alpha: f64,
    /// Probability of dropping an element of an adapter's input in training, or the share of blocks left unrotated.
    pub dropout: f32,
    /// Scale by √R.
    pub use_rslora: bool,
    /// Magnitudes of rows beside A and B.
    pub use_dora: bool,
    /// What A and B began as.
    pub init: LoraInit,
    /// Rotations in the place of low-rank matrices (OFT): then rank, alpha and what changes them say nothing.
    pub oft: Option<OftBlocks>,
    /// Modules stored whole.
    pub modules_to_save: Vec<String>,
    /// The model that it was trained on, as its author called it.
    pub base_model: Option<String>,
    /// Whether PEFT has the matrix A of an adapter of experts at the inputs: before 0.19 it was at the first dimension of
    /// the weight.
    pub knows_inputs: bool,
    targets: Selection,
    /// Ends of the names of weights that carry adapters, whatever module they are in.
    parameters: Vec<String>,
    excluded: Option<Selection>,
    layers: Vec<u64>,
    layer_patterns: Vec<Regex>,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// How `target_modules` and `exclude_modules` name layers.
#[derive(Debug, Clone)]
enum Selection {
    /// `all-linear`: every linear layer but the head.
    AllLinear,
    /// Ends of names.
    Names(Vec<String>),
    /// A regular expression for the whole name.
    Pattern(Regex),
}

/// Our own key: a fast decomposition began with random vectors that the names of the layers draw, so that it can be made
/// again. PEFT draws others each time.
const START: &str = "sft_pissa_start";

/// Keys that say nothing of what is computed from the tensors.
const WITHOUT_EFFECT: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read below.
const READ: [&str; 20] = [
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    START,
    "target_modules",
    "target_parameters",
    "use_dora",
    "use_rslora",
];

/// No layer is wider, and an adapter of a higher rank says no more.
const MOST_RANK: f64 = 1_048_576.0;

impl AdapterConfig {
    /// Reads the file in an adapter's folder.
    ///
    /// # Errors
    /// No or malformed file; an adapter of a kind that is not supported, named.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        if !path.exists() {
            let help = "name the folder of an adapter in PEFT's format: adapter_config.json and \
                        adapter_model.safetensors are in it";
            return Err(ModelError::Missing {
                folder: folder.to_owned(),
                what: FILE.into(),
                help: help.into(),
            });
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::File { path: path.clone(), source })?;
        let values: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        Self::from_values(&values).map_err(|(reason, help)| ModelError::Adapter {
            folder: folder.to_owned(),
            reason: format!("{FILE}: {reason}"),
            help: help.into(),
        })
    }

    fn from_values(values: &Map<String, Value>) -> Result<Self, (String, &'static str)> {
        let is_oft = check_kind(values)?;
        let dropout_key = if is_oft { "module_dropout" } else { "lora_dropout" };
        let malformed = |reason: String| (reason, "the file is damaged or was changed by hand");
        let read = || -> Result<Self, String> {
            let parameters = words(values, "target_parameters")?;
            let no_modules = (!parameters.is_empty()).then(|| Selection::Names(Vec::new()));
            Ok(Self {
                rank: number(values, "r")?.map_or(8, |r| r as usize),
                alpha: number(values, "lora_alpha")?.unwrap_or(8.0),
                dropout: number(values, dropout_key)?.unwrap_or(0.0) as f32,
                use_rslora: is_set(values.get("use_rslora")),
                use_dora: is_set(values.get("use_dora")),
                init: init(values.get("init_lora_weights")).unwrap_or_default(),
                oft: if is_oft { Some(oft::blocks(values)?) } else { None },
                modules_to_save: words(values, "modules_to_save")?,
                base_model: values.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
                knows_inputs: version(values) >= [0, 19],
                targets: selection(values, "target_modules")?
                    .or(no_modules)
                    .ok_or("`target_modules` is missing: no layer carries an adapter")?,
                parameters,
                excluded: selection(values, "exclude_modules")?,
                layers: layer_numbers(values)?,
                layer_patterns: layer_patterns(values)?,
                rank_pattern: pattern(values, "rank_pattern")?,
                alpha_pattern: pattern(values, "alpha_pattern")?,
            })
        };
        let config = read().map_err(malformed)?;
        // An OFT adapter's `r` may be 0, and its size was looked at.
        let rank = if is_oft { 1.0 } else { config.rank as f64 };
        let ranks = config.rank_pattern.iter().map(|(_, rank)| *rank).chain([rank]);
        if let Some(rank) = ranks.into_iter().find(|rank| !(1.0..=MOST_RANK).contains(rank)) {
            return Err(malformed(format!("a rank of {rank} is not one from 1 to {MOST_RANK}")));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(malformed(format!("`{dropout_key}` is {}", config.dropout)));
        }
        // Heads and embeddings by all the names that they have.
        let head = ["lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings"];
        let saved = config.modules_to_save.iter().any(|module| head.contains(&module.as_str()));
        if saved && is_set(values.get("ensure_weight_tying")) {
            return Err((
                "`ensure_weight_tying` with a head or an embedding in `modules_to_save` is not supported"
                    .into(),
                "merge the adapter with PEFT and name the merged model in model_name_or_path",
            ));
        }
        Ok(config)
    }

    /// Whether the layer of this name (`model.layers.0.self_attn.q_proj`) carries an adapter.
    pub fn targets(&self, path: &str) -> bool {
        if self.targets_parameter(&format!("{path}.weight")) {
            return true;
        }
        let ends = |names: &[String]| names.iter().any(|name| has_ending(path, name));
        let excluded = match &self.excluded {
            Some(Selection::Names(names)) => ends(names),
            Some(Selection::Pattern(pattern)) => matches(pattern, path),
            Some(Selection::AllLinear) | None => false,
        };
        if excluded || self.modules_to_save.iter().any(|module| has_part(path, module)) {
            return false;
        }
        match &self.targets {
            Selection::AllLinear => true,
            Selection::Pattern(pattern) => matches(pattern, path),
            Selection::Names(names) => {
                names.iter().any(|name| name == path) || ends(names) && self.in_layers(path)
            }
        }
    }

    /// Whether the weight of this name (`model.layers.0.mlp.experts.down_proj`) carries an adapter, whatever holds it.
    pub fn targets_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|target| has_ending(name, target))
    }

    fn in_layers(&self, path: &str) -> bool {
        let number = |pattern: &Regex| pattern.captures(path).ok()??.get(1)?.as_str().parse::<u64>().ok();
        let layer = || self.layer_patterns.iter().find_map(number);
        self.layers.is_empty() || layer().is_some_and(|layer| self.layers.contains(&layer))
    }

    /// R of the adapter on a layer.
    pub fn rank_of(&self, path: &str) -> usize {
        of_pattern(&self.rank_pattern, path).map_or(self.rank, |rank| rank as usize)
    }

    /// What B·A·x of a layer is multiplied by, for an adapter of this rank.
    pub fn scale_of(&self, path: &str, rank: usize) -> f32 {
        let alpha = of_pattern(&self.alpha_pattern, path).unwrap_or(self.alpha);
        LoraOptions { alpha, ..self.lora_options(Targets::All, Vec::new()) }.scale(rank)
    }

    /// These settings as options of a method, on layers of these names.
    pub fn options(&self, targets: Targets, parameters: Vec<String>) -> AdapterOptions {
        let Some(blocks) = self.oft else { return self.lora_options(targets, parameters).into() };
        let (dropout, modules_to_save) = (self.dropout, self.modules_to_save.clone());
        OftOptions { blocks, dropout, targets, modules_to_save }.into()
    }

    fn lora_options(&self, targets: Targets, target_parameters: Vec<String>) -> LoraOptions {
        LoraOptions {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets,
            target_parameters,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            init: self.init,
            modules_to_save: self.modules_to_save.clone(),
        }
    }
}

/// What helps where an adapter cannot be computed here.
pub(super) const MERGE: &str = "merge the adapter with PEFT and name the merged model in model_name_or_path";

/// Refuses adapters whose tensors do not mean what is computed here; whether they are rotations.
fn check_kind(values: &Map<String, Value>) -> Result<bool, (String, &'static str)> {
    let word = |key: &str| values.get(key).and_then(Value::as_str);
    if !matches!(word("bias"), None | Some("none")) {
        return Err((
            format!("bias is `{}` and only `none` is supported", word("bias").unwrap_or("")),
            MERGE,
        ));
    }
    match word("peft_type").unwrap_or("(none)") {
        "LORA" => check_lora(values).map(|()| false),
        "OFT" => oft::check(values).map(|()| true),
        kind => Err((format!("peft_type is {kind} and only LORA and OFT are supported"), MERGE)),
    }
}

/// Refuses tensors that do not mean W + s·B·A, its rows scaled to magnitudes with DoRA.
fn check_lora(values: &Map<String, Value>) -> Result<(), (String, &'static str)> {
    if let Some(start) = values.get("init_lora_weights").filter(|start| init(Some(start)).is_none()) {
        return Err((
            format!(
                "init_lora_weights is {start}: the adapter belongs to a base model changed when it began"
            ),
            "convert it to a plain LoRA adapter with PEFT (path_initial_model_for_weight_conversion)",
        ));
    }
    let is_fast =
        matches!(init(values.get("init_lora_weights")), Some(LoraInit::Pissa { iterations: Some(_) }));
    if is_fast && !is_set(values.get(START)) {
        let start = &values["init_lora_weights"];
        return Err((
            format!("init_lora_weights is {start}: PEFT began with random vectors that are not stored"),
            "convert it to a plain LoRA adapter where it was trained (path_initial_model_for_weight_conversion)",
        ));
    }
    let is_drawn = init(values.get("init_lora_weights")) == Some(LoraInit::Random);
    let without_input = is_drawn && !["lora_dropout", "use_dora"].iter().any(|key| is_set(values.get(*key)));
    if is_set(values.get("target_parameters")) && !without_input {
        let reason = "`target_parameters` beside lora_dropout, use_dora or PiSSA, which PEFT does not have";
        return Err((reason.into(), "the file was changed by hand"));
    }
    let known = |key: &str| WITHOUT_EFFECT.contains(&key) || READ.contains(&key);
    if let Some((key, value)) = values.iter().find(|(key, value)| !known(key) && is_set(Some(value))) {
        return Err((format!("`{key}` is {value}, which is not supported"), MERGE));
    }
    Ok(())
}

/// What A and B of an adapter began as by `init_lora_weights`, if weights beside them are known from the model's.
fn init(value: Option<&Value>) -> Option<LoraInit> {
    match value {
        None | Some(Value::Null | Value::Bool(_)) => Some(LoraInit::Random),
        Some(Value::String(start)) => match start.as_str() {
            "gaussian" | "eva" | "orthogonal" => Some(LoraInit::Random),
            "pissa" => Some(LoraInit::Pissa { iterations: None }),
            other => {
                let iterations = other.strip_prefix("pissa_niter_")?.parse().ok()?;
                Some(LoraInit::Pissa { iterations: Some(iterations) })
            }
        },
        Some(_) => None,
    }
}

/// `init_lora_weights` of such a start.
fn init_text(init: LoraInit) -> Value {
    match init {
        LoraInit::Random => json!(true),
        LoraInit::Pissa { iterations: None } => json!("pissa"),
        LoraInit::Pissa { iterations: Some(iterations) } => json!(format!("pissa_niter_{iterations}")),
    }
}

/// The first two numbers of PEFT's version; zeros where it is not said, as before 0.18.
pub(super) fn version(values: &Map<String, Value>) -> [u32; 2] {
    let text = values.get("peft_version").and_then(Value::as_str).unwrap_or_default();
    let mut numbers = text.split(['.', '@']).map(|part| part.parse().unwrap_or(0));
    [numbers.next(), numbers.next()].map(Option::unwrap_or_default)
}

/// Whether a value is other than null, false, 0 and empty.
pub(super) fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(values)) => !values.is_empty(),
        Some(Value::Object(values)) => !values.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::Bool(true)) => true,
    }
}

pub(super) fn number(values: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match values.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|number| *number >= 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("`{key}` is {value} and should be a number that is not negative")),
        },
    }
}

/// A list of words, or one word.
fn words(values: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let wrong = |value: &Value| format!("`{key}` has {value} and should hold names");
    match values.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(word)) => Ok(vec![word.clone()]),
        Some(Value::Array(list)) => {
            list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(|| wrong(name))).collect()
        }
        Some(other) => Err(wrong(other)),
    }
}

fn selection(values: &Map<String, Value>, key: &str) -> Result<Option<Selection>, String> {
    Ok(match values.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Some(Selection::AllLinear),
        Some(Value::String(text)) => Some(Selection::Pattern(expression(key, &format!("^(?:{text})$"))?)),
        Some(_) => Some(Selection::Names(words(values, key)?)),
    })
}

/// Whether an expression matches; one that takes too long to tell does not, and the tensors that it is about are left over.
fn matches(pattern: &Regex, path: &str) -> bool {
    pattern.is_match(path).unwrap_or(false)
}

fn expression(key: &str, text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("`{key}` is no regular expression that is understood: {error}"))
}

/// `layers_to_transform`: a number or a list of numbers.
fn layer_numbers(values: &Map<String, Value>) -> Result<Vec<u64>, String> {
    let key = "layers_to_transform";
    let list = match values.get(key) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let number =
        |value: &Value| value.as_u64().ok_or_else(|| format!("`{key}` has {value} and should hold layers"));
    list.iter().map(number).collect()
}

/// Where a name holds its layer's number, by `layers_pattern` or by PEFT's default.
fn layer_patterns(values: &Map<String, Value>) -> Result<Vec<Regex>, String> {
    let key = "layers_pattern";
    let mut names = words(values, key)?;
    names.retain(|name| !name.is_empty());
    if names.is_empty() {
        names.push("[^.]*".into());
    }
    names.iter().map(|name| expression(key, &format!(r"^.*\.{name}\.(\d+)\."))).collect()
}

/// `rank_pattern` and `alpha_pattern`: an expression for the end of a name, and its number.
fn pattern(values: &Map<String, Value>, key: &str) -> Result<Vec<(Regex, f64)>, String> {
    let entries = values.get(key).and_then(Value::as_object).into_iter().flatten();
    let entry = |(name, value): (&String, &Value)| {
        let number = value.as_f64().filter(|number| *number > 0.0);
        let number =
            number.ok_or_else(|| format!("`{key}` has {value} for {name}, which is no positive number"))?;
        Ok((expression(key, &format!(r"^(?:.*\.)?(?:{name})$"))?, number))
    };
    entries.map(entry).collect()
}

fn of_pattern(pattern: &[(Regex, f64)], path: &str) -> Option<f64> {
    pattern.iter().find(|(name, _)| matches(name, path)).map(|(_, number)| *number)
}

/// The version of PEFT that reads adapters of experts as they are written here.
const INPUTS_KNOWN: &str = "0.19.1";

/// What [`super::write`] found out of a decoder's adapters.
pub(super) struct Written<'a> {
    pub options: &'a LoraOptions,
    pub base_model: &'a str,
    pub target_modules: Vec<String>,
    pub target_parameters: Vec<String>,
    pub fan_in_fan_out: bool,
    pub rank_pattern: Map<String, Value>,
    pub alpha_pattern: Map<String, Value>,
}

/// The file's text, with all of PEFT's keys in its order.
pub(super) fn text(written: &Written<'_>) -> String {
    let LoraOptions { rank, alpha, dropout, use_rslora, use_dora, init, modules_to_save, .. } =
        written.options;
    let target_parameters = &written.target_parameters;
    let mut values = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": written.alpha_pattern,
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": written.base_model,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": written.fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": init_text(*init),
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": whole(*alpha),
        "lora_bias": false,
        "lora_dropout": shortest(*dropout),
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": if modules_to_save.is_empty() { Value::Null } else { json!(modules_to_save) },
        "peft_type": "LORA",
        "peft_version": if target_parameters.is_empty() { "0.18.1" } else { INPUTS_KNOWN },
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": written.rank_pattern,
        "revision": null,
        "target_modules": written.target_modules,
        "target_parameters": if target_parameters.is_empty() { Value::Null } else { json!(target_parameters) },
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_dora": use_dora,
        "use_qalora": false,
        "use_rslora": use_rslora,
    });
    if let LoraInit::Pissa { iterations: Some(_) } = init {
        values[START] = json!(true);
    }
    format!("{values:#}")
}

/// A number without a point if it is whole, as PEFT's own files have alpha.
pub(super) fn whole(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}

/// 0.1 and not 0.10000000149011612.
pub(super) fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}
