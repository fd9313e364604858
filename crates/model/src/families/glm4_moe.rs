//! GLM-4.5: Llama with half of each head rotated, biases on q, k and v and norms of q and k if asked for, and the
//! experts of DeepSeek-V3.

use super::experts::{after_dense, experts, route_by_sigmoid, set_experts, share_several};
use super::{llama_shaped, rotate_part};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    rotate_part(config, &mut spec, 0.5);
    let (bias, norm) = (config.flag_or("attention_bias", false), config.flag_or("use_qk_norm", false));
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.qk_norm) = (bias, norm.then_some(QkNorm::PER_HEAD));
    }
    let mut moe = experts(config, ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"]);
    route_by_sigmoid(config, &mut moe, 2);
    set_experts(&mut spec, &moe, after_dense(config));
    share_several(config, &mut spec, "n_shared_experts");
    spec
}
