//! The families: each file maps a `config.json` to a [`DecoderSpec`]. Nothing else knows a family's name.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use std::path::Path;

use crate::ModelError;
use crate::hf_config::HfConfig;
use crate::spec::{AttentionSpec, DecoderSpec, LayerSpec, MlpSpec};
use sft_kernels::gated::Activation;
use sft_kernels::rms_norm::RmsNormParams;

/// Reads a family's configuration.
type ReadSpec = fn(&HfConfig) -> DecoderSpec;

/// `model_type` → family.
const FAMILIES: [(&str, ReadSpec); 4] =
    [("llama", llama::spec), ("mistral", mistral::spec), ("qwen2", qwen2::spec), ("qwen3", qwen3::spec)];

/// The supported `model_type`s.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// The decoder that a model folder's `config.json` describes.
///
/// # Errors
/// No or malformed `config.json`, an unsupported `model_type`, impossible values (all of them).
pub fn read_spec(folder: &Path) -> Result<DecoderSpec, ModelError> {
    let config = HfConfig::read(folder)?;
    let model_type = config.word("model_type").unwrap_or("").to_owned();
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let common = |name: &str| name.chars().zip(model_type.chars()).take_while(|(a, b)| a == b).count();
        let nearest = supported().max_by_key(|name| common(name)).unwrap_or_default().to_owned();
        let supported = supported().collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownFamily {
            path: config.path().to_owned(),
            model_type,
            nearest,
            supported,
        });
    };
    let spec = read(&config);
    check(&config, &spec);
    config.finish(spec)
}

/// What differs between families that are otherwise Llama.
struct Variant {
    default_theta: f64,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
    /// Window of each layer.
    windows: Vec<Option<usize>>,
}

/// The Llama shape: RMS norms, rotary positions, grouped-query attention, gated feed-forward layers.
fn llama_shaped(config: &HfConfig, variant: Variant) -> DecoderSpec {
    let (hidden_size, heads) = (config.size("hidden_size"), config.size("num_attention_heads"));
    let head_dim = config.size_or("head_dim", hidden_size / heads.max(1));
    let activation = config.word("hidden_act").unwrap_or("silu").parse().unwrap_or_else(|reason: String| {
        config.problem(reason);
        Activation::Silu
    });
    let layer = |window: &Option<usize>| LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: config.size_or("num_key_value_heads", heads),
            head_dim,
            qkv_bias: variant.qkv_bias,
            o_bias: variant.o_bias,
            qk_norm: variant.qk_norm,
            window: *window,
        },
        mlp: MlpSpec {
            intermediate_size: config.size("intermediate_size"),
            activation,
            bias: variant.mlp_bias,
        },
    };
    DecoderSpec {
        model_type: config.word("model_type").unwrap_or_default().to_owned(),
        vocab_size: config.size("vocab_size"),
        hidden_size,
        layers: variant.windows.iter().map(layer).collect(),
        norm: RmsNormParams { eps: config.number_or("rms_norm_eps", 1e-6) as f32, offset: 0.0 },
        rope: config.rope(head_dim, variant.default_theta),
        tie_word_embeddings: config.flag_or("tie_word_embeddings", false),
        max_position_embeddings: config.size_or("max_position_embeddings", 2048),
        initializer_range: config.number_or("initializer_range", 0.02) as f32,
    }
}

/// Sizes that have to divide one another, and a size that no machine holds.
fn check(config: &HfConfig, spec: &DecoderSpec) {
    const MOST_LAYERS: usize = 4096;
    if spec.layers.len() > MOST_LAYERS {
        config.problem(format!("{} layers are more than {MOST_LAYERS}", spec.layers.len()));
    }
    let Some(AttentionSpec { heads, kv_heads, .. }) = spec.layers.first().map(|layer| &layer.attention)
    else {
        return;
    };
    if heads % kv_heads != 0 {
        config.problem(format!("{heads} attention heads are no multiple of {kv_heads} key/value heads"));
    }
}

/// The number of layers, bounded before anything of that many is made.
fn layers(config: &HfConfig) -> usize {
    config.size("num_hidden_layers").min(1 << 16)
}
