//! What families with experts have in common: where the numbers stand, and how weights lie in files.

use sft_kernels::gated::Activation;
use sft_kernels::routing::{Groups, MOST_EXPERTS, Rule, Scoring};

use super::activation;
use crate::hf_config::HfConfig;
use crate::parameter::{Elsewhere, Stored};
use crate::spec::{ActivationSpec, Correction, DecoderSpec, ExpertNames, InputNames, MoeSpec, RouterSpec};

/// `mlp.gate`.
pub(super) const ROUTER: RouterSpec = RouterSpec {
    name: "mlp.gate",
    stored: &[Stored::Plain],
    bias: false,
    is_linear: false,
    ignores_adapters: false,
    correction: None,
};

/// Gate and up, which released files hold for each expert.
const GATE_UP: ExpertNames = ExpertNames {
    weight: "mlp.experts.gate_up_proj",
    stored: &[
        Stored::Elsewhere(Elsewhere {
            own: "mlp.experts.gate_up_proj",
            files: &["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
        }),
        Stored::Plain,
    ],
    bias: None,
};

/// Down likewise.
const DOWN: ExpertNames = ExpertNames {
    weight: "mlp.experts.down_proj",
    stored: &[
        Stored::Elsewhere(Elsewhere {
            own: "mlp.experts.down_proj",
            files: &["mlp.experts.*.down_proj.weight"],
        }),
        Stored::Plain,
    ],
    bias: None,
};

/// The names that Mixtral's files have, and those of what came of it.
pub(super) fn in_mixtral_files(moe: &mut MoeSpec) {
    const W13: &[Stored] = &[
        Stored::Elsewhere(Elsewhere {
            own: "mlp.experts.gate_up_proj",
            files: &["block_sparse_moe.experts.*.w1.weight", "block_sparse_moe.experts.*.w3.weight"],
        }),
        Stored::Plain,
    ];
    const W2: &[Stored] = &[
        Stored::Elsewhere(Elsewhere {
            own: "mlp.experts.down_proj",
            files: &["block_sparse_moe.experts.*.w2.weight"],
        }),
        Stored::Plain,
    ];
    const GATE: &[Stored] = &[
        Stored::Elsewhere(Elsewhere { own: "mlp.gate.weight", files: &["block_sparse_moe.gate.weight"] }),
        Stored::Plain,
    ];
    (moe.gate_up.stored, moe.down.stored, moe.router.stored) = (W13, W2, GATE);
}

/// Experts with a softmax of their scores, their number and sizes under these keys.
pub(super) fn experts(config: &HfConfig, [count, top_k, size]: [&str; 3]) -> MoeSpec {
    let activation = match activation(config, ("hidden_act", "silu")) {
        ActivationSpec::Fixed(activation) => activation,
        ActivationSpec::Xielu(_) => {
            config.problem("xielu with a gate is not supported");
            Activation::Silu
        }
    };
    let (experts, top_k) = (config.size(count), config.size(top_k));
    if experts > MOST_EXPERTS || top_k > experts {
        config.problem(format!("{top_k} of {experts} experts, of which there may be {MOST_EXPERTS}"));
    }
    MoeSpec {
        experts,
        intermediate_size: config.size(size),
        rule: Rule { scoring: Scoring::Softmax, top_k, groups: None, normalised: true, scale: 1.0 },
        router: ROUTER,
        gate_up: GATE_UP,
        down: DOWN,
        transposed: false,
        adapters_swapped: false,
        interleaved: false,
        activation,
        weighs_input: false,
        shared: false,
        shared_gate: None,
    }
}

/// Scores by σ with a correction, groups, and a factor: the router of DeepSeek-V3 and those after it.
pub(super) fn route_by_sigmoid(config: &HfConfig, moe: &mut MoeSpec, best: usize) {
    moe.rule.scoring = Scoring::Sigmoid;
    moe.router.correction =
        Some(Correction { name: "mlp.gate.e_score_correction_bias", stored: Stored::Plain, is_row: false });
    moe.rule.normalised = config.flag_or("norm_topk_prob", true);
    scale_and_group(config, moe, best);
}

/// `routed_scaling_factor`, `n_group` and `topk_group`; a group is worth its `best` experts.
pub(super) fn scale_and_group(config: &HfConfig, moe: &mut MoeSpec, best: usize) {
    moe.rule.scale = config.number_or("routed_scaling_factor", 1.0) as f32;
    let (count, chosen) = (config.size_or("n_group", 1), config.size_or("topk_group", 1));
    let size = moe.experts / count;
    if !moe.experts.is_multiple_of(count) || chosen > count || size * chosen < moe.rule.top_k || size < best {
        config.problem(format!(
            "`topk_group` {chosen} of `n_group` {count} cannot give {} of {} experts",
            moe.rule.top_k, moe.experts
        ));
    } else if chosen < count {
        moe.rule.groups = Some(Groups { count, chosen, best });
    }
}

/// Experts in the layers with these numbers.
pub(super) fn set_experts(spec: &mut DecoderSpec, moe: &MoeSpec, has_experts: impl Fn(usize) -> bool) {
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.moe = has_experts(i).then(|| moe.clone());
    }
}

/// An expert that all tokens go to, of this width, beside the others.
pub(super) fn share(spec: &mut DecoderSpec, inputs: InputNames, output: &'static str, width: usize) {
    for layer in &mut spec.layers {
        if let Some(moe) = &mut layer.moe {
            moe.shared = true;
            (layer.mlp.inputs, layer.mlp.output, layer.mlp.intermediate_size) = (inputs, output, width);
        }
    }
}

/// `n_shared_experts` of the width of the others, as one of that many times the width.
pub(super) fn share_several(config: &HfConfig, spec: &mut DecoderSpec, key: &str) {
    let count = config.number_or(key, 0.0) as usize;
    let width = spec.layers.iter().find_map(|layer| layer.moe.as_ref()).map(|moe| moe.intermediate_size);
    if let Some(width) = width.filter(|_| count > 0) {
        const INPUTS: InputNames =
            InputNames::Each(&["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"]);
        share(spec, INPUTS, "mlp.shared_experts.down_proj", config.product(count, width));
    }
}

/// Which layers have experts where the first few have none.
pub(super) fn after_dense(config: &HfConfig) -> impl Fn(usize) -> bool + use<> {
    let first = config.number_or("first_k_dense_replace", 0.0) as usize;
    move |layer| layer >= first
}
