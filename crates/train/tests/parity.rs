//! The cases under `crates/model/tests/parity`, computed by transformers and PEFT.

use std::path::Path;

use sft_kernels::{CpuOptions, Device, Isa};
use sft_train::parity::{Limits, compare};

#[test]
fn models_are_computed_as_transformers_and_peft_compute_them() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let dev = Device::cpu(CpuOptions { threads: None, isa: Some(isa) }).unwrap();
        for case in [
            "bloom",
            "deepseek_v3",
            "falcon_h1",
            "gpt2",
            "gpt_neox",
            "gpt_oss",
            "gpt_oss__mxfp4",
            "lfm2",
            "llama",
            "llama4_text",
            "llama__awq",
            "llama__fp4",
            "llama__fp8",
            "llama__gptq",
            "llama__gptq_act",
            "llama__int8",
            "llama__nf4",
            "mamba2",
            "mistral",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_5_text",
            "qwen3_next",
        ] {
            let found = compare(&dev, &cases.join(case)).unwrap();
            // PEFT cannot wrap a router that returns two things, and puts no adapter on Mamba's kind.
            let without = ["falcon_h1", "llama4_text", "mamba2"];
            assert_eq!(found.lora.is_some(), !without.contains(&case), "{case} has an adapter");
            let others: &[&str] = match case {
                "llama" => &["dora", "oft", "pissa"],
                "llama__nf4" | "qwen3" => &["oft"],
                "qwen2" | "gpt2" => &["dora"],
                _ => &[],
            };
            assert!(found.others.keys().copied().eq(others.iter().copied()), "{case}: {found:?}");
            assert!(found.holds(&Limits::FLOAT32), "{case} on {isa}: {found:?}");
        }
    }
}
