//! OPT: learned positions from row 2 on, layer norms, biases, relu; the 350M normalises sums and has an embedding
//! narrower than its blocks.

use super::{Keys, activation, set_biases, set_mlp, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, EmbeddingProjection, ModuleNames, NormNames, NormSpec, PositionsSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let function = ("activation_function", "relu");
    let keys = Keys { intermediate_size: "ffn_dim", activation: function, kv_heads: None, ..Keys::LLAMA };
    let mut spec = shaped(config, &keys);
    let is_before = config.flag_or("do_layer_norm_before", true);
    let has_norm = is_before && !config.flag_or("_remove_final_layer_norm", false);
    spec.names = ModuleNames {
        embed_tokens: "model.decoder.embed_tokens",
        layers: "model.decoder.layers",
        norm: has_norm.then_some("model.decoder.final_layer_norm"),
        lm_head: "lm_head",
    };
    let weights = config.flag_or("layer_norm_elementwise_affine", true);
    spec.norm = NormSpec { weight: weights, bias: weights, ..NormSpec::layer(1e-5) };
    let (name, rows) = ("model.decoder.embed_positions", spec.max_position_embeddings + 2);
    spec.positions = Some(PositionsSpec { name, rows, offset: 2 });
    let width = config.size_or("word_embed_proj_dim", spec.hidden_size);
    let (into, out_of) = ("model.decoder.project_in", "model.decoder.project_out");
    let projection = EmbeddingProjection { width, into, out_of };
    spec.embedding_projection = (width != spec.hidden_size).then_some(projection);
    set_biases(&mut spec, config.flag_or("enable_bias", true));
    set_mlp(&mut spec, activation(config, function), &["fc1"], "fc2");
    let norms = if is_before { NormNames::before } else { NormNames::of_sum };
    for layer in &mut spec.layers {
        layer.attention.output = "self_attn.out_proj";
        (layer.attention_norms, layer.mlp_norms) = (norms("self_attn_layer_norm"), norms("final_layer_norm"));
    }
    spec.initializer_range = config.number_or("init_std", 0.02) as f32;
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    spec
}
