//! LFM2: gated convolutions over a few tokens, with attention in some layers.

use serde_json::Value;

use super::{Keys, llama_keyed};
use crate::hf_config::{HfConfig, MOST_SIZE};
use crate::spec::{DecoderSpec, InputNames, MixerSpec, ModuleNames, NormNames, QkNorm, ShortConvSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let keys = Keys {
        intermediate_size: config.first_of(["block_ff_dim", "intermediate_size"]),
        eps: ("norm_eps", 1e-5),
        ..Keys::LLAMA
    };
    let mut spec = llama_keyed(config, &keys, 1e6);
    spec.names = ModuleNames { norm: Some("model.embedding_norm"), ..ModuleNames::LLAMA };
    let tied = config.first_of(["tie_embedding", "tie_word_embeddings"]);
    spec.tie_word_embeddings = config.flag_or(tied, true);
    let attends = config.layers_that(["full_attention", "conv"], spec.layers.len(), |i| attends(config, i));
    let conv = ShortConvSpec {
        input: "conv.in_proj",
        conv: "conv.conv",
        output: "conv.out_proj",
        taps: config.size_or("conv_L_cache", 3),
        bias: config.flag_or("conv_bias", false),
    };
    for (layer, attends) in spec.layers.iter_mut().zip(attends) {
        if !attends {
            layer.mixer = MixerSpec::ShortConv(conv);
        }
        layer.attention.qk_norm = Some(QkNorm::named(["self_attn.q_layernorm", "self_attn.k_layernorm"]));
        layer.attention.output = "self_attn.out_proj";
        layer.attention_norms = NormNames::before("operator_norm");
        layer.mlp_norms = NormNames::before("ffn_norm");
        layer.mlp.inputs = InputNames::Each(&["feed_forward.w1", "feed_forward.w3"]);
        layer.mlp.output = "feed_forward.w2";
        layer.mlp.intermediate_size = adjusted(config, layer.mlp.intermediate_size);
    }
    spec
}

/// By the list that older files have in the place of `layer_types`.
fn attends(config: &HfConfig, layer: usize) -> bool {
    match config.get("full_attn_idxs") {
        Some(Value::Array(layers)) => layers.contains(&layer.into()),
        _ => true,
    }
}

/// F from the file's: two thirds of it, times a factor, up to the next multiple.
fn adjusted(config: &HfConfig, size: usize) -> usize {
    if !config.flag_or("block_auto_adjust_ff_dim", true) {
        return size;
    }
    let size = config.number_or("block_ffn_dim_multiplier", 1.0) * (2 * size / 3) as f64;
    if !(1.0..MOST_SIZE as f64).contains(&size) {
        config.problem(format!("`block_ffn_dim_multiplier` makes feed-forward layers {size} wide"));
        return 1;
    }
    (size as usize).next_multiple_of(config.size_or("block_multiple_of", 256))
}
