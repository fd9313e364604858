//! Models with more parts than a decoder of text (images, sound, video): where the text part stands in their
//! `config.json`, and under which names its weights are published. The other parts are left aside.
//!
//! A row of text alone takes the same way through such a model as through the decoder by itself: its positions in
//! three dimensions (`mrope`) are three times the same.

use serde_json::{Map, Value, json};

use super::registry::{FAMILIES, Family};
use crate::ModelError;
use crate::hf_config::HfConfig;
use crate::quantization;
use crate::spec::Moved;

/// A kind of model with a text part.
struct Wrapper {
    model_type: &'static str,
    /// The keys, one inside the other, under which the text part stands. Where the last is not there, it stands among
    /// the keys of the model, as in older files.
    keys: &'static [&'static str],
    text: Text,
    moved: &'static [Moved],
    /// What its files leave out where it is transformers' default.
    defaults: fn() -> Value,
}

/// Which family the text part is of.
enum Text {
    /// That which it says.
    Own,
    /// This one.
    Is(&'static str),
    /// By `version`.
    ByVersion(&'static [(f64, &'static str)]),
}

/// `model.layers` inside the model's own `model`.
const INSIDE: Moved = Moved { own: "model.", files: "model.language_model." };
/// A whole causal model beside the other parts.
const BESIDE: Moved = Moved { own: "", files: "language_model." };

/// A wrapper without defaults.
const fn wrapper(
    model_type: &'static str,
    keys: &'static [&'static str],
    text: Text,
    moved: &'static [Moved],
) -> Wrapper {
    Wrapper { model_type, keys, text, moved, defaults: || Value::Null }
}

const TEXT: &[&str] = &["text_config"];
const THINKER: &[&str] = &["thinker_config", "text_config"];
const THINKS: &[Moved] = &[Moved { own: "", files: "thinker." }];

const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        // `Gemma3TextConfig`: the files of the 4B model say only what differs.
        defaults: || {
            json!({
                "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                "max_position_embeddings": 131_072, "hidden_activation": "gelu_pytorch_tanh",
            })
        },
        ..wrapper("gemma3", TEXT, Text::Own, &[BESIDE, INSIDE])
    },
    wrapper("gemma4", TEXT, Text::Own, &[INSIDE]),
    wrapper("glm4v", TEXT, Text::Is("glm4"), &[INSIDE]),
    wrapper("internvl_chat", &["llm_config"], Text::Own, &[BESIDE]),
    wrapper("llama4", TEXT, Text::Own, &[BESIDE]),
    wrapper(
        "minicpmv",
        &[],
        Text::ByVersion(&[(2.5, "llama"), (2.6, "qwen2"), (4.0, "llama"), (4.5, "qwen3")]),
        &[Moved { own: "", files: "llm." }],
    ),
    wrapper("minicpmv4_6", TEXT, Text::Own, &[INSIDE]),
    wrapper("mistral3", TEXT, Text::Own, &[BESIDE, INSIDE]),
    wrapper("qwen2_5_omni", THINKER, Text::Is("qwen2"), THINKS),
    wrapper("qwen2_5_vl", TEXT, Text::Is("qwen2"), &[INSIDE]),
    Wrapper {
        // `Qwen2Config`.
        defaults: || json!({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}),
        ..wrapper("qwen2_audio", TEXT, Text::Own, &[BESIDE])
    },
    wrapper("qwen2_vl", TEXT, Text::Is("qwen2"), &[INSIDE]),
    wrapper("qwen3_5", TEXT, Text::Own, &[INSIDE]),
    wrapper("qwen3_asr", THINKER, Text::Is("qwen3"), THINKS),
    wrapper("qwen3_vl", TEXT, Text::Is("qwen3"), &[INSIDE]),
];

/// Models that are known and not supported, and why.
const REFUSED: &[(&str, &str)] = &[
    ("falcon_perception", "it answers with coordinates, sizes and masks by heads of their own beside text"),
    ("llava_llama", "its decoder is a model of its own: name the folder `llm` inside of this one"),
    (
        "locateanything",
        "it predicts blocks of tokens at once (`causal_attn`, `block_size`); attention here is causal",
    ),
    (
        "mllama",
        "its blocks for images stand among those for text and are numbered with them (`cross_attention_layers`), and \
         its embedding has 8 rows more than its head",
    ),
    ("molmo", "its embedding is two tables, and its feed-forward layers hold gate and up in the other order"),
];

/// `model_type`s that files leave out and their code adds, by the class that they name.
const BY_CLASS: &[(&str, &str)] = &[("MiniCPM3ForCausalLM", "minicpm3")];

/// The keys of a wrapper that say nothing of the text part alone.
const OF_OTHER_PARTS: &[&str] = &["architectures", "auto_map", "vision_config", "audio_config"];

