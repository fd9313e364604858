//! What a model and an adapter are in files: the tensors of every family, written and read again, by their published
//! names.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::adapter::{self, PeftAdapter};
use sft_model::loading::{self, Source};
use sft_model::method::{LoraInit, LoraOptions, Method, Targets};
use sft_model::saving::{self, SaveOptions};
use sft_model::weights::WeightFiles;
use sft_model::{Decoder, families};

mod small;

fn device() -> Device {
    Device::cpu(CpuOptions { threads: Some(1), isa: None }).unwrap()
}

/// A folder with a small model of these keys.
fn folder(keys: Value) -> tempfile::TempDir {
    let folder = small::folder(keys);
    let spec = families::read_spec(folder.path()).unwrap();
    let source = Source::Random { seed: 5 };
    let decoder = loading::load(&device(), &spec, &source, &Method::Inference, DType::F32, 0).unwrap();
    let options = SaveOptions { dtype: None, shard_bytes: SaveOptions::GB, num_expand: 0 };
    saving::save(&decoder, folder.path(), folder.path(), options).unwrap();
    folder
}

/// Name, shape and bytes of every tensor in a model's folder.
fn tensors(folder: &std::path::Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let files = WeightFiles::open_model(folder).unwrap();
    let tensor = |name: &str| {
        let shape = files.shape(name).unwrap().to_vec();
        let bytes = files.tensor(name, &shape).unwrap().view().bytes().to_vec();
        (name.to_owned(), (shape, bytes))
    };
    files.names().into_iter().map(tensor).collect()
}

#[test]
fn a_model_that_is_read_and_written_again_has_the_same_tensors() {
    let options = SaveOptions { dtype: None, shard_bytes: SaveOptions::GB, num_expand: 0 };
    for family in families::supported() {
        let (before, after) = (folder(small::keys(family)), tempfile::tempdir().unwrap());
        let decoder = Decoder::read(&device(), before.path(), &Method::Full, DType::F32, 0).unwrap();
        saving::save(&decoder, before.path(), after.path(), options).unwrap();
        assert!(tensors(before.path()) == tensors(after.path()), "{family}");
    }
}

#[test]
fn weights_lie_in_files_as_their_family_publishes_them() {
    let shape = |keys: Value, name: &str| {
        let found = tensors(folder(keys).path());
        found.get(name).unwrap_or_else(|| panic!("{name} is not among {:?}", found.keys())).0.clone()
    };
    let fused = |family: &str, name: &str| shape(small::keys(family), name);
    // [in, out] in one family, [out, in] in all others; heads are 4 of width 4, of keys and values 2.
    assert_eq!(fused("gpt2", "transformer.h.3.attn.c_attn.weight"), [16, 48]);
    assert_eq!(fused("gpt_bigcode", "transformer.h.3.attn.c_attn.weight"), [24, 16]);
    assert_eq!(fused("phi3", "model.layers.0.self_attn.qkv_proj.weight"), [32, 16]);
    assert_eq!(fused("phi3", "model.layers.0.mlp.gate_up_proj.weight"), [40, 16]);
    assert_eq!(fused("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.bias"), [48]);
    assert_eq!(fused("opt", "model.decoder.embed_positions.weight"), [66, 16]);
    assert_eq!(fused("bloom", "transformer.word_embeddings_layernorm.bias"), [16]);
    let heads = json!({"model_type": "stablelm", "qk_layernorm": true});
    assert_eq!(shape(heads.clone(), "model.layers.0.self_attn.q_layernorm.norms.3.weight"), [4]);
    assert_eq!(shape(heads, "model.layers.0.self_attn.k_layernorm.norms.1.weight"), [4]);
    let heads = json!({"model_type": "cohere", "use_qk_norm": true});
    assert_eq!(shape(heads, "model.layers.0.self_attn.k_norm.weight"), [2, 4]);
    // Channels of values 16, keys and queries 2 groups of 6, and the steps of 4 heads.
    assert_eq!(fused("falcon_h1", "model.layers.0.mamba.in_proj.weight"), [60, 16]);
    assert_eq!(fused("mamba2", "backbone.layers.0.mixer.conv1d.weight"), [56, 1, 3]);
    assert_eq!(fused("qwen3_next", "model.layers.0.linear_attn.in_proj_ba.weight"), [8, 16]);
    assert_eq!(fused("qwen3_5_text", "model.layers.0.linear_attn.A_log"), [4]);
    assert_eq!(fused("lfm2", "model.layers.0.conv.conv.weight"), [16, 1, 3]);
    let mixtral = |name: &str| fused("mixtral", &format!("model.layers.1.block_sparse_moe.{name}"));
    assert_eq!(mixtral("gate.weight"), [4, 16]);
    assert_eq!([mixtral("experts.3.w1.weight"), mixtral("experts.3.w2.weight")], [[20, 16], [16, 20]]);
    assert_eq!(fused("qwen3_moe", "model.layers.1.mlp.experts.2.up_proj.weight"), [12, 16]);
    assert_eq!(fused("phimoe", "model.layers.1.block_sparse_moe.gate.weight"), [4, 16]);
    assert_eq!(fused("granitemoe", "model.layers.1.block_sparse_moe.input_linear.weight"), [4, 40, 16]);
    assert_eq!(fused("gpt_oss", "model.layers.1.mlp.experts.gate_up_proj"), [4, 16, 40]);
    assert_eq!(fused("ernie4_5_moe", "model.layers.1.mlp.moe_statics.e_score_correction_bias"), [1, 4]);
    assert_eq!(fused("deepseek_v3", "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"), [7, 16]);
    let narrow = json!({"model_type": "opt", "word_embed_proj_dim": 8, "do_layer_norm_before": false});
    assert_eq!(shape(narrow, "model.decoder.project_out.weight"), [8, 16]);
}

