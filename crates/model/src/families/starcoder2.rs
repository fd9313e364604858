//! StarCoder2: Llama with layer norms, biases, a window, and feed-forward layers without a gate.

use super::{activation, layer_norms, llama_shaped, set_biases, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    layer_norms(config, &mut spec, "norm_epsilon");
    set_biases(&mut spec, config.flag_or("use_bias", true));
    set_mlp(&mut spec, activation(config, ("hidden_act", "gelu_pytorch_tanh")), &["mlp.c_fc"], "mlp.c_proj");
    let window = config.size_or_none("sliding_window");
    spec.layers.iter_mut().for_each(|layer| layer.attention.window = window);
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    spec
}
