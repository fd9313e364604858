//! Gemma 4 (text): Gemma 3 with norms of the values too, wider heads where attention is full, and inputs of their own
//! for every block.

use super::{llama, refuse_if, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, LayerRope, NormNames, PerLayerSpec, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let (local, kv_heads) = (config.size_or("head_dim", 256), config.size_or("num_key_value_heads", 4));
    let global = config.size_or("global_head_dim", 512);
    let window = Some(config.size_or("sliding_window", 512));
    let last = spec.layers.len().saturating_sub(1);
    set_windows(config, &mut spec, window, |layer| !(layer + 1).is_multiple_of(6) && layer != last);
    spec.rope = Some(config.rope_of("full_attention", global, ("rope_theta", 1e6)));
    spec.local_rope = Some(config.rope_of("sliding_attention", local, ("rope_local_base_freq", 1e4)));
    spec.embedding_multiplier = (spec.hidden_size as f32).sqrt();
    spec.final_logit_softcapping = config.positive("final_logit_softcapping").map(|cap| cap as f32);
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    // 0 in the large ones, which have no such inputs.
    let width = config.number_or("hidden_size_per_layer_input", 256.0) as usize;
    if width > 0 && config.size_or("vocab_size_per_layer_input", spec.vocab_size) < spec.vocab_size {
        config.problem("`vocab_size_per_layer_input` is smaller than `vocab_size`");
    }
    spec.per_layer = (width > 0).then(|| PerLayerSpec {
        width,
        vocab_size: config.size_or("vocab_size_per_layer_input", spec.vocab_size),
        embedding: "model.embed_tokens_per_layer",
        projection: "model.per_layer_model_projection",
        norm: "model.per_layer_projection_norm",
        gate: "per_layer_input_gate",
        output: "per_layer_projection",
        output_norm: "post_per_layer_input_norm",
    });
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.qk_norm, attention.v_norm, attention.scale) = (Some(QkNorm::PER_HEAD), true, 1.0);
        let is_local = attention.window.is_some();
        (attention.head_dim, attention.rope) =
            if is_local { (local, LayerRope::Local) } else { (global, LayerRope::Global) };
        attention.kv_heads = kv_heads;
        layer.attention_norms = NormNames::around("input_layernorm", "post_attention_layernorm");
        layer.mlp_norms = NormNames::around("pre_feedforward_layernorm", "post_feedforward_layernorm");
        (layer.per_layer, layer.output_scalar) = (spec.per_layer, Some("layer_scalar"));
    }
    for key in ["attention_k_eq_v", "enable_moe_block"] {
        refuse_if(config, config.flag_or(key, false), key);
    }
    refuse_if(config, config.number_or("num_kv_shared_layers", 0.0) > 0.0, "num_kv_shared_layers");
    let key = "use_bidirectional_attention";
    refuse_if(config, config.word(key) == Some("all"), key);
    spec
}
