//! MiniMax-M2: Llama with queries and keys normalised over all heads, a part of each head rotated, and experts in
//! every layer.

use super::experts::{experts, in_mixtral_files, route_by_sigmoid, set_experts};
use super::llama_shaped;
use crate::hf_config::HfConfig;
use crate::parameter::{Elsewhere, Stored};
use crate::spec::{Correction, DecoderSpec, QkNorm, QkScope};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    // Released files say how many dimensions turn rather than which part.
    if let Some((rope, width)) = spec.rope.as_mut().zip(config.size_or_none("rotary_dim")) {
        rope.rotary_dim = width.min(rope.rotary_dim);
    }
    let norm = QkNorm { scope: QkScope::AllHeads, ..QkNorm::PER_HEAD };
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(norm));
    let mut moe = experts(config, ["num_local_experts", "num_experts_per_tok", "intermediate_size"]);
    route_by_sigmoid(config, &mut moe, 1);
    in_mixtral_files(&mut moe);
    const OWN: &str = "mlp.e_score_correction_bias";
    let stored = Elsewhere { own: OWN, files: &["block_sparse_moe.e_score_correction_bias"] };
    moe.router.correction = Some(Correction { name: OWN, stored: Stored::Elsewhere(stored), is_row: false });
    set_experts(&mut spec, &moe, |_| true);
    spec
}
