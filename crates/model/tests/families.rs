//! What the families make of a `config.json`, and that backward is the derivative of forward for each of them.
//!
//! The outside answers are transformers' readings of the same keys (their numbers are compared by `sft parity`), and
//! differences of the loss.

use serde_json::{Value, json};
use sft_kernels::rope::RopeStyle;
use sft_kernels::routing::{Groups, Scoring};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::cache::KvCache;
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::spec::{DecoderSpec, InputNames, LayerRope, NormNames};
use sft_model::workspace::{Purpose, Recomputed, Workspace};
use sft_model::{Batch, families};

mod small;

/// The spec of a small model whose file has these keys besides the common ones.
fn spec(keys: Value) -> DecoderSpec {
    families::read_spec(small::folder(keys).path()).unwrap()
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
        ("cohere2", [true, true, true, false]),
        ("phi3", [true; 4]),
        ("starcoder2", [true; 4]),
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
    let gemma = spec(small::keys("gemma4_text"));
    assert_eq!(ropes(&gemma), [Local, Local, Local, Global]);
    assert_eq!((gemma.layers[0].attention.head_dim, gemma.layers[3].attention.head_dim), (4, 8));
    let listed = spec(json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 0, 1]}));
    assert_eq!(ropes(&listed), [None, Global, None, Global]);
    assert_eq!(ropes(&spec(json!({"model_type": "exaone4"}))), [Global, Global, Global, None]);
    let gemma = spec(json!({
        "model_type": "gemma3_text", "sliding_window_pattern": 2, "rope_local_base_freq": 2e4,
        "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }));
    assert_eq!(ropes(&gemma), [Local, Global, Local, Global]);
    let (global, local) = (gemma.rope.unwrap(), gemma.local_rope.unwrap());
    assert_eq!((global.theta, local.theta), (5e5, 2e4));
    assert_ne!(global.scaling, local.scaling);
    assert_eq!(ropes(&spec(json!({"model_type": "cohere2"}))), [Global, Global, Global, None]);
    for family in ["ernie4_5", "helium", "glm", "cohere", "gptj"] {
        assert_eq!(spec(json!({"model_type": family})).rope.unwrap().style, RopeStyle::Interleaved);
    }
    let rotary_dim = |family, head_dim: usize| {
        spec(json!({"model_type": family, "head_dim": head_dim})).rope.unwrap().rotary_dim
    };
    assert_eq!([rotary_dim("glm", 8), rotary_dim("gpt_neox", 16), rotary_dim("llama", 8)], [4, 4, 8]);
    let older =
        spec(json!({"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 2e4, "head_dim": 8}));
    assert_eq!(older.rope.map(|rope| (rope.theta, rope.rotary_dim)), Some((2e4, 4)));
    assert!(spec(json!({"model_type": "nanochat"})).rope.unwrap().reversed);
    let dynamic = json!({"type": "dynamic", "factor": 1.0, "alpha": 1000.0});
    let hunyuan = spec(json!({"model_type": "hunyuan_v1_dense", "head_dim": 128, "rope_scaling": dynamic}));
    // Of the released models: 10000 · 1000^(128/126).
    let theta = hunyuan.rope.unwrap().theta;
    assert!((theta / 1.115_884e7 - 1.0).abs() < 1e-6, "{theta}");
}

#[test]
fn positions_that_are_no_rotation_are_learned_or_slopes() {
    for (family, rows, offset) in [("gpt2", 64, 0), ("gpt_bigcode", 64, 0), ("opt", 66, 2)] {
        let positions = spec(json!({"model_type": family})).positions.unwrap();
        assert_eq!((positions.rows, positions.offset), (rows, offset), "{family}");
    }
    let slopes = |keys: Value| spec(keys).layers[0].attention.alibi.clone().unwrap();
    // Of the paper for 8 heads; for 12 those of 8, then every second one of 16 (transformers' `build_alibi_tensor`).
    let of_eight: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
    assert_eq!(slopes(json!({"model_type": "bloom", "n_head": 8})), of_eight);
    let of_twelve = slopes(json!({"model_type": "bloom", "n_head": 12, "hidden_size": 24}));
    assert_eq!(
        (&of_twelve[..8], of_twelve[8], of_twelve[9]),
        (&of_eight[..], 0.5f32.sqrt(), 0.5f32.powf(1.5))
    );
    // MPT takes every second one of 16 first (`build_mpt_alibi_tensor`), Falcon scales them as it does scores.
    let mpt = slopes(json!({"model_type": "mpt", "n_heads": 12, "d_model": 24}));
    assert_eq!((mpt[0], mpt[7], mpt[8]), (0.5, 0.5f32.powi(8), 0.5f32.sqrt()));
    assert_eq!(slopes(json!({"model_type": "falcon", "alibi": true}))[0], 0.125);
}

#[test]
fn a_row_beyond_the_learned_positions_is_an_error() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let spec = spec(json!({"model_type": "opt", "max_position_embeddings": 2}));
    let source = Source::Random { seed: 3 };
    let decoder = loading::load(&dev, &spec, &source, &Method::Inference, DType::F32, 3).unwrap();
    let mut work = Workspace::new(&dev, &spec, decoder.adapters(), DType::F32, 3, Purpose::Forward);
    let mut logits = |ids: &[u32]| {
        let position_ids: Vec<u32> = (0..ids.len() as u32).collect();
        let cu_seqlens = [0, ids.len() as u32];
        let batch = Batch {
            input_ids: ids,
            position_ids: &position_ids,
            cu_seqlens: &cu_seqlens,
            shared: None,
            targets: &[],
            weights: &[],
        };
        decoder.logits(&dev, batch, &mut work).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(logits(&[1, 2]), Ok(()));
    assert!(logits(&[1, 2, 3]).unwrap_err().contains("position 2, and the model has learned 2"));
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
    let glm = (
        NormNames::around("input_layernorm", "post_self_attn_layernorm"),
        NormNames::around(post_attention, "post_mlp_layernorm"),
    );
    assert_eq!(norms("glm4"), glm);
    let sums = json!({"model_type": "opt", "do_layer_norm_before": false});
    assert_eq!(spec(sums).layers[0].mlp_norms, NormNames::of_sum("final_layer_norm"));
    let new = json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 2});
    let new = &spec(new).layers[0];
    assert_eq!(
        (new.attention_norms, new.mlp_norms),
        (NormNames::before("ln_attn"), NormNames::before("ln_mlp"))
    );
}

#[test]
fn blocks_are_parallel_where_their_family_has_them_so() {
    let parallel = |keys: Value| {
        let layer = &spec(keys).layers[0];
        (layer.parallel, layer.mlp_norms.before.is_none())
    };
    for family in ["phi", "cohere", "cohere2", "gptj", "falcon"] {
        assert_eq!(parallel(json!({"model_type": family})), (true, true), "{family}");
    }
    assert_eq!(parallel(json!({"model_type": "gpt_neox"})), (true, false));
    assert_eq!(parallel(json!({"model_type": "gpt_neox", "use_parallel_residual": false})), (false, false));
    assert_eq!(parallel(json!({"model_type": "stablelm", "use_parallel_residual": true})), (true, true));
    assert_eq!(parallel(json!({"model_type": "falcon", "parallel_attn": false})), (false, false));
}

#[test]
fn fused_projections_have_as_many_groups_as_their_family_interleaves() {
    let groups = |keys: Value| match spec(keys).layers[0].attention.inputs {
        InputNames::Fused { groups, .. } => groups,
        InputNames::Each(_) => 0,
    };
    for (family, expected) in [
        ("llama", 0),
        ("phi3", 1),
        ("gpt2", 1),
        ("mpt", 1),
        ("gpt_bigcode", 1),
        ("falcon", 1),
        ("gpt_neox", 4),
        ("persimmon", 4),
        ("bloom", 4),
    ] {
        assert_eq!(groups(json!({"model_type": family})), expected, "{family}");
    }
    assert_eq!(groups(json!({"model_type": "gpt_bigcode", "multi_query": false})), 4);
    let new = json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 2});
    assert_eq!(groups(new), 2);
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
fn experts_stand_in_the_layers_and_sizes_of_their_family() {
    let sparse = |keys: Value| -> Vec<bool> { spec(keys).layers.iter().map(|l| l.moe.is_some()).collect() };
    assert_eq!(sparse(json!({"model_type": "mixtral"})), [true; 4]);
    assert_eq!(
        sparse(json!({"model_type": "deepseek_v3", "first_k_dense_replace": 3})),
        [false, false, false, true]
    );
    let mixed = json!({"model_type": "qwen3_moe", "mlp_only_layers": [3], "decoder_sparse_step": 2});
    assert_eq!(sparse(mixed), [false, true, false, false]);
    let ernie = json!({"model_type": "ernie4_5_moe", "moe_layer_start_index": 1, "moe_layer_end_index": 2});
    assert_eq!(sparse(ernie), [false, true, true, false]);
    assert_eq!(sparse(small::keys("llama4_text")), [false, true, false, true]);
    // Shared experts are one of their widths together, beside the others.
    let glm = spec(json!({"model_type": "glm4_moe", "n_shared_experts": 2}));
    let widths = |layer: usize| glm.layers[layer].dense().map(|mlp| mlp.intermediate_size);
    assert_eq!((widths(0), widths(1)), (Some(20), Some(24)));
    assert!(spec(json!({"model_type": "mixtral"})).layers[0].dense().is_none());
}

#[test]
fn routers_have_the_rule_of_their_family() {
    let rule = |keys: Value| spec(keys).layers[3].moe.as_ref().unwrap().rule;
    let mixtral = rule(json!({"model_type": "mixtral"}));
    assert_eq!((mixtral.scoring, mixtral.top_k, mixtral.normalised), (Scoring::Softmax, 2, true));
    assert!(!rule(json!({"model_type": "olmoe"})).normalised);
    let deepseek =
        json!({"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5});
    let of = |family: &str, keys: &[(&str, Value)]| {
        let mut all = deepseek.clone();
        all["model_type"] = family.into();
        keys.iter().for_each(|(key, value)| all[*key] = value.clone());
        rule(all)
    };
    let v3 = of("deepseek_v3", &[]);
    assert_eq!(
        (v3.scoring, v3.scale, v3.groups),
        (Scoring::Sigmoid, 2.5, Some(Groups { count: 4, chosen: 2, best: 2 }))
    );
    assert_eq!(of("deepseek_v2", &[]).groups, None);
    let limited = of("deepseek_v2", &[("topk_method", "group_limited_greedy".into())]);
    assert_eq!(limited.groups, Some(Groups { count: 4, chosen: 2, best: 1 }));
    let phi = rule(json!({"model_type": "phimoe"}));
    assert_eq!(phi.scoring, Scoring::SparseMixer { tolerance: 0.02 });
}

#[test]
fn experts_that_cannot_be_are_refused() {
    let problems = |keys: Value| families::read_spec(small::folder(keys).path()).unwrap_err().to_string();
    let many = problems(json!({"model_type": "mixtral", "num_experts_per_tok": 5}));
    assert!(many.contains("5 of 4 experts"), "{many}");
    let groups = problems(json!({"model_type": "deepseek_v3", "n_group": 3}));
    assert!(groups.contains("`n_group` 3"), "{groups}");
    let method = problems(json!({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}));
    assert!(method.contains("noaux_tc"), "{method}");
    let wide = problems(json!({"model_type": "deepseek_v3", "v_head_dim": 9}));
    assert!(wide.contains("wider than keys"), "{wide}");
}

/// Models of all families, and of the switches that change how a block is computed.
fn all() -> Vec<(String, Value)> {
    let falcon_h1 = |more: Value| {
        let mut keys = small::keys("falcon_h1");
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    };
    let norm = json!({"mamba_rms_norm": true, "mamba_n_groups": 1});
    let last = json!({"mamba_rms_norm": true, "mamba_n_groups": 1, "mamba_norm_before_gate": false});
    let switches = [
        json!({"model_type": "lfm2", "full_attn_idxs": [1], "conv_bias": true, "block_auto_adjust_ff_dim": false}),
        falcon_h1(norm),
        falcon_h1(last),
        json!({"model_type": "stablelm", "qk_layernorm": true, "use_parallel_residual": true}),
        json!({"model_type": "cohere", "use_qk_norm": true}),
        json!({"model_type": "phi", "qk_layernorm": true}),
        json!({"model_type": "gpt_neox", "use_parallel_residual": false}),
        json!({"model_type": "opt", "do_layer_norm_before": false, "word_embed_proj_dim": 8}),
        json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 2}),
        json!({"model_type": "deepseek_v3", "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "q_lora_rank": null}),
        json!({"model_type": "qwen3_moe", "mlp_only_layers": [1], "decoder_sparse_step": 2}),
        json!({"model_type": "falcon", "alibi": true, "parallel_attn": false, "multi_query": false}),
    ];
    let families = families::supported().map(|family| (family.to_owned(), small::keys(family)));
    families.chain(switches.map(|keys| (keys.to_string(), keys))).collect()
}

/// The same with every token going to all experts: a choice that changes makes a loss jump.
fn with_all_experts(mut spec: DecoderSpec) -> DecoderSpec {
    for moe in spec.layers.iter_mut().filter_map(|layer| layer.moe.as_mut()) {
        (moe.rule.top_k, moe.rule.groups) = (moe.experts, None);
    }
    spec
}

#[test]
fn gradients_of_every_family_are_the_slopes_of_its_loss() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    for (name, keys) in all() {
        let spec = with_all_experts(spec(keys));
        let source = Source::Random { seed: 3 };
        let mut decoder = loading::load(&dev, &spec, &source, &Method::Full, DType::F32, 3).unwrap();
        let mut work = Workspace::new(
            &dev,
            &spec,
            decoder.adapters(),
            DType::F32,
            8,
            Purpose::Training(Recomputed::Blocks(0)),
        );
        let batch = Batch {
            input_ids: &[3, 1, 4, 1, 5, 9, 2, 6],
            position_ids: &[0, 1, 2, 3, 4, 0, 1, 2],
            cu_seqlens: &[0, 5, 8],
            shared: None,
            targets: &[1, -100, 1, 5, 9, 2, 6, 5],
            weights: &[0.5, 9.0, 2.0, 1.0, 0.25, 1.5, 1.0, 0.75],
        };
        decoder.loss_and_gradients(&dev, batch, 1.0, None, &mut work).unwrap();
        for i in 0..decoder.trained_mut().len() {
            let parameter = &decoder.trained_mut()[i];
            let (weight, gradient) =
                (parameter.name().to_owned(), parameter.gradient().unwrap().to_f32_vec());
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            let mut shifted = |by: f32| {
                let mut parameters = decoder.trained_mut();
                let mut values = parameters[i].value().to_f32_vec();
                values.iter_mut().zip(&gradient).for_each(|(w, g)| *w += by * g / norm);
                let shape = parameters[i].value().shape().to_vec();
                parameters[i].set(sft_kernels::View::of(&values, &shape));
                decoder.evaluate(&dev, batch, &mut work).unwrap().nll
            };
            // Along the gradient the slope is its length; where that is long the loss bends soon.
            let h = 4e-3 / (1.0 + norm / 8.0);
            let above = shifted(h);
            let slope = (above - shifted(-2.0 * h)) / f64::from(2.0 * h);
            shifted(h);
            let tolerance = 0.02 * f64::from(norm) + 2e-3;
            assert!((slope - f64::from(norm)).abs() < tolerance, "{name} {weight}: {slope} and not {norm}");
        }
    }
}

#[test]
fn what_is_computed_again_gives_the_same_gradients() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    for (name, keys) in all() {
        let spec = spec(keys);
        let choices =
            [Recomputed::Least, Recomputed::Blocks(0), Recomputed::Blocks(2), Recomputed::Blocks(usize::MAX)];
        let [kept, passes, some, all] = choices.map(|recomputed| {
            let source = Source::Random { seed: 3 };
            let mut decoder = loading::load(&dev, &spec, &source, &Method::Full, DType::F32, 3).unwrap();
            let purpose = Purpose::Training(recomputed);
            let mut work = Workspace::new(&dev, &spec, decoder.adapters(), DType::F32, 5, purpose);
            let batch = Batch {
                input_ids: &[3, 1, 4, 1, 5],
                position_ids: &[0, 1, 2, 3, 4],
                cu_seqlens: &[0, 5],
                shared: None,
                targets: &[1, -100, 1, 5, 9],
                weights: &[],
            };
            decoder.loss_and_gradients(&dev, batch, 1.0, None, &mut work).unwrap();
            decoder.trained_mut().iter().map(|p| p.gradient().unwrap().to_f32_vec()).collect::<Vec<_>>()
        });
        assert!(kept == passes && kept == some && kept == all, "{name}");
    }
}

#[test]
fn rows_that_lie_side_by_side_do_not_see_each_other() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let ids = [3, 1, 4, 1, 5, 9, 2];
    for (name, keys) in all() {
        let spec = spec(keys);
        let source = Source::Random { seed: 3 };
        let decoder = loading::load(&dev, &spec, &source, &Method::Inference, DType::F32, 3).unwrap();
        let mut work = Workspace::new(&dev, &spec, decoder.adapters(), DType::F32, 7, Purpose::Forward);
        let mut logits = |range: std::ops::Range<usize>, cu_seqlens: &[u32]| {
            let position = |i: usize| {
                let i = i as u32;
                i - cu_seqlens.iter().copied().filter(|start| *start <= i).max().unwrap()
            };
            let position_ids: Vec<u32> = (0..range.len()).map(position).collect();
            let batch = Batch {
                input_ids: &ids[range],
                position_ids: &position_ids,
                cu_seqlens,
                shared: None,
                targets: &[],
                weights: &[],
            };
            decoder.logits(&dev, batch, &mut work).unwrap().to_f32_vec()
        };
        let together = logits(0..7, &[0, 4, 7]);
        compare(&name, &together[..4 * 24], &logits(0..4, &[0, 4]));
        compare(&name, &together[4 * 24..], &logits(4..7, &[0, 3]));
    }
}

#[test]
fn mixers_stand_where_their_family_has_them() {
    let attends = |keys: Value| -> Vec<bool> {
        spec(keys).layers.iter().map(|layer| layer.attends().is_some()).collect()
    };
    assert_eq!(attends(small::keys("lfm2")), [false, true, false, true]);
    assert_eq!(attends(json!({"model_type": "lfm2", "full_attn_idxs": [2]})), [false, false, true, false]);
    let qwen = json!({"model_type": "qwen3_5_text", "head_dim": 8});
    assert_eq!(attends(qwen), [false, false, false, true]);
    assert_eq!(attends(small::keys("falcon_h1")), [true; 4]);
    assert!(
        spec(small::keys("mamba2")).layers.iter().all(|layer| !layer.has_mlp && layer.attends().is_none())
    );
    // LFM2-1.2B: two thirds of 12288, up to the next multiple of 256.
    let lfm2 = json!({"model_type": "lfm2", "block_ff_dim": 12288, "intermediate_size": 1});
    assert_eq!(spec(lfm2).layers[0].mlp.intermediate_size, 8192);
    let limited = json!({"model_type": "mamba2", "num_heads": 4, "time_step_limit": [0.0, 0.1]});
    let error = families::read_spec(small::folder(limited).path()).unwrap_err().to_string();
    assert!(error.contains("`time_step_limit` is [0.0,0.1] and not supported"), "{error}");
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_row() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let ids = [3, 1, 4, 1, 5, 9, 2];
    for (name, keys) in all() {
        let spec = spec(keys);
        let source = Source::Random { seed: 3 };
        let decoder = loading::load(&dev, &spec, &source, &Method::Inference, DType::F32, 3).unwrap();
        let mut work = Workspace::new(&dev, &spec, decoder.adapters(), DType::F32, 7, Purpose::Forward);
        let batch = Batch {
            input_ids: &ids,
            position_ids: &[0, 1, 2, 3, 4, 5, 6],
            cu_seqlens: &[0, 7],
            shared: None,
            targets: &[],
            weights: &[],
        };
        let whole = decoder.logits(&dev, batch, &mut work).unwrap().to_f32_vec();
        let logits_of = |tokens: usize| &whole[(tokens - 1) * 24..tokens * 24];
        // The same row three times, at other places in each step, and not in every step.
        let mut caches = [(); 3].map(|()| KvCache::new(&dev, &spec, DType::F32, 7));
        let mut ends = [0; 3];
        for steps in [[4, 0, 2], [1, 1, 0], [1, 3, 1], [0, 1, 1], [1, 2, 3]] {
            let rows: Vec<&[u32]> = ends.iter().zip(steps).map(|(end, n)| &ids[*end..end + n]).collect();
            let logits = decoder.extend(&dev, &rows, &mut caches, &mut work).unwrap().to_f32_vec();
            ends.iter_mut().zip(steps).for_each(|(end, n)| *end += n);
            let stepped = ends.iter().zip(steps).filter(|(_, n)| *n > 0);
            for ((end, _), found) in stepped.zip(logits.chunks(24)) {
                compare(&name, found, logits_of(*end));
            }
        }
        assert_eq!(ends, [7; 3]);
    }
}

fn compare(name: &str, found: &[f32], expected: &[f32]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 2e-5 * expected.abs().max(1.0),
            "{name}: {found} and not {expected}"
        );
    }
}
