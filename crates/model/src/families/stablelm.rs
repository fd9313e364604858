//! StableLM: Llama with layer norms and partly rotated heads; the 12B has parallel blocks and a norm for each head.

use super::{layer_norms, llama_shaped, make_parallel, rotate_part};
use crate::hf_config::HfConfig;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, NormSpec, QkNorm, QkScope};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    layer_norms(config, &mut spec, "layer_norm_eps");
    rotate_part(config, &mut spec, 0.25);
    let bias = config.flag_or("use_qkv_bias", false);
    let names = ["self_attn.q_layernorm.norms.*", "self_attn.k_layernorm.norms.*"];
    let norm = NormSpec { bias: false, ..spec.norm };
    let qk_norm = QkNorm { norm: Some(norm), scope: QkScope::EachHead(Stored::Rows), ..QkNorm::named(names) };
    let has_norm = config.flag_or("qk_layernorm", false);
    for layer in &mut spec.layers {
        layer.attention.qkv_bias = bias;
        layer.attention.qk_norm = has_norm.then_some(qk_norm);
    }
    if config.flag_or("use_parallel_residual", false) {
        make_parallel(&mut spec);
    }
    spec
}
