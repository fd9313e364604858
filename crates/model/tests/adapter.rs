//! Adapters in PEFT's format: attached, merged, written and read again; and those that do not fit.
//!
//! The outside answers are PEFT's own files in `tests/parity` (their losses are checked with the training tests) and
//! the algebra W + s·B·A.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sft_kernels::{CpuOptions, DType, Device, Tensor};
use sft_model::adapter::{self, Last, PeftAdapter};
use sft_model::linear::Linear;
use sft_model::loading::{self, Source};
use sft_model::method::{AdapterOptions, LoraInit, LoraOptions, Method, Targets};
use sft_model::weights::{WeightFiles, write_file};
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder, ModelError, families};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

fn base(name: &str, compute: DType) -> Decoder {
    Decoder::read(&device(), &case(name), &Method::Inference, compute, 0).unwrap()
}

/// A decoder with random adapters, B not zero.
fn random_lora(name: &str, options: &LoraOptions) -> Decoder {
    let method = Method::Lora(options.clone());
    let mut decoder = Decoder::read(&device(), &case(name), &method, DType::F32, 7).unwrap();
    for (l, parameter) in decoder.trained_mut().into_iter().enumerate() {
        let mut values = parameter.value().to_f32_vec();
        for (i, x) in values.iter_mut().enumerate() {
            *x += 0.1 * sft_kernels::random::normal(l as u64, i as u64) as f32;
        }
        let shape = parameter.value().shape().to_vec();
        parameter.set(sft_kernels::View::of(&values, &shape));
    }
    decoder
}

fn options() -> LoraOptions {
    LoraOptions {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: Vec::new(),
        use_rslora: false,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: Vec::new(),
    }
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let n = IDS.len();
    let mut work =
        Workspace::new(&device(), &decoder.spec, decoder.adapters(), decoder.compute, n, Purpose::Forward);
    let position_ids: Vec<u32> = (0..n as u32).collect();
    let batch = Batch {
        input_ids: &IDS,
        position_ids: &position_ids,
        cu_seqlens: &[0, n as u32],
        shared: None,
        targets: &[-100; IDS.len()],
        weights: &[],
    };
    decoder.logits(&device(), batch, &mut work).unwrap().to_f32_vec()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A copy of a case's adapter whose configuration is changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (from, config) = (case(name).join("adapter"), folder.path().join("adapter_config.json"));
    fs::copy(from.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    let mut values: Value =
        serde_json::from_str(&fs::read_to_string(from.join("adapter_config.json")).unwrap()).unwrap();
    change(&mut values);
    fs::write(config, values.to_string()).unwrap();
    folder
}

/// The linear layer of this full name.
fn linear<'a>(decoder: &'a Decoder, path: &str) -> &'a Linear {
    decoder.linears().find(|linear| linear.weight.name() == format!("{path}.weight")).unwrap()
}

