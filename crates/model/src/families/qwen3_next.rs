//! Qwen3-Next and Qwen3.5: the gated delta rule, and attention with gated outputs in every fourth layer; experts in the
//! former.

use super::qwen_moe::{add_experts, share_gated};
use super::{Keys, llama_keyed, rotate_part};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, GateSpec, MixerSpec, Part, Projection, QkNorm, RecurrentSpec, RuleSpec};

pub(super) fn qwen3_next(config: &HfConfig) -> DecoderSpec {
    const INPUTS: &[Projection] = &[
        Projection {
            names: &["linear_attn.in_proj_qkvz"],
            parts: &[Part::Q, Part::K, Part::V, Part::Z],
            by_key_head: true,
        },
        Projection { names: &["linear_attn.in_proj_ba"], parts: &[Part::B, Part::A], by_key_head: true },
    ];
    let mut spec = hybrid(config, INPUTS);
    add_experts(config, &mut spec);
    share_gated(config, &mut spec);
    spec
}

pub(super) fn qwen3_5(config: &HfConfig) -> DecoderSpec {
    const INPUTS: &[Projection] = &[
        Projection {
            names: &["linear_attn.in_proj_qkv"],
            parts: &[Part::Q, Part::K, Part::V],
            by_key_head: false,
        },
        Projection {
            names: &["linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"],
            parts: &[Part::Z, Part::B, Part::A],
            by_key_head: false,
        },
    ];
    hybrid(config, INPUTS)
}

fn hybrid(config: &HfConfig, inputs: &'static [Projection]) -> DecoderSpec {
    let mut spec = llama_keyed(config, &Keys::LLAMA, 1e4);
    rotate_part(config, &mut spec, 0.25);
    spec.norm.offset = 1.0;
    let interval = config.size_or("full_attention_interval", 4);
    let attends = config.layers_that(["full_attention", "linear_attention"], spec.layers.len(), |i| {
        (i + 1).is_multiple_of(interval)
    });
    let recurrent = RecurrentSpec {
        rule: RuleSpec::Delta,
        key_heads: config.size_or("linear_num_key_heads", 16),
        heads: config.size_or("linear_num_value_heads", 32),
        key_dim: config.size_or("linear_key_head_dim", 128),
        value_dim: config.size_or("linear_value_head_dim", 128),
        inputs,
        input_bias: false,
        multipliers: [1.0; 6],
        conv: "linear_attn.conv1d",
        conv_order: [Part::Q, Part::K, Part::V],
        taps: config.size_or("linear_conv_kernel_dim", 4),
        conv_bias: false,
        a_log: "linear_attn.A_log",
        dt_bias: "linear_attn.dt_bias",
        gate: GateSpec::NormOfHeads("linear_attn.norm"),
        output: "linear_attn.out_proj",
        output_bias: false,
    };
    let bias = config.flag_or("attention_bias", false);
    for (layer, attends) in spec.layers.iter_mut().zip(attends) {
        let attention = &mut layer.attention;
        (attention.qk_norm, attention.output_gate) = (Some(QkNorm::PER_HEAD), true);
        (attention.qkv_bias, attention.o_bias) = (bias, bias);
        if !attends {
            layer.mixer = MixerSpec::Recurrent(recurrent.clone());
        }
    }
    spec
}
