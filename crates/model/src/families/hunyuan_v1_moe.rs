//! Hunyuan with experts in every layer, and one that all tokens go to.

use super::experts::{experts, set_experts, share};
use super::hunyuan_v1_dense;
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames, RouterSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = hunyuan_v1_dense::spec(config);
    let mut moe = experts(config, ["num_experts", "moe_topk", "intermediate_size"]);
    moe.router = RouterSpec { name: "mlp.gate.wg", is_linear: true, ..moe.router };
    set_experts(&mut spec, &moe, |_| true);
    const INPUTS: InputNames = InputNames::Each(&["mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj"]);
    share(&mut spec, INPUTS, "mlp.shared_mlp.down_proj", moe.intermediate_size);
    spec
}