/// A copy of a case's adapter whose tensors are changed.
fn changed_tensors(name: &str, change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> tempfile::TempDir {
    let folder = changed(name, |_| {});
    let path = folder.path().join("adapter_model.safetensors");
    let files = WeightFiles::open(folder.path(), std::slice::from_ref(&path)).unwrap();
    let tensor = |name: &str| files.tensor(name, files.shape(name).unwrap()).unwrap().to_dtype(DType::F32);
    let mut tensors: Vec<_> = files.names().iter().map(|name| ((*name).to_owned(), tensor(name))).collect();
    drop(files);
    change(&mut tensors);
    write_file(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    folder
}

fn attach(folder: &Path, decoder: &mut Decoder) -> Result<LoraOptions, ModelError> {
    match PeftAdapter::read(folder)?.attach(&device(), decoder, false)? {
        AdapterOptions::Lora(options) => Ok(options),
        AdapterOptions::Oft(_) => panic!("{} holds rotations", folder.display()),
    }
}

fn refusal(folder: &Path, name: &str) -> String {
    attach(folder, &mut base(name, DType::F32)).unwrap_err().to_string()
}

#[test]
fn a_merged_adapter_computes_what_an_attached_one_does() {
    for name in ["llama", "mistral", "qwen2", "qwen3"] {
        let folder = case(name).join("adapter");
        let (plain, mut attached, mut merged) =
            (base(name, DType::F32), base(name, DType::F32), base(name, DType::F32));
        attach(&folder, &mut attached).unwrap();
        PeftAdapter::read(&folder).unwrap().merge(&device(), &mut merged).unwrap();
        let (plain, attached, merged) = (logits(&plain), logits(&attached), logits(&merged));
        assert!(difference(&plain, &attached) > 1e-2, "{name}: the adapter changes nothing");
        assert!(difference(&attached, &merged) < 1e-4, "{name}: {}", difference(&attached, &merged));
    }
}

#[test]
fn a_merged_adapter_with_magnitudes_computes_what_an_attached_one_does() {
    for name in ["llama", "qwen2", "gpt2"] {
        let folder = case(name).join("dora");
        let (plain, mut attached, mut merged) =
            (base(name, DType::F32), base(name, DType::F32), base(name, DType::F32));
        let options = attach(&folder, &mut attached).unwrap();
        assert!(options.use_dora);
        PeftAdapter::read(&folder).unwrap().merge(&device(), &mut merged).unwrap();
        let (plain, attached, merged) = (logits(&plain), logits(&attached), logits(&merged));
        assert!(difference(&plain, &attached) > 1e-2, "{name}: the adapter changes nothing");
        assert!(difference(&attached, &merged) < 1e-4, "{name}: {}", difference(&attached, &merged));
    }
}

/// A decoder with adapters that begin as the largest singular values of its weights.
fn pissa(options: &LoraOptions) -> Decoder {
    let method = Method::Lora(options.clone());
    let mut decoder = Decoder::read(&device(), &case("llama"), &method, DType::F32, 7).unwrap();
    adapter::begin(&device(), &mut decoder, &options.clone().into()).unwrap();
    decoder
}

/// A copy of PEFT's adapter that says to have begun with our random vectors.
fn marked(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(from.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    let text = fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut values: Value = serde_json::from_str(&text).unwrap();
    values["sft_pissa_start"] = json!(true);
    fs::write(folder.path().join("adapter_config.json"), values.to_string()).unwrap();
    folder
}

#[test]
fn an_adapter_that_began_with_random_vectors_of_peft_is_refused() {
    let message = refusal(&case("llama").join("pissa_niter_16"), "llama");
    assert!(message.contains("random vectors that are not stored") && message.contains("help:"), "{message}");
}

#[test]
fn an_adapter_that_begins_as_singular_values_begins_as_pefts_does_and_changes_nothing() {
    let plain = logits(&base("llama", DType::F32));
    for (folder, iterations) in [("pissa", None), ("pissa_niter_16", Some(16))] {
        let init = LoraInit::Pissa { iterations };
        let fresh = pissa(&LoraOptions { rank: 2, alpha: 4.0, init, ..options() });
        assert!(difference(&plain, &logits(&fresh)) < 1e-5, "{folder}");
        let mut attached = base("llama", DType::F32);
        let theirs = marked(&case("llama").join(folder));
        assert_eq!(attach(theirs.path(), &mut attached).unwrap().init, init);
        for (ours, theirs) in fresh.linears().zip(attached.linears()) {
            let [ours, theirs] = [ours, theirs].map(|linear| linear.lora.as_ref().unwrap());
            // A pair of vectors has no sign of its own.
            let product = |lora: &sft_model::linear::Lora| {
                let (a, b) = (lora.a.value().to_f32_vec(), lora.b.value().to_f32_vec());
                let [rank, inputs] = [lora.a.shape()[0], lora.a.shape()[1]];
                let element = |at: usize| -> f32 {
                    (0..rank).map(|r| b[at / inputs * rank + r] * a[r * inputs + at % inputs]).sum()
                };
                (0..lora.b.shape()[0] * inputs).map(element).collect::<Vec<f32>>()
            };
            let (ours, theirs) = (product(ours), product(theirs));
            let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            if iterations.is_none() {
                assert!(difference(&ours, &theirs) < 1e-4 * largest, "{}", difference(&ours, &theirs));
            }
            // Fast decompositions of other random vectors are others: where singular values lie close, 200 draws of torch's
            // `svd_lowrank` on these weights hold 0.87 to 1 of what the best two vectors do.
            let spread = if iterations.is_none() { 1e-2 } else { 0.13 };
            let [ours, theirs] = [ours, theirs].map(|part| part.iter().map(|x| x * x).sum::<f32>());
            let share = ours / theirs;
            assert!((1.0 - spread..1.0 / (1.0 - spread)).contains(&share), "{folder}: {share} of PEFT's");
        }
        if iterations.is_none() {
            assert!(difference(&plain, &logits(&attached)) < 1e-4);
            let mut merged = base("llama", DType::F32);
            PeftAdapter::read(&case("llama").join(folder)).unwrap().merge(&device(), &mut merged).unwrap();
            assert!(difference(&plain, &logits(&merged)) < 1e-4);
        }
    }
}

#[test]
fn an_adapter_of_singular_values_is_read_again_and_converted_to_one_of_the_models_weights() {
    let out = tempfile::tempdir().unwrap();
    for use_dora in [false, true] {
        let init = LoraInit::Pissa { iterations: Some(4) };
        let options = LoraOptions { init, use_dora, use_rslora: use_dora, ..options() };
        let mut decoder = pissa(&options);
        for (l, parameter) in decoder.trained_mut().into_iter().enumerate() {
            let mut values = parameter.value().to_f32_vec();
            for (i, x) in values.iter_mut().enumerate() {
                *x += 0.05 * sft_kernels::random::normal(l as u64, i as u64) as f32;
            }
            let shape = parameter.value().shape().to_vec();
            parameter.set(sft_kernels::View::of(&values, &shape));
        }
        let trained = logits(&decoder);
        assert!(difference(&trained, &logits(&base("llama", DType::F32))) > 1e-2);
        let mut again = base("llama", DType::F32);
        adapter::write(&decoder, &options.clone().into(), "", out.path()).unwrap();
        attach(out.path(), &mut again).unwrap();
        assert_eq!(trained, logits(&again), "with the rest of the weights made again");
        adapter::write_converted(&decoder, &options, "", out.path()).unwrap();
        let mut plain = base("llama", DType::F32);
        let converted = attach(out.path(), &mut plain).unwrap();
        assert_eq!((converted.init, converted.rank), (LoraInit::Random, 2 * options.rank));
        assert!(difference(&trained, &logits(&plain)) < 1e-4, "{}", difference(&trained, &logits(&plain)));
    }
}

#[test]
fn fresh_magnitudes_change_nothing_whatever_was_merged_before() {
    let folder = case("llama").join("adapter");
    let method = Method::Lora(LoraOptions { use_dora: true, ..options() });
    let mut fresh = Decoder::read(&device(), &case("llama"), &method, DType::F32, 7).unwrap();
    assert!(difference(&logits(&base("llama", DType::F32)), &logits(&fresh)) < 1e-6);
    adapter::apply(&device(), &mut fresh, std::slice::from_ref(&folder), Last::Merged).unwrap();
    let mut merged = base("llama", DType::F32);
    PeftAdapter::read(&folder).unwrap().merge(&device(), &mut merged).unwrap();
    assert!(difference(&logits(&merged), &logits(&fresh)) < 1e-5);
}

#[test]
fn merging_into_bf16_rounds_the_sum_once() {
    let folder = case("llama").join("adapter");
    let (before, mut merged) = (base("llama", DType::BF16), base("llama", DType::BF16));
    PeftAdapter::read(&folder).unwrap().merge(&device(), &mut merged).unwrap();
    let path = "model.layers.1.mlp.down_proj";
    let files = WeightFiles::open(&folder, &[folder.join("adapter_model.safetensors")]).unwrap();
    let tensor = |which: &str| {
        let name = format!("base_model.model.{path}.{which}.weight");
        let shape = files.shape(&name).unwrap().to_vec();
        (files.tensor(&name, &shape).unwrap().to_f32_vec(), shape)
    };
    let ((a, a_shape), (b, b_shape)) = (tensor("lora_A"), tensor("lora_B"));
    let (rank, inputs, outputs) = (a_shape[0], a_shape[1], b_shape[0]);
    let config: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap();
    let scale = config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap();
    let w = linear(&before, path).weight.value().to_f32_vec();
    let found = linear(&merged, path).weight.value();
    assert_eq!(found.dtype(), DType::BF16);
    for (i, found) in found.to_f32_vec().iter().enumerate() {
        let (o, n) = (i / inputs, i % inputs);
        assert!(o < outputs);
        let product: f64 = (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * inputs + n])).sum();
        let exact = f64::from(w[i]) + scale * product;
        // Half of the spacing of bf16 around the value, and a little for the f32 sum.
        let half = exact.abs() * 2f64.powi(-8) + 1e-6;
        assert!((f64::from(*found) - exact).abs() <= half, "element {i}: {found} for {exact}");
    }
}

#[test]
fn an_adapter_that_is_written_reads_back_with_the_same_logits() {
    let out = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("llama", options()),
        (
            "qwen3",
            LoraOptions { use_rslora: true, targets: Targets::named(["q_proj", "down_proj"]), ..options() },
        ),
        ("qwen2", LoraOptions { targets: Targets::named(["model.layers.1.mlp.up_proj"]), ..options() }),
        ("qwen2", LoraOptions { use_dora: true, ..options() }),
    ] {
        let decoder = random_lora(name, &options);
        adapter::write(&decoder, &options.clone().into(), "a/base", out.path()).unwrap();
        let mut again = base(name, DType::F32);
        attach(out.path(), &mut again).unwrap();
        assert_eq!(logits(&decoder), logits(&again), "{name}");
    }
}

