//! dots.llm1: Llama with queries and keys normalised per head, windows if asked for, and the experts of DeepSeek-V3.

use super::experts::{after_dense, experts, route_by_sigmoid, set_experts, share_several};
use super::{llama, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(QkNorm::PER_HEAD));
    let first = config.size_or("max_window_layers", 62);
    let window = config.size_or_none("sliding_window");
    set_windows(config, &mut spec, window, |layer| window.is_some() && layer >= first);
    let mut moe = experts(config, ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"]);
    route_by_sigmoid(config, &mut moe, 2);
    moe.rule.normalised = config.flag_or("norm_topk_prob", false);
    set_experts(&mut spec, &moe, after_dense(config));
    share_several(config, &mut spec, "n_shared_experts");
    spec
}
