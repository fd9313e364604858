//! Arcee (AFM): Llama with feed-forward layers that have no gate, and the activation relu².

use super::llama;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.layers.iter_mut().for_each(|layer| layer.mlp.without_gate(&["mlp.up_proj"], "mlp.down_proj"));
    spec
}
