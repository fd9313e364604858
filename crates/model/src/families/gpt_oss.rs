//! gpt-oss: Llama with biases, a window in every other layer, sinks, and experts whose gate and up take turns.

use sft_kernels::gated::Activation;

use super::experts::{experts, set_experts};
use super::{llama_shaped, set_windows};
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, ExpertNames, RouterSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let window = Some(config.size_or("sliding_window", 128));
    set_windows(config, &mut spec, window, |layer| layer % 2 == 0);
    let bias = config.flag_or("attention_bias", true);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        (attention.qkv_bias, attention.o_bias, attention.sinks) = (bias, bias, Some("self_attn.sinks"));
    }
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    let names = |weight, bias| ExpertNames { weight, stored: &[Stored::Plain], bias: Some(bias) };
    moe.gate_up = names("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias");
    moe.down = names("mlp.experts.down_proj", "mlp.experts.down_proj_bias");
    moe.router = RouterSpec { name: "mlp.router", bias: true, ..moe.router };
    (moe.transposed, moe.interleaved, moe.activation) = (true, true, Activation::ClampedSwish);
    set_experts(&mut spec, &moe, |_| true);
    spec
}
