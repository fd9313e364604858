//! BLOOM: ALiBi, a norm of the embedding, queries, keys and values fused head by head, layer norms, biases.

use super::{Keys, alibi_slopes, layer_norms, refuse_if, set_biases, set_fused, set_mlp, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{ActivationSpec, DecoderSpec, ModuleNames};
use sft_kernels::gated::Activation;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let keys = Keys {
        hidden_size: config.first_of(["hidden_size", "n_embed"]),
        layers: config.first_of(["n_layer", "num_hidden_layers"]),
        heads: config.first_of(["n_head", "num_attention_heads"]),
        // Always four times as wide; a key of this name is none of the model's.
        intermediate_size: "",
        positions: "seq_length",
        ..Keys::GPT2
    };
    let mut spec = shaped(config, &keys);
    spec.names = ModuleNames {
        embed_tokens: "transformer.word_embeddings",
        layers: "transformer.h",
        norm: Some("transformer.ln_f"),
        lm_head: "lm_head",
    };
    spec.embedding_norm = Some("transformer.word_embeddings_layernorm");
    layer_norms(config, &mut spec, "layer_norm_epsilon");
    set_biases(&mut spec, true);
    let activation = ActivationSpec::Fixed(Activation::GeluTanh);
    set_mlp(&mut spec, activation, &["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h");
    let heads = spec.layers.first().map_or(1, |layer| layer.attention.heads);
    set_fused(&mut spec, "self_attention.query_key_value", heads);
    for layer in &mut spec.layers {
        layer.attention.output = "self_attention.dense";
        layer.attention.alibi = Some(alibi_slopes(heads));
    }
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    let key = "apply_residual_connection_post_layernorm";
    refuse_if(config, config.flag_or(key, false), key);
    spec
}
