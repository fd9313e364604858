//! A decoder as a Hugging Face model folder (stage 16 of the walk): the counterpart of [`crate::loading`].
//!
//! In: a decoder, and the folder that it was made from. Out: its weights, sharded; `config.json` with what has changed
//! since (element type, a head parted from the embedding, positions); tokenizer files and chat template as they were.
//! Of a model with other parts (images, sound) its text part is written, as a model of its own.
//! Checkpoints of full tuning and exported models are written by this one function.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use sft_kernels::DType;
use sft_runs::disk;

use crate::ModelError;
use crate::decoder::Decoder;
use crate::expansion;
use crate::families;
use crate::parameter::Parameter;
use crate::quantization;
use crate::spec::{DecoderSpec, RopeScaling};
use crate::weights;

/// Files beside weights and `config.json` that belong to a model.
pub const MODEL_FILES: [&str; 17] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// Where transformers 5 puts further named chat templates.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// How weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Element type of all weights; `None` for each as it is (trained ones are float32).
    pub dtype: Option<DType>,
    /// Bytes of a file of weights, at most (but for a single larger tensor).
    pub shard_bytes: usize,
    /// So many more blocks, which add nothing until they are trained (LLaMA-Pro).
    pub num_expand: usize,
}

impl SaveOptions {
    /// Bytes of a gigabyte as Hugging Face counts `max_shard_size` and LLaMA-Factory `export_size`.
    pub const GB: usize = 1_000_000_000;

    /// Bytes that the weights will take.
    pub fn weight_bytes(&self, decoder: &Decoder) -> u64 {
        let bytes = |p: &Parameter| match p.as_quantized() {
            Some(weight) if quantization::scheme_of(weight).is_some() => weight.byte_len() as u64,
            _ => (p.elements() * self.dtype.unwrap_or(p.dtype()).bytes()) as u64,
        };
        let all: u64 = decoder.base_parameters().into_iter().map(bytes).sum();
        // A new block is as large as the others, which are at most all there is.
        all + all * self.num_expand as u64 / decoder.spec.layers.len().max(1) as u64
    }
}

/// Writes a decoder's weights (adapters are not among them), its `config.json` and the files of `source` that go with
/// them into `folder`, which exists. Returns the names of all files.
///
/// # Errors
/// A source without `config.json`; what the file system says; more blocks than can stand among those there are.
pub fn save(
    decoder: &Decoder,
    source: &Path,
    folder: &Path,
    options: SaveOptions,
) -> Result<Vec<String>, ModelError> {
    expansion::check(&decoder.spec, options.num_expand)?;
    let mut files = copy_model_files(source, folder)?;
    let mut config = config_of(decoder, source, options.dtype)?;
    if let (Some(config), 1..) = (config.as_object_mut(), options.num_expand) {
        expansion::configure(config, decoder.spec.layers.len(), options.num_expand);
    }
    let path = folder.join("config.json");
    disk::write(&path, format!("{config:#}\n").as_bytes())
        .map_err(|source| ModelError::File { path, source })?;
    files.push("config.json".into());
    check_expanded(decoder, folder, options.num_expand)?;
    let parameters = decoder.base_parameters();
    let zeros = expansion::zeros(&decoder.spec, &parameters, options.num_expand);
    let mut tensors = Vec::new();
    for parameter in parameters {
        let dtype = type_in_files(parameter, decoder.compute, options.dtype);
        let of_files = parameter.in_files().into_iter();
        tensors.extend(of_files.map(|(name, tensor)| (name, tensor.in_type(dtype))));
    }
    let tensors = match options.num_expand {
        0 => tensors,
        expand => expansion::tensors(&decoder.spec, tensors, &zeros, expand),
    };
    files.extend(weights::write_model(folder, &tensors, options.shard_bytes)?);
    Ok(files)
}

/// Refuses an expanded model whose configuration makes other blocks of the copies: one that gives blocks their kinds by
/// their numbers.
fn check_expanded(decoder: &Decoder, folder: &Path, expand: usize) -> Result<(), ModelError> {
    if expand == 0 || families::read_spec(folder)?.layers == expansion::layers(&decoder.spec, expand) {
        return Ok(());
    }
    Err(ModelError::Method {
        key: "num_expand",
        reason: format!(
            "the blocks of this {} model have their kinds by their numbers, which change when others come between",
            decoder.spec.model_type
        ),
        help: "tune the model with lora or freeze instead".into(),
    })
}

