//! Reading `config.json`: typed access that collects every problem instead of stopping at the first.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::spec::{RopeScaling, RopeSpec};
use sft_kernels::rope::RopeStyle;

/// The largest size that is read: products of two do not overflow.
pub const MOST_SIZE: u64 = 1 << 30;

/// A model's `config.json`.
#[derive(Debug)]
pub struct HfConfig {
    path: PathBuf,
    values: Map<String, Value>,
    problems: RefCell<Vec<String>>,
}

impl HfConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// If there is none, or it is no JSON object.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        if !path.exists() {
            let help = if folder.is_dir() {
                "name a folder with config.json, tokenizer.json and *.safetensors in it"
            } else {
                "no such folder; give the path of a model's folder, or the name of one on a hub, as in `Qwen/Qwen3-0.6B`"
            };
            return Err(ModelError::Missing {
                folder: folder.to_owned(),
                what: "config.json".into(),
                help: help.into(),
            });
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::File { path: path.clone(), source })?;
        let values = parse(&text).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        Ok(Self { path, values, problems: RefCell::default() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All values.
    pub(crate) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// All values.
    pub(crate) fn into_values(self) -> Map<String, Value> {
        self.values
    }

    /// Keys that stand in no file.
    pub(crate) fn of(values: Map<String, Value>) -> Self {
        Self { path: PathBuf::new(), values, problems: RefCell::default() }
    }

    /// The same file with a part of it for the whole.
    pub(crate) fn with_values(self, values: Map<String, Value>) -> Self {
        Self { values, ..self }
    }

    /// A value that is present and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key stands in the file, be it as null.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The first of these keys that is there, or the first.
    pub fn first_of(&self, keys: [&'static str; 2]) -> &'static str {
        if self.get(keys[0]).is_none() && self.get(keys[1]).is_some() { keys[1] } else { keys[0] }
    }

    /// Records what is wrong; [`HfConfig::finish`] reports it.
    pub fn problem(&self, text: impl Into<String>) {
        self.problems.borrow_mut().push(text.into());
    }

    fn read_as<T>(&self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.get(key)?;
        let found = read(value);
        if found.is_none() {
            self.problem(format!("`{key}` is {value} and should be {kind}"));
        }
        found
    }

    /// A size: a whole number from 1, at most 2³⁰ so that products of two sizes do not overflow.
    pub fn size(&self, key: &str) -> usize {
        self.size_or_none(key).unwrap_or_else(|| {
            if self.get(key).is_none() {
                self.problem(format!("`{key}` is missing"));
            }
            1
        })
    }

    /// A size, or `default` if it is missing.
    pub fn size_or(&self, key: &str, default: usize) -> usize {
        self.size_or_none(key).unwrap_or(default)
    }

    /// A size, if it is there.
    pub fn size_or_none(&self, key: &str) -> Option<usize> {
        let size = |v: &Value| v.as_u64().filter(|n| (1..=MOST_SIZE).contains(n)).map(|n| n as usize);
        self.read_as(key, "a whole number from 1 to 2^30", size)
    }

    /// A width that two sizes make.
    pub fn product(&self, a: usize, b: usize) -> usize {
        let product = a.checked_mul(b).filter(|product| *product as u64 <= MOST_SIZE);
        product.unwrap_or_else(|| {
            self.problem(format!("{a} times {b} is wider than any layer"));
            1
        })
    }

    /// A number, or `default` if it is missing.
    pub fn number_or(&self, key: &str, default: f64) -> f64 {
        self.read_as(key, "a number", Value::as_f64).unwrap_or(default)
    }

    /// A number above 0, if it is there.
    pub fn positive(&self, key: &str) -> Option<f64> {
        self.read_as(key, "a number above 0", |v| v.as_f64().filter(|number| *number > 0.0))
    }

    /// A list of so many numbers, or ones if it is missing.
    pub fn numbers<const N: usize>(&self, key: &str) -> [f64; N] {
        let list = |v: &Value| {
            let numbers: Option<Vec<f64>> = v.as_array()?.iter().map(Value::as_f64).collect();
            <[f64; N]>::try_from(numbers?).ok()
        };
        self.read_as(key, &format!("a list of {N} numbers"), list).unwrap_or([1.0; N])
    }

    /// A switch, or `default` if it is missing.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.read_as(key, "true or false", Value::as_bool).unwrap_or(default)
    }

    /// A word, if it is there.
    pub fn word(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(word) => Some(word),
            other => {
                self.problem(format!("`{key}` is {other} and should be a word"));
                None
            }
        }
    }

    /// `layer_types`: for each layer whether its attention slides. The rule of `default` where the key is missing.
    pub fn sliding_layers(&self, layers: usize, default: impl Fn(usize) -> bool) -> Vec<bool> {
        self.layers_that(["sliding_attention", "full_attention"], layers, default)
    }

    /// `layer_types` of two kinds: for each layer whether it is of the first. The rule of `default` where the key is
    /// missing.
    pub fn layers_that(
        &self,
        [first, second]: [&str; 2],
        layers: usize,
        default: impl Fn(usize) -> bool,
    ) -> Vec<bool> {
        let Some(Value::Array(types)) = self.get("layer_types") else {
            return (0..layers).map(default).collect();
        };
        if types.len() != layers {
            self.problem(format!("`layer_types` has {} entries for {layers} layers", types.len()));
        }
        let of_first = types.iter().map(|t| {
            let kind = t.as_str().filter(|kind| *kind == first || *kind == second);
            if kind.is_none() {
                self.problem(format!("`layer_types` has {t}; known are {second} and {first}"));
            }
            kind == Some(first)
        });
        of_first.chain(std::iter::repeat(false)).take(layers).collect()
    }

    /// `rope_parameters`, or `rope_scaling` as older files have it.
    fn rope_object(&self) -> Option<&Map<String, Value>> {
        self.get("rope_parameters").or_else(|| self.get("rope_scaling")).and_then(Value::as_object)
    }

    /// A number among the parameters of RoPE.
    pub fn rope_number(&self, key: &str) -> Option<f64> {
        self.rope_object()?.get(key)?.as_f64()
    }

    /// RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling` as older files have it.
    pub fn rope(&self, head_dim: usize, default_theta: f64) -> RopeSpec {
        let nested = self.rope_object().cloned().unwrap_or_default();
        let theta = nested.get("rope_theta").and_then(Value::as_f64);
        let theta = theta.unwrap_or_else(|| self.number_or("rope_theta", default_theta));
        self.rope_from(&nested, head_dim, theta)
    }

    /// RoPE of one type of layers, where they differ: its part of `rope_parameters`; in older files the base is
    /// under a key of its own (with this default), and `rope_scaling` is for the layers of full attention.
    pub fn rope_of(&self, layer_type: &str, head_dim: usize, (key, default): (&str, f64)) -> RopeSpec {
        let part = self.rope_object().and_then(|all| all.get(layer_type)).and_then(Value::as_object);
        let scaled = part.is_none() && layer_type == "full_attention";
        let nested = if scaled { self.rope_object() } else { part }.cloned().unwrap_or_default();
        let theta = nested.get("rope_theta").and_then(Value::as_f64);
        let theta = theta.unwrap_or_else(|| self.number_or(key, default));
        self.rope_from(&nested, head_dim, theta)
    }

    fn rope_from(&self, nested: &Map<String, Value>, head_dim: usize, theta: f64) -> RopeSpec {
        let max = self.size_or("max_position_embeddings", 2048);
        let number = |key: &str| nested.get(key).and_then(Value::as_f64);
        let partial =
            number("partial_rotary_factor").unwrap_or_else(|| self.number_or("partial_rotary_factor", 1.0));
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if theta <= 1.0 || rotary_dim < 2 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            self.problem(format!(
                "RoPE with theta {theta} over {rotary_dim} of {head_dim} dimensions is impossible"
            ));
        }
        let need = |key: &str| {
            number(key).unwrap_or_else(|| {
                self.problem(format!("RoPE scaling needs `{key}`"));
                1.0
            })
        };
        let original = || {
            let value = number("original_max_position_embeddings").map(|n| n as usize);
            value.unwrap_or_else(|| self.size_or("original_max_position_embeddings", max))
        };
        let kind = nested.get("rope_type").or_else(|| nested.get("type")).and_then(Value::as_str);
        let scaling = match kind.unwrap_or("default") {
            // Three positions a token, which are the same for text.
            "default" | "mrope" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: need("factor") },
            "dynamic" => RopeScaling::Dynamic { factor: need("factor"), max_position_embeddings: max },
            "yarn" => yarn(nested, original(), max),
            "proportional" => {
                let (pairs, factor) = ((head_dim as f64 * partial / 2.0) as usize, number("factor"));
                let scaling = RopeScaling::Proportional { pairs, factor: factor.unwrap_or(1.0) };
                return RopeSpec {
                    theta,
                    rotary_dim: head_dim,
                    style: RopeStyle::Half,
                    reversed: false,
                    scaling,
                };
            }
            // Phi-3 called it `su` first.
            "longrope" | "su" => self.longrope(nested, rotary_dim / 2, (original(), max)),
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor"),
                low_freq_factor: need("low_freq_factor"),
                high_freq_factor: need("high_freq_factor"),
                original_max_position_embeddings: original(),
            },
            other => {
                self.problem(format!(
                    "rope_type `{other}` is not supported; default, linear, dynamic, yarn, longrope and llama3 are"
                ));
                RopeScaling::Default
            }
        };
        RopeSpec { theta, rotary_dim, style: RopeStyle::Half, reversed: false, scaling }
    }

    /// LongRoPE with factors for so many pairs of dimensions.
    fn longrope(
        &self,
        nested: &Map<String, Value>,
        pairs: usize,
        (original, max): (usize, usize),
    ) -> RopeScaling {
        let factors = |key: &str| {
            let list = nested.get(key).and_then(Value::as_array).into_iter().flatten();
            let list: Vec<f64> = list.filter_map(Value::as_f64).collect();
            if list.len() != pairs {
                self.problem(format!("`{key}` has {} numbers for {pairs} pairs of dimensions", list.len()));
            }
            list
        };
        let number = |key: &str| nested.get(key).and_then(Value::as_f64);
        let factor = number("factor").unwrap_or_else(|| max as f64 / original as f64);
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        RopeScaling::LongRope {
            short_factor: factors("short_factor"),
            long_factor: factors("long_factor"),
            original_max_position_embeddings: original,
            attention_factor: number("attention_factor").unwrap_or(inferred),
        }
    }

    /// The result, unless something was wrong.
    ///
    /// # Errors
    /// Everything that [`HfConfig::problem`] and the readers recorded.
    pub fn finish<T>(&self, value: T) -> Result<T, ModelError> {
        let problems = self.problems.take();
        if problems.is_empty() {
            Ok(value)
        } else {
            Err(ModelError::Config { path: self.path.clone(), problems })
        }
    }
}

