//! InternLM2 and 2.5: Llama under other names, queries, keys and values fused by groups of heads.

use super::{llama_shaped, set_fused};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames, ModuleNames, NormNames};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    spec.names =
        ModuleNames { embed_tokens: "model.tok_embeddings", lm_head: "output", ..ModuleNames::LLAMA };
    let bias = config.flag_or("bias", false);
    let groups = spec.layers.first().map_or(1, |layer| layer.attention.kv_heads);
    // Each key/value head's queries, its keys and its values follow each other.
    set_fused(&mut spec, "attention.wqkv", groups);
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.o_bias) = (bias, bias);
        layer.attention.output = "attention.wo";
        layer.mlp.inputs = InputNames::Each(&["feed_forward.w1", "feed_forward.w3"]);
        layer.mlp.output = "feed_forward.w2";
        layer.attention_norms = NormNames::before("attention_norm");
        layer.mlp_norms = NormNames::before("ffn_norm");
    }
    spec
}
