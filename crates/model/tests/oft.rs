//! Rotations of inputs (OFT): PEFT's files, merged weights, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::adapter::{self, Last, PeftAdapter};
use sft_model::method::{AdapterOptions, Method, OftBlocks, OftOptions, Targets};
use sft_model::weights::WeightFiles;
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder, families};

const IDS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

fn base(name: &str, compute: DType) -> Decoder {
    Decoder::read(&device(), &case(name), &Method::Inference, compute, 0).unwrap()
}

fn options(blocks: OftBlocks) -> OftOptions {
    OftOptions { blocks, dropout: 0.0, targets: Targets::All, modules_to_save: Vec::new() }
}

/// A decoder with random rotations.
fn random(name: &str, options: &OftOptions) -> Decoder {
    let method = Method::Oft(options.clone());
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

fn logits(decoder: &Decoder) -> Vec<f32> {
    let n = IDS.len();
    let mut work =
        Workspace::new(&device(), &decoder.spec, decoder.adapters(), decoder.compute, n, Purpose::Forward);
    let position_ids: Vec<u32> = (0..n as u32).collect();
    let targets = [-100; IDS.len()];
    let cu_seqlens = [0, n as u32];
    let batch = Batch {
        input_ids: &IDS,
        position_ids: &position_ids,
        cu_seqlens: &cu_seqlens,
        shared: None,
        targets: &targets,
        weights: &[],
    };
    decoder.logits(&device(), batch, &mut work).unwrap().to_f32_vec()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
}

fn attached(folder: &Path, name: &str) -> Decoder {
    let mut decoder = base(name, DType::F32);
    PeftAdapter::read(folder).unwrap().attach(&device(), &mut decoder, false).unwrap();
    decoder
}

/// A copy of PEFT's adapter with a changed configuration.
fn changed(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let (from, folder) = (case("llama").join("oft"), tempfile::tempdir().unwrap());
    fs::copy(from.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    let text = fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut values: Value = serde_json::from_str(&text).unwrap();
    change(&mut values);
    fs::write(folder.path().join("adapter_config.json"), values.to_string()).unwrap();
    folder
}

#[test]
fn fresh_rotations_change_nothing() {
    for name in ["llama", "qwen2_moe"] {
        let method = Method::Oft(options(OftBlocks::Size(8)));
        let fresh = Decoder::read(&device(), &case(name), &method, DType::F32, 7).unwrap();
        assert!(difference(&logits(&base(name, DType::F32)), &logits(&fresh)) < 1e-6, "{name}");
    }
}

#[test]
fn a_merged_model_has_pefts_weights_and_computes_what_the_attached_adapter_does() {
    for name in ["llama", "qwen3"] {
        let folder = case(name).join("oft");
        let mut merged = base(name, DType::F32);
        PeftAdapter::read(&folder).unwrap().merge(&device(), &mut merged).unwrap();
        let theirs = WeightFiles::open(&folder, &[folder.join("merged.safetensors")]).unwrap();
        let mut compared = 0;
        for linear in merged.linears() {
            let expected = theirs.tensor(linear.weight.name(), linear.weight.shape()).unwrap().to_f32_vec();
            assert!(difference(&linear.weight.to_host().to_f32_vec(), &expected) < 1e-6);
            compared += 1;
        }
        assert_eq!(compared, theirs.names().len());
        let (plain, attached) = (logits(&base(name, DType::F32)), logits(&attached(&folder, name)));
        assert!(difference(&plain, &attached) > 1e-2, "{name}: the adapter changes nothing");
        assert!(difference(&attached, &logits(&merged)) < 1e-5, "{name}");
    }
}

#[test]
fn an_adapter_that_is_written_has_pefts_keys_and_reads_back_with_the_same_logits() {
    let read = |folder: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let out = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("llama", options(OftBlocks::Size(8))),
        ("llama", options(OftBlocks::Count(3))),
        ("qwen3", OftOptions { targets: Targets::named(["q_proj"]), ..options(OftBlocks::Size(4)) }),
        ("qwen2", OftOptions { modules_to_save: vec!["lm_head".into()], ..options(OftBlocks::Size(8)) }),
    ] {
        let decoder = random(name, &options);
        adapter::write(&decoder, &options.clone().into(), "a/base", out.path()).unwrap();
        assert_eq!(logits(&decoder), logits(&attached(out.path(), name)), "{name}");
        let (ours, theirs) = (read(out.path()), read(&case("llama").join("oft")));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&ours), keys(&theirs));
        let own = ["target_modules", "r", "oft_block_size", "base_model_name_or_path", "modules_to_save"];
        for key in keys(&theirs).iter().filter(|key| !own.contains(&key.as_str()) && *key != "peft_version") {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
        let blocks = PeftAdapter::read(out.path()).unwrap().config.oft;
        assert_eq!(blocks, Some(options.blocks));
    }
}

