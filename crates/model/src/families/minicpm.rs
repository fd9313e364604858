//! MiniCPM: Llama with multipliers on the embedding, on what the layers add, and on the logits; MiniCPM3 with multi-head
//! latent attention.

use super::{deepseek, llama, refuse_if};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn minicpm(config: &HfConfig) -> DecoderSpec {
    for key in ["sparse_config", "num_experts"] {
        refuse_if(config, config.get(key).is_some_and(|value| value != 0), key);
    }
    multiplied(config, llama::spec(config))
}

pub(super) fn minicpm3(config: &HfConfig) -> DecoderSpec {
    // Whatever a key may say, that is how wide values are.
    let width = config.size("hidden_size") / config.size("num_attention_heads");
    multiplied(config, deepseek::latent(config, width))
}

fn multiplied(config: &HfConfig, mut spec: DecoderSpec) -> DecoderSpec {
    spec.embedding_multiplier = config.number_or("scale_emb", 1.0) as f32;
    let narrow = config.number_or("dim_model_base", 1.0);
    spec.logit_scale = (narrow / spec.hidden_size as f64) as f32;
    let depth = spec.layers.len() as f64;
    refuse_if(config, config.number_or("mup_denominator", depth) != depth, "mup_denominator");
    let added = (config.number_or("scale_depth", 1.0) / depth.sqrt()) as f32;
    spec.layers.iter_mut().for_each(|layer| layer.residual_multiplier = added);
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    spec
}
