//! Nemotron and Minitron: layer norms with weights stored as distance from 1, partly rotated heads, and feed-forward
//! layers without a gate.

use super::{activation, layer_norms, llama, rotate_part, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    layer_norms(config, &mut spec, "norm_eps");
    spec.norm.offset = 1.0;
    rotate_part(config, &mut spec, 0.5);
    set_mlp(&mut spec, activation(config, ("hidden_act", "relu2")), &["mlp.up_proj"], "mlp.down_proj");
    spec
}
