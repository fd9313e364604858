//! Seed-OSS: Llama with biases on q, k and v, and a switch of its own for that of the output.

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let (qkv, out) = (config.flag_or("attention_bias", true), config.flag_or("attention_out_bias", false));
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias) = (qkv, out);
    }
    spec
}
