//! Quantised linear layers against bitsandbytes: `parity/llama__nf4`, `llama__fp4` and `llama__int8` are what it made of
//! `parity/llama` (`tools/make_parity_case.py --quantize`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sft_kernels::quantized::{FourBit, Scheme};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::method::{LoraInit, LoraOptions, Method, Targets};
use sft_model::quantization::{self, Found, Precision, Quantization};
use sft_model::saving::{self, SaveOptions};
use sft_model::{Decoder, ModelError, families};

const SCHEMES: [(&str, Scheme); 3] = [
    ("llama__nf4", Scheme::FourBit { kind: FourBit::Nf4, double: true }),
    ("llama__fp4", Scheme::FourBit { kind: FourBit::Fp4, double: true }),
    ("llama__int8", Scheme::Int8),
];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

fn read(folder: &Path, precision: impl Into<Precision>) -> Decoder {
    Decoder::read(&device(), folder, &Method::Inference, precision, 0).unwrap()
}

/// How a checkpoint is quantised.
fn found(folder: &Path) -> Option<Found> {
    quantization::of_checkpoint(&families::text_config(folder).unwrap()).unwrap()
}

/// A tensor of a file.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Every tensor of a model's file.
fn tensors(folder: &Path) -> BTreeMap<String, Stored> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let all = tensors.iter().map(|(name, tensor)| {
        (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
    });
    all.collect()
}

fn written(decoder: &Decoder, from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    saving::save(
        decoder,
        from,
        folder.path(),
        SaveOptions { dtype: None, shard_bytes: usize::MAX, num_expand: 0 },
    )
    .unwrap();
    folder
}

/// The same tensors, bit for bit; JSON by its values.
fn assert_same(found: &Path, expected: &Path, what: &str) {
    let (found, expected) = (tensors(found), tensors(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, tensor) in found {
        let expected = &expected[&name];
        if name.contains("quant_state") {
            let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
            assert_eq!((tensor.0, json(&tensor.2)), (expected.0, json(&expected.2)), "{name} of {what}");
        } else {
            assert_eq!(&tensor, expected, "{name} of {what}");
        }
    }
}

#[test]
fn a_checkpoint_of_bitsandbytes_is_written_as_it_was_read() {
    for (name, scheme) in SCHEMES {
        let decoder = read(&case(name), DType::F32);
        assert_eq!(found(&case(name)), Some(Found::BitsAndBytes(scheme)), "{name}");
        assert_same(written(&decoder, &case(name)).path(), &case(name), name);
    }
}

#[test]
fn what_is_quantised_here_is_written_so_that_it_is_read_the_same() {
    for (name, scheme) in SCHEMES {
        let quantization = Some(Quantization::Made(scheme));
        let decoder = read(&case("llama"), Precision { compute: DType::F32, quantization });
        let folder = written(&decoder, &case("llama"));
        assert_eq!(found(folder.path()), Some(Found::BitsAndBytes(scheme)), "{name}");
        let again = read(folder.path(), DType::F32);
        for (before, after) in decoder.base_parameters().iter().zip(again.base_parameters()) {
            let (before, after) = (before.to_host().to_f32_vec(), after.to_host().to_f32_vec());
            assert_eq!(before, after, "{name}");
        }
    }
    // Of 8 bits nothing is left to chance: the file is bitsandbytes' own.
    let quantization = Some(Quantization::Made(Scheme::Int8));
    let decoder = read(&case("llama"), Precision { compute: DType::F32, quantization });
    assert_same(written(&decoder, &case("llama")).path(), &case("llama__int8"), "llama__int8");
}

#[test]
fn codes_are_not_trained() {
    let error = Decoder::read(&device(), &case("llama__nf4"), &Method::Full, DType::F32, 0).unwrap_err();
    let ModelError::Weights { problems, .. } = error else { panic!("{error}") };
    assert!(problems[0].contains("use `finetuning_type: lora`"), "{problems:?}");
}

#[test]
fn an_adapter_is_not_merged_into_codes() {
    let mut decoder = read(&case("llama__nf4"), DType::F32);
    let adapter = sft_model::adapter::PeftAdapter::read(&case("llama__nf4").join("adapter")).unwrap();
    let error = adapter.merge(&device(), &mut decoder).unwrap_err().to_string();
    assert!(error.contains("not merged into codes"), "{error}");
}

/// A model's configuration.
fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A model of these tensors.
fn model_of(all: &BTreeMap<String, Stored>, config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views: Vec<_> = all
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn the_text_part_of_a_larger_model_is_read_as_it_is_alone() {
    for name in ["llama__gptq", "llama__awq", "llama__fp8", "llama__nf4", "llama__int8"] {
        let mut text = config(&case(name));
        let quantization = text.as_object_mut().unwrap().remove("quantization_config").unwrap();
        let whole =
            json!({"model_type": "mistral3", "text_config": text, "quantization_config": quantization});
        let tensors = tensors(&case(name));
        let tensors = tensors.into_iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor));
        let folder = model_of(&tensors.collect(), &whole);
        assert_eq!(found(folder.path()), found(&case(name)), "{name}");
        let values = |folder: &Path| -> Vec<Vec<f32>> {
            let decoder = read(folder, DType::F32);
            let value = |p: &&sft_model::parameter::Parameter| match p.as_quantized() {
                Some(codes) => codes.to_tensor().to_f32_vec(),
                None => p.to_host().to_f32_vec(),
            };
            decoder.base_parameters().iter().map(value).collect()
        };
        assert!(values(folder.path()) == values(&case(name)), "{name}");
    }
}

