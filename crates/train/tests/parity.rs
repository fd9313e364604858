//! The cases under `crates/model/tests/parity`, computed by transformers and PEFT.

use std::path::Path;

use sft_kernels::{CpuOptions, Device, Isa};
use sft_train::parity::{Limits, compare};

#[test]
fn models_are_computed_as_transformers_and_peft_compute_them() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let dev = Device::cpu(CpuOptions { threads: None, isa: Some(isa) }).unwrap();
        for case in ["bloom", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"] {
            let found = compare(&dev, &cases.join(case)).unwrap();
            assert!(found.lora.is_some(), "{case} has an adapter");
            assert!(found.holds(&Limits::FLOAT32), "{case} on {isa}: {found:?}");
        }
    }
}
