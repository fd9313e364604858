//! Hunyuan (dense): Llama with queries and keys normalised per head after they are rotated.

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm, RopeScaling};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let names = ["self_attn.query_layernorm", "self_attn.key_layernorm"];
    let norm = QkNorm { after_rope: true, ..QkNorm::named(names) };
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(norm));
    // Its own reading of the dynamic rule: with `alpha`, another base for rows of any length.
    let alpha = config.rope_number("alpha").filter(|alpha| *alpha > 0.0);
    if let Some((rope, alpha)) = spec.rope.as_mut().zip(alpha) {
        let width = rope.rotary_dim as f64;
        rope.theta *= alpha.powf(width / (width - 2.0));
        rope.scaling = RopeScaling::Default;
    }
    spec
}
