//! Llama: the shape that the other families vary.

use super::llama_shaped;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let (attention, mlp) = (config.flag_or("attention_bias", false), config.flag_or("mlp_bias", false));
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias, layer.mlp.bias) = (attention, attention, mlp);
    }
    spec
}
