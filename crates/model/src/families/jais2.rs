//! Jais 2: Llama with layer norms, biases, and feed-forward layers without a gate.

use super::{activation, layer_norms, llama_shaped, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    layer_norms(config, &mut spec, "layer_norm_eps");
    set_mlp(&mut spec, activation(config, ("hidden_act", "relu2")), &["mlp.up_proj"], "mlp.down_proj");
    let (attention, mlp) = (config.flag_or("attention_bias", true), config.flag_or("mlp_bias", true));
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias, layer.mlp.bias) = (attention, attention, mlp);
    }
    spec
}