/// What a code of e4m3 stands for: OCP 8-bit Floating Point Specification 1.0, §5.1.
fn of_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2.0f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn experts_in_tensors_of_their_own_and_heads_are_decoded_while_they_are_read() {
    const TILE: usize = 8;
    let mut float = tensors(&case("qwen2_moe"));
    let mut codes = float.clone();
    for (at, (name, (dtype, shape, bytes))) in float.iter_mut().enumerate() {
        if !name.contains(".experts.") && name != "lm_head.weight" {
            continue;
        }
        let [rows, columns] = shape[..] else { panic!("{name}") };
        let grid = [rows.div_ceil(TILE), columns.div_ceil(TILE)];
        let scales: Vec<f32> = (0..grid[0] * grid[1]).map(|i| 0.01 * (1 + i + at) as f32).collect();
        // 0x7F is no number.
        let code = |i: usize| match ((i * 37 + at * 11) % 256) as u8 {
            code if code & 0x7F == 0x7F => 0,
            code => code,
        };
        let of_codes: Vec<u8> = (0..rows * columns).map(code).collect();
        let value = |i: usize| {
            let tile = i / columns / TILE * grid[1] + i % columns / TILE;
            of_e4m3(of_codes[i]) * scales[tile]
        };
        *bytes = (0..rows * columns).flat_map(|i| value(i).to_le_bytes()).collect();
        *dtype = Dtype::F32;
        let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        codes.insert(format!("{name}_scale_inv"), (Dtype::F32, grid.to_vec(), scales));
        codes.insert(name.clone(), (Dtype::F8_E4M3, shape.clone(), of_codes));
    }
    let mut config = config(&case("qwen2_moe"));
    let expected = model_of(&float, &config);
    let quantization = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [TILE, TILE]});
    config.as_object_mut().unwrap().insert("quantization_config".into(), quantization);
    let found = model_of(&codes, &config);
    let values = |folder: &Path| -> Vec<Vec<f32>> {
        read(folder, DType::F32).base_parameters().iter().map(|p| p.to_host().to_f32_vec()).collect()
    };
    assert!(values(found.path()) == values(expected.path()));
}

