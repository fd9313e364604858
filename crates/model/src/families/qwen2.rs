//! Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window above a certain layer if asked for.

use super::{Variant, layers, llama_shaped};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    llama_shaped(
        config,
        Variant {
            default_theta: 10_000.0,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: windows(config),
        },
    )
}

/// `layer_types`, or: with `use_sliding_window`, the layers from `max_window_layers` on slide.
pub(super) fn windows(config: &HfConfig) -> Vec<Option<usize>> {
    let slides = config.flag_or("use_sliding_window", false);
    let window = if slides { Some(config.size_or("sliding_window", 4096)) } else { None };
    let first = config.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28) as usize;
    let sliding = config.sliding_layers(layers(config), |layer| layer >= first);
    sliding.into_iter().map(|slides| window.filter(|_| slides)).collect()
}
