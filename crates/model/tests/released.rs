//! Models as they are released: families with code of their own, and the text part of models with more parts.
//!
//! transformers has no class for these families. The outside answer is a family that it has (`sft parity` compares
//! those): the same weights, laid out as each of the two publishes them, give the same logits.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sft_kernels::{CpuOptions, DType, Device, Tensor};
use sft_model::loading::{self, Source};
use sft_model::method::{LoraInit, LoraOptions, Method, Targets};
use sft_model::saving::{self, SaveOptions};
use sft_model::weights::{self, WeightFiles};
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder, ModelError, families};

mod small;

/// Shape and values by name.
type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

const SAVE: SaveOptions = SaveOptions { dtype: None, shard_bytes: SaveOptions::GB, num_expand: 0 };

fn device() -> Device {
    Device::cpu(CpuOptions { threads: Some(1), isa: None }).unwrap()
}

fn read(folder: &Path) -> Decoder {
    Decoder::read(&device(), folder, &Method::Inference, DType::F32, 0).unwrap()
}

/// A folder with a small model, and its weights.
fn known(keys: Value) -> (tempfile::TempDir, Weights) {
    let folder = small::folder(keys);
    let spec = families::read_spec(folder.path()).unwrap();
    let source = Source::Random { seed: 5 };
    let decoder = loading::load(&device(), &spec, &source, &Method::Inference, DType::F32, 0).unwrap();
    saving::save(&decoder, folder.path(), folder.path(), SAVE).unwrap();
    let files = WeightFiles::open_model(folder.path()).unwrap();
    let tensor = |name: &str| {
        let shape = files.shape(name).unwrap().to_vec();
        let values = files.tensor(name, &shape).unwrap().to_f32_vec();
        // Fresh norms are 1 and biases 0, and would hide where they are.
        let seed = name.len() as f32;
        let vary =
            |(i, x): (usize, f32)| if shape.len() == 1 { x + 0.3 * (seed + i as f32).sin() } else { x };
        (name.to_owned(), (shape.clone(), values.into_iter().enumerate().map(vary).collect()))
    };
    let weights = files.names().into_iter().map(tensor).collect();
    write(folder.path(), &weights);
    (folder, weights)
}

fn write(folder: &Path, weights: &Weights) {
    let tensors: Vec<_> =
        weights.iter().map(|(name, (shape, values))| (name, Tensor::from_slice(values, shape))).collect();
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    weights::write_file(&folder.join("model.safetensors"), tensors).unwrap();
}

/// A folder with these weights for a model of these keys.
fn laid_out(keys: Value, weights: &Weights) -> tempfile::TempDir {
    let folder = small::folder(keys);
    write(folder.path(), weights);
    folder
}

fn logits(folder: &Path) -> Vec<f32> {
    let (dev, decoder) = (device(), read(folder));
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), DType::F32, 7, Purpose::Forward);
    let batch = Batch {
        input_ids: &[3, 1, 4, 1, 5, 9, 2],
        position_ids: &[0, 1, 2, 3, 4, 5, 6],
        cu_seqlens: &[0, 7],
        shared: None,
        targets: &[],
        weights: &[],
    };
    decoder.logits(&dev, batch, &mut work).unwrap().to_f32_vec()
}

fn assert_equal(name: &str, found: &Path, expected: &Path) {
    let (found, expected) = (logits(found), logits(expected));
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(largest > 0.1, "{name}: logits of at most {largest} prove nothing");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 2e-5 * largest.max(1.0), "{name}: {found} and not {expected}");
    }
}

/// The same under other names: the first pair whose first part stands in a name.
fn renamed(weights: &Weights, pairs: &[(&str, &str)]) -> Weights {
    let rename =
        |name: &String| {
            pairs.iter().fold(name.clone(), |name, (from, to)| {
                if name.contains(from) { name.replacen(from, to, 1) } else { name }
            })
        };
    weights.iter().map(|(name, weight)| (rename(name), weight.clone())).collect()
}

