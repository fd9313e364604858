//! Mixtral: Mistral with experts in every layer, under names of its own in files.

use super::experts::{experts, in_mixtral_files, set_experts};
use super::mistral;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = mistral::spec(config);
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    in_mixtral_files(&mut moe);
    set_experts(&mut spec, &moe, |_| true);
    spec
}