/// YaRN for models first trained for `original` tokens and now made for `max`.
fn yarn(nested: &Map<String, Value>, original: usize, max: usize) -> RopeScaling {
    let number = |key: &str| nested.get(key).and_then(Value::as_f64);
    let factor = number("factor").unwrap_or_else(|| max as f64 / original as f64);
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let inferred = match (number("mscale"), number("mscale_all_dim")) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
        _ => scale(1.0),
    };
    RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: number("beta_fast").unwrap_or(32.0),
        beta_slow: number("beta_slow").unwrap_or(1.0),
        attention_factor: number("attention_factor").unwrap_or(inferred),
        truncate: nested.get("truncate").and_then(Value::as_bool).unwrap_or(true),
    }
}

/// A JSON object as Python's `json` writes it too: an infinite number stands there as `Infinity`, which no JSON has; it is
/// read as transformers 5 writes it, as an object.
///
/// # Errors
/// Where it is no JSON object.
pub(crate) fn parse(text: &str) -> Result<Map<String, Value>, serde_json::Error> {
    let read = serde_json::from_str(text);
    let Err(error) = read else { return read };
    let (mut replaced, mut in_string, mut rest) = (String::new(), false, text);
    while let Some(c) = rest.chars().next() {
        let word =
            ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            replaced.push_str(&format!("{{\"__float__\": \"{word}\"}}"));
            rest = &rest[word.len()..];
            continue;
        }
        // A backslash and what it escapes stay together.
        let len =
            if c == '\\' { 1 + rest[1..].chars().next().map_or(0, char::len_utf8) } else { c.len_utf8() };
        in_string ^= c == '"';
        replaced.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    serde_json::from_str(&replaced).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_only_python_writes_are_read() {
        let text = r#"{"time_step_limit": [0.0, Infinity], "a \" Infinity": -Infinity, "b": NaN}"#;
        let values = parse(text).unwrap();
        assert_eq!(values["time_step_limit"][1]["__float__"], "Infinity");
        assert_eq!(values["a \" Infinity"]["__float__"], "-Infinity");
        assert_eq!(values["b"]["__float__"], "NaN");
        assert!(parse("{\"a\": Infinit}").is_err());
    }
}