#[test]
fn an_adapter_that_is_continued_keeps_its_settings_and_trains_its_tensors_alone() {
    let folder = changed("llama", |config| {
        config["lora_dropout"] = json!(0.25);
    });
    let mut decoder = base("llama", DType::F32);
    let adapter = PeftAdapter::read(folder.path()).unwrap();
    let options = adapter.attach(&device(), &mut decoder, true).unwrap();
    assert_eq!(options.dropout(), 0.25);
    assert!(decoder.adapters().has_dropout());
    assert!(decoder.trained_mut().iter().all(|p| p.name().contains(".lora_")));
    assert_eq!(decoder.trained_mut().len(), 2 * 7 * decoder.blocks.len());
}

#[test]
fn the_configuration_has_the_keys_of_peft_and_short_names() {
    let out = tempfile::tempdir().unwrap();
    let decoder = random_lora("llama", &options());
    adapter::write(&decoder, &options().into(), "a/base", out.path()).unwrap();
    let read = |folder: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (read(out.path()), read(&case("llama").join("adapter")));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    assert_eq!(
        ours["target_modules"],
        json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    );
    for key in keys(&theirs) {
        if !["target_modules", "r", "lora_alpha", "base_model_name_or_path"].contains(&key.as_str()) {
            assert_eq!(ours[&key], theirs[&key], "{key}");
        }
    }
}

