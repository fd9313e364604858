//! Llama: the shape that the other families vary.

use super::{Variant, layers, llama_shaped};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let bias = config.flag_or("attention_bias", false);
    llama_shaped(
        config,
        Variant {
            default_theta: 10_000.0,
            qkv_bias: bias,
            o_bias: bias,
            mlp_bias: config.flag_or("mlp_bias", false),
            qk_norm: false,
            windows: vec![None; layers(config)],
        },
    )
}
