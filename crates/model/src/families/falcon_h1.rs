//! Falcon-H1: attention and a state space side by side in each block, with a multiplier at nearly every place.

use super::{Keys, llama_keyed, mamba2, refuse_if};
use crate::hf_config::HfConfig;
use crate::spec::{
    DecoderSpec, GateSpec, InputNames, MixerSpec, ModuleNames, NormNames, Part, Projection, RecurrentSpec,
    RuleSpec,
};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_keyed(config, &Keys { eps: ("rms_norm_eps", 1e-5), ..Keys::LLAMA }, 1e4);
    spec.names = ModuleNames { norm: Some("model.final_layernorm"), ..ModuleNames::LLAMA };
    let number = |key: &str| config.number_or(key, 1.0) as f32;
    spec.embedding_multiplier = number("embedding_multiplier");
    spec.logit_scale = number("lm_head_multiplier");
    mamba2::refuse_other_than_silu(config);
    let (input, output) = (number("attention_in_multiplier"), number("attention_out_multiplier"));
    let [gate, down] = config.numbers("mlp_multipliers").map(|by| by as f32);
    let bias = config.flag_or("attention_bias", false);
    let mlp_bias = config.flag_or("mlp_bias", false);
    refuse_if(config, bias && input != 1.0, "attention_in_multiplier");
    refuse_if(config, mlp_bias && down != 1.0, "mlp_multipliers");
    let recurrent = state_space(config, spec.hidden_size);
    for layer in &mut spec.layers {
        // The input's multiplier, which queries, keys and values have each, and the keys' own, are in the scores'.
        layer.attention.scale *= input * input * number("key_multiplier");
        (layer.attention.qkv_bias, layer.attention.o_bias) = (bias, bias);
        layer.mixer = MixerSpec::Both {
            recurrent: recurrent.clone(),
            attention_multiplier: input * output,
            recurrent_multiplier: number("ssm_out_multiplier"),
        };
        layer.mlp_norms = NormNames::before("pre_ff_layernorm");
        layer.mlp.inputs = InputNames::Each(&["feed_forward.gate_proj", "feed_forward.up_proj"]);
        layer.mlp.output = "feed_forward.down_proj";
        (layer.mlp.bias, layer.mlp.gate_multiplier, layer.mlp.inner_multiplier) = (mlp_bias, gate, down);
    }
    spec
}

fn state_space(config: &HfConfig, hidden_size: usize) -> RecurrentSpec {
    let heads = config.size_or("mamba_n_heads", 128);
    let width = config.size_or("mamba_d_ssm", config.product(config.size_or("mamba_expand", 2), hidden_size));
    let is_auto = config.get("mamba_d_head").is_none_or(|size| size.as_str() == Some("auto"));
    let value_dim = if is_auto { width / heads } else { config.size("mamba_d_head") };
    if config.product(value_dim, heads) != width {
        config.problem(format!("`mamba_d_ssm` is {width} and not {heads} heads of {value_dim}"));
    }
    let groups = config.size_or("mamba_n_groups", 1);
    let has_norm = config.flag_or("mamba_rms_norm", false);
    refuse_if(config, has_norm && groups > 1, "mamba_rms_norm");
    let gate = match (has_norm, config.flag_or("mamba_norm_before_gate", true)) {
        (false, _) => GateSpec::Plain,
        (true, true) => GateSpec::NormFirst("mamba.norm"),
        (true, false) => GateSpec::NormLast("mamba.norm"),
    };
    let input = config.number_or("ssm_in_multiplier", 1.0) as f32;
    let input_bias = config.flag_or("mamba_proj_bias", false);
    refuse_if(config, input_bias && input != 1.0, "ssm_in_multiplier");
    let [z, v, k, q, a] = config.numbers("ssm_multipliers").map(|by| by as f32 * input);
    RecurrentSpec {
        rule: RuleSpec::StateSpace { skip: "mamba.D" },
        key_heads: groups,
        heads,
        key_dim: config.size_or("mamba_d_state", 256),
        value_dim,
        inputs: &[Projection { names: &["mamba.in_proj"], parts: mamba2::PARTS, by_key_head: false }],
        input_bias,
        multipliers: [q, k, v, z, 1.0, a],
        conv: "mamba.conv1d",
        conv_order: [Part::V, Part::K, Part::Q],
        taps: config.size_or("mamba_d_conv", 4),
        conv_bias: config.flag_or("mamba_conv_bias", true),
        a_log: "mamba.A_log",
        dt_bias: "mamba.dt_bias",
        gate,
        output: "mamba.out_proj",
        output_bias: config.flag_or("projectors_bias", false),
    }
}