#[test]
fn ranks_and_scales_of_single_layers_survive_the_round_trip() {
    let out = tempfile::tempdir().unwrap();
    let folder = changed("llama", |config| {
        config["alpha_pattern"] = json!({ "layers.1.mlp.(up|down)_proj": 5, "q_proj": 0.3 });
        config["use_rslora"] = json!(true);
    });
    let mut decoder = base("llama", DType::F32);
    let options = attach(folder.path(), &mut decoder).unwrap();
    let rank = (options.rank as f32).sqrt();
    let scale = |block: usize| {
        let path = format!("model.layers.{block}.mlp.up_proj");
        linear(&decoder, &path).lora.as_ref().unwrap().scale
    };
    assert_eq!([scale(1), scale(0)], [5.0 / rank, options.alpha as f32 / rank]);
    // Written with another rank and alpha as the common ones, so that every layer stands in the patterns.
    let other = LoraOptions { rank: options.rank + 1, alpha: options.alpha + 1.0, ..options };
    adapter::write(&decoder, &other.clone().into(), "", out.path()).unwrap();
    let mut again = base("llama", DType::F32);
    attach(out.path(), &mut again).unwrap();
    assert_eq!(logits(&decoder), logits(&again));
    let text = fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["alpha_pattern"]["model.layers.0.self_attn.q_proj"], json!(0.3));
    assert_eq!(config["rank_pattern"]["model.layers.0.self_attn.q_proj"], json!(other.rank - 1));
}

