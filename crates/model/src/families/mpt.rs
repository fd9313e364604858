//! MPT: ALiBi, queries, keys and values fused, layer norms without biases, no bias anywhere.

use serde_json::Value;

use super::{Keys, refuse_if, set_fused, set_mlp, shaped};
use crate::hf_config::HfConfig;
use crate::spec::{ActivationSpec, DecoderSpec, ModuleNames, NormNames, NormSpec};
use sft_kernels::gated::Activation;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let keys = Keys {
        hidden_size: "d_model",
        layers: "n_layers",
        heads: "n_heads",
        // transformers' model is four times as wide, whatever `expansion_ratio` says.
        intermediate_size: "",
        positions: "max_seq_len",
        ..Keys::GPT2
    };
    let mut spec = shaped(config, &keys);
    spec.names = ModuleNames {
        embed_tokens: "transformer.wte",
        layers: "transformer.blocks",
        norm: Some("transformer.norm_f"),
        lm_head: "lm_head",
    };
    let eps = config.number_or("layer_norm_epsilon", 1e-5) as f32;
    spec.norm = NormSpec { bias: false, ..NormSpec::layer(eps) };
    set_fused(&mut spec, "attn.Wqkv", 1);
    set_mlp(&mut spec, ActivationSpec::Fixed(Activation::Gelu), &["ffn.up_proj"], "ffn.down_proj");
    let number = |key: &str| config.get("attn_config").and_then(|attention| attention.get(key)?.as_f64());
    let largest = number("alibi_bias_max").unwrap_or(8.0);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.scale = number("softmax_scale").map_or(attention.scale, |scale| scale as f32);
        attention.alibi = Some(slopes(attention.heads, largest));
        attention.output = "attn.out_proj";
        (layer.attention_norms, layer.mlp_norms) = (NormNames::before("norm_1"), NormNames::before("norm_2"));
    }
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    let clips =
        config.get("attn_config").and_then(|a| a.get("clip_qkv")).is_some_and(|clip| *clip != Value::Null);
    refuse_if(config, clips, "attn_config");
    spec
}

/// Its own order of slopes: powers of 2^(−largest/n) for the next larger power of two n, every second one first.
fn slopes(heads: usize, largest: f64) -> Vec<f32> {
    let n = heads.next_power_of_two();
    let slope = |power: usize| (-largest * power as f64 / n as f64).exp2() as f32;
    if n == heads {
        return (1..=n).map(slope).collect();
    }
    (2..=n).step_by(2).chain((1..=n).step_by(2)).map(slope).take(heads).collect()
}
