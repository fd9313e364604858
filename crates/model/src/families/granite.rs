//! Granite: Llama with multipliers on the embedding, the scores, what the layers add, and the logits.

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.embedding_multiplier = config.number_or("embedding_multiplier", 1.0) as f32;
    spec.logit_scale = 1.0 / config.positive("logits_scaling").unwrap_or(1.0) as f32;
    for layer in &mut spec.layers {
        layer.attention.scale = config.number_or("attention_multiplier", 1.0) as f32;
        layer.residual_multiplier = config.number_or("residual_multiplier", 1.0) as f32;
    }
    spec
}