#[test]
fn blocks_with_adapters_of_different_ranks_share_a_workspace() {
    // The adapter of block 1 has one row more in A and one column more in B, all zero: nothing changes.
    let folder = changed_tensors("llama", |tensors| {
        for (name, tensor) in
            tensors.iter_mut().filter(|(name, _)| name.contains("layers.1.self_attn.q_proj"))
        {
            let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
            let values = tensor.to_f32_vec();
            *tensor = if name.contains("lora_A") {
                Tensor::from_slice(&[values, vec![0.0; columns]].concat(), &[rows + 1, columns])
            } else {
                let wider: Vec<f32> = values.chunks(columns).flat_map(|row| [row, &[0.0]].concat()).collect();
                Tensor::from_slice(&wider, &[rows, columns + 1])
            };
        }
    });
    let path = folder.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let (rank, alpha) = (config["r"].as_u64().unwrap(), config["lora_alpha"].as_f64().unwrap());
    config["rank_pattern"] = json!({ "layers.1.self_attn.q_proj": rank + 1 });
    config["alpha_pattern"] = json!({ "layers.1.self_attn.q_proj": alpha * (rank + 1) as f64 / rank as f64 });
    fs::write(&path, config.to_string()).unwrap();
    let (mut expected, mut found) = (base("llama", DType::F32), base("llama", DType::F32));
    attach(&case("llama").join("adapter"), &mut expected).unwrap();
    attach(folder.path(), &mut found).unwrap();
    let ranks = &found.adapters().layers;
    assert_ne!(ranks[0].carried_by("self_attn.q_proj"), ranks[1].carried_by("self_attn.q_proj"));
    assert!(difference(&logits(&expected), &logits(&found)) < 1e-6);
}

