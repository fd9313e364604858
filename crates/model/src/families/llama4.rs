//! Llama 4 (text): chunks of positions in the layers that are rotated, and in some layers one expert beside a shared
//! one, whose weight multiplies its input.

use serde_json::Value;
use sft_kernels::routing::Scoring;

use super::experts::{experts, set_experts, share};
use super::{llama_shaped, rotate_neighbours};
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{
    DecoderSpec, ExpertNames, InputNames, LayerRope, NormSpec, QkNorm, QueryGrowth, RouterSpec,
};

const DENSE: InputNames = InputNames::Each(&["feed_forward.gate_proj", "feed_forward.up_proj"]);
const SHARED: InputNames =
    InputNames::Each(&["feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"]);

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    rotate_neighbours(&mut spec);
    let bias = config.flag_or("attention_bias", false);
    let norm = NormSpec { weight: false, ..spec.norm };
    let qk_norm = QkNorm { norm: Some(norm), after_rope: true, ..QkNorm::PER_HEAD };
    let qk_norm = config.flag_or("use_qk_norm", true).then_some(qk_norm);
    let chunk = config.size_or("attention_chunk_size", 8192);
    let (rotates, chunks) = (rotated_layers(config, &spec), chunked_layers(config, &spec));
    let width = config.size_or("intermediate_size_mlp", 16_384);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let (attention, rotates) = (&mut layer.attention, rotates(i));
        (attention.qkv_bias, attention.o_bias) = (bias, bias);
        attention.rope = if rotates { LayerRope::Global } else { LayerRope::None };
        (attention.qk_norm, attention.grows) = (qk_norm.filter(|_| rotates), !rotates);
        attention.chunk = chunks(i, rotates).then_some(chunk);
        (layer.mlp.inputs, layer.mlp.output) = (DENSE, "feed_forward.down_proj");
        layer.mlp.intermediate_size = width;
    }
    let tuned = config.flag_or("attn_temperature_tuning", true);
    spec.query_growth = tuned.then(|| QueryGrowth {
        beta: config.number_or("attn_scale", 0.1),
        span: config.size_or("floor_scale", 8192),
        offset: 1,
    });
    add_experts(config, &mut spec);
    spec
}

fn add_experts(config: &HfConfig, spec: &mut DecoderSpec) {
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    let names = |weight| ExpertNames { weight, stored: &[Stored::Plain], bias: None };
    moe.gate_up = names("feed_forward.experts.gate_up_proj");
    moe.down = names("feed_forward.experts.down_proj");
    moe.router = RouterSpec { name: "feed_forward.router", ..moe.router };
    (moe.rule.scoring, moe.rule.normalised) = (Scoring::Sigmoid, false);
    (moe.transposed, moe.adapters_swapped, moe.weighs_input) = (true, true, true);
    let step = config.size_or("interleave_moe_layer_step", 1);
    let listed = config.get("moe_layers").and_then(Value::as_array);
    let is_listed = |layer: usize| listed.map(|l| l.iter().any(|entry| entry.as_u64() == Some(layer as u64)));
    set_experts(spec, &moe, |i| is_listed(i).unwrap_or((i + 1).is_multiple_of(step)));
    share(spec, SHARED, "feed_forward.shared_expert.down_proj", moe.intermediate_size);
}

/// `no_rope_layers`, which holds 1 where there are rotary positions, or all but every fourth.
fn rotated_layers(config: &HfConfig, spec: &DecoderSpec) -> impl Fn(usize) -> bool + use<> {
    let interval = config.size_or("no_rope_layer_interval", 4);
    let listed: Vec<bool> = match config.get("no_rope_layers") {
        Some(Value::Array(entries)) => entries.iter().map(|entry| entry.as_u64() != Some(0)).collect(),
        _ => Vec::new(),
    };
    if !listed.is_empty() && listed.len() != spec.layers.len() {
        config.problem("`no_rope_layers` has not one entry for each layer");
    }
    move |layer| listed.get(layer).copied().unwrap_or(!(layer + 1).is_multiple_of(interval))
}

/// `layer_types`, or the layers that are rotated.
fn chunked_layers(config: &HfConfig, spec: &DecoderSpec) -> impl Fn(usize, bool) -> bool + use<> {
    let listed: Vec<bool> = match config.get("layer_types") {
        Some(Value::Array(types)) => types.iter().map(|t| t == "chunked_attention").collect(),
        _ => Vec::new(),
    };
    if !listed.is_empty() && listed.len() != spec.layers.len() {
        config.problem(format!(
            "`layer_types` has {} entries for {} layers",
            listed.len(),
            spec.layers.len()
        ));
    }
    move |layer, rotates| listed.get(layer).copied().unwrap_or(rotates)
}
