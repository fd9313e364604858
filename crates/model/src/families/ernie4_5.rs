//! ERNIE 4.5 (dense): Llama with pairs of neighbouring dimensions rotated, and one switch for all biases.

use sft_kernels::rope::RopeStyle;

use super::llama_shaped;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.rope.style = RopeStyle::Interleaved;
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    let bias = config.flag_or("use_bias", false);
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias, layer.mlp.bias) = (bias, bias, bias);
    }
    spec
}
