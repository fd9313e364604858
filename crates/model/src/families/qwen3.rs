//! Qwen3: Qwen2 with queries and keys normalised per head, and no biases unless `attention_bias`.

use super::{Variant, llama_shaped, qwen2};
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
            mlp_bias: false,
            qk_norm: true,
            windows: qwen2::windows(config),
        },
    )
}
