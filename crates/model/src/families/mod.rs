//! The families: each file maps a `config.json` to a [`DecoderSpec`]. Nothing else knows a family's name.

mod arcee;
mod cwm;
mod ernie4_5;
mod exaone4;
mod gemma;
mod granite;
mod helium;
mod hunyuan_v1_dense;
mod llama;
mod ministral;
mod mistral;
mod olmo2;
mod qwen2;
mod qwen3;
mod seed_oss;
mod smollm3;

use std::path::Path;

use crate::ModelError;
use crate::hf_config::HfConfig;
use crate::spec::{AttentionSpec, DecoderSpec, LayerRope, LayerSpec, MlpSpec, NormNames};
use sft_kernels::gated::Activation;
use sft_kernels::rms_norm::RmsNormParams;

/// Reads a family's configuration.
type ReadSpec = fn(&HfConfig) -> DecoderSpec;

/// `model_type` → family.
const FAMILIES: [(&str, ReadSpec); 20] = [
    ("arcee", arcee::spec),
    ("cwm", cwm::spec),
    ("ernie4_5", ernie4_5::spec),
    ("exaone4", exaone4::spec),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("granite", granite::spec),
    ("helium", helium::spec),
    ("hunyuan_v1_dense", hunyuan_v1_dense::spec),
    ("llama", llama::spec),
    ("ministral", ministral::spec),
    ("mistral", mistral::spec),
    ("olmo2", olmo2::spec),
    ("olmo3", olmo2::olmo3),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("seed_oss", seed_oss::spec),
    ("smollm3", smollm3::spec),
    ("vaultgemma", gemma::vaultgemma),
];

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

/// The Llama shape: RMS norms before the layers, rotary positions, grouped-query attention, gated feed-forward
/// layers, no biases. Families begin with it and change what differs.
fn llama_shaped(config: &HfConfig) -> DecoderSpec {
    let (hidden_size, heads) = (config.size("hidden_size"), config.size("num_attention_heads"));
    let head_dim = config.size_or("head_dim", hidden_size / heads.max(1));
    let activation = config.word("hidden_activation").or_else(|| config.word("hidden_act"));
    let activation = activation.unwrap_or("silu").parse().unwrap_or_else(|reason: String| {
        config.problem(reason);
        Activation::Silu
    });
    let layer = LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: config.size_or("num_key_value_heads", heads),
            head_dim,
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
            rope: LayerRope::Global,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            window: None,
        },
        attention_norms: NormNames::before("input_layernorm"),
        mlp: MlpSpec {
            intermediate_size: config.size("intermediate_size"),
            gated: true,
            activation,
            bias: false,
        },
        mlp_norms: NormNames::before("post_attention_layernorm"),
        residual_multiplier: 1.0,
    };
    DecoderSpec {
        model_type: config.word("model_type").unwrap_or_default().to_owned(),
        vocab_size: config.size("vocab_size"),
        hidden_size,
        layers: vec![layer; layers(config)],
        norm: RmsNormParams { eps: config.number_or("rms_norm_eps", 1e-6) as f32, offset: 0.0 },
        rope: config.rope(head_dim, 10_000.0),
        local_rope: None,
        embedding_multiplier: 1.0,
        logit_scale: 1.0,
        final_logit_softcapping: None,
        tie_word_embeddings: config.flag_or("tie_word_embeddings", false),
        max_position_embeddings: config.size_or("max_position_embeddings", 2048),
        initializer_range: config.number_or("initializer_range", 0.02) as f32,
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
