//! OLMo (the first): Llama with layer norms that have no weights.

use super::{llama, refuse_if};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, NormSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.norm = NormSpec { weight: false, bias: false, ..NormSpec::layer(1e-5) };
    refuse_if(config, config.get("clip_qkv").is_some(), "clip_qkv");
    spec
}
