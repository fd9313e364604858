//! Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window above a certain layer if asked for.

use super::{llama_shaped, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qkv_bias = true);
    slide(config, &mut spec);
    spec
}

/// `layer_types`, or: with `use_sliding_window`, the layers from `max_window_layers` on slide.
pub(super) fn slide(config: &HfConfig, spec: &mut DecoderSpec) {
    let slides = config.flag_or("use_sliding_window", false);
    let first = config.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28) as usize;
    let window = slides.then(|| config.size_or("sliding_window", 4096));
    set_windows(config, spec, window, |layer| layer >= first);
}
