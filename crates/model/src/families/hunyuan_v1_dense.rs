//! Hunyuan (dense): Llama with queries and keys normalised per head after they are rotated.

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm, RopeScaling};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let names = ["query_layernorm", "key_layernorm"];
    let norm = QkNorm { names, all_heads: false, after_rope: true };
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(norm));
    // Its own reading of the dynamic rule: with `alpha`, another base for rows of any length.
    if let Some(alpha) = config.rope_number("alpha").filter(|alpha| *alpha > 0.0) {
        let width = spec.rope.rotary_dim as f64;
        spec.rope.theta *= alpha.powf(width / (width - 2.0));
        spec.rope.scaling = RopeScaling::Default;
    }
    spec
}
