//! Gemma: Llama with norm weights stored as distance from 1, and an embedding multiplied by √C.

use super::{llama, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, LayerRope, NormNames, QkNorm};

pub(super) fn gemma(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.norm.offset = 1.0;
    spec.embedding_multiplier = (spec.hidden_size as f32).sqrt();
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    if config.flag_or("use_bidirectional_attention", false) {
        config.problem("`use_bidirectional_attention` is not supported: attention here is causal");
    }
    spec
}

/// Gemma 2: norms before and after each layer, capped scores and logits, a sliding window in every other layer.
pub(super) fn gemma2(config: &HfConfig) -> DecoderSpec {
    let mut spec = capped(config, (Some(50.0), Some(30.0)));
    surround(&mut spec);
    set_windows(config, &mut spec, Some(config.size_or("sliding_window", 4096)), |layer| layer % 2 == 0);
    spec
}

/// VaultGemma: Gemma 2 without the norms after the layers.
pub(super) fn vaultgemma(config: &HfConfig) -> DecoderSpec {
    let mut spec = capped(config, (Some(50.0), Some(30.0)));
    spec.layers.iter_mut().for_each(|layer| layer.mlp_norms = NormNames::before("pre_feedforward_layernorm"));
    set_windows(config, &mut spec, Some(config.size_or("sliding_window", 4096)), |layer| layer % 2 == 0);
    spec
}

/// Gemma 3: norms of queries and keys rather than caps; five layers of six slide, by rotary positions of their own.
pub(super) fn gemma3(config: &HfConfig) -> DecoderSpec {
    let mut spec = capped(config, (None, None));
    surround(&mut spec);
    let pattern = ["_sliding_window_pattern", "sliding_window_pattern"]
        .into_iter()
        .find_map(|k| config.size_or_none(k));
    let pattern = pattern.unwrap_or(6);
    let window = Some(config.size_or("sliding_window", 4096));
    set_windows(config, &mut spec, window, |layer| !(layer + 1).is_multiple_of(pattern));
    let width = spec.layers.first().map_or(2, |layer| layer.attention.head_dim);
    spec.rope = Some(config.rope_of("full_attention", width, ("rope_theta", 1e6)));
    spec.local_rope = Some(config.rope_of("sliding_attention", width, ("rope_local_base_freq", 1e4)));
    for layer in &mut spec.layers {
        layer.attention.qk_norm = Some(QkNorm::PER_HEAD);
        if layer.attention.window.is_some() {
            layer.attention.rope = LayerRope::Local;
        }
    }
    spec
}

/// Gemma with the scale and the caps of the later ones, which stand in the file or are `defaults`.
fn capped(config: &HfConfig, defaults: (Option<f64>, Option<f64>)) -> DecoderSpec {
    let mut spec = gemma(config);
    let cap = |key, default| {
        if config.has(key) { config.positive(key) } else { default }.map(|cap: f64| cap as f32)
    };
    spec.final_logit_softcapping = cap("final_logit_softcapping", defaults.1);
    let scale = config.positive("query_pre_attn_scalar").unwrap_or(256.0).sqrt().recip() as f32;
    let softcap = cap("attn_logit_softcapping", defaults.0);
    for layer in &mut spec.layers {
        (layer.attention.scale, layer.attention.softcap) = (scale, softcap);
    }
    spec
}

/// A norm before and a norm after each layer.
fn surround(spec: &mut DecoderSpec) {
    for layer in &mut spec.layers {
        layer.attention_norms = NormNames::around("input_layernorm", "post_attention_layernorm");
        layer.mlp_norms = NormNames::around("pre_feedforward_layernorm", "post_feedforward_layernorm");
    }
}
