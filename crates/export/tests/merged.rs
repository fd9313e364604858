//! Exported model folders: they read back as the same model, shards and configuration are as transformers has them,
//! and nothing is ever written over what is there.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sft_export::{ExportError, SaveOptions, agree, merged};
use sft_kernels::{CpuOptions, DType, Device, Tensor};
use sft_model::adapter::{self, Last, PeftAdapter};
use sft_model::loading::{self, Source};
use sft_model::method::{LoraInit, LoraOptions, Method, Targets, expanded_blocks, linears_of_blocks};
use sft_model::parameter::Stored;
use sft_model::spec::RopeScaling;
use sft_model::weights::{StoredTensor, WeightFiles};
use sft_model::{Decoder, families, saving};

const IDS: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

fn options(dtype: DType) -> SaveOptions {
    SaveOptions { dtype: Some(dtype), shard_bytes: SaveOptions::GB, num_expand: 0 }
}

fn lora() -> LoraOptions {
    LoraOptions {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: Vec::new(),
        use_rslora: false,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: Vec::new(),
    }
}

/// A model folder with random weights and the files that go with them.
fn base_folder(tied: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "a_key_that_nobody_knows": [1, 2],
    });
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("config.json", &config.to_string());
    write("tokenizer.json", "{\"a\": 1}");
    write("tokenizer_config.json", "{}");
    write("chat_template.jinja", "{{ messages }}");
    write("generation_config.json", "{}");
    write("training_args.bin", "not part of a model");
    let spec = families::read_spec(folder.path()).unwrap();
    let source = Source::Random { seed: 5 };
    let decoder = loading::load(&device(), &spec, &source, &Method::Inference, DType::F32, 0).unwrap();
    let parameters = decoder.base_parameters();
    let tensors: Vec<_> = parameters.into_iter().flat_map(|p| p.in_files()).collect();
    sft_model::weights::write_model(folder.path(), &tensors, SaveOptions::GB).unwrap();
    folder
}

fn read(folder: &Path, compute: DType) -> Decoder {
    Decoder::read(&device(), folder, &Method::Inference, compute, 0).unwrap()
}

/// An adapter with B not zero.
fn adapter_folder(base: &Path, options: &LoraOptions) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut decoder = Decoder::read(&device(), base, &Method::Lora(options.clone()), DType::F32, 3).unwrap();
    for (l, parameter) in decoder.trained_mut().into_iter().enumerate() {
        let mut values = parameter.value().to_f32_vec();
        for (i, x) in values.iter_mut().enumerate() {
            *x += 0.2 * sft_kernels::random::normal(l as u64, i as u64) as f32;
        }
        let shape = parameter.value().shape().to_vec();
        parameter.set(sft_kernels::View::of(&values, &shape));
    }
    adapter::write(&decoder, &options.clone().into(), "base", folder.path()).unwrap();
    folder
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn an_expanded_model_computes_the_same_until_its_new_blocks_are_trained() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let (decoder, out) = (read(base.path(), DType::F32), place.path().join("out"));
    let more = |num_expand| SaveOptions { num_expand, ..options(DType::F32) };
    let error = merged(&decoder, base.path(), &out, more(3), None).unwrap_err().to_string();
    assert!(error.contains("num_expand") && error.contains("choose one of 1, 2"), "{error}");
    merged(&decoder, base.path(), &out, more(2), None).unwrap();
    assert_eq!(config(&out)["num_hidden_layers"], json!(4));
    let expanded = read(&out, DType::F32);
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 40).collect();
    let found = agree(&device(), &decoder, &expanded, &ids).unwrap();
    assert_eq!((found.max_difference, expanded.blocks.len()), (0.0, 4));
    let value = |decoder: &Decoder, name: &str| {
        let all = decoder.base_parameters();
        all.iter().find(|p| p.name() == name).unwrap().value().to_f32_vec()
    };
    // By LLaMA-Factory's script: a copy of block 0 after it, its outputs zero; then block 1.
    for (from, to) in [(0, 0), (0, 1), (1, 2), (1, 3)] {
        for name in ["self_attn.q_proj", "mlp.up_proj", "self_attn.o_proj", "mlp.down_proj"] {
            let found = value(&expanded, &format!("model.layers.{to}.{name}.weight"));
            let is_zero = to % 2 == 1 && (name.ends_with("o_proj") || name.ends_with("down_proj"));
            let expected = value(&decoder, &format!("model.layers.{from}.{name}.weight"));
            assert_eq!(found, if is_zero { vec![0.0; expected.len()] } else { expected }, "{to} {name}");
        }
    }
    let spec = families::read_spec(&out).unwrap();
    assert_eq!(expanded_blocks(&spec, 2).unwrap(), [1, 3]);
    assert!(expanded_blocks(&spec, 3).unwrap_err().to_string().contains("freeze_trainable_layers"));
    let Ok(Method::Freeze { trained }) = Method::freeze_all_but(&spec, [1, 3], &[], &[]) else { panic!() };
    assert_eq!(trained, ["model.layers.1.", "model.layers.3."]);
    let names = linears_of_blocks(&spec, &[1, 3], &["q_proj".into()]).unwrap();
    assert_eq!(names, ["model.layers.1.self_attn.q_proj", "model.layers.3.self_attn.q_proj"]);
}

