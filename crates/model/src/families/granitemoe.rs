//! Granite with experts in every layer, whose weights lie together in files.

use super::experts::{experts, set_experts};
use super::granite;
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, ExpertNames, RouterSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = granite::spec(config);
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    let together = |weight| ExpertNames { weight, stored: &[Stored::Plain], bias: None };
    moe.gate_up = together("block_sparse_moe.input_linear.weight");
    moe.down = together("block_sparse_moe.output_linear.weight");
    moe.router = RouterSpec { name: "block_sparse_moe.router.layer", is_linear: true, ..moe.router };
    set_experts(&mut spec, &moe, |_| true);
    spec
}