#[test]
fn an_adapter_that_is_continued_keeps_its_settings_and_trains_its_tensors_alone() {
    let folder = changed(|config| config["module_dropout"] = json!(0.25));
    let mut decoder = base("llama", DType::BF16);
    let options = PeftAdapter::read(folder.path()).unwrap().attach(&device(), &mut decoder, true).unwrap();
    let AdapterOptions::Oft(options) = options else { panic!("{options:?}") };
    assert_eq!((options.dropout, options.blocks), (0.25, OftBlocks::Size(8)));
    assert!(decoder.trained_mut().iter().all(|p| p.name().ends_with(".oft_R.weight")));
    assert_eq!(decoder.trained_mut().len(), 7 * decoder.blocks.len());
    assert!(decoder.trained_mut().iter().all(|p| p.outline().decays()));
}

#[test]
fn rotations_stand_beside_codes_and_are_not_merged_into_them() {
    let folder = case("llama__nf4").join("oft");
    let (plain, rotated) = (base("llama__nf4", DType::F32), attached(&folder, "llama__nf4"));
    assert!(rotated.a_quantized_weight().is_some());
    assert!(difference(&logits(&plain), &logits(&rotated)) > 1e-2);
    let adapter = PeftAdapter::read(&folder).unwrap();
    let error = adapter.merge(&device(), &mut base("llama__nf4", DType::F32)).unwrap_err().to_string();
    assert!(error.contains("not merged into codes"), "{error}");
}

#[test]
fn a_low_rank_adapter_goes_before_one_of_rotations() {
    let folders = ["adapter", "oft"].map(|kind| case("llama").join(kind));
    let apply = |last: Last| {
        let mut decoder = base("llama", DType::F32);
        adapter::apply(&device(), &mut decoder, &folders, last).unwrap();
        logits(&decoder)
    };
    assert!(difference(&apply(Last::Attached), &apply(Last::Merged)) < 1e-4);
    assert!(difference(&apply(Last::Attached), &logits(&attached(&folders[1], "llama"))) > 1e-2);
}

#[test]
fn another_kind_of_rotation_is_refused_by_name() {
    for (key, value) in [
        ("coft", json!(true)),
        ("block_share", json!(true)),
        ("use_cayley_neumann", json!(false)),
        ("num_cayley_neumann_terms", json!(6)),
        ("peft_version", json!("0.17.1")),
        ("peft_version", json!(null)),
        ("fan_in_fan_out", json!(true)),
        ("bias", json!("oft_only")),
        ("r", json!(4)),
        ("oft_block_size", json!(0)),
        ("module_dropout", json!(1.5)),
    ] {
        let folder = changed(|config| config[key] = value);
        let message = PeftAdapter::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("help:"), "{key}: {message}");
    }
}

#[test]
fn tensors_of_another_block_size_are_named_with_both_shapes() {
    let folder = changed(|config| config["oft_block_size"] = json!(4));
    let adapter = PeftAdapter::read(folder.path()).unwrap();
    let message = adapter.attach(&device(), &mut base("llama", DType::F32), false).unwrap_err().to_string();
    assert!(message.contains("q_proj.oft_R.weight: found shape [2, 28], expected [4, 6]"), "{message}");
}

#[test]
fn layers_without_rotations_and_blocks_of_one_are_refused() {
    let adapters = |name: &str, blocks: OftBlocks, targets: &[&str]| {
        let targets = if targets.is_empty() { Targets::All } else { Targets::named(targets.iter().copied()) };
        let method = Method::Oft(OftOptions { targets, ..options(blocks) });
        method.adapters(&families::read_spec(&case(name)).unwrap()).map_err(|error| error.to_string())
    };
    let message = adapters("gpt2", OftBlocks::Size(8), &[]).unwrap_err();
    assert!(message.contains("PEFT has no OFT"), "{message}");
    let message = adapters("llama", OftBlocks::Count(64), &[]).unwrap_err();
    assert!(message.contains("oft_rank") && message.contains("blocks of one"), "{message}");
    let message = adapters("llama", OftBlocks::Size(8), &["qq_proj"]).unwrap_err();
    assert!(message.contains("oft_target: no linear layer is called `qq_proj`"), "{message}");
    let message = adapters("llama", OftBlocks::Size(8), &["lm_head"]).unwrap_err();
    assert!(
        message.contains("`lm_head` carries no adapter here") && message.contains("additional_target"),
        "{message}"
    );
    adapters("llama", OftBlocks::Size(8), &["q_proj"]).unwrap();
}
