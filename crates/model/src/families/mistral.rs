//! Mistral: Llama with a sliding window in every layer (`null` in the later releases).

use super::{Variant, layers, llama_shaped};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    // `null` means none; older files leave the key out and mean transformers' default.
    let window =
        if config.has("sliding_window") { config.size_or_none("sliding_window") } else { Some(4096) };
    llama_shaped(
        config,
        Variant {
            default_theta: 10_000.0,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: vec![window; layers(config)],
        },
    )
}
