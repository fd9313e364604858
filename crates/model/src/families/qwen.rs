//! Qwen (the first, of 2023): Llama under GPT-2's names, queries, keys and values fused, `intermediate_size` counting
//! gate and up together.
//!
//! In training its code uses neither `use_dynamic_ntk` nor `use_logn_attn`, and in inference both begin beyond
//! `seq_length` tokens: that is the longest row here where one of them is on.

use super::{Keys, gpt2, llama_keyed, refuse_if, set_fused};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames, NormNames};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let changes = ["use_dynamic_ntk", "use_logn_attn"].map(|key| config.flag_or(key, true));
    let longest = if changes.contains(&true) { "seq_length" } else { "max_position_embeddings" };
    let eps = ("layer_norm_epsilon", 1e-6);
    let newer = Keys { head_dim: "kv_channels", positions: longest, eps, ..Keys::LLAMA };
    let older = Keys {
        hidden_size: "n_embd",
        layers: "n_layer",
        heads: "n_head",
        intermediate_size: "ffn_hidden_size",
        ..newer
    };
    let keys = if config.has("n_embd") && !config.has("hidden_size") { &older } else { &newer };
    let mut spec = llama_keyed(config, keys, config.number_or("rotary_emb_base", 10_000.0));
    spec.names = gpt2::NAMES;
    set_fused(&mut spec, "attn.c_attn", 1);
    let bias = !config.flag_or("no_bias", true);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.kv_heads, attention.output) = (attention.heads, "attn.c_proj");
        (attention.qkv_bias, attention.o_bias, layer.mlp.bias) = (true, bias, bias);
        layer.mlp.intermediate_size /= 2;
        layer.mlp.inputs = InputNames::Each(&["mlp.w2", "mlp.w1"]);
        layer.mlp.output = "mlp.c_proj";
        (layer.attention_norms, layer.mlp_norms) = (NormNames::before("ln_1"), NormNames::before("ln_2"));
    }
    refuse_if(config, config.number_or("rotary_pct", 1.0) != 1.0, "rotary_pct");
    refuse_if(config, !config.flag_or("scale_attn_weights", true), "scale_attn_weights");
    spec
}
