//! Tiny decoders and a tokenizer that can be read by eye: one token a byte, then `<s>` and `</s>`.

#![allow(dead_code, reason = "not every test file needs all of it")]

use std::fs;

use serde_json::{Map, Value, json};
use sft_data::labels::Policy;
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::tokenize::Tokenizer;
use sft_kernels::gated::Activation;
use sft_kernels::rope::RopeStyle;
use sft_kernels::{CpuOptions, DType, Device, Isa, Tensor};
use sft_model::Decoder;
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::parameter::{Parameter, Stored};
use sft_model::spec::{
    ActivationSpec, AttentionSpec, DecoderSpec, GateSpec, InputNames, LayerRope, LayerSpec, MixerSpec,
    MlpSpec, ModuleNames, NormNames, NormSpec, Part, Projection, RecurrentSpec, RopeScaling, RopeSpec,
    RuleSpec, ShortConvSpec,
};

/// Beginning of a row.
pub const BOS: u32 = 256;
/// End of an answer.
pub const EOS: u32 = 257;
const VOCABULARY: usize = 258;

/// One thread, no instruction set in particular.
pub fn device() -> Device {
    Device::cpu(CpuOptions { threads: Some(1), isa: Some(Isa::Portable) }).unwrap()
}

/// Two layers, the second with a window, grouped queries, rows of up to `longest` tokens.
pub fn spec(longest: usize) -> DecoderSpec {
    let layer = |window| LayerSpec {
        mixer: MixerSpec::Attention,
        attention: AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            inputs: InputNames::QKV,
            qkv_bias: false,
            output: "self_attn.o_proj",
            o_bias: false,
            output_gate: false,
            qk_norm: None,
            v_norm: false,
            rope: LayerRope::Global,
            scale: 1.0 / 8f32.sqrt(),
            softcap: None,
            window,
            alibi: None,
            latent: None,
            sinks: None,
            chunk: None,
            grows: false,
        },
        attention_norms: NormNames::before("input_layernorm"),
        mlp: MlpSpec {
            intermediate_size: 48,
            inputs: InputNames::GATE_UP,
            gated: true,
            activation: ActivationSpec::Fixed(Activation::Silu),
            output: "mlp.down_proj",
            bias: false,
            gate_multiplier: 1.0,
            inner_multiplier: 1.0,
        },
        has_mlp: true,
        moe: None,
        mlp_norms: NormNames::before("post_attention_layernorm"),
        parallel: false,
        residual_multiplier: 1.0,
        per_layer: None,
        output_scalar: None,
    };
    DecoderSpec {
        model_type: "llama".into(),
        new_rows: None,
        vocab_size: VOCABULARY,
        hidden_size: 32,
        layers: vec![layer(None), layer(Some(40))],
        names: ModuleNames::LLAMA,
        linear_weights: Stored::Plain,
        norm: NormSpec::rms(1e-6),
        rope: Some(RopeSpec {
            theta: 10_000.0,
            rotary_dim: 8,
            style: RopeStyle::Half,
            reversed: false,
            scaling: RopeScaling::Default,
        }),
        local_rope: None,
        query_growth: None,
        positions: None,
        embedding_norm: None,
        per_layer: None,
        embedding_projection: None,
        embedding_multiplier: 1.0,
        logit_scale: 1.0,
        final_logit_softcapping: None,
        tie_word_embeddings: false,
        head_bias: false,
        max_position_embeddings: longest,
        initializer_range: 0.2,
        moe_aux_loss_coef: 0.0,
        normalised_head: false,
        moved: &[],
    }
}

