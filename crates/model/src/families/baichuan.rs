//! Baichuan and Baichuan 2: Llama with queries, keys and values fused; the 13B ones with ALiBi. The head of the second
//! version has rows of length 1.

use super::{Keys, alibi_slopes, llama_shaped, set_fused, shaped};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    // The two sizes have classes of their own, and only the one with rotary positions has this key.
    let rotates = config.has("max_position_embeddings");
    let mut spec = if rotates {
        llama_shaped(config)
    } else {
        shaped(config, &Keys { positions: "model_max_length", ..Keys::LLAMA })
    };
    set_fused(&mut spec, "self_attn.W_pack", 1);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.kv_heads = attention.heads;
        attention.alibi = (!rotates).then(|| alibi_slopes(attention.heads));
    }
    // Both versions have one model_type: the first is known by its vocabulary, or by the class of its 7B model.
    let is_class = |class: &serde_json::Value| class == "BaiChuanForCausalLM";
    let is_first = spec.vocab_size == 64_000
        || config
            .get("architectures")
            .and_then(|all| all.as_array())
            .is_some_and(|all| all.iter().any(is_class));
    spec.normalised_head = !is_first;
    spec
}
