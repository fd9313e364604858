//! Phi-3.5-MoE: Mistral with layer norms, biases if asked for, and experts that SparseMixer chooses.

use sft_kernels::routing::Scoring;

use super::experts::{experts, in_mixtral_files, set_experts};
use super::{layer_norms, mistral, refuse_if};
use crate::hf_config::HfConfig;
use crate::parameter::{Elsewhere, Stored};
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = mistral::spec(config);
    layer_norms(config, &mut spec, "rms_norm_eps");
    let bias = config.flag_or("attention_bias", false);
    spec.layers
        .iter_mut()
        .for_each(|layer| (layer.attention.qkv_bias, layer.attention.o_bias) = (bias, bias));
    spec.head_bias = config.flag_or("lm_head_bias", false);
    let noise = config.number_or("input_jitter_noise", 0.0);
    refuse_if(config, noise != 0.0, "input_jitter_noise");
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    in_mixtral_files(&mut moe);
    const GATE: &[Stored] = &[
        Stored::Elsewhere(Elsewhere { own: "mlp.router.weight", files: &["block_sparse_moe.gate.weight"] }),
        Stored::Plain,
    ];
    (moe.router.name, moe.router.stored) = ("mlp.router", GATE);
    // Training takes the best as evaluation does: transformers draws among those within the distance.
    let tolerance = 2.0 * config.number_or("router_jitter_noise", 0.01) as f32;
    (moe.rule.scoring, moe.rule.normalised) = (Scoring::SparseMixer { tolerance }, false);
    set_experts(&mut spec, &moe, |_| true);
    spec
}
