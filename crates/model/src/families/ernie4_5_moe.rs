//! ERNIE 4.5 with experts in a range of layers.

use super::ernie4_5;
use super::experts::{experts, set_experts, share_several};
use crate::hf_config::HfConfig;
use crate::parameter::{Elsewhere, Stored};
use crate::spec::{Correction, DecoderSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = ernie4_5::spec(config);
    // Unlike the dense one.
    spec.head_bias = config.flag_or("use_bias", false);
    let mut moe = experts(config, ["moe_num_experts", "moe_k", "moe_intermediate_size"]);
    const OWN: &str = "mlp.gate.moe_statics.e_score_correction_bias";
    let stored = Elsewhere { own: OWN, files: &["mlp.moe_statics.e_score_correction_bias"] };
    moe.router.correction = Some(Correction { name: OWN, stored: Stored::Elsewhere(stored), is_row: true });
    let number = |key, default: f64| config.number_or(key, default);
    let (first, last) = (number("moe_layer_start_index", 1.0), number("moe_layer_end_index", -1.0));
    let interval = config.size_or("moe_layer_interval", 1);
    let last = if last < 0.0 { f64::INFINITY } else { last };
    set_experts(&mut spec, &moe, |i| {
        (first..=last).contains(&(i as f64)) && (i + 1).is_multiple_of(interval)
    });
    share_several(config, &mut spec, "moe_num_shared_experts");
    spec
}
