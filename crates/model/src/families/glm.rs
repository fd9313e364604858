//! GLM-4 (9B of 2024): Llama with gate and up fused, biases on q, k and v, and half of each head's dimensions rotated
//! in neighbouring pairs.

use super::{llama_shaped, rotate_neighbours, rotate_part};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, NormNames};

pub(super) fn glm(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    rotate_part(config, &mut spec, 0.5);
    rotate_neighbours(&mut spec);
    let bias = config.flag_or("attention_bias", true);
    for layer in &mut spec.layers {
        layer.mlp.inputs = super::GATE_UP_PROJ;
        layer.attention.qkv_bias = bias;
    }
    spec
}

/// GLM-4 of 2025 (`glm4`): norms after the layers too.
pub(super) fn glm4(config: &HfConfig) -> DecoderSpec {
    let mut spec = glm(config);
    for layer in &mut spec.layers {
        layer.attention_norms = NormNames::around("input_layernorm", "post_self_attn_layernorm");
        layer.mlp_norms = NormNames::around("post_attention_layernorm", "post_mlp_layernorm");
    }
    spec
}
