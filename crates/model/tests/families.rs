//! What the families make of a `config.json`, and that backward is the derivative of forward for each of them.
//!
//! The outside answers are transformers' readings of the same keys (their numbers are compared by `sft parity`), and
//! differences of the loss.

use serde_json::{Value, json};
use sft_kernels::rope::RopeStyle;
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::spec::{DecoderSpec, LayerRope, NormNames};
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, families};

/// The spec of a small model whose file has these keys besides the common ones.
fn spec(keys: Value) -> DecoderSpec {
    let mut config = json!({
        "vocab_size": 24, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "sliding_window": 3,
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    families::read_spec(folder.path()).unwrap()
}

fn windows(spec: &DecoderSpec) -> Vec<bool> {
    spec.layers.iter().map(|layer| layer.attention.window.is_some()).collect()
}

fn ropes(spec: &DecoderSpec) -> Vec<LayerRope> {
    spec.layers.iter().map(|layer| layer.attention.rope).collect()
}

#[test]
fn layers_slide_by_the_rule_of_their_family() {
    let all = [
        ("llama", [false; 4]),
        ("mistral", [true; 4]),
        ("ministral", [true; 4]),
        ("cwm", [false, true, true, true]),
        ("olmo3", [true, true, true, false]),
        ("exaone4", [true, true, true, false]),
        ("gemma2", [true, false, true, false]),
        ("vaultgemma", [true, false, true, false]),
        ("gemma3_text", [true; 4]),
    ];
    for (family, expected) in all {
        assert_eq!(windows(&spec(json!({"model_type": family}))), expected, "{family}");
    }
    let types = ["full_attention", "sliding_attention", "full_attention", "full_attention"];
    let found = spec(json!({"model_type": "gemma2", "layer_types": types}));
    assert_eq!(windows(&found), [false, true, false, false]);
    let found = spec(json!({"model_type": "exaone4", "sliding_window_pattern": "LG"}));
    assert_eq!(windows(&found), [true, false, true, false]);
}

#[test]
fn layers_know_the_positions_that_their_family_gives_them() {
    use LayerRope::{Global, Local, None};
    assert_eq!(ropes(&spec(json!({"model_type": "smollm3"}))), [Global, Global, Global, None]);
    let listed = spec(json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 0, 1]}));
    assert_eq!(ropes(&listed), [None, Global, None, Global]);
    assert_eq!(ropes(&spec(json!({"model_type": "exaone4"}))), [Global, Global, Global, None]);
    let gemma = spec(json!({
        "model_type": "gemma3_text", "sliding_window_pattern": 2, "rope_local_base_freq": 2e4,
        "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }));
    assert_eq!(ropes(&gemma), [Local, Global, Local, Global]);
    let local = gemma.local_rope.unwrap();
    assert_eq!((gemma.rope.theta, local.theta), (5e5, 2e4));
    assert_ne!(gemma.rope.scaling, local.scaling);
    for family in ["ernie4_5", "helium"] {
        assert_eq!(spec(json!({"model_type": family})).rope.style, RopeStyle::Interleaved);
    }
    let dynamic = json!({"type": "dynamic", "factor": 1.0, "alpha": 1000.0});
    let hunyuan = spec(json!({"model_type": "hunyuan_v1_dense", "head_dim": 128, "rope_scaling": dynamic}));
    // Of the released models: 10000 · 1000^(128/126).
    assert!((hunyuan.rope.theta / 1.115_884e7 - 1.0).abs() < 1e-6, "{}", hunyuan.rope.theta);
}

#[test]
fn norms_stand_where_their_family_has_them() {
    let norms = |family: &str| {
        let spec = spec(json!({"model_type": family}));
        (spec.layers[0].attention_norms, spec.layers[0].mlp_norms)
    };
    let (post_attention, post_mlp) = ("post_attention_layernorm", "post_feedforward_layernorm");
    let before = NormNames::before("input_layernorm");
    assert_eq!(norms("llama"), (before, NormNames::before(post_attention)));
    assert_eq!(norms("vaultgemma"), (before, NormNames::before("pre_feedforward_layernorm")));
    for family in ["olmo2", "olmo3", "exaone4"] {
        assert_eq!(norms(family), (NormNames::after(post_attention), NormNames::after(post_mlp)));
    }
    let gemma = (
        NormNames::around("input_layernorm", post_attention),
        NormNames::around("pre_feedforward_layernorm", post_mlp),
    );
    assert_eq!((norms("gemma2"), norms("gemma3_text")), (gemma, gemma));
}

#[test]
fn multipliers_and_caps_are_those_of_the_file() {
    let granite = spec(json!({
        "model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0,
        "attention_multiplier": 0.25, "residual_multiplier": 0.5,
    }));
    let layer = &granite.layers[0];
    assert_eq!((granite.embedding_multiplier, granite.logit_scale), (12.0, 0.125));
    assert_eq!((layer.attention.scale, layer.residual_multiplier), (0.25, 0.5));
    let gemma =
        spec(json!({"model_type": "gemma2", "query_pre_attn_scalar": 64, "final_logit_softcapping": null}));
    let attention = &gemma.layers[0].attention;
    assert_eq!((gemma.embedding_multiplier, gemma.norm.offset), (4.0, 1.0));
    assert_eq!(
        (attention.scale, attention.softcap, gemma.final_logit_softcapping),
        (0.125, Some(50.0), None)
    );
    let arcee = spec(json!({"model_type": "arcee", "hidden_act": "relu2"}));
    assert!(!arcee.layers[0].mlp.gated);
    let seed = spec(json!({"model_type": "seed_oss"}));
    assert!(seed.layers[0].attention.qkv_bias && !seed.layers[0].attention.o_bias);
}

#[test]
fn gradients_of_every_family_are_the_slopes_of_its_loss() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    for family in families::supported() {
        let spec = spec(
            json!({"model_type": family, "hidden_act": activation(family), "final_logit_softcapping": 3.0}),
        );
        let source = Source::Random { seed: 3 };
        let mut decoder = loading::load(&dev, &spec, &source, &Method::Full, DType::F32, 3).unwrap();
        let mut work =
            Workspace::new(&spec, decoder.adapters(), DType::F32, 8, Purpose::Training { recompute: false });
        let batch = Batch {
            input_ids: &[3, 1, 4, 1, 5, 9, 2, 6],
            position_ids: &[0, 1, 2, 3, 4, 0, 1, 2],
            cu_seqlens: &[0, 5, 8],
            targets: &[1, -100, 1, 5, 9, 2, 6, 5],
        };
        decoder.loss_and_gradients(&dev, batch, 1.0, None, &mut work).unwrap();
        for i in 0..decoder.parameters_mut().len() {
            let parameter = &decoder.parameters_mut()[i];
            let (name, gradient) = (parameter.name().to_owned(), parameter.gradient().unwrap().to_f32_vec());
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            let mut shifted = |by: f32| {
                let mut parameters = decoder.parameters_mut();
                let values = parameters[i].value_mut();
                values.as_mut_slice::<f32>().iter_mut().zip(&gradient).for_each(|(w, g)| *w += by * g / norm);
                decoder.evaluate(&dev, batch, &mut work).unwrap().nll
            };
            // Along the gradient the slope is its length.
            let (h, above) = (4e-3, shifted(4e-3));
            let slope = (above - shifted(-2.0 * h)) / f64::from(2.0 * h);
            shifted(h);
            let tolerance = 0.02 * f64::from(norm) + 2e-3;
            assert!((slope - f64::from(norm)).abs() < tolerance, "{family} {name}: {slope} and not {norm}");
        }
    }
}

/// Smooth ones, but for the family that has another.
fn activation(family: &str) -> &'static str {
    if family == "arcee" { "relu2" } else { "silu" }
}