#[test]
fn layers_may_be_named_by_an_expression_that_looks_around() {
    let from = case("llama").join("adapter");
    let text = fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> =
        config["target_modules"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    // As LLaMA-Factory names layers of models with eyes.
    config["target_modules"] = format!("^(?!.*(?:visual)).*(?:{}).*", names.join("|")).into();
    let folder = tempfile::tempdir().unwrap();
    let tensors = "adapter_model.safetensors";
    fs::copy(from.join(tensors), folder.path().join(tensors)).unwrap();
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let (mut expected, mut found) = (base("llama", DType::F32), base("llama", DType::F32));
    attach(&from, &mut expected).unwrap();
    attach(folder.path(), &mut found).unwrap();
    assert_eq!(difference(&logits(&expected), &logits(&found)), 0.0);
}

#[test]
fn modules_to_save_come_back_whole_and_part_a_tied_head() {
    let out = tempfile::tempdir().unwrap();
    // The case `qwen2` has a tied head.
    assert!(base("qwen2", DType::F32).lm_head.is_none());
    for modules in [vec!["embed_tokens"], vec!["lm_head"], vec!["embed_tokens", "lm_head", "norm"]] {
        let modules_to_save: Vec<String> = modules.iter().map(|m| (*m).to_owned()).collect();
        let options = LoraOptions { modules_to_save, ..options() };
        let decoder = random_lora("qwen2", &options);
        assert!(decoder.lm_head.is_some(), "{modules:?}");
        adapter::write(&decoder, &options.clone().into(), "", out.path()).unwrap();
        let (mut attached, mut merged) = (base("qwen2", DType::F32), base("qwen2", DType::F32));
        assert_eq!(attach(out.path(), &mut attached).unwrap().modules_to_save, options.modules_to_save);
        PeftAdapter::read(out.path()).unwrap().merge(&device(), &mut merged).unwrap();
        assert_eq!(logits(&decoder), logits(&attached), "{modules:?}");
        assert!(difference(&logits(&merged), &logits(&attached)) < 1e-4, "{modules:?}");
        assert!(!merged.spec.tie_word_embeddings);
    }
}

#[test]
fn all_adapters_but_the_last_are_merged() {
    let (first, second) = (tempfile::tempdir().unwrap(), case("llama").join("adapter"));
    adapter::write(&random_lora("llama", &options()), &options().into(), "", first.path()).unwrap();
    let folders = [first.path().to_owned(), second];
    let apply = |folders: &[PathBuf], last: Last| {
        let mut decoder = base("llama", DType::F32);
        let carried = adapter::apply(&device(), &mut decoder, folders, last).unwrap();
        assert_eq!(carried.is_some(), !decoder.adapters().is_empty());
        (logits(&decoder), decoder.trained_mut().len())
    };
    let ((continued, trained), (attached, frozen)) =
        (apply(&folders, Last::Continued), apply(&folders, Last::Attached));
    let (merged, none) = apply(&folders, Last::Merged);
    assert!(difference(&continued, &attached) < 1e-5 && difference(&attached, &merged) < 1e-4);
    assert!(difference(&merged, &apply(&folders[..1], Last::Merged).0) > 1e-2, "the second adapter is lost");
    assert!(trained > 0 && frozen == 0 && none == 0);
    // One with magnitudes after one that began as singular values.
    let folders = ["pissa", "dora"].map(|kind| case("llama").join(kind));
    let ((continued, trained), (attached, _)) =
        (apply(&folders, Last::Continued), apply(&folders, Last::Attached));
    let (merged, _) = apply(&folders, Last::Merged);
    assert!(difference(&continued, &attached) < 1e-5 && difference(&attached, &merged) < 1e-4);
    assert!(trained > 0);
}

#[test]
fn an_adapter_of_another_model_is_refused_tensor_by_tensor_with_both_shapes() {
    let folder = case("qwen3").join("adapter");
    let message = refusal(&folder, "llama");
    assert!(message.contains("lora_A.weight: found shape [") && message.contains("expected ["), "{message}");
    assert!(message.contains("help: was it trained on another base model"), "{message}");
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = changed_tensors("llama", |tensors| {
        tensors.retain(|(name, _)| !name.contains("layers.1.mlp.up_proj.lora_B"));
    });
    let message = refusal(folder.path(), "llama");
    assert!(
        message.contains("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight: missing"),
        "{message}"
    );
    assert!(message.contains(": 1 of the adapter's tensors"), "{message}");
}

#[test]
fn a_tensor_that_fits_nothing_is_named() {
    let folder = changed_tensors("llama", |tensors| {
        tensors.push(("base_model.model.lm_head.lora_A.weight".into(), Tensor::zeros(DType::F32, &[2, 5])));
    });
    let message = refusal(folder.path(), "llama");
    assert!(message.contains("lm_head.lora_A.weight: found shape [2, 5], expected nothing"), "{message}");
}

#[test]
fn second_copies_that_peft_writes_of_a_resized_vocabulary_are_no_tensors_too_many() {
    let (embedding, rows) = {
        let decoder = base("llama", DType::F32);
        (decoder.embed_tokens.name().to_owned(), decoder.embed_tokens.shape().to_vec())
    };
    let (module, value) = (embedding.strip_suffix(".weight").unwrap(), vec![0.5; rows[0] * rows[1]]);
    let value = Tensor::from_slice(&value, &rows);
    let folder = changed_tensors("llama", |tensors| {
        for copy in ["", ".modules_to_save", ".original_module"] {
            tensors.push((format!("base_model.model.{module}{copy}.weight"), value.to_dtype(DType::F32)));
        }
    });
    // The embedding is not among `modules_to_save`: it was resized, and stayed as it was.
    let mut decoder = base("llama", DType::F32);
    attach(folder.path(), &mut decoder).unwrap();
    assert_eq!(decoder.embed_tokens.value().to_f32_vec(), value.to_f32_vec());
    assert_eq!(PeftAdapter::read(folder.path()).unwrap().rows_of_vocabulary(&decoder.spec), Some(rows[0]));
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let folder = changed_tensors("llama", |tensors| {
        let (_, tensor) =
            tensors.iter_mut().find(|(name, _)| name.contains("layers.0.self_attn.v_proj.lora_A")).unwrap();
        tensor.view_mut().as_mut_slice::<f32>()[3] = f32::NAN;
    });
    let message = refusal(folder.path(), "llama");
    assert!(
        message.contains("model.layers.0.self_attn.v_proj.lora_A.weight holds a value that is NaN"),
        "{message}"
    );
    assert!(message.contains("element 3"), "{message}");
}

#[test]
fn another_kind_of_adapter_is_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1])),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("pissa_niter_x")),
        ("a_key_of_the_future", json!(true)),
    ] {
        let folder = changed("llama", |config| config[key] = value);
        let message = PeftAdapter::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("help:"), "{message}");
    }
}

