//! Mamba-2: a state space and nothing else in each block.

use super::{Keys, refuse_if, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{
    DecoderSpec, GateSpec, MixerSpec, ModuleNames, NormNames, Part, Projection, RecurrentSpec, RuleSpec,
};

/// What one linear layer makes of a block's input: the gate, values, keys, queries and steps.
pub(super) const PARTS: &[Part] = &[Part::Z, Part::V, Part::K, Part::Q, Part::A];

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let keys = Keys {
        heads: "num_heads",
        kv_heads: None,
        intermediate_factor: Some(config.size_or("expand", 2)),
        eps: ("layer_norm_epsilon", 1e-5),
        ..Keys::LLAMA
    };
    let mut spec = shaped(config, &keys);
    spec.names = ModuleNames {
        embed_tokens: "backbone.embeddings",
        layers: "backbone.layers",
        norm: Some("backbone.norm_f"),
        lm_head: "lm_head",
    };
    // No positions, and so no longest row.
    spec.max_position_embeddings = config.size_or("max_position_embeddings", 1 << 20);
    refuse_if(config, has_time_step_limit(config), "time_step_limit");
    refuse_other_than_silu(config);
    let bias = config.flag_or("use_bias", false);
    let recurrent = RecurrentSpec {
        rule: RuleSpec::StateSpace { skip: "mixer.D" },
        key_heads: config.size_or("n_groups", 8),
        heads: config.size_or("num_heads", 128),
        key_dim: config.size_or("state_size", 128),
        value_dim: config.size_or("head_dim", 64),
        inputs: &[Projection { names: &["mixer.in_proj"], parts: PARTS, by_key_head: false }],
        input_bias: bias,
        multipliers: [1.0; 6],
        conv: "mixer.conv1d",
        conv_order: [Part::V, Part::K, Part::Q],
        taps: config.size_or("conv_kernel", 4),
        conv_bias: config.flag_or("use_conv_bias", true),
        a_log: "mixer.A_log",
        dt_bias: "mixer.dt_bias",
        gate: GateSpec::NormLast("mixer.norm"),
        output: "mixer.out_proj",
        output_bias: bias,
    };
    for layer in &mut spec.layers {
        layer.mixer = MixerSpec::Recurrent(recurrent.clone());
        layer.attention_norms = NormNames::before("norm");
        (layer.has_mlp, layer.mlp_norms) = (false, NormNames::NONE);
    }
    spec
}

/// The convolution's activation is no other.
pub(super) fn refuse_other_than_silu(config: &HfConfig) {
    let is_other = config.word("hidden_act").is_some_and(|name| !["silu", "swish"].contains(&name));
    refuse_if(config, is_other, "hidden_act");
}

/// Whether steps are cut off anywhere but at 0.
fn has_time_step_limit(config: &HfConfig) -> bool {
    let limits = config.get("time_step_limit").and_then(|limits| limits.as_array());
    limits.is_some_and(|limits| {
        limits.first().and_then(|low| low.as_f64()) != Some(0.0)
            || limits.get(1).is_some_and(|high| high.is_number())
    })
}
