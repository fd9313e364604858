//! Apertus: Llama with norms of queries and keys, and feed-forward layers without a gate that have xIELU.

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, NormNames, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    for layer in &mut spec.layers {
        layer.attention_norms = NormNames::before("attention_layernorm");
        layer.mlp_norms = NormNames::before("feedforward_layernorm");
        layer.attention.qk_norm = Some(QkNorm::PER_HEAD);
        layer.mlp.without_gate(&["mlp.up_proj"], "mlp.down_proj");
    }
    spec
}