/// Puts queries, keys and values (4 heads, and `groups` · `kv` of keys and values, of width 4) into one weight: in each
/// of the groups one after the other.
fn fuse(weights: &mut Weights, (attention, fused): (&str, &str), groups: usize) {
    for (layer, ending) in (0..4).flat_map(|layer| [(layer, "weight"), (layer, "bias")]) {
        let name = |part: &str| format!("model.layers.{layer}.{attention}.{part}.{ending}");
        let parts: Vec<_> =
            ["q_proj", "k_proj", "v_proj"].iter().filter_map(|part| weights.remove(&name(part))).collect();
        if parts.is_empty() {
            continue;
        }
        let rows = parts.iter().map(|(shape, _)| shape[0]).sum::<usize>();
        let shape = [&[rows], &parts[0].0[1..]].concat();
        let of_group = |group: usize| {
            parts.iter().flat_map(move |(_, values)| {
                let size = values.len() / groups;
                values[group * size..(group + 1) * size].iter().copied()
            })
        };
        weights.insert(name(fused), (shape, (0..groups).flat_map(of_group).collect()));
    }
}

#[test]
fn internlm2_is_llama_in_another_layout() {
    let keys = json!({"model_type": "llama", "rope_theta": 1e6});
    let (llama, mut weights) = known(keys);
    fuse(&mut weights, ("self_attn", "wqkv"), 2);
    let weights = renamed(
        &weights,
        &[
            ("model.embed_tokens", "model.tok_embeddings"),
            ("lm_head", "output"),
            ("self_attn.o_proj", "attention.wo"),
            ("self_attn.", "attention."),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ],
    );
    let folder = laid_out(json!({"model_type": "internlm2", "rope_theta": 1e6, "bias": false}), &weights);
    assert_equal("internlm2", folder.path(), llama.path());

    let inside = weights.iter().map(|(name, weight)| (format!("language_model.{name}"), weight.clone()));
    let mut inside: Weights = inside.collect();
    inside.insert("vision_model.embeddings.class_embedding".into(), (vec![3], vec![1.0; 3]));
    let own = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let own: Value = serde_json::from_str(&own).unwrap();
    let chat = tempfile::tempdir().unwrap();
    let config =
        json!({"model_type": "internvl_chat", "llm_config": own, "vision_config": {"hidden_size": 3}});
    std::fs::write(chat.path().join("config.json"), config.to_string()).unwrap();
    write(chat.path(), &inside);
    assert_equal("internvl_chat", chat.path(), llama.path());
}

#[test]
fn internlm3_is_qwen2_by_its_switch() {
    let (qwen2, weights) = known(json!({"model_type": "qwen2"}));
    let folder = laid_out(json!({"model_type": "internlm3", "qkv_bias": true}), &weights);
    assert_equal("internlm3", folder.path(), qwen2.path());
    let error = families::read_spec(small::folder(json!({"model_type": "internlm3", "bias": true})).path());
    assert!(error.unwrap_err().to_string().contains("`bias` is true and not supported"));
}

#[test]
fn chatglm_is_glm_in_another_layout() {
    let (glm, mut weights) =
        known(json!({"model_type": "glm", "attention_bias": true, "rope_theta": 5e6, "rms_norm_eps": 1e-5}));
    fuse(&mut weights, ("self_attn", "query_key_value"), 1);
    let weights = renamed(
        &weights,
        &[
            ("model.embed_tokens", "transformer.embedding.word_embeddings"),
            ("model.norm", "transformer.encoder.final_layernorm"),
            ("model.layers", "transformer.encoder.layers"),
            ("lm_head", "transformer.output_layer"),
            ("self_attn.o_proj", "self_attn.dense"),
            ("self_attn.", "self_attention."),
            ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
            ("mlp.down_proj", "mlp.dense_4h_to_h"),
        ],
    );
    let mut keys = small::keys("chatglm");
    keys["rope_ratio"] = 500.into();
    assert_equal("chatglm", laid_out(keys.clone(), &weights).path(), glm.path());
    keys["_name_or_path"] = "THUDM/chatglm2-6b-32k".into();
    let error = families::read_spec(small::folder(keys).path()).unwrap_err().to_string();
    assert!(error.contains("`rope_ratio` is 500 and not supported"), "{error}");
}

