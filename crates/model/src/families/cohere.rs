//! Command R: parallel blocks with one layer norm without a bias, neighbouring dimensions rotated, scaled logits.

use super::{llama, make_parallel, rotate_neighbours, set_windows};
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, LayerRope, NormSpec, QkNorm, QkScope};

pub(super) fn cohere(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let eps = config.number_or("layer_norm_eps", 1e-5) as f32;
    spec.norm = NormSpec { bias: false, ..NormSpec::layer(eps) };
    rotate_neighbours(&mut spec);
    make_parallel(&mut spec);
    let scope = QkScope::EachHead(Stored::Plain);
    let has_norm = config.flag_or("use_qk_norm", false);
    for layer in &mut spec.layers {
        layer.attention.qk_norm = has_norm.then_some(QkNorm { scope, ..QkNorm::PER_HEAD });
    }
    spec.logit_scale = config.number_or("logit_scale", 0.0625) as f32;
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    spec
}

/// Command R7B and A: three layers of four slide, and the others have no rotary positions.
pub(super) fn cohere2(config: &HfConfig) -> DecoderSpec {
    let mut spec = cohere(config);
    let pattern = ["_sliding_window_pattern", "sliding_window_pattern"]
        .into_iter()
        .find_map(|key| config.size_or_none(key));
    let pattern = pattern.unwrap_or(4);
    let window = Some(config.size_or("sliding_window", 4096));
    set_windows(config, &mut spec, window, |layer| !(layer + 1).is_multiple_of(pattern));
    for layer in spec.layers.iter_mut().filter(|layer| layer.attention.window.is_none()) {
        layer.attention.rope = LayerRope::None;
    }
    spec
}
