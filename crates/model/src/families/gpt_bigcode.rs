//! StarCoder and SantaCoder: GPT-2 with one head of keys and values (or as many as heads, then fused head by head).

use super::{gpt2, set_fused};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = gpt2::shape(config);
    if config.get("activation_function").is_none() {
        let activation = super::activation(config, ("activation_function", "gelu_pytorch_tanh"));
        spec.layers.iter_mut().for_each(|layer| layer.mlp.activation = activation);
    }
    if config.flag_or("multi_query", true) {
        spec.layers.iter_mut().for_each(|layer| layer.attention.kv_heads = 1);
    } else {
        let heads = spec.layers.first().map_or(1, |layer| layer.attention.heads);
        set_fused(&mut spec, "attn.c_attn", heads);
    }
    spec
}