#[test]
fn gptq_says_by_either_name_how_it_counts_zeros() {
    let found = |more: Value| {
        let mut quantization = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
        quantization.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = json!({"quantization_config": quantization});
        quantization::of_checkpoint(config.as_object().unwrap()).map(|found| match found {
            Some(Found::Gptq { added, .. }) => added,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(found(json!({})), Ok(1));
    assert_eq!(found(json!({"format": "gptq_v2"})), Ok(0));
    assert_eq!(found(json!({"checkpoint_format": "gptq_v2", "format": "gptq_v2"})), Ok(0));
    assert!(found(json!({"checkpoint_format": "gptq", "format": "gptq_v2"})).is_err());
    assert!(found(json!({"format": "marlin"})).unwrap_err().contains("`format` is `marlin`"));
}

/// What is said of a checkpoint whose tensors were changed; those are left out for which `change` says no.
fn damaged(name: &str, change: &dyn Fn(&str, &mut Stored) -> bool) -> String {
    let mut all = tensors(&case(name));
    all.retain(|name, tensor| change(name, tensor));
    let folder = model_of(&all, &config(&case(name)));
    let error = Decoder::read(&device(), folder.path(), &Method::Inference, DType::F32, 0).unwrap_err();
    let ModelError::Weights { problems, .. } = error else { panic!("{error}") };
    problems.join("\n")
}

#[test]
fn a_checkpoint_without_its_state_is_refused_by_name() {
    let damaged = |change: &dyn Fn(&str, &mut Stored) -> bool| damaged("llama__nf4", change);
    let of_first = |name: &str, end: &str| name == format!("model.layers.0.self_attn.q_proj.weight{end}");
    let problem = damaged(&|name, _| !of_first(name, ".absmax"));
    assert!(problem.contains("q_proj.weight.absmax: missing"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if of_first(name, "") {
            tensor.2.pop();
            tensor.1[0] -= 1;
        }
        true
    });
    assert!(problem.contains("2047 bytes of codes, and a weight of 64 × 64 has 2048"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if of_first(name, ".quant_map") {
            tensor.2[0] ^= 1;
        }
        true
    });
    assert!(problem.contains("not what nf4 codes stand for"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if of_first(name, ".quant_state.bitsandbytes__nf4") {
            tensor.2.fill(b'{');
        }
        true
    });
    assert!(problem.contains("quant_state.bitsandbytes__nf4"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if of_first(name, ".nested_absmax") {
            tensor.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        true
    });
    assert!(problem.contains("q_proj.weight: scale 0 is NaN"), "{problem}");
}

#[test]
fn codes_that_are_stored_as_another_type_are_the_same() {
    let mut all = tensors(&case("llama__nf4"));
    for (name, (dtype, shape, _)) in &mut all {
        if *dtype == Dtype::U8 && name.ends_with("proj.weight") {
            (*dtype, *shape) = (Dtype::BF16, vec![shape.iter().product::<usize>() / 2, 1]);
        }
    }
    let folder = model_of(&all, &config(&case("llama__nf4")));
    let (found, expected) = (read(folder.path(), DType::F32), read(&case("llama__nf4"), DType::F32));
    let codes = |decoder: &Decoder| {
        let parameters = decoder.base_parameters();
        let codes = parameters.iter().filter_map(|p| p.as_quantized());
        codes.map(|weight| weight.to_tensor().to_f32_vec()).collect::<Vec<_>>()
    };
    assert!(!codes(&found).is_empty() && codes(&found) == codes(&expected));
}

#[test]
fn codes_in_tiles_of_a_gpu_are_refused() {
    let problem = damaged("llama__int8", &|name, tensor| {
        if name == "model.layers.0.self_attn.q_proj.weight_format" {
            tensor.2[0] = 2;
        }
        true
    });
    assert!(problem.contains("q_proj.weight_format: codes in tiles"), "{problem}");
}

#[test]
fn experts_in_mxfp4_that_are_not_whole_are_refused_by_name() {
    let damaged = |change: &dyn Fn(&str, &mut Stored) -> bool| damaged("gpt_oss__mxfp4", change);
    let problem = damaged(&|name, _| !name.ends_with("gate_up_proj_scales"));
    assert!(problem.contains("mlp.experts.gate_up_proj_scales: missing"), "{problem}");
    let problem = damaged(&|name, _| !name.ends_with("gate_up_proj_blocks"));
    assert!(problem.contains("mlp.experts.gate_up_proj: missing"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if name.ends_with("down_proj_blocks") {
            tensor.1.swap(0, 1);
        }
        true
    });
    assert!(
        problem.contains("down_proj_blocks: found shape [32, 3, 1, 16], expected [3, 32, 1, 16]"),
        "{problem}"
    );
    let problem = damaged(&|name, tensor| {
        if name.ends_with("down_proj_scales") {
            tensor.2[7] = 255;
        }
        true
    });
    assert!(problem.contains("down_proj_scales: element 7 is no number"), "{problem}");
}

#[test]
fn groups_of_gptq_that_do_not_fit_are_refused_by_name() {
    let damaged = |change: &dyn Fn(&str, &mut Stored) -> bool| damaged("llama__gptq_act", change);
    let is_order = |name: &str| name.ends_with("q_proj.g_idx");
    let problem = damaged(&|name, _| !is_order(name));
    assert!(problem.contains("q_proj.g_idx: missing, and `desc_act` is true"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if is_order(name) {
            tensor.2[8] = 4;
        }
        true
    });
    assert!(problem.contains("q_proj.g_idx: input 2 is of group 4, of 4"), "{problem}");
    let problem = damaged(&|name, tensor| {
        if is_order(name) {
            tensor.2.truncate(64);
            tensor.1[0] = 16;
        }
        true
    });
    assert!(problem.contains("q_proj.g_idx: found shape [16], expected [32]"), "{problem}");
}

#[test]
fn a_checkpoint_with_shuffled_groups_is_planned_and_kept_in_the_compute_dtype() {
    let decoder = read(&case("llama__gptq_act"), DType::BF16);
    let quantization = found(&case("llama__gptq_act")).map(Quantization::Found);
    assert!(decoder.base_parameters().iter().all(|p| p.as_quantized().is_none()));
    let counts = sft_model::loading::count(&decoder.spec, &Method::Inference, quantization).unwrap();
    let frozen: usize = decoder.base_parameters().iter().map(|p| p.elements()).sum();
    assert_eq!((counts.quantized, counts.quantized_bytes, counts.frozen), (0, 0, frozen));
    let error = Decoder::read(&device(), &case("llama__gptq_act"), &Method::Full, DType::F32, 0).unwrap_err();
    assert!(error.to_string().contains("use `finetuning_type: lora`"), "{error}");
}

#[test]
fn the_plan_counts_the_bytes_that_are_taken() {
    let lora = Method::Lora(LoraOptions {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: Vec::new(),
        use_rslora: false,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: Vec::new(),
    });
    for (_, scheme) in SCHEMES {
        let quantization = Some(Quantization::Made(scheme));
        let precision = Precision { compute: DType::F32, quantization };
        let decoder = Decoder::read(&device(), &case("llama"), &lora, precision, 0).unwrap();
        let counts = sft_model::loading::count(&decoder.spec, &lora, quantization).unwrap();
        let weights = decoder.base_parameters();
        let quantized = weights.iter().filter_map(|p| p.as_quantized());
        assert_eq!(quantized.map(|weight| weight.byte_len()).sum::<usize>(), counts.quantized_bytes);
        let frozen: usize = weights.iter().filter(|p| !p.is_trained()).map(|p| p.elements()).sum();
        assert_eq!(frozen, counts.frozen);
    }
}
