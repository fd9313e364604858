//! GPT-2: learned positions, layer norms, biases, queries, keys and values fused, weights stored as [in, out].

use super::{Keys, layer_norms, refuse_if, set_biases, set_fused, set_mlp, shaped};
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, ModuleNames, NormNames, PositionsSpec};

/// Names that the families after it kept.
pub(super) const NAMES: ModuleNames = ModuleNames {
    embed_tokens: "transformer.wte",
    layers: "transformer.h",
    norm: Some("transformer.ln_f"),
    lm_head: "lm_head",
};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = shape(config);
    spec.linear_weights = Stored::Transposed;
    let by_layer = config.flag_or("scale_attn_by_inverse_layer_idx", false);
    for (i, layer) in spec.layers.iter_mut().enumerate().filter(|_| by_layer) {
        layer.attention.scale /= (i + 1) as f32;
    }
    spec
}

/// The same with weights stored as everywhere else.
pub(super) fn shape(config: &HfConfig) -> DecoderSpec {
    let mut spec = shaped(config, &Keys::GPT2);
    spec.names = NAMES;
    layer_norms(config, &mut spec, "layer_norm_epsilon");
    let (name, rows) = ("transformer.wpe", spec.max_position_embeddings);
    spec.positions = Some(PositionsSpec { name, rows, offset: 0 });
    set_biases(&mut spec, true);
    set_fused(&mut spec, "attn.c_attn", 1);
    let activation = super::activation(config, Keys::GPT2.activation);
    set_mlp(&mut spec, activation, &["mlp.c_fc"], "mlp.c_proj");
    let scales = config.flag_or("scale_attn_weights", true);
    for layer in &mut spec.layers {
        layer.attention.output = "attn.c_proj";
        layer.attention.scale = if scales { layer.attention.scale } else { 1.0 };
        (layer.attention_norms, layer.mlp_norms) = (NormNames::before("ln_1"), NormNames::before("ln_2"));
    }
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    refuse_if(config, config.flag_or("add_cross_attention", false), "add_cross_attention");
    spec
}