/// Copies tokenizer, chat template, generation settings, licence and code that other programs run (nothing here does); a
/// file that is not there is left out. Returns the names of those copied.
///
/// # Errors
/// What the file system says.
pub fn copy_model_files(from: &Path, to: &Path) -> Result<Vec<String>, ModelError> {
    let mut copied = Vec::new();
    let mut copy = |name: &str| {
        let target = to.join(name);
        if from.join(name).is_file() {
            // Not `fs::copy`: a source that may only be read would make a copy of that kind.
            let bytes = fs::read(from.join(name));
            let written = bytes.and_then(|bytes| disk::write(&target, &bytes));
            written.map_err(|source| ModelError::File { path: target, source })?;
            copied.push(name.to_owned());
        }
        Ok(())
    };
    MODEL_FILES.iter().try_for_each(|name| copy(name))?;
    let mut others: Vec<String> =
        fs::read_dir(from).into_iter().flatten().flatten().filter_map(named).collect();
    others.sort_unstable();
    others.retain(|name| name.ends_with(".tiktoken") || name.ends_with(".py"));
    others.iter().try_for_each(|name| copy(name))?;
    let Ok(entries) = fs::read_dir(from.join(MORE_TEMPLATES)) else { return Ok(copied) };
    let more = to.join(MORE_TEMPLATES);
    disk::create_dir_all(&more).map_err(|source| ModelError::File { path: more, source })?;
    for name in entries.flatten().filter_map(named).filter(|name| name.ends_with(".jinja")) {
        copy(&format!("{MORE_TEMPLATES}/{name}"))?;
    }
    Ok(copied)
}

fn named(entry: fs::DirEntry) -> Option<String> {
    entry.file_name().into_string().ok()
}

/// The source's `config.json` with what differs in the decoder.
fn config_of(decoder: &Decoder, source: &Path, dtype: Option<DType>) -> Result<Value, ModelError> {
    let mut config = families::text_config(source)?;
    let before = families::read_spec(source)?;
    let stored = dtype.unwrap_or_else(|| widest(decoder)).name();
    // transformers 4 reads and writes `torch_dtype`, transformers 5 writes `dtype` and reads both.
    let keys: Vec<&str> =
        ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
    for key in if keys.is_empty() { &["torch_dtype"] } else { keys.as_slice() } {
        config.insert((*key).to_owned(), stored.into());
    }
    let tied = decoder.lm_head.is_none();
    if tied != before.tie_word_embeddings || config.contains_key("tie_word_embeddings") {
        config.insert("tie_word_embeddings".into(), tied.into());
    }
    if decoder.spec.vocab_size != before.vocab_size {
        // ChatGLM's calls it `padded_vocab_size`.
        let keys = ["padded_vocab_size", "vocab_size"].into_iter();
        let key = keys.into_iter().find(|key| config.contains_key(*key)).unwrap_or("vocab_size");
        config.insert(key.into(), decoder.spec.vocab_size.into());
    }
    // The dynamic rule begins beyond `max_position_embeddings`, so that stays what the model was made for.
    let scaling = |spec: &DecoderSpec| spec.rope.as_ref().map(|rope| rope.scaling.clone());
    let positions = match scaling(&decoder.spec) {
        Some(RopeScaling::Dynamic { max_position_embeddings, .. }) => max_position_embeddings,
        _ => decoder.spec.max_position_embeddings,
    };
    if positions != before.max_position_embeddings {
        config.insert("max_position_embeddings".into(), positions.into());
    }
    let scheme = decoder.a_quantized_weight().and_then(quantization::scheme_of);
    match quantization::config_of(scheme, decoder.compute) {
        Some(said) => drop(config.insert("quantization_config".into(), said)),
        None => drop(config.remove("quantization_config")),
    }
    if let Some(changed) = scaling(&decoder.spec).filter(|_| scaling(&decoder.spec) != scaling(&before)) {
        put_rope(&mut config, &changed);
    }
    Ok(Value::Object(config))
}

/// The type that a weight is written in; `None` for its own. What the model keeps in float32 beside bfloat16 (what chooses
/// experts, decays) is rounded only where that changes nothing: files had it so, or in float32.
fn type_in_files(weight: &Parameter, compute: DType, dtype: Option<DType>) -> Option<DType> {
    let is_wider = !weight.is_trained() && weight.as_quantized().is_none() && weight.dtype() != compute;
    if !is_wider || weight.dtype() != DType::F32 || dtype != Some(compute) {
        return dtype;
    }
    let own = weight.to_host();
    let rounded = own.to_dtype(compute).to_dtype(DType::F32);
    if own.view().as_slice::<f32>() == rounded.view().as_slice::<f32>() { dtype } else { None }
}

/// The type in which a decoder's widest weights are.
fn widest(decoder: &Decoder) -> DType {
    let parameters = decoder.base_parameters();
    parameters.iter().map(|p| p.dtype()).max_by_key(|dtype| dtype.bytes()).unwrap_or(decoder.compute)
}

/// RoPE scaling in the style of the file: `rope_parameters`, or `rope_scaling` beside `rope_theta`.
fn put_rope(config: &mut Map<String, Value>, scaling: &RopeScaling) {
    let mut rope = rope_scaling(scaling);
    match config.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        Some(parameters) => {
            let kept = ["rope_theta", "partial_rotary_factor"];
            rope.extend(
                kept.iter()
                    .filter_map(|key| parameters.get_key_value(*key))
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
            *parameters = rope;
        }
        None => {
            config.insert("rope_scaling".into(), Value::Object(rope));
        }
    }
}

/// A rule under Hugging Face's names.
fn rope_scaling(scaling: &RopeScaling) -> Map<String, Value> {
    let value = match scaling {
        RopeScaling::Default => json!({ "rope_type": "default" }),
        RopeScaling::Proportional { factor, .. } => json!({ "rope_type": "proportional", "factor": factor }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "truncate": truncate,
        }),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            attention_factor,
        } => json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
    };
    match value {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}