#[test]
fn a_merged_model_read_back_agrees_with_base_and_adapter() {
    for tied in [false, true] {
        let (base, place) = (base_folder(tied), tempfile::tempdir().unwrap());
        let (adapter, out) = (adapter_folder(base.path(), &lora()), place.path().join("out"));
        let mut decoder = read(base.path(), DType::F32);
        adapter::apply(&device(), &mut decoder, &[adapter.path().to_owned()], Last::Merged).unwrap();
        let exported = merged(&decoder, base.path(), &out, options(DType::F32), None).unwrap();
        assert!(exported.files.contains(&"model.safetensors".to_owned()));

        let mut beside = read(base.path(), DType::F32);
        PeftAdapter::read(adapter.path()).unwrap().attach(&device(), &mut beside, false).unwrap();
        let agreement = agree(&device(), &beside, &read(&out, DType::F32), &IDS).unwrap();
        assert!(agreement.max_difference < 1e-4, "{agreement:?}");
        assert_eq!(agreement.same_choice, IDS.len());
        let without = agree(&device(), &read(base.path(), DType::F32), &beside, &IDS).unwrap();
        assert!(without.max_difference > 0.1, "the adapter changes nothing: {without:?}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing beside the folder remains");
    }
}

#[test]
fn files_of_the_model_are_copied_and_others_are_not() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let out = place.path().join("deep/out");
    let exported =
        merged(&read(base.path(), DType::F32), base.path(), &out, options(DType::F32), None).unwrap();
    let mut found: Vec<String> =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(found, expected);
    let bytes: u64 = found.iter().map(|name| fs::metadata(out.join(name)).unwrap().len()).sum();
    assert_eq!(exported.bytes, bytes);
    assert_eq!(
        fs::read(out.join("tokenizer.json")).unwrap(),
        fs::read(base.path().join("tokenizer.json")).unwrap()
    );
}

#[test]
fn tokenizers_of_every_kind_and_code_that_others_run_are_copied() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let names = [
        "qwen.tiktoken",
        "sentencepiece.bpe.model",
        "spiece.model",
        "tiktoken.model",
        "tokenization_qwen.py",
        "tokenizer.model",
    ];
    names.iter().for_each(|name| fs::write(base.path().join(name), name).unwrap());
    let out = place.path().join("out");
    merged(&read(base.path(), DType::F32), base.path(), &out, options(DType::F32), None).unwrap();
    names.iter().for_each(|name| assert_eq!(fs::read_to_string(out.join(name)).unwrap(), *name));
}

