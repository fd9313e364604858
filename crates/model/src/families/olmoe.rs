//! OLMoE: Llama with queries and keys normalised over all heads, and experts in every layer.

use super::experts::{experts, set_experts};
use super::{llama, refuse_if};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm, QkScope};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    refuse_if(config, config.get("clip_qkv").is_some(), "clip_qkv");
    let norm = QkNorm { scope: QkScope::AllHeads, ..QkNorm::PER_HEAD };
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(norm));
    let count = config.first_of(["num_experts", "num_local_experts"]);
    let mut moe = experts(config, [count, "num_experts_per_tok", "intermediate_size"]);
    moe.rule.normalised = config.flag_or("norm_topk_prob", false);
    set_experts(&mut spec, &moe, |_| true);
    spec
}
