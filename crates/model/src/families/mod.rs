//! The families: each file maps a `config.json` to a [`DecoderSpec`]. Nothing else knows a family's name.

mod apertus;
mod arcee;
mod baichuan;
mod bloom;
mod chatglm;
mod cohere;
mod cwm;
mod deepseek;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod experts;
mod falcon;
mod falcon_h1;
mod gemma;
mod gemma4;
mod glm;
mod glm4_moe;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granitemoe;
mod helium;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod internlm2;
mod internlm3;
mod jais2;
mod lfm2;
mod llama;
mod llama4;
mod mamba2;
mod minicpm;
mod minimax_m2;
mod ministral;
mod mistral;
mod mixtral;
mod mpt;
mod nanochat;
mod nemotron;
mod olmo;
mod olmo2;
mod olmoe;
mod opt;
mod page;
mod persimmon;
mod phi;
mod phi3;
mod phimoe;
mod qwen;
mod qwen2;
mod qwen3;
mod qwen3_next;
mod qwen_moe;
mod registry;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod wrappers;

use std::path::Path;

use crate::ModelError;
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{
    ActivationSpec, AttentionSpec, DecoderSpec, InputNames, LayerRope, LayerSpec, MixerSpec, MlpSpec,
    ModuleNames, NormNames, NormSpec, RecurrentSpec,
};
use serde_json::{Map, Value};
use sft_kernels::conv1d::MOST_TAPS;
use sft_kernels::gated::Activation;
use sft_kernels::linear_attention::MOST_KEY_DIM;
use sft_kernels::rope::RopeStyle;

pub use page::page;
use registry::FAMILIES;
pub use registry::Family;
use wrappers::{TextPart, text_part};

/// Reads a family's configuration.
type ReadSpec = fn(&HfConfig) -> DecoderSpec;

/// The supported `model_type`s.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The registry.
pub fn all() -> &'static [Family] {
    FAMILIES
}

/// The decoder that a model folder's `config.json` describes; of a model with other parts, its text part.
///
/// # Errors
/// No or malformed `config.json`, an unsupported `model_type`, impossible values (all of them), quantized weights.
pub fn read_spec(folder: &Path) -> Result<DecoderSpec, ModelError> {
    let TextPart { config, family, moved } = text_part(HfConfig::read(folder)?)?;
    let mut spec = (family.read)(&config);
    // Files can leave it out.
    spec.model_type = family.model_type.to_owned();
    spec.moved = moved;
    check(&config, &spec);
    config.finish(spec)
}

/// The `config.json` of a folder's text part, by which transformers reads it alone.
///
/// # Errors
/// As [`read_spec`].
pub fn text_config(folder: &Path) -> Result<Map<String, Value>, ModelError> {
    Ok(text_part(HfConfig::read(folder)?)?.config.into_values())
}

/// The Llama shape: RMS norms before the layers, rotary positions, grouped-query attention, gated feed-forward
/// layers, no biases. Families begin with it and change what differs.
fn llama_shaped(config: &HfConfig) -> DecoderSpec {
    llama_keyed(config, &Keys::LLAMA, 10_000.0)
}

/// The Llama shape with its sizes under other keys, and another base of the rotation where the file has none.
fn llama_keyed(config: &HfConfig, keys: &Keys, theta: f64) -> DecoderSpec {
    let mut spec = shaped(config, keys);
    let head_dim = spec.layers.first().map_or(2, |layer| layer.attention.head_dim);
    spec.rope = Some(config.rope(head_dim, theta));
    spec.layers.iter_mut().for_each(|layer| layer.attention.rope = LayerRope::Global);
    spec
}

/// Under which keys a file has the sizes of a model.
struct Keys {
    vocab_size: &'static str,
    hidden_size: &'static str,
    layers: &'static str,
    heads: &'static str,
    kv_heads: Option<&'static str>,
    head_dim: &'static str,
    intermediate_size: &'static str,
    /// F where that key is missing, in multiples of C.
    intermediate_factor: Option<usize>,
    activation: (&'static str, &'static str),
    positions: &'static str,
    /// eps of the norms.
    eps: (&'static str, f64),
}

impl Keys {
    const LLAMA: Self = Self {
        vocab_size: "vocab_size",
        hidden_size: "hidden_size",
        layers: "num_hidden_layers",
        heads: "num_attention_heads",
        kv_heads: Some("num_key_value_heads"),
        head_dim: "head_dim",
        intermediate_size: "intermediate_size",
        intermediate_factor: None,
        activation: ("hidden_act", "silu"),
        positions: "max_position_embeddings",
        eps: ("rms_norm_eps", 1e-6),
    };

