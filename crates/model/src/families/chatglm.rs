//! ChatGLM2, ChatGLM3 and GLM-4-9B with their own code: [`super::glm`] with queries, keys and values fused, under other
//! keys and names.

use super::{Keys, layer_norms, llama_keyed, refuse_if, rotate_neighbours, rotate_part, set_fused};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames, ModuleNames, NormNames};

const KEYS: Keys = Keys {
    vocab_size: "padded_vocab_size",
    layers: "num_layers",
    kv_heads: None,
    head_dim: "kv_channels",
    intermediate_size: "ffn_hidden_size",
    positions: "seq_length",
    eps: ("layernorm_epsilon", 1e-5),
    ..Keys::LLAMA
};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    // The base grows with the longer ones.
    let ratio = config.number_or("rope_ratio", 1.0);
    let mut spec = llama_keyed(config, &KEYS, 10_000.0 * ratio);
    rotate_part(config, &mut spec, 0.5);
    if config.flag_or("original_rope", true) {
        rotate_neighbours(&mut spec);
    }
    spec.names = ModuleNames {
        embed_tokens: "transformer.embedding.word_embeddings",
        layers: "transformer.encoder.layers",
        norm: config.flag_or("post_layer_norm", true).then_some("transformer.encoder.final_layernorm"),
        lm_head: "transformer.output_layer",
    };
    if !config.flag_or("rmsnorm", true) {
        layer_norms(config, &mut spec, KEYS.eps.0);
    }
    set_fused(&mut spec, "self_attention.query_key_value", 1);
    let groups = config.flag_or("multi_query_attention", false).then(|| config.size("multi_query_group_num"));
    let bias = config.flag_or("add_bias_linear", false);
    let qkv_bias = bias || config.flag_or("add_qkv_bias", false);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.kv_heads = groups.unwrap_or(attention.heads);
        (attention.qkv_bias, attention.o_bias, layer.mlp.bias) = (qkv_bias, bias, bias);
        attention.output = "self_attention.dense";
        layer.mlp.inputs = InputNames::Fused { name: "mlp.dense_h_to_4h", groups: 1 };
        layer.mlp.output = "mlp.dense_4h_to_h";
        layer.mlp_norms = NormNames::before("post_attention_layernorm");
    }
    let key = "apply_residual_connection_post_layernorm";
    refuse_if(config, config.flag_or(key, false), key);
    if config.get("position_encoding_2d").is_some() || config.get("inner_hidden_size").is_some() {
        config.problem("this is the first ChatGLM, with positions in two dimensions, which is not supported");
    }
    // That one divides positions, and later ones with the same key change the base.
    let is_second = config.word("_name_or_path").is_some_and(|name| name.contains("chatglm2"));
    refuse_if(config, is_second && ratio != 1.0, "rope_ratio");
    spec
}
