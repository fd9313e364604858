//! Qwen2 and Qwen3 with experts: in every so many layers, with a gated shared expert in Qwen2 alone.

use serde_json::Value;

use super::experts::{experts, set_experts, share};
use super::{llama, qwen2, qwen3};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames};

/// Qwen1.5-MoE and Qwen2-MoE.
pub(super) fn qwen2_moe(config: &HfConfig) -> DecoderSpec {
    let mut spec = qwen2::spec(config);
    let bias = config.flag_or("qkv_bias", true);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qkv_bias = bias);
    add_experts(config, &mut spec);
    share_gated(config, &mut spec);
    spec
}

/// Qwen3-MoE.
pub(super) fn qwen3_moe(config: &HfConfig) -> DecoderSpec {
    let mut spec = qwen3::spec(config);
    let bias = llama::spec(config).layers.first().is_some_and(|layer| layer.attention.qkv_bias);
    spec.layers
        .iter_mut()
        .for_each(|layer| (layer.attention.qkv_bias, layer.attention.o_bias) = (bias, bias));
    add_experts(config, &mut spec);
    spec
}

/// Experts in every `decoder_sparse_step`-th layer, but for `mlp_only_layers`.
pub(super) fn add_experts(config: &HfConfig, spec: &mut DecoderSpec) {
    let count = config.first_of(["num_experts", "num_local_experts"]);
    let mut moe = experts(config, [count, "num_experts_per_tok", "moe_intermediate_size"]);
    moe.rule.normalised = config.flag_or("norm_topk_prob", false);
    let step = config.size_or("decoder_sparse_step", 1);
    let dense: Vec<u64> = match config.get("mlp_only_layers") {
        Some(Value::Array(layers)) => layers.iter().filter_map(Value::as_u64).collect(),
        _ => Vec::new(),
    };
    set_experts(spec, &moe, |i| !dense.contains(&(i as u64)) && (i + 1).is_multiple_of(step));
}

/// A shared expert whose output a gate multiplies.
pub(super) fn share_gated(config: &HfConfig, spec: &mut DecoderSpec) {
    const INPUTS: InputNames =
        InputNames::Each(&["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"]);
    share(spec, INPUTS, "mlp.shared_expert.down_proj", config.size("shared_expert_intermediate_size"));
    for moe in spec.layers.iter_mut().filter_map(|layer| layer.moe.as_mut()) {
        moe.shared_gate = Some("mlp.shared_expert_gate");
    }
}
