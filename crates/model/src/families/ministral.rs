//! Ministral: Mistral with windows in the layers that `layer_types` names.

use super::{llama_shaped, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QueryGrowth};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let window = config.size_or_none("sliding_window");
    set_windows(config, &mut spec, window, |_| true);
    spec
}

/// Ministral 3: Mistral whose queries grow beyond the length that it was first trained for.
pub(super) fn ministral3(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let window = config.size_or_none("sliding_window");
    spec.layers.iter_mut().for_each(|layer| layer.attention.window = window);
    let number = |key| config.rope_number(key).filter(|number| *number > 0.0);
    let growth = number("llama_4_scaling_beta").zip(number("original_max_position_embeddings"));
    spec.query_growth =
        growth.map(|(beta, span)| QueryGrowth { beta, span: (span as usize).max(1), offset: 0 });
    spec.layers.iter_mut().for_each(|layer| layer.attention.grows = true);
    spec
}
