//! DeepSeek-V2 and V3: multi-head latent attention, and experts after the first layers.

use sft_kernels::latent::Columns;

use super::experts::{after_dense, experts, route_by_sigmoid, scale_and_group, set_experts, share_several};
use super::{Keys, refuse_if, rotate_neighbours, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{
    DecoderSpec, InputNames, LatentQueries, LatentSpec, LayerRope, MoeSpec, RopeScaling, RouterSpec,
};

const EXPERTS: [&str; 3] = ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"];

/// DeepSeek-V2: experts chosen by a softmax, from the best groups if asked for.
pub(super) fn deepseek_v2(config: &HfConfig) -> DecoderSpec {
    let mut spec = latent(config, config.size("v_head_dim"));
    rotate_neighbours(&mut spec);
    let mut moe = experts(config, EXPERTS);
    // A linear layer whose weight is used without it.
    moe.router = RouterSpec { ignores_adapters: true, ..moe.router };
    // transformers and DeepSeek's own code leave `norm_topk_prob` aside where there is a factor; no release has it.
    refuse_if(config, config.flag_or("norm_topk_prob", false), "norm_topk_prob");
    moe.rule.normalised = false;
    scale_and_group(config, &mut moe, 1);
    match config.word("topk_method").unwrap_or("greedy") {
        "greedy" => moe.rule.groups = None,
        "group_limited_greedy" => {}
        other => {
            config.problem(format!("`topk_method` is {other}; greedy and group_limited_greedy are known"))
        }
    }
    with_experts(config, spec, &moe)
}

/// DeepSeek-V3 and R1: scores by σ, corrected for the choice.
pub(super) fn deepseek_v3(config: &HfConfig) -> DecoderSpec {
    let mut spec = latent(config, config.size("v_head_dim"));
    if config.flag_or("rope_interleave", true) {
        rotate_neighbours(&mut spec);
    }
    let mut moe = experts(config, EXPERTS);
    route_by_sigmoid(config, &mut moe, 2);
    with_experts(config, spec, &moe)
}

fn with_experts(config: &HfConfig, mut spec: DecoderSpec, moe: &MoeSpec) -> DecoderSpec {
    set_experts(&mut spec, moe, after_dense(config));
    share_several(config, &mut spec, "n_shared_experts");
    spec
}

/// Llama with multi-head latent attention, and values of this width.
pub(super) fn latent(config: &HfConfig, value: usize) -> DecoderSpec {
    let mut spec = shaped(config, &Keys::LLAMA);
    let columns =
        Columns { passed: config.size("qk_nope_head_dim"), rotated: config.size("qk_rope_head_dim"), value };
    let width = columns.width();
    if columns.value > width {
        config.problem(format!("values of width {} are wider than keys of {width}", columns.value));
    }
    spec.rope = Some(config.rope(columns.rotated, 10_000.0));
    let queries = match config.size_or_none("q_lora_rank") {
        None => LatentQueries::Direct("self_attn.q_proj"),
        Some(rank) => LatentQueries::Narrow {
            rank,
            a: "self_attn.q_a_proj",
            norm: "self_attn.q_a_layernorm",
            b: "self_attn.q_b_proj",
        },
    };
    let bias = config.flag_or("attention_bias", false);
    let latent = LatentSpec {
        columns,
        queries,
        kv_rank: config.size("kv_lora_rank"),
        kv_a: "self_attn.kv_a_proj_with_mqa",
        kv_a_norm: "self_attn.kv_a_layernorm",
        kv_b: "self_attn.kv_b_proj",
        bias,
    };
    let scale = (width as f64).sqrt().recip() * temperature(config, &spec);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.kv_heads, attention.head_dim) = (attention.heads, width);
        (attention.inputs, attention.latent) = (InputNames::Each(&[]), Some(latent));
        (attention.scale, attention.o_bias, attention.rope) = (scale as f32, bias, LayerRope::Global);
    }
    spec
}

/// What YaRN multiplies scores by: (0.1 · `mscale_all_dim` · ln factor + 1)², as DeepSeek's own code for both versions.
/// transformers 5.6 has it for V3 alone, though V2's releases were trained with it.
fn temperature(config: &HfConfig, spec: &DecoderSpec) -> f64 {
    let scaling = spec.rope.as_ref().map(|rope| &rope.scaling);
    let all = config.rope_number("mscale_all_dim").filter(|all| *all != 0.0);
    match (scaling, all) {
        (Some(RopeScaling::Yarn { factor, .. }), Some(all)) if *factor > 1.0 => {
            (0.1 * all * factor.ln() + 1.0).powi(2)
        }
        _ => 1.0,
    }
}