#[test]
fn experts_that_lie_together_in_files_are_read_and_written_so() {
    let each = folder(small::keys("mixtral"));
    let read =
        |path: &std::path::Path| Decoder::read(&device(), path, &Method::Inference, DType::F32, 0).unwrap();
    let decoder = read(each.path());
    // As transformers 5 holds them: under the parameters' own names.
    let weights: Vec<_> =
        decoder.base_parameters().into_iter().map(|p| (p.name().to_owned(), p.to_host())).collect();
    let whole: Vec<_> = weights.iter().map(|(name, tensor)| (name.clone(), tensor.into())).collect();
    let together = small::folder(small::keys("mixtral"));
    sft_model::weights::write_model(together.path(), &whole, SaveOptions::GB).unwrap();
    let names = tensors(together.path());
    assert_eq!(names["model.layers.0.mlp.experts.gate_up_proj"].0, [4, 40, 16]);
    let again = read(together.path());
    for (a, b) in decoder.base_parameters().into_iter().zip(again.base_parameters()) {
        assert_eq!((a.name(), a.value().bytes()), (b.name(), b.value().bytes()));
    }
    let options = SaveOptions { dtype: None, shard_bytes: SaveOptions::GB, num_expand: 0 };
    let out = tempfile::tempdir().unwrap();
    saving::save(&again, together.path(), out.path(), options).unwrap();
    assert!(tensors(together.path()) == tensors(out.path()));
}

#[test]
fn the_body_of_a_model_alone_leaves_out_its_own_name() {
    let whole = folder(small::keys("gpt2"));
    let files = WeightFiles::open_model(whole.path()).unwrap();
    let tensor = |name: &str| files.tensor(name, files.shape(name).unwrap()).unwrap();
    let tensors: Vec<_> = files.names().into_iter().map(|name| (name.to_owned(), tensor(name))).collect();
    let body = small::folder(small::keys("gpt2"));
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.strip_prefix("transformer.").unwrap().to_owned(), tensor.into()))
        .collect();
    sft_model::weights::write_model(body.path(), &named, SaveOptions::GB).unwrap();
    let read = |path| Decoder::read(&device(), path, &Method::Inference, DType::F32, 0).unwrap();
    let (whole, body) = (read(whole.path()), read(body.path()));
    for (a, b) in whole.base_parameters().into_iter().zip(body.base_parameters()) {
        assert_eq!((a.name(), a.value().bytes()), (b.name(), b.value().bytes()));
    }
}

#[test]
fn an_adapter_sits_on_the_modules_that_the_file_has() {
    let options = LoraOptions {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: Vec::new(),
        use_rslora: false,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: Vec::new(),
    };
    for (family, targets, transposed) in [
        ("gpt2", json!(["c_attn", "c_proj", "c_fc"]), true),
        ("phi3", json!(["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), false),
        ("gpt_neox", json!(["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]), false),
        ("mpt", json!(["Wqkv", "out_proj", "up_proj", "down_proj"]), false),
        ("mamba2", json!(["in_proj"]), false),
        ("lfm2", json!(["in_proj", "out_proj", "w1", "w3", "w2", "q_proj", "k_proj", "v_proj"]), false),
        // Experts are no linear layers, routers are where transformers makes them so.
        ("mixtral", json!(["q_proj", "k_proj", "v_proj", "o_proj"]), false),
        ("granitemoe", json!(["q_proj", "k_proj", "v_proj", "o_proj", "layer"]), false),
        (
            "hunyuan_v1_moe",
            json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "wg"]),
            false,
        ),
    ] {
        let (base, out) = (folder(small::keys(family)), tempfile::tempdir().unwrap());
        let method = Method::Lora(options.clone());
        let decoder = Decoder::read(&device(), base.path(), &method, DType::F32, 0).unwrap();
        adapter::write(&decoder, &options.clone().into(), "", out.path()).unwrap();
        let text = std::fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&config["target_modules"], &config["fan_in_fan_out"]), (&targets, &json!(transposed)));
        let mut again = Decoder::read(&device(), base.path(), &Method::Inference, DType::F32, 0).unwrap();
        let read = PeftAdapter::read(out.path()).unwrap().attach(&device(), &mut again, true).unwrap();
        assert_eq!(
            read.targets().names(),
            targets.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect::<Vec<_>>()
        );
    }
}
