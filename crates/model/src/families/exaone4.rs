//! EXAONE 4: norms of what the layers put out, queries and keys normalised per head; where some layers slide, the
//! others have no rotary positions.

use serde_json::Value;

use super::{llama_shaped, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, LayerRope, NormNames, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let (window, layers) = (config.size_or_none("sliding_window"), spec.layers.len());
    let slides = |layer: usize| match config.get("sliding_window_pattern") {
        // Letters in turn, L for a window; the last layer has none.
        Some(Value::String(letters)) => {
            let letter = letters.as_bytes().get(layer % letters.len().max(1));
            letter == Some(&b'L') && layer + 1 < layers
        }
        _ => !(layer + 1).is_multiple_of(config.size_or("sliding_window_pattern", 4)),
    };
    set_windows(config, &mut spec, window, slides);
    for layer in &mut spec.layers {
        layer.attention_norms = NormNames::after("post_attention_layernorm");
        layer.mlp_norms = NormNames::after("post_feedforward_layernorm");
        layer.attention.qk_norm = Some(QkNorm::PER_HEAD);
        let rotates = window.is_none() || layer.attention.window.is_some();
        layer.attention.rope = if rotates { LayerRope::Global } else { LayerRope::None };
    }
    spec
}
