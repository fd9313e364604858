//! LoRA on the weights of all experts: PEFT's files read, merged and written, of each of its forms.
//!
//! The outside answers are PEFT's own files in `tests/parity/*/experts` (their losses and trained weights are checked with
//! the training tests), by 0.21.2 but for deepseek_v3's, which are by 0.18.0; and the algebra W[e] + s·B[e]·A[e].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sft_kernels::{CpuOptions, DType, Device, Tensor, View, random};
use sft_model::adapter::{self, PeftAdapter};
use sft_model::loading;
use sft_model::method::{LoraInit, LoraOptions, Method, Targets, expert_targets};
use sft_model::weights::{WeightFiles, write_file};
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder, families};

/// Mixtures with adapters of PEFT's.
const CASES: [&str; 4] = ["qwen2_moe", "gpt_oss", "llama4_text", "deepseek_v3"];
const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

fn base(name: &str) -> Decoder {
    Decoder::read(&device(), &case(name), &Method::Inference, DType::F32, 0).unwrap()
}

fn attached(folder: &Path, name: &str) -> Decoder {
    let mut decoder = base(name);
    PeftAdapter::read(folder).unwrap().attach(&device(), &mut decoder, false).unwrap();
    decoder
}

fn merged(folder: &Path, name: &str) -> Decoder {
    let mut decoder = base(name);
    PeftAdapter::read(folder).unwrap().merge(&device(), &mut decoder).unwrap();
    decoder
}

fn options(parameters: &[&str]) -> LoraOptions {
    LoraOptions {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: parameters.iter().map(|name| (*name).to_owned()).collect(),
        use_rslora: false,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: Vec::new(),
    }
}

/// All linear layers and all experts.
fn all_experts(name: &str) -> LoraOptions {
    let spec = families::read_spec(&case(name)).unwrap();
    LoraOptions { target_parameters: expert_targets(&spec).unwrap(), ..options(&[]) }
}

fn fresh(name: &str, options: &LoraOptions) -> Decoder {
    Decoder::read(&device(), &case(name), &Method::Lora(options.clone()), DType::F32, 7).unwrap()
}

/// With random adapters, none of their matrices zero.
fn randomized(name: &str, options: &LoraOptions) -> Decoder {
    let mut decoder = fresh(name, options);
    for (l, parameter) in decoder.trained_mut().into_iter().enumerate() {
        let shape = parameter.shape().to_vec();
        parameter.set(View::of(&normal(l as u64, shape.iter().product()), &shape));
    }
    decoder
}

fn normal(key: u64, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| 0.1 * random::normal(key, i) as f32).collect()
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let n = IDS.len();
    let mut work =
        Workspace::new(&device(), &decoder.spec, decoder.adapters(), DType::F32, n, Purpose::Forward);
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

/// Names and shapes of an adapter's tensors.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let files = WeightFiles::open(folder, &[folder.join("adapter_model.safetensors")]).unwrap();
    files.names().iter().map(|name| ((*name).to_owned(), files.shape(name).unwrap().to_vec())).collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

fn weight(decoder: &Decoder, name: &str) -> Vec<f32> {
    let weights = decoder.base_parameters();
    weights.iter().find(|weight| weight.name() == name).unwrap().to_host().to_f32_vec()
}

#[test]
fn experts_are_merged_as_peft_merges_them_and_compute_what_the_attached_adapter_does() {
    for name in CASES {
        let folder = case(name).join("experts");
        let merged = merged(&folder, name);
        let theirs = WeightFiles::open(&folder, &[folder.join("merged.safetensors")]).unwrap();
        assert_eq!(theirs.names().len(), 2);
        for weight_name in theirs.names() {
            let expected = theirs.tensor(weight_name, theirs.shape(weight_name).unwrap()).unwrap();
            let found = weight(&merged, weight_name);
            assert!(difference(&found, &expected.to_f32_vec()) < 1e-6, "{name}: {weight_name}");
            assert!(difference(&found, &weight(&base(name), weight_name)) > 1e-3, "{name}: {weight_name}");
        }
        let attached = logits(&attached(&folder, name));
        assert!(difference(&logits(&base(name)), &attached) > 1e-2, "{name}: the adapter changes nothing");
        assert!(difference(&attached, &logits(&merged)) < 1e-5, "{name}");
    }
}

