//! InternLM3: Llama with switches of its own for biases.

use super::{llama_shaped, refuse_if};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let bias = config.flag_or("qkv_bias", false);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qkv_bias = bias);
    // Of the other layers; the released model has none.
    refuse_if(config, config.flag_or("bias", false), "bias");
    spec
}
