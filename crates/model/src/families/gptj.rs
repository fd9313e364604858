//! GPT-J: parallel blocks with one layer norm, neighbouring dimensions rotated, biases in the feed-forward layers and
//! the head.

use sft_kernels::rope::RopeStyle;

use super::{Keys, activation, gpt2, layer_norms, make_parallel, set_mlp, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{DecoderSpec, InputNames, LayerRope, NormNames, RopeScaling, RopeSpec};

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = shaped(config, &Keys::GPT2);
    spec.names = gpt2::NAMES;
    layer_norms(config, &mut spec, "layer_norm_epsilon");
    let rotary_dim = config.size_or("rotary_dim", 64);
    let style = RopeStyle::Interleaved;
    let scaling = RopeScaling::Default;
    spec.rope = Some(RopeSpec { theta: 10_000.0, rotary_dim, style, reversed: false, scaling });
    set_mlp(&mut spec, activation(config, Keys::GPT2.activation), &["mlp.fc_in"], "mlp.fc_out");
    make_parallel(&mut spec);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.inputs = InputNames::Each(&["attn.q_proj", "attn.k_proj", "attn.v_proj"]);
        (attention.output, attention.rope) = ("attn.out_proj", LayerRope::Global);
        (layer.attention_norms, layer.mlp.bias) = (NormNames::before("ln_1"), true);
        if rotary_dim > attention.head_dim {
            config.problem(format!("`rotary_dim` is {rotary_dim} in heads of {}", attention.head_dim));
        }
    }
    spec.head_bias = true;
    spec
}