#[test]
fn what_is_written_has_the_tensors_and_the_targets_of_pefts_own_file_and_reads_back() {
    for name in ["qwen2_moe", "gpt_oss", "llama4_text"] {
        let theirs = case(name).join("experts");
        let mut decoder = base(name);
        let read = PeftAdapter::read(&theirs).unwrap().attach(&device(), &mut decoder, true).unwrap();
        let out = tempfile::tempdir().unwrap();
        adapter::write(&decoder, &read, "a/base", out.path()).unwrap();
        assert_eq!(tensors(out.path()), tensors(&theirs), "{name}");
        let [ours, expected] = [out.path(), &theirs].map(|folder| {
            let targets = config(folder)["target_parameters"].as_array().unwrap().clone();
            targets.iter().map(|target| target.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        });
        assert_eq!(ours, expected, "{name}");
        assert_eq!(logits(&attached(out.path(), name)), logits(&attached(&theirs, name)), "{name}");
    }
}

#[test]
fn fresh_adapters_are_those_that_were_counted_change_nothing_and_read_back() {
    for name in CASES {
        let options = all_experts(name);
        let (spec, method) = (families::read_spec(&case(name)).unwrap(), Method::Lora(options.clone()));
        let mut decoder = fresh(name, &options);
        assert_eq!(logits(&decoder), logits(&base(name)), "{name}");
        let outlines: Vec<_> = decoder.trained_mut().iter().map(|parameter| parameter.outline()).collect();
        assert_eq!(outlines, loading::trained(&spec, &method).unwrap(), "{name}");
        assert!(outlines.iter().any(|outline| outline.shape.len() == 3), "{name}: no expert is adapted");
        let elements = outlines.iter().map(|outline| outline.elements()).sum::<usize>();
        assert_eq!(loading::count(&spec, &method, None).unwrap().trained, elements, "{name}");
        let (random, out) = (randomized(name, &options), tempfile::tempdir().unwrap());
        adapter::write(&random, &options.into(), "a/base", out.path()).unwrap();
        assert!(difference(&logits(&random), &logits(&base(name))) > 1e-3, "{name}");
        assert_eq!(logits(&attached(out.path(), name)), logits(&random), "{name}");
    }
}

#[test]
fn a_part_of_the_experts_and_a_router_can_be_named() {
    for parameters in [&["experts.down_proj"][..], &["gate_up_proj"], &["gate.weight"]] {
        let options = LoraOptions { targets: Targets::named(["q_proj"]), ..options(parameters) };
        let (random, out) = (randomized("qwen2_moe", &options), tempfile::tempdir().unwrap());
        adapter::write(&random, &options.into(), "a/base", out.path()).unwrap();
        let names = tensors(out.path());
        assert!(!names.keys().any(|name| name.contains("base_layer")), "{names:?}");
        assert_eq!(names.len(), 2 * 4, "{names:?}");
        assert_eq!(logits(&attached(out.path(), "qwen2_moe")), logits(&random), "{parameters:?}");
        let targets = config(out.path())["target_parameters"].clone();
        assert!(targets[0].as_str().unwrap().ends_with(parameters[0]), "{targets}");
    }
}

#[test]
fn experts_that_are_trained_whole_carry_no_adapters() {
    let options = LoraOptions { modules_to_save: vec!["mlp".into()], ..all_experts("qwen2_moe") };
    let mut decoder = fresh("qwen2_moe", &options);
    let names: Vec<String> = decoder.trained_mut().iter().map(|weight| weight.name().to_owned()).collect();
    assert!(!names.iter().any(|name| name.contains("experts.") && name.contains("lora")), "{names:?}");
    assert!(names.iter().any(|name| name == "model.layers.0.mlp.experts.down_proj"), "{names:?}");
}

#[test]
fn an_adapter_of_experts_alone_names_no_modules_and_is_none_of_linear_layers() {
    let options = LoraOptions { targets: Targets::Named(Vec::new()), ..options(&["experts.down_proj"]) };
    let (random, out) = (randomized("qwen2_moe", &options), tempfile::tempdir().unwrap());
    adapter::write(&random, &options.clone().into(), "a/base", out.path()).unwrap();
    let mut decoder = base("qwen2_moe");
    let read = PeftAdapter::read(out.path()).unwrap().attach(&device(), &mut decoder, false).unwrap();
    assert_eq!(read, options.into());
    assert_eq!(tensors(out.path()).len(), 2 * 2);
    assert_eq!(logits(&decoder), logits(&random));
}

/// Transformers 4 had a linear layer for each projection of each expert, and PEFT an adapter on each.
#[test]
fn adapters_on_each_experts_own_layers_are_one_of_all_experts() {
    let (name, [experts, width, rank]) = ("qwen2_moe", [4, 12, 3]);
    let decoder = base(name);
    let hidden = decoder.spec.hidden_size;
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    let mut of = BTreeMap::new();
    for (layer, expert) in (0..2).flat_map(|layer| (0..experts).map(move |expert| (layer, expert))) {
        for (module, [out, inputs]) in
            [("gate_proj", [width, hidden]), ("up_proj", [width, hidden]), ("down_proj", [hidden, width])]
        {
            let path = format!("model.layers.{layer}.mlp.experts.{expert}.{module}");
            for (which, shape) in [("A", [rank, inputs]), ("B", [out, rank])] {
                let values = normal(tensors.len() as u64, shape[0] * shape[1]);
                let stored = format!("base_model.model.{path}.lora_{which}.weight");
                tensors.push((stored, Tensor::from_slice(&values, &shape)));
                of.insert((layer, expert, module, which), values);
            }
        }
    }
    let router = [normal(100, rank * hidden), normal(101, experts * rank)];
    for (which, values, shape) in [("A", &router[0], [rank, hidden]), ("B", &router[1], [experts, rank])] {
        let stored = format!("base_model.model.model.layers.1.mlp.gate.lora_{which}.weight");
        tensors.push((stored, Tensor::from_slice(values, &shape)));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    write_file(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    // Of another strength where the pattern says so; the shared expert has none.
    let values = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 6, "peft_version": "0.15.2",
        "target_modules": ["gate", "gate_proj", "up_proj", "down_proj"], "alpha_pattern": {"up_proj": 12},
        "exclude_modules": ".*shared_expert.*"});
    fs::write(folder.path().join("adapter_config.json"), values.to_string()).unwrap();

    let merged = merged(folder.path(), name);
    for (layer, (weight_name, modules, [out, inputs])) in (0..2).flat_map(|layer| {
        [
            ("gate_up_proj", &[("gate_proj", 2.0), ("up_proj", 4.0)][..], [width, hidden]),
            ("down_proj", &[("down_proj", 2.0)], [hidden, width]),
        ]
        .map(move |weight| (layer, weight))
    }) {
        let weight_name = format!("model.layers.{layer}.mlp.experts.{weight_name}");
        let mut expected = weight(&decoder, &weight_name);
        for (at, w) in expected.iter_mut().enumerate() {
            let (row, i) = (at / inputs, at % inputs);
            let (expert, row) = (row / (out * modules.len()), row % (out * modules.len()));
            let (module, scale) = modules[row / out];
            let [a, b] = ["A", "B"].map(|which| &of[&(layer, expert, module, which)]);
            let product: f32 = (0..rank).map(|r| b[(row % out) * rank + r] * a[r * inputs + i]).sum();
            *w += scale * product;
        }
        assert!(difference(&weight(&merged, &weight_name), &expected) < 1e-6, "{weight_name}");
    }
    let name_of_router = "model.layers.1.mlp.gate.weight";
    let mut expected = weight(&decoder, name_of_router);
    for (at, w) in expected.iter_mut().enumerate() {
        let (row, i) = (at / hidden, at % hidden);
        *w += (0..rank).map(|r| 2.0 * router[1][row * rank + r] * router[0][r * hidden + i]).sum::<f32>();
    }
    assert!(difference(&weight(&merged, name_of_router), &expected) < 1e-6);
    let logits_of_merged = logits(&merged);
    assert!(difference(&logits(&attached(folder.path(), name)), &logits_of_merged) < 1e-5);
    // Written again, it is one of all experts.
    let (mut decoder, out) = (base(name), tempfile::tempdir().unwrap());
    let read = PeftAdapter::read(folder.path()).unwrap().attach(&device(), &mut decoder, true).unwrap();
    let targets = ["experts.gate_up_proj", "experts.down_proj", "model.layers.1.mlp.gate.weight"];
    assert!(targets.iter().all(|target| read.target_parameters().iter().any(|t| t.ends_with(target))));
    adapter::write(&decoder, &read, "a/base", out.path()).unwrap();
    assert_eq!(config(out.path())["rank_pattern"].as_object().unwrap().len(), 2);
    assert!(difference(&logits(&attached(out.path(), name)), &logits_of_merged) < 1e-5);
}

#[test]
fn what_peft_has_not_for_experts_is_refused() {
    let refusal = |name: &str, options: LoraOptions| {
        let spec = families::read_spec(&case(name)).unwrap();
        Method::Lora(options).adapters(&spec).unwrap_err().to_string()
    };
    let on_experts = || options(&["experts.down_proj"]);
    let error = refusal("qwen2_moe", LoraOptions { dropout: 0.1, ..on_experts() });
    assert!(error.contains("lora_dropout"), "{error}");
    let error = refusal("qwen2_moe", LoraOptions { use_dora: true, ..on_experts() });
    assert!(error.contains("use_dora"), "{error}");
    let error = refusal("qwen2_moe", options(&["experts.gate_proj"]));
    assert!(error.contains("experts.gate_proj") && error.contains("experts.gate_up_proj"), "{error}");
    let error = refusal("llama", options(&["experts.down_proj"]));
    assert!(error.contains("no experts"), "{error}");
    let error = expert_targets(&families::read_spec(&case("llama")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("no experts"), "{error}");
}

#[test]
fn an_adapter_of_another_rank_than_it_says_is_refused_with_the_tensors_named() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        fs::copy(case("gpt_oss").join("experts").join(file), folder.path().join(file)).unwrap();
    }
    let mut values = config(folder.path());
    values["rank_pattern"] = json!({"model.layers.0.mlp.experts.down_proj": 5});
    fs::write(folder.path().join("adapter_config.json"), values.to_string()).unwrap();
    let read = PeftAdapter::read(folder.path()).unwrap().attach(&device(), &mut base("gpt_oss"), false);
    let error = read.unwrap_err().to_string();
    assert!(error.contains("model.layers.0.mlp.experts.lora_A.weight"), "{error}");
    assert!(error.contains("model.layers.0.mlp.experts.lora_B.weight"), "{error}");
}
