//! SmolLM3: Llama in which every fourth layer has no rotary positions; its windows, if any, are in those layers.

use serde_json::Value;

use super::{llama, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, LayerRope};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    let interval = config.size_or("no_rope_layer_interval", 4);
    let listed = config.get("no_rope_layers").and_then(Value::as_array);
    if listed.is_some_and(|listed| listed.len() != spec.layers.len()) {
        config.problem("`no_rope_layers` has not one entry for each layer");
    }
    // The list holds 1 where there are rotary positions, its name notwithstanding.
    let rotates = |i: usize| match listed.and_then(|listed| listed.get(i)) {
        Some(entry) => entry.as_u64() != Some(0),
        None => !(i + 1).is_multiple_of(interval),
    };
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.attention.rope = if rotates(i) { LayerRope::Global } else { LayerRope::None };
    }
    let slides = config.flag_or("use_sliding_window", false);
    let window = config.size_or_none("sliding_window").filter(|_| slides);
    set_windows(config, &mut spec, window, |i| !rotates(i));
    spec
}