#[test]
fn what_chooses_experts_keeps_float32_in_a_model_of_bfloat16_where_files_have_it_so() {
    const BIAS: &str = "e_score_correction_bias";
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity/deepseek_v3");
    for (bias, expected) in [(5.501, DType::F32), (5.5, DType::BF16)] {
        let place = tempfile::tempdir().unwrap();
        let (base, out) = (place.path(), place.path().join("out"));
        fs::copy(case.join("config.json"), base.join("config.json")).unwrap();
        let decoder = read(&case, DType::F32);
        // One for each of the case's experts.
        let biases = Tensor::from_slice(&[bias; 4], &[4]);
        let tensors: Vec<_> = decoder
            .base_parameters()
            .into_iter()
            .flat_map(|p| p.in_files())
            .map(|(name, tensor)| match name.ends_with(BIAS) {
                true => (name, StoredTensor::from(&biases)),
                false => (name, tensor),
            })
            .collect();
        sft_model::weights::write_model(base, &tensors, SaveOptions::GB).unwrap();
        merged(&read(base, DType::BF16), base, &out, options(DType::BF16), None).unwrap();
        let files = WeightFiles::open_model(&out).unwrap();
        for name in files.names() {
            let tensor = files.weight(name, files.shape(name).unwrap(), Stored::Plain).unwrap();
            assert_eq!(tensor.dtype(), if name.ends_with(BIAS) { expected } else { DType::BF16 }, "{name}");
            assert!(!name.ends_with(BIAS) || tensor.to_f32_vec().iter().all(|x| *x == bias));
        }
    }
}

#[test]
fn weights_of_another_type_are_halved_and_named_in_config_json() {
    let (base, place) = (base_folder(true), tempfile::tempdir().unwrap());
    let (whole, half) = (place.path().join("f32"), place.path().join("bf16"));
    let decoder = read(base.path(), DType::F32);
    merged(&decoder, base.path(), &whole, options(DType::F32), None).unwrap();
    merged(&decoder, base.path(), &half, options(DType::BF16), None).unwrap();
    assert_eq!(config(&half)["torch_dtype"], "bfloat16");
    assert_eq!(config(&half)["a_key_that_nobody_knows"], json!([1, 2]));
    let size = |folder: &Path| fs::metadata(folder.join("model.safetensors")).unwrap().len() as f64;
    assert!((size(&half) / size(&whole) - 0.5).abs() < 0.2);
    let again = read(&half, DType::BF16);
    let expected = decoder.embed_tokens.value().to_dtype(DType::BF16);
    assert_eq!(again.embed_tokens.value().bytes(), expected.view().bytes());
    assert!(again.lm_head.is_none(), "a tied head is stored once");
}

#[test]
fn shards_hold_at_most_the_bytes_asked_for_and_the_index_names_them() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let (out, decoder) = (place.path().join("out"), read(base.path(), DType::F32));
    let options = SaveOptions { dtype: None, shard_bytes: 4000, num_expand: 0 };
    let exported = merged(&decoder, base.path(), &out, options, None).unwrap();
    let shards: Vec<&String> = exported.files.iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3, "{shards:?}");
    const HEADER: u64 = 2000;
    for shard in &shards {
        assert!(fs::metadata(out.join(shard)).unwrap().len() < 4000 + HEADER, "{shard}");
    }
    let index: Value =
        serde_json::from_str(&fs::read_to_string(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), decoder.base_parameters().len());
    assert_eq!(index["metadata"]["total_size"].as_u64().unwrap(), options.weight_bytes(&decoder));
    assert_eq!(agree(&device(), &decoder, &read(&out, DType::F32), &IDS).unwrap().max_difference, 0.0);
}

#[test]
fn a_head_parted_from_the_embedding_is_written_and_said_so() {
    let (base, place) = (base_folder(true), tempfile::tempdir().unwrap());
    let lora = LoraOptions { modules_to_save: vec!["lm_head".into()], ..lora() };
    let (adapter, out) = (adapter_folder(base.path(), &lora), place.path().join("out"));
    let (mut decoder, mut beside) = (read(base.path(), DType::F32), read(base.path(), DType::F32));
    PeftAdapter::read(adapter.path()).unwrap().merge(&device(), &mut decoder).unwrap();
    PeftAdapter::read(adapter.path()).unwrap().attach(&device(), &mut beside, false).unwrap();
    merged(&decoder, base.path(), &out, options(DType::F32), None).unwrap();
    assert_eq!(config(&out)["tie_word_embeddings"], false);
    assert!(agree(&device(), &beside, &read(&out, DType::F32), &IDS).unwrap().max_difference < 1e-4);
}