#[test]
fn qwen_is_qwen2_in_another_layout() {
    let (qwen2, mut weights) =
        known(json!({"model_type": "qwen2", "num_key_value_heads": 4, "rope_theta": 5e5}));
    fuse(&mut weights, ("self_attn", "c_attn"), 1);
    let weights = renamed(
        &weights,
        &[
            ("model.embed_tokens", "transformer.wte"),
            ("model.norm", "transformer.ln_f"),
            ("model.layers", "transformer.h"),
            ("self_attn.o_proj", "attn.c_proj"),
            ("self_attn.", "attn."),
            ("mlp.gate_proj", "mlp.w2"),
            ("mlp.up_proj", "mlp.w1"),
            ("mlp.down_proj", "mlp.c_proj"),
            ("input_layernorm", "ln_1"),
            ("post_attention_layernorm", "ln_2"),
        ],
    );
    let keys =
        json!({"model_type": "qwen", "intermediate_size": 40, "rotary_emb_base": 5e5, "seq_length": 32});
    let folder = laid_out(keys, &weights);
    assert_equal("qwen", folder.path(), qwen2.path());
    // What its code adds to longer rows begins there.
    assert_eq!(read(folder.path()).spec.max_position_embeddings, 32);
}

#[test]
fn baichuan_is_llama_with_one_layer_for_queries_keys_and_values() {
    let (llama, mut weights) = known(json!({"model_type": "llama", "num_key_value_heads": 4}));
    let plain = weights.clone();
    fuse(&mut weights, ("self_attn", "W_pack"), 1);
    let first = laid_out(small::keys("baichuan"), &weights);
    assert_equal("baichuan", first.path(), llama.path());

    // The second version's head, in the model that it is compared with divided by the length of its rows before.
    let mut divided = plain;
    for row in divided.get_mut("lm_head.weight").unwrap().1.chunks_mut(16) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= length);
    }
    write(llama.path(), &divided);
    let second = laid_out(json!({"model_type": "baichuan"}), &weights);
    assert_equal("baichuan 2", second.path(), llama.path());

    let larger = json!({"model_type": "baichuan", "model_max_length": 32, "max_position_embeddings": null});
    let folder = small::folder(larger);
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let text = text.replace("\"max_position_embeddings\":null,", "");
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    let spec = families::read_spec(folder.path()).unwrap();
    assert!(spec.rope.is_none() && spec.max_position_embeddings == 32);
    // Slopes of the paper for four heads.
    assert_eq!(spec.layers[3].attention.alibi, Some(vec![0.25, 0.0625, 0.015625, 0.00390625]));
}

#[test]
fn a_head_with_rows_of_length_one_is_never_trained() {
    let (_, mut weights) = known(json!({"model_type": "llama", "num_key_value_heads": 4}));
    fuse(&mut weights, ("self_attn", "W_pack"), 1);
    let folder = laid_out(json!({"model_type": "baichuan"}), &weights);
    let load = |method: &Method| Decoder::read(&device(), folder.path(), method, DType::F32, 0);
    let lora = |whole: &[&str]| {
        Method::Lora(LoraOptions {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            targets: Targets::All,
            target_parameters: Vec::new(),
            use_rslora: false,
            use_dora: false,
            init: LoraInit::Random,
            modules_to_save: whole.iter().map(|name| (*name).to_owned()).collect(),
        })
    };
    for method in [Method::Full, lora(&["lm_head"])] {
        let error = load(&method).unwrap_err().to_string();
        assert!(error.contains("such a head is not trained"), "{error}");
    }
    load(&lora(&[])).unwrap();
}

#[test]
fn minicpm_is_granite_by_other_keys() {
    let multipliers = json!({
        "model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.5,
        "residual_multiplier": 0.7, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    });
    let (granite, weights) = known(multipliers);
    // 1.4 / √4 layers, and 16 / 8.
    assert_equal("minicpm", laid_out(small::keys("minicpm"), &weights).path(), granite.path());
    let sparse = json!({"model_type": "minicpm", "num_experts": 0, "sparse_config": {"dense_len": 8192}});
    let error = families::read_spec(small::folder(sparse).path()).unwrap_err().to_string();
    assert!(error.contains("`sparse_config`"), "{error}");
}