#[test]
fn every_way_of_naming_layers_is_understood() {
    for (key, value) in [
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(r".*\.(self_attn|mlp)\.[a-z]+_proj")),
        ("exclude_modules", json!(["lm_head"])),
        ("layers_to_transform", json!([0, 1])),
        ("rank_pattern", json!({ "q_proj": 2 })),
    ] {
        let folder = changed("llama", |config| {
            config["target_modules"] =
                json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
            config[key] = value;
        });
        attach(folder.path(), &mut base("llama", DType::F32)).unwrap();
    }
    // Tensors of a layer that is not named are too much.
    let folder = changed("llama", |config| {
        config["target_modules"] = json!("all-linear");
        config["exclude_modules"] = json!(["q_proj"]);
    });
    assert!(refusal(folder.path(), "llama").contains("q_proj.lora_A.weight: found shape"));
}

#[test]
fn a_pickled_adapter_and_a_folder_without_one_are_refused() {
    let folder = changed("llama", |_| {});
    let tensors = folder.path().join("adapter_model.safetensors");
    fs::rename(&tensors, folder.path().join("adapter_model.bin")).unwrap();
    assert!(refusal(folder.path(), "llama").contains("can run code"));
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(empty.path(), "llama").contains("there is no adapter_config.json here"));
}

#[test]
fn magnitudes_that_are_missing_or_not_announced_are_named() {
    let folder = changed("llama", |config| config["use_dora"] = json!(true));
    let message = refusal(folder.path(), "llama");
    assert!(message.contains("q_proj.lora_magnitude_vector"), "{message}");
    let folder = changed_tensors("llama", |tensors| {
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
        tensors.push((name.into(), Tensor::from_slice(&[1.0f32; 16], &[16])));
    });
    let message = refusal(folder.path(), "llama");
    assert!(message.contains("has no `use_dora: true`"), "{message}");
}

#[test]
fn routers_get_no_magnitudes() {
    let spec = families::read_spec(&case("qwen2_moe")).unwrap();
    let method = Method::Lora(LoraOptions { use_dora: true, ..options() });
    let routed = method.adapters(&spec);
    let plain = Method::Lora(options()).adapters(&spec).unwrap();
    let router = plain.layers[0].carried_by("mlp.gate").is_some();
    assert_eq!(routed.is_err(), router);
    let named = LoraOptions { use_dora: true, targets: Targets::named(["q_proj"]), ..options() };
    Method::Lora(named).adapters(&spec).unwrap();
}

#[test]
fn a_second_adapter_on_the_same_layers_is_refused() {
    let mut decoder = base("llama", DType::F32);
    attach(&case("llama").join("adapter"), &mut decoder).unwrap();
    let message = attach(&case("llama").join("adapter"), &mut decoder).unwrap_err().to_string();
    assert!(message.contains("carries an adapter already"), "{message}");
}

#[test]
fn a_module_to_save_that_the_model_lacks_is_refused() {
    let spec = families::read_spec(&case("llama")).unwrap();
    let method = Method::Lora(LoraOptions { modules_to_save: vec!["score".into()], ..options() });
    let source = Source::Random { seed: 1 };
    let error = loading::load(&device(), &spec, &source, &method, DType::F32, 0).unwrap_err();
    assert!(error.to_string().contains("additional_target: the model has no module `score`"), "{error}");
}

#[test]
fn layers_of_fewer_singular_values_than_asked_for_are_left_out_of_all_and_refused_by_name() {
    let init = LoraInit::Pissa { iterations: None };
    let moe = families::read_spec(&case("qwen2_moe")).unwrap();
    let adapters = Method::Lora(LoraOptions { init, rank: 2, ..options() }).adapters(&moe).unwrap();
    let carriers: Vec<&String> = adapters.layers[0].carried.keys().collect();
    assert!(carriers.iter().any(|name| name.ends_with("q_proj")), "{carriers:?}");
    // It has one row.
    assert!(!carriers.iter().any(|name| name.ends_with("shared_expert_gate")), "{carriers:?}");
    let refusal = |options: LoraOptions| Method::Lora(options).adapters(&moe).unwrap_err().to_string();
    let targets = Targets::named(["shared_expert_gate"]);
    let named = refusal(LoraOptions { init, rank: 2, targets, ..options() });
    assert!(named.contains("has 1 singular values, and `lora_rank` asks for more"), "{named}");
    let none_left = refusal(LoraOptions { init, rank: 1 << 20, ..options() });
    assert!(none_left.contains("`lora_rank` asks for more"), "{none_left}");
}
