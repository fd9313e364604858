//! nanochat: norms without weights, of the embedding too; queries and keys turned the other way round and then
//! normalised; capped logits; relu².

use super::{activation, llama, set_mlp};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, QkNorm};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    spec.norm.weight = false;
    spec.embedding_norm = Some("model.norm");
    spec.rope.iter_mut().for_each(|rope| rope.reversed = true);
    let cap = if config.has("final_logit_softcapping") {
        config.positive("final_logit_softcapping")
    } else {
        Some(15.0)
    };
    spec.final_logit_softcapping = cap.map(|cap| cap as f32);
    set_mlp(&mut spec, activation(config, ("hidden_act", "relu2")), &["mlp.fc1"], "mlp.fc2");
    for layer in &mut spec.layers {
        layer.attention.qk_norm = Some(QkNorm { after_rope: true, ..QkNorm::PER_HEAD });
    }
    spec
}