/// The same with a gated convolution and a recurrence by the delta rule before its two layers.
pub fn hybrid_spec(longest: usize) -> DecoderSpec {
    const INPUTS: &[Projection] = &[
        Projection { names: &["in_proj_qkv"], parts: &[Part::Q, Part::K, Part::V], by_key_head: false },
        Projection {
            names: &["in_proj_z", "in_proj_b", "in_proj_a"],
            parts: &[Part::Z, Part::B, Part::A],
            by_key_head: false,
        },
    ];
    let mut spec = spec(longest);
    let (input, conv, output) = ("conv.in_proj", "conv.conv", "conv.out_proj");
    let short = MixerSpec::ShortConv(ShortConvSpec { input, conv, output, taps: 3, bias: false });
    let recurrent = MixerSpec::Recurrent(RecurrentSpec {
        rule: RuleSpec::Delta,
        key_heads: 2,
        heads: 4,
        key_dim: 8,
        value_dim: 6,
        inputs: INPUTS,
        input_bias: false,
        multipliers: [1.0; 6],
        conv: "conv1d",
        conv_order: [Part::Q, Part::K, Part::V],
        taps: 4,
        conv_bias: false,
        a_log: "A_log",
        dt_bias: "dt_bias",
        gate: GateSpec::NormOfHeads("norm"),
        output: "out_proj",
        output_bias: false,
    });
    let other = |mixer| LayerSpec { mixer, ..spec.layers[0].clone() };
    let before = [other(short), other(recurrent)];
    spec.layers.splice(0..0, before);
    spec
}

/// A decoder with random weights.
pub fn random_decoder(dev: &Device, spec: &DecoderSpec) -> Decoder {
    loading::load(dev, spec, &Source::Random { seed: 5 }, &Method::Inference, DType::F32, 5).unwrap()
}

/// A decoder that says the bytes of `text` in turn, one after the other, whatever was said before, and then ends.
///
/// After any byte that is not in the text comes the text's first one. No byte may occur twice.
pub fn speaker(dev: &Device, text: &str) -> Decoder {
    let mut spec = spec(512);
    spec.hidden_size = VOCABULARY;
    let mut decoder = random_decoder(dev, &spec);
    for parameter in decoder.parameters_mut() {
        // Nothing but the embedding of the last token reaches the head.
        if parameter.name().ends_with("o_proj.weight") || parameter.name().ends_with("down_proj.weight") {
            let shape = parameter.value().shape().to_vec();
            parameter.set(sft_kernels::Tensor::zeros(sft_kernels::DType::F32, &shape).view());
        }
    }
    let first = u32::from(text.as_bytes()[0]);
    let mut next = [first; VOCABULARY];
    for pair in text.as_bytes().windows(2) {
        next[usize::from(pair[0])] = u32::from(pair[1]);
    }
    next[usize::from(text.as_bytes()[text.len() - 1])] = EOS;
    let (mut embedding, mut head) =
        (vec![0.0f32; VOCABULARY * VOCABULARY], vec![0.0f32; VOCABULARY * VOCABULARY]);
    for (token, next) in next.iter().enumerate() {
        embedding[token * VOCABULARY + token] = 1.0;
        head[*next as usize * VOCABULARY + token] = 1.0;
    }
    let weight = |name: &str, values: &[f32]| {
        Parameter::frozen(name, Tensor::from_slice(values, &[VOCABULARY, VOCABULARY]))
    };
    decoder.embed_tokens = weight("model.embed_tokens.weight", &embedding);
    decoder.lm_head = Some(weight("lm_head.weight", &head));
    decoder
}

/// A chat template: `U:` question, `A:` answer with the names of called tools, end; a system prompt in front.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content }}\n\
    {% elif m.role == 'user' %}U:{{ m.content }}\nA:{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}{{ eos_token }}{% endif %}\
    {% endfor %}";

/// Tokenizer and template together.
pub fn pipeline() -> Pipeline {
    let folder = tempfile::tempdir().unwrap();
    let vocab: Map<String, Value> =
        (0..=255_u8).map(|byte| (character(byte).to_string(), Value::from(byte))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": TEMPLATE});
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    Pipeline::new(tokenizer, None, &TemplateOptions::default(), Policy::default()).unwrap()
}

/// How byte-level vocabularies spell a byte: printable ones as they are, the others from U+0100 on.
fn character(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(256 + before).unwrap()
}
