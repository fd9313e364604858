//! OLMo 2: Llama with norms of what the layers put out rather than of their inputs, and of all queries and all keys.

use super::{llama, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, NormNames, QkNorm, QkScope};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    for layer in &mut spec.layers {
        layer.attention_norms = NormNames::after("post_attention_layernorm");
        layer.mlp_norms = NormNames::after("post_feedforward_layernorm");
        layer.attention.qk_norm = Some(QkNorm { scope: QkScope::AllHeads, ..QkNorm::PER_HEAD });
    }
    spec
}

/// OLMo 3: a sliding window besides, in three layers of four.
pub(super) fn olmo3(config: &HfConfig) -> DecoderSpec {
    let mut spec = spec(config);
    let window = Some(config.size_or("sliding_window", 4096));
    set_windows(config, &mut spec, window, |layer| !(layer + 1).is_multiple_of(4));
    spec
}
