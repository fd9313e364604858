//! Persimmon: fused queries, keys and values head by head, each normalised, layer norms, biases, relu².

use super::{activation, layer_norms, llama_shaped, rotate_part, set_biases, set_fused, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, ModuleNames, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.names = ModuleNames { norm: Some("model.final_layernorm"), ..ModuleNames::LLAMA };
    layer_norms(config, &mut spec, "layer_norm_eps");
    rotate_part(config, &mut spec, 0.5);
    set_biases(&mut spec, true);
    let function = activation(config, ("hidden_act", "relu2"));
    set_mlp(&mut spec, function, &["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h");
    let names = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
    let qk_norm = config.flag_or("qk_layernorm", true).then_some(QkNorm::named(names));
    let heads = spec.layers.first().map_or(1, |layer| layer.attention.heads);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.kv_heads, attention.output, attention.qk_norm) = (heads, "self_attn.dense", qk_norm);
    }
    set_fused(&mut spec, "self_attn.query_key_value", heads);
    spec
}