    /// Those of GPT-2 and what came of it.
    const GPT2: Self = Self {
        vocab_size: "vocab_size",
        hidden_size: "n_embd",
        layers: "n_layer",
        heads: "n_head",
        kv_heads: None,
        head_dim: "head_dim",
        intermediate_size: "n_inner",
        intermediate_factor: Some(4),
        activation: ("activation_function", "gelu_new"),
        positions: "n_positions",
        eps: ("layer_norm_epsilon", 1e-5),
    };
}

/// The Llama shape with its sizes under other keys, and without positions.
fn shaped(config: &HfConfig, keys: &Keys) -> DecoderSpec {
    let (hidden_size, heads) = (config.size(keys.hidden_size), config.size(keys.heads));
    let head_dim = config.size_or(keys.head_dim, hidden_size / heads.max(1));
    let intermediate_size = match keys.intermediate_factor {
        Some(factor) => config.size_or(keys.intermediate_size, config.product(factor, hidden_size)),
        None => config.size(keys.intermediate_size),
    };
    let layer = LayerSpec {
        mixer: MixerSpec::Attention,
        attention: AttentionSpec {
            heads,
            kv_heads: keys.kv_heads.map_or(heads, |key| config.size_or(key, heads)),
            head_dim,
            inputs: InputNames::QKV,
            qkv_bias: false,
            output: "self_attn.o_proj",
            o_bias: false,
            output_gate: false,
            qk_norm: None,
            v_norm: false,
            rope: LayerRope::None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            alibi: None,
            latent: None,
            sinks: None,
            chunk: None,
            grows: false,
        },
        attention_norms: NormNames::before("input_layernorm"),
        mlp: MlpSpec {
            intermediate_size,
            inputs: InputNames::GATE_UP,
            gated: true,
            activation: activation(config, keys.activation),
            output: "mlp.down_proj",
            bias: false,
            gate_multiplier: 1.0,
            inner_multiplier: 1.0,
        },
        has_mlp: true,
        moe: None,
        mlp_norms: NormNames::before("post_attention_layernorm"),
        parallel: false,
        residual_multiplier: 1.0,
        per_layer: None,
        output_scalar: None,
    };
    DecoderSpec {
        model_type: config.word("model_type").unwrap_or_default().to_owned(),
        vocab_size: config.size(keys.vocab_size),
        new_rows: None,
        hidden_size,
        layers: vec![layer; config.size(keys.layers).min(MOST_LAYERS + 1)],
        names: ModuleNames::LLAMA,
        linear_weights: Stored::Plain,
        norm: NormSpec::rms(config.number_or(keys.eps.0, keys.eps.1) as f32),
        rope: None,
        local_rope: None,
        query_growth: None,
        positions: None,
        embedding_norm: None,
        per_layer: None,
        embedding_projection: None,
        embedding_multiplier: 1.0,
        logit_scale: 1.0,
        final_logit_softcapping: None,
        tie_word_embeddings: config.flag_or("tie_word_embeddings", false),
        head_bias: false,
        normalised_head: false,
        moved: &[],
        max_position_embeddings: config.size_or(keys.positions, 2048),
        initializer_range: config.number_or("initializer_range", 0.02) as f32,
        moe_aux_loss_coef: 0.0,
    }
}

/// The activation under a key, with the name that it has where the key is missing.
fn activation(config: &HfConfig, (key, default): (&str, &str)) -> ActivationSpec {
    let name = config.word("hidden_activation").or_else(|| config.word(key)).unwrap_or(default);
    if name == "xielu" {
        return ActivationSpec::Xielu("mlp.act_fn");
    }
    ActivationSpec::Fixed(name.parse().unwrap_or_else(|reason: String| {
        config.problem(reason);
        Activation::Silu
    }))
}

/// Says that a key with this value would change what is computed.
fn refuse_if(config: &HfConfig, is_set: bool, key: &str) {
    if is_set {
        config.problem(format!("`{key}` is {} and not supported", config.get(key).unwrap_or(&Value::Null)));
    }
}

/// Rotates pairs of neighbouring dimensions.
fn rotate_neighbours(spec: &mut DecoderSpec) {
    spec.rope.iter_mut().for_each(|rope| rope.style = RopeStyle::Interleaved);
}

/// Queries, keys and values by one linear layer, whose output has this many groups of them.
fn set_fused(spec: &mut DecoderSpec, name: &'static str, groups: usize) {
    let inputs = InputNames::Fused { name, groups };
    spec.layers.iter_mut().for_each(|layer| layer.attention.inputs = inputs);
}

/// Gate and up by one linear layer, under the name that it has everywhere.
const GATE_UP_PROJ: InputNames = InputNames::Fused { name: "mlp.gate_up_proj", groups: 1 };

/// Feed-forward layers without a gate.
fn set_mlp(
    spec: &mut DecoderSpec,
    activation: ActivationSpec,
    input: &'static [&'static str; 1],
    output: &'static str,
) {
    for layer in &mut spec.layers {
        layer.mlp.without_gate(input, output);
        layer.mlp.activation = activation;
    }
}

