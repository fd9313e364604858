//! The cases under `crates/model/tests/parity`, computed by transformers and PEFT.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sft_kernels::{CpuOptions, DType, Device, Isa};
use sft_train::parity::{Limits, Parity, compare};

/// Whole models; PEFT cannot wrap a router that returns two things, and puts no adapter on Mamba's kind.
const WITHOUT_ADAPTER: [&str; 3] = ["falcon_h1", "llama4_text", "mamba2"];
const PLAIN: [&str; 19] = [
    "bloom",
    "bloom__alike",
    "deepseek_v3",
    "deepseek_v3__alike",
    "falcon_h1",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "lfm2",
    "llama",
    "llama4_text",
    "mamba2",
    "mistral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3__alike",
    "qwen3_5_text",
    "qwen3_next",
];
const QUANTISED: [&str; 8] = [
    "gpt_oss__mxfp4",
    "llama__awq",
    "llama__fp4",
    "llama__fp8",
    "llama__gptq",
    "llama__gptq_act",
    "llama__int8",
    "llama__nf4",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity").join(case)
}

/// Calls `check` with what a case comes to on every instruction set.
fn on_every_isa(case: &str, dtype: DType, check: impl Fn(Isa, &Parity)) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let dev = Device::cpu(CpuOptions { threads: None, isa: Some(isa) }).unwrap();
        let found = compare(&dev, &folder(case), dtype).unwrap();
        assert_eq!(found.lora.is_some(), !WITHOUT_ADAPTER.contains(&case), "{case} has an adapter");
        check(isa, &found);
    }
}

#[test]
fn models_are_computed_as_transformers_and_peft_compute_them() {
    for case in PLAIN.into_iter().chain(QUANTISED) {
        on_every_isa(case, DType::F32, |isa, found| {
            let others: &[&str] = match case {
                "llama" => &["dora", "oft", "pissa"],
                "llama__nf4" | "qwen3" => &["oft"],
                "qwen2" | "gpt2" => &["dora"],
                "deepseek_v3" | "gpt_oss" | "llama4_text" | "qwen2_moe" => &["experts"],
                _ => &[],
            };
            assert!(found.others.keys().copied().eq(others.iter().copied()), "{case}: {found:?}");
            assert!(found.holds(&Limits::FLOAT32), "{case} on {isa}: {found:?}");
        });
    }
}

#[test]
fn bfloat16_is_off_by_no_more_than_transformers_own_is() {
    for case in PLAIN {
        let limits = Limits::of(&folder(case), DType::BF16).unwrap();
        on_every_isa(case, DType::BF16, |isa, found| {
            assert!(found.holds(&limits), "{case} on {isa}: {found:?}, and at most {limits:?}");
            // A run in float32 by mistake would be off by a thousandth of this.
            assert!(found.logits > limits.logits / 100.0, "{case} on {isa}: {found:?} is no bfloat16");
        });
    }
}

#[test]
fn a_case_without_the_spread_of_bfloat16_says_how_to_measure_it() {
    let error = Limits::of(&folder("llama__nf4"), DType::BF16).unwrap_err().to_string();
    assert!(error.contains("tools/make_bf16_spread.py"), "{error}");
}

#[test]
fn a_case_with_fewer_labels_than_tokens_is_malformed() {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder("llama__nf4")).unwrap().flatten().filter(|file| file.path().is_file()) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let path = copy.path().join("case.safetensors");
    let bytes = fs::read(&path).unwrap();
    let case = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: HashMap<String, TensorView<'_>> = case.tensors().into_iter().collect();
    let labels = &case.tensor("labels").unwrap();
    let (row, width) = (labels.shape()[1] * 8, labels.shape()[1]);
    let first = TensorView::new(Dtype::I64, vec![1, width], &labels.data()[..row]).unwrap();
    tensors.insert("labels".to_owned(), first);
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let error = compare(&Device::cpu(CpuOptions::default()).unwrap(), copy.path(), DType::F32).unwrap_err();
    assert!(error.to_string().contains("not the same number of tokens"), "{error}");
}
