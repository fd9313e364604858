//! Phi-1, Phi-1.5 and Phi-2: parallel blocks with one layer norm, biases everywhere, the head's included.

use super::{activation, layer_norms, llama_shaped, make_parallel, rotate_part, set_biases, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, ModuleNames, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.names = ModuleNames { norm: Some("model.final_layernorm"), ..ModuleNames::LLAMA };
    layer_norms(config, &mut spec, "layer_norm_eps");
    rotate_part(config, &mut spec, 0.5);
    set_biases(&mut spec, true);
    set_mlp(&mut spec, activation(config, ("hidden_act", "gelu_new")), &["mlp.fc1"], "mlp.fc2");
    make_parallel(&mut spec);
    let names = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
    let qk_norm = config.flag_or("qk_layernorm", false).then_some(QkNorm::named(names));
    for layer in &mut spec.layers {
        (layer.attention.output, layer.attention.qk_norm) = ("self_attn.dense", qk_norm);
    }
    spec.head_bias = true;
    spec
}