#[test]
fn minicpm3_is_deepseek_without_experts() {
    let longrope = json!({
        "type": "longrope", "short_factor": [1.1], "long_factor": [1.1], "original_max_position_embeddings": 64,
    });
    let keys = json!({
        "rope_scaling": longrope,
        "model_type": "deepseek_v3", "first_k_dense_replace": 4, "v_head_dim": 4, "rope_interleave": false,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    });
    let (deepseek, weights) = known(keys);
    // Multipliers that come to 1.
    let keys = json!({
        "model_type": "minicpm3", "scale_emb": 1, "dim_model_base": 16, "scale_depth": 2.0,
        "rope_scaling": longrope,
    });
    assert_equal("minicpm3", laid_out(keys.clone(), &weights).path(), deepseek.path());
    // The released file names its class alone.
    let mut named = keys;
    named["model_type"] = Value::Null;
    named["architectures"] = json!(["MiniCPM3ForCausalLM"]);
    assert_equal("minicpm3 by its class", laid_out(named, &weights).path(), deepseek.path());
}

/// The `config.json` of a small model.
fn config(keys: Value) -> Value {
    let folder = small::folder(keys);
    serde_json::from_str(&std::fs::read_to_string(folder.path().join("config.json")).unwrap()).unwrap()
}

/// Checks that a model of this configuration with `inner`'s weights under `to` computes what that computes, and that it
/// is written as a text model.
fn assert_text_part(outer: Value, inner: Value, (from, to): (&str, &str)) {
    let name = outer["model_type"].as_str().unwrap().to_owned();
    let (alone, weights) = known(inner);
    let moved = |name: &String| match name.strip_prefix(from) {
        Some(rest) => format!("{to}{rest}"),
        None => name.clone(),
    };
    let mut weights: Weights = weights.iter().map(|(name, weight)| (moved(name), weight.clone())).collect();
    weights.insert("visual.patch_embed.proj.weight".into(), (vec![2, 2], vec![f32::NAN; 4]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), outer.to_string()).unwrap();
    write(folder.path(), &weights);
    assert_equal(&name, folder.path(), alone.path());
    let spec = families::read_spec(folder.path()).unwrap();
    assert_eq!(WeightFiles::open_model(folder.path()).unwrap().of_other_parts(&spec), 1, "{name}");

    let saved = tempfile::tempdir().unwrap();
    saving::save(&read(folder.path()), folder.path(), saved.path(), SAVE).unwrap();
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(saved.path().join("config.json")).unwrap()).unwrap();
    assert!(config.get("vision_config").is_none(), "{config}");
    assert!(families::supported().any(|family| family == config["model_type"]), "{config}");
    assert_equal(&name, saved.path(), alone.path());
}

