//! GPT-NeoX and Pythia: fused queries, keys and values head by head, layer norms, biases, partly rotated heads, and
//! mostly parallel blocks with a norm for each layer.

use super::{activation, layer_norms, llama_shaped, rotate_part, set_biases, set_fused, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, ModuleNames};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.names = ModuleNames {
        embed_tokens: "gpt_neox.embed_in",
        layers: "gpt_neox.layers",
        norm: Some("gpt_neox.final_layer_norm"),
        lm_head: "embed_out",
    };
    layer_norms(config, &mut spec, "layer_norm_eps");
    let part = config.number_or("rotary_pct", 0.25);
    rotate_part(config, &mut spec, part);
    // Files of before transformers 5 have their own word for the base.
    if let (Some(rope), Some(theta), None) =
        (&mut spec.rope, config.positive("rotary_emb_base"), config.rope_number("rope_theta"))
    {
        rope.theta = theta;
    }
    set_biases(&mut spec, true);
    let function = activation(config, ("hidden_act", "gelu"));
    set_mlp(&mut spec, function, &["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h");
    let (bias, parallel) =
        (config.flag_or("attention_bias", true), config.flag_or("use_parallel_residual", true));
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.qkv_bias, attention.o_bias, attention.output) = (bias, bias, "attention.dense");
        // The file may name key/value heads; the model has as many as heads.
        attention.kv_heads = attention.heads;
        layer.parallel = parallel;
    }
    let heads = spec.layers.first().map_or(1, |layer| layer.attention.heads);
    set_fused(&mut spec, "attention.query_key_value", heads);
    spec
}