/// ALiBi's slopes for so many heads: powers of 2^(−8/n), and where n is no power of two, those of the next smaller one
/// followed by every second one of the next larger.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let whole = 1 << heads.max(1).ilog2();
    let slope = |heads: usize, power: usize| (-8.0 * power as f64 / heads as f64).exp2() as f32;
    let more = (1..).step_by(2).map(|power| slope(2 * whole, power));
    (1..=whole).map(|power| slope(whole, power)).chain(more).take(heads).collect()
}

/// Both layers of a block read its input through attention's norm.
fn make_parallel(spec: &mut DecoderSpec) {
    for layer in &mut spec.layers {
        (layer.parallel, layer.mlp_norms) = (true, NormNames::NONE);
    }
}

/// Rotates this part of each head's dimensions where the file does not say which.
fn rotate_part(config: &HfConfig, spec: &mut DecoderSpec, part: f64) {
    let key = "partial_rotary_factor";
    if config.rope_number(key).is_none() && !config.has(key) {
        let dim = |all: usize| (all as f64 * part) as usize;
        spec.rope.iter_mut().for_each(|rope| rope.rotary_dim = dim(rope.rotary_dim));
    }
}

/// Layer norms in place of RMS norms.
fn layer_norms(config: &HfConfig, spec: &mut DecoderSpec, key: &str) {
    spec.norm = NormSpec::layer(config.number_or(key, 1e-5) as f32);
}

/// Biases in every linear layer of the blocks, or in none.
fn set_biases(spec: &mut DecoderSpec, bias: bool) {
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias, layer.mlp.bias) = (bias, bias, bias);
    }
}

/// A window of so many keys in the layers that `layer_types` names; by the rule `slides` where that key is missing.
fn set_windows(
    config: &HfConfig,
    spec: &mut DecoderSpec,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) {
    let sliding = config.sliding_layers(spec.layers.len(), slides);
    for (layer, slides) in spec.layers.iter_mut().zip(sliding) {
        layer.attention.window = window.filter(|_| slides);
    }
}

/// Sizes that have to divide one another, and a size that no machine holds.
fn check(config: &HfConfig, spec: &DecoderSpec) {
    if spec.layers.len() > MOST_LAYERS {
        config.problem(format!("{} layers are more than {MOST_LAYERS}", spec.layers.len()));
    }
    let gated_xielu =
        |layer: &LayerSpec| layer.mlp.gated && !matches!(layer.mlp.activation, ActivationSpec::Fixed(_));
    if spec.layers.iter().any(gated_xielu) {
        config.problem("xielu with a gate is not supported");
    }
    if let Some(AttentionSpec { heads, kv_heads, .. }) = spec.layers.iter().find_map(LayerSpec::attends)
        && heads % kv_heads != 0
    {
        config.problem(format!("{heads} attention heads are no multiple of {kv_heads} key/value heads"));
    }
    let taps = spec.layers.iter().find_map(|layer| match &layer.mixer {
        MixerSpec::ShortConv(conv) => Some(conv.taps),
        mixer => mixer.recurrent().map(|recurrent| recurrent.taps),
    });
    if let Some(taps) = taps.filter(|taps| *taps > MOST_TAPS) {
        config.problem(format!("convolutions over {taps} tokens are supported up to {MOST_TAPS}"));
    }
    if let Some(RecurrentSpec { heads, key_heads, key_dim, .. }) =
        spec.layers.iter().find_map(|layer| layer.mixer.recurrent())
    {
        if heads % key_heads != 0 {
            config.problem(format!("{heads} heads of values are no multiple of {key_heads} heads of keys"));
        }
        if *key_dim > MOST_KEY_DIM {
            config.problem(format!("states of {key_dim} keys are supported up to {MOST_KEY_DIM}"));
        }
    }
}

/// Layers of a model, at most: bounded before anything of that many is made.
const MOST_LAYERS: usize = 4096;