#[test]
fn positions_scaled_for_longer_rows_are_written_into_config_json() {
    let base = base_folder(false);
    let rules: [fn(f64, usize) -> RopeScaling; 3] = [
        |factor, _| RopeScaling::Linear { factor },
        |factor, max_position_embeddings| RopeScaling::Dynamic { factor, max_position_embeddings },
        |factor, original_max_position_embeddings| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        },
    ];
    for rule in rules {
        let place = tempfile::tempdir().unwrap();
        let (mut decoder, out) = (read(base.path(), DType::F32), place.path().join("out"));
        decoder.spec.enlarge(100, rule);
        merged(&decoder, base.path(), &out, options(DType::F32), None).unwrap();
        assert_eq!(families::read_spec(&out).unwrap().rope, decoder.spec.rope);
    }
}

#[test]
fn a_checkpoint_keeps_trained_weights_in_float32() {
    let (base, out) = (base_folder(false), tempfile::tempdir().unwrap());
    let trained = Decoder::read(&device(), base.path(), &Method::Full, DType::BF16, 0).unwrap();
    let options = SaveOptions { dtype: None, shard_bytes: SaveOptions::GB, num_expand: 0 };
    saving::save(&trained, base.path(), out.path(), options).unwrap();
    assert_eq!(config(out.path())["torch_dtype"], "float32");
    let again = read(out.path(), DType::F32);
    for (again, trained) in again.base_parameters().into_iter().zip(trained.base_parameters()) {
        assert_eq!(again.value().bytes(), trained.value().bytes(), "{}", trained.name());
    }
}

#[test]
fn an_adapter_that_is_not_merged_is_not_lost_in_silence() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let decoder = Decoder::read(&device(), base.path(), &Method::Lora(lora()), DType::F32, 0).unwrap();
    let error =
        merged(&decoder, base.path(), &place.path().join("out"), options(DType::F32), None).unwrap_err();
    assert!(matches!(error, ExportError::NotMerged), "{error}");
}

#[test]
fn the_base_models_folder_is_never_written_into() {
    let base = base_folder(false);
    let decoder = read(base.path(), DType::F32);
    let before = fs::read_dir(base.path()).unwrap().count();
    let same = base.path().join(".");
    let error = merged(&decoder, base.path(), &same, options(DType::F32), None).unwrap_err();
    assert!(matches!(error, ExportError::OverBase { .. }), "{error}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), before);
}

#[test]
fn a_folder_with_files_in_it_is_refused_by_the_name_of_one() {
    let (base, out) = (base_folder(false), tempfile::tempdir().unwrap());
    fs::write(out.path().join("thesis.tex"), "years of work").unwrap();
    let decoder = read(base.path(), DType::F32);
    let error = merged(&decoder, base.path(), out.path(), options(DType::F32), None).unwrap_err();
    assert!(error.to_string().contains("is not empty: `thesis.tex` is in it"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_folder_and_what_a_killed_export_left_are_no_obstacle() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let (out, partial) = (place.path().join("out"), place.path().join("out.partial"));
    fs::create_dir(&out).unwrap();
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("model-00001-of-00009.safetensors"), "half of it").unwrap();
    // With a slash at the end, as shells complete names.
    let asked = format!("{}/", out.display());
    merged(&read(base.path(), DType::F32), base.path(), asked.as_ref(), options(DType::F32), None).unwrap();
    assert!(!partial.exists());
    assert!(!out.join("model-00001-of-00009.safetensors").exists());
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn a_failed_export_leaves_nothing() {
    let (base, place) = (base_folder(false), tempfile::tempdir().unwrap());
    let decoder = read(base.path(), DType::F32);
    let nothing = tempfile::tempdir().unwrap();
    merged(&decoder, nothing.path(), &place.path().join("out"), options(DType::F32), None).unwrap_err();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn models_of_different_vocabularies_are_not_compared() {
    let base = base_folder(false);
    let a = read(base.path(), DType::F32);
    let mut spec = a.spec.clone();
    spec.vocab_size = 41;
    let source = Source::Random { seed: 5 };
    let b = loading::load(&device(), &spec, &source, &Method::Inference, DType::F32, 0).unwrap();
    assert!(matches!(agree(&device(), &a, &b, &IDS), Err(ExportError::Vocabularies { left: 40, right: 41 })));
}