#[test]
fn the_text_part_of_a_larger_model_is_the_model_that_it_is_alone() {
    let of = |model_type: &str, mut keys: Value| {
        keys["model_type"] = model_type.into();
        keys["vision_config"] = json!({"hidden_size": 2});
        keys
    };
    let text = |keys: Value| json!({"text_config": config(keys)});
    let mrope = json!({"type": "mrope", "mrope_section": [1, 1, 0]});
    let (plain, inside) = (("", ""), ("model.", "model.language_model."));

    let qwen2 = json!({"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": true});
    let mut flat = config(qwen2.clone());
    flat["rope_scaling"] = mrope;
    assert_text_part(of("qwen2_vl", flat.clone()), qwen2.clone(), plain);
    assert_text_part(of("qwen2_5_vl", flat), qwen2.clone(), plain);
    let named = |name: &str, keys: &Value| {
        let mut keys = keys.clone();
        keys["model_type"] = name.into();
        config(keys)
    };
    assert_text_part(
        of("qwen2_5_vl", json!({"text_config": named("qwen2_5_vl_text", &qwen2)})),
        qwen2.clone(),
        inside,
    );
    let thinker = json!({"thinker_config": {"text_config": named("qwen2_5_omni_text", &qwen2)}});
    assert_text_part(of("qwen2_5_omni", thinker), qwen2.clone(), ("", "thinker."));
    let mut minicpmv = config(qwen2.clone());
    minicpmv["version"] = 2.6.into();
    assert_text_part(of("minicpmv", minicpmv), qwen2.clone(), ("", "llm."));
    assert_text_part(of("qwen2_audio", text(qwen2.clone())), qwen2, ("", "language_model."));

    let qwen3 = json!({"model_type": "qwen3"});
    assert_text_part(of("qwen3_vl", json!({"text_config": named("qwen3_vl_text", &qwen3)})), qwen3, inside);
    let qwen3_5 = small::keys("qwen3_5_text");
    assert_text_part(of("qwen3_5", text(qwen3_5.clone())), qwen3_5, inside);
    let gemma = json!({
        "model_type": "gemma3_text", "head_dim": 4, "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": null, "tie_word_embeddings": true,
    });
    assert_text_part(of("gemma3", text(gemma.clone())), gemma.clone(), ("", "language_model."));
    assert_text_part(of("gemma3", text(gemma.clone())), gemma, inside);
    let glm = json!({"model_type": "glm4", "partial_rotary_factor": 0.5});
    assert_text_part(of("glm4v", config(glm.clone())), glm, inside);
}

#[test]
fn what_a_wrapper_leaves_out_is_the_default_of_its_class() {
    let folder = tempfile::tempdir().unwrap();
    let text = json!({
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    });
    let config = json!({"model_type": "gemma3", "text_config": text, "vision_config": {}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let spec = families::read_spec(folder.path()).unwrap();
    let attention = &spec.layers[0].attention;
    assert_eq!(
        (attention.heads, attention.kv_heads, attention.head_dim, spec.vocab_size),
        (8, 4, 256, 262_208)
    );
    assert!(spec.tie_word_embeddings);
    // As a model of its own it is of this class, by which other programs know it.
    let alone = families::text_config(folder.path()).unwrap();
    assert_eq!(alone["architectures"], json!(["Gemma3ForCausalLM"]));
}

#[test]
fn the_whole_model_says_whether_the_head_of_its_text_part_is_the_embedding() {
    for tied in [true, false] {
        let text = json!({"model_type": "mistral", "tie_word_embeddings": !tied});
        let config = json!({"model_type": "mistral3", "text_config": text, "tie_word_embeddings": tied});
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        assert_eq!(families::text_config(folder.path()).unwrap()["tie_word_embeddings"], tied);
    }
}

#[test]
fn what_is_not_supported_is_refused_with_its_reason() {
    let error = |keys: Value| families::read_spec(small::folder(keys).path()).unwrap_err();
    let unknown = error(json!({"model_type": "qwen4"}));
    assert!(matches!(&unknown, ModelError::UnknownFamily { nearest, .. } if nearest.starts_with("qwen")));
    assert!(unknown.to_string().contains("tools/make_parity_case.py"), "{unknown}");
    let near = error(json!({"model_type": "lama"}));
    assert!(matches!(&near, ModelError::UnknownFamily { nearest, .. } if nearest == "llama"), "{near}");
    let refused = error(json!({"model_type": "mllama"})).to_string();
    assert!(refused.contains("cross_attention_layers"), "{refused}");
    let quantized = error(json!({"model_type": "llama", "quantization_config": {"quant_method": "aqlm"}}));
    assert!(quantized.to_string().contains("quantized by aqlm"), "{quantized}");
    let version = error(json!({"model_type": "minicpmv", "version": 9.0})).to_string();
    assert!(version.contains("`version` 9 of minicpmv is not known"), "{version}");
    let first = error(
        json!({"model_type": "chatglm", "padded_vocab_size": 24, "num_layers": 4, "inner_hidden_size": 20}),
    );
    assert!(first.to_string().contains("the first ChatGLM"), "{first}");
}

#[test]
fn a_pointer_of_git_lfs_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 7\n";
    std::fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    let error = WeightFiles::open_model(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("git lfs pull"), "{error}");
}
