//! Phi-3, Phi-3.5 and Phi-4 (mini): Llama with fused projections, a window, and LongRoPE in the long variants.

use super::{llama_shaped, set_fused};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    set_fused(&mut spec, "self_attn.qkv_proj", 1);
    let window = config.size_or_none("sliding_window");
    for layer in &mut spec.layers {
        layer.mlp.inputs = super::GATE_UP_PROJ;
        layer.attention.window = window;
    }
    spec
}
