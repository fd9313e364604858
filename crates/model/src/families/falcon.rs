//! Falcon: queries, keys and values fused by groups of heads, layer norms, mostly parallel blocks; rotary positions or
//! ALiBi.

use super::{
    Keys, activation, alibi_slopes, layer_norms, llama_shaped, make_parallel, set_biases, set_fused, set_mlp,
    shaped,
};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, ModuleNames, NormNames};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let function = ("activation", "gelu");
    let sizes = ("ffn_hidden_size", Some(4));
    let keys = Keys {
        intermediate_size: sizes.0,
        intermediate_factor: sizes.1,
        activation: function,
        ..Keys::LLAMA
    };
    let mut spec = shaped(config, &keys);
    spec.names = ModuleNames {
        embed_tokens: "transformer.word_embeddings",
        layers: "transformer.h",
        norm: Some("transformer.ln_f"),
        lm_head: "lm_head",
    };
    layer_norms(config, &mut spec, "layer_norm_epsilon");
    set_biases(&mut spec, config.flag_or("bias", false));
    set_mlp(&mut spec, activation(config, function), &["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h");
    let flag = |key, default| config.flag_or(key, default);
    let (is_new, alibi) = (flag("new_decoder_architecture", false), flag("alibi", false));
    let heads = spec.layers.first().map_or(1, |layer| layer.attention.heads);
    let kv_heads = match (is_new, flag("multi_query", true)) {
        (true, _) => config.size_or("num_kv_heads", heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    set_fused(&mut spec, "self_attention.query_key_value", kv_heads);
    if !alibi {
        let rotary = llama_shaped(config);
        spec.rope = rotary.rope;
    }
    if flag("parallel_attn", true) {
        make_parallel(&mut spec);
    }
    let two_norms = is_new && config.size_or("num_ln_in_parallel_attn", 2) == 2;
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.kv_heads, attention.output) = (kv_heads, "self_attention.dense");
        if alibi {
            // The slopes are scaled as the products are. transformers 5.6 adds them once with its default attention
            // (sdpa), which is what models were trained with, and by mistake twice with `eager`.
            attention.alibi = Some(alibi_slopes(heads).iter().map(|slope| slope * attention.scale).collect());
        } else {
            attention.rope = crate::spec::LayerRope::Global;
        }
        if layer.parallel && two_norms {
            (layer.attention_norms, layer.mlp_norms) =
                (NormNames::before("ln_attn"), NormNames::before("ln_mlp"));
        }
    }
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    spec
}
