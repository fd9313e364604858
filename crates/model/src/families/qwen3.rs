//! Qwen3: Llama with queries and keys normalised per head, and Qwen2's windows.

use super::{llama, qwen2};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(QkNorm::PER_HEAD));
    qwen2::slide(config, &mut spec);
    spec
}