/// The classes of text parts in transformers, by which other programs know an exported one; some have none there.
const CLASSES: &[(&str, &str)] = &[
    ("gemma3_text", "Gemma3ForCausalLM"),
    ("gemma4_text", "Gemma4ForCausalLM"),
    ("glm4", "Glm4ForCausalLM"),
    ("llama", "LlamaForCausalLM"),
    ("llama4_text", "Llama4ForCausalLM"),
    ("ministral3", "Ministral3ForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("qwen3_5_text", "Qwen3_5ForCausalLM"),
];

/// What a `config.json` says of the text part.
pub(super) struct TextPart {
    pub config: HfConfig,
    pub family: &'static Family,
    pub moved: &'static [Moved],
}

/// The wrappers by name, with the family that their text part is of and the names that its weights have.
pub(super) fn wrapped() -> impl Iterator<Item = (&'static str, String, String)> {
    WRAPPERS.iter().map(|wrapper| {
        let family = match wrapper.text {
            Text::Own => "as it says".to_owned(),
            Text::Is(family) => format!("`{family}`"),
            Text::ByVersion(versions) => {
                let named = versions.iter().map(|(version, family)| format!("`{family}` ({version:.1})"));
                named.collect::<Vec<_>>().join(", ")
            }
        };
        let moved = wrapper.moved.iter().map(|moved| format!("`{}…`", moved.files));
        (wrapper.model_type, family, moved.collect::<Vec<_>>().join(", "))
    })
}

/// The refused ones with their reasons.
pub(super) fn refused() -> &'static [(&'static str, &'static str)] {
    REFUSED
}

/// The text part of a model, or the model where it is nothing else.
pub(super) fn text_part(config: HfConfig) -> Result<TextPart, ModelError> {
    refuse_quantized(&config);
    let named = model_type(&config);
    let Some(wrapper) = WRAPPERS.iter().find(|wrapper| wrapper.model_type == named) else {
        let family = family(&config, &named)?;
        return Ok(TextPart { config, family, moved: &[] });
    };
    let mut part = wrapper.keys.iter().try_fold(config.values(), |values, key| values.get(*key)?.as_object());
    if part.is_none() && wrapper.keys.len() == 1 {
        part = Some(config.values());
    }
    let Some(part) = part else {
        config.problem(format!("`{}` is missing", wrapper.keys.join(".")));
        return config.finish(()).and_then(|()| Err(unknown(&config, &named)));
    };
    let mut values = part.clone();
    complete(&mut values, config.values(), (wrapper.defaults)());
    let name = match wrapper.text {
        Text::Is(name) => name.to_owned(),
        Text::Own => values.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        Text::ByVersion(versions) => {
            let version = config.number_or("version", 0.0);
            let found = versions.iter().find(|(known, _)| *known == version);
            if found.is_none() {
                config.problem(format!("`version` {version} of {named} is not known"));
            }
            found.map_or("llama", |(_, name)| name).to_owned()
        }
    };
    let family = family(&config, &name)?;
    if let Some((_, class)) = CLASSES.iter().find(|(model_type, _)| *model_type == name) {
        values.insert("architectures".into(), json!([class]));
    }
    values.insert("model_type".into(), name.into());
    Ok(TextPart { config: config.with_values(values), family, moved: wrapper.moved })
}

/// Adds what the text part leaves to its wrapper or to defaults, and takes off what is of other parts.
fn complete(values: &mut Map<String, Value>, outer: &Map<String, Value>, defaults: Value) {
    OF_OTHER_PARTS.iter().for_each(|key| drop(values.remove(*key)));
    for key in ["tie_word_embeddings", "quantization_config", "dtype", "torch_dtype"] {
        // Whether the head is the embedding and how weights are stored, transformers asks the whole model.
        let is_of_all = matches!(key, "tie_word_embeddings" | "quantization_config");
        let is_said = values.contains_key(key) && !is_of_all;
        if let (false, Some(value)) = (is_said, outer.get(key)) {
            values.insert(key.to_owned(), value.clone());
        }
    }
    if let Value::Object(defaults) = defaults {
        for (key, value) in defaults {
            values.entry(key).or_insert(value);
        }
    }
}

fn model_type(config: &HfConfig) -> String {
    let of_class = || {
        let classes = config.get("architectures")?.as_array()?;
        BY_CLASS.iter().find(|(class, _)| classes.iter().any(|named| named == class)).map(|(_, name)| *name)
    };
    config.word("model_type").or_else(of_class).unwrap_or_default().to_owned()
}

fn family(config: &HfConfig, model_type: &str) -> Result<&'static Family, ModelError> {
    if let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) {
        return Ok(family);
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(name, _)| *name == model_type) {
        return Err(ModelError::RefusedFamily {
            path: config.path().to_owned(),
            model_type: model_type.to_owned(),
            reason,
        });
    }
    Err(unknown(config, model_type))
}

fn unknown(config: &HfConfig, model_type: &str) -> ModelError {
    let known = FAMILIES.iter().map(|family| family.model_type);
    let known = known.chain(WRAPPERS.iter().map(|wrapper| wrapper.model_type));
    let likeness = |name: &&str| strsim::jaro_winkler(name, model_type);
    let nearest = known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default();
    ModelError::UnknownFamily {
        path: config.path().to_owned(),
        model_type: model_type.to_owned(),
        nearest: nearest.to_owned(),
    }
}

/// Weights that no file here is read as.
fn refuse_quantized(config: &HfConfig) {
    if let Err(reason) = quantization::of_checkpoint(config.values()) {
        config.problem(reason);
    }
}
