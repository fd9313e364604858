//! Model folders and adapters put together of good ones and of what breaks parsers, the same at every run: headers with
//! wrong offsets and sizes that overflow, indices that point elsewhere, configurations of impossible models.
//!
//! A few thousand inputs of each kind are tried by `cargo test`; more by
//! `SFT_FUZZ_INPUTS=1000000 cargo test --release -p sft-model --test fuzz -- --nocapture`. Nothing may panic, take longer
//! than [`LONGEST`], read a file outside of its folder, or leave the process with more memory than [`MOST_BYTES`].

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sft_kernels::DType;
use sft_kernels::quantized::Scheme;
use sft_model::adapter::PeftAdapter;
use sft_model::method::Method;
use sft_model::quantization::Quantization;
use sft_model::weights::WeightFiles;
use sft_model::workspace::{Purpose, Recomputed, Workspace};
use sft_model::{families, loading};

const LONGEST: Duration = Duration::from_secs(10);
const MOST_BYTES: u64 = 1 << 30;

fn inputs() -> u64 {
    std::env::var("SFT_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

/// A generator of numbers: 64 bits of state (Steele and others 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Tries inputs; says which one it was where one panics or takes too long. `make` gives the input, `attempt` whether it was
/// good.
fn fuzz(
    name: &str,
    mut make: impl FnMut(&mut SplitMix) -> Vec<u8>,
    mut attempt: impl FnMut(&[u8], &mut SplitMix) -> bool,
) {
    let (mut rng, mut good, mut longest) = (SplitMix(42), 0_u64, Duration::ZERO);
    for number in 0..inputs() {
        let input = make(&mut rng);
        let begun = Instant::now();
        let tried = catch_unwind(AssertUnwindSafe(|| attempt(&input, &mut rng)));
        let took = begun.elapsed();
        longest = longest.max(took);
        let shown = || String::from_utf8_lossy(&input).into_owned();
        good += u64::from(tried.unwrap_or_else(|_| panic!("{name}: input {number} panics: {}", shown())));
        assert!(took < LONGEST, "{name}: input {number} took {took:?}: {}", shown());
    }
    let peak = sft_peak_bytes();
    println!(
        "{name}: {} inputs, {good} of them good, longest {longest:.0?}, peak {} MiB",
        inputs(),
        peak >> 20
    );
    assert!(good > inputs() / 200, "{name}: {good} good inputs: too few reach what lies behind the parser");
    assert!(peak < MOST_BYTES, "{name}: {peak} bytes");
}

/// The most memory that this process ever had; 0 where the system does not say.
fn sft_peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
}

/// Folders in memory where there are any: many files are written.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// Numbers that break arithmetic.
const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "3",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "1e308",
    "1e-308",
    "0.5",
    "-0.0",
    "2305843009213693952",
];

/// A few faults in a text.
fn faults(text: &mut Vec<u8>, words: &[&str], rng: &mut SplitMix) {
    for _ in 0..rng.below(4) {
        let at = rng.below(text.len() + 1);
        match rng.below(6) {
            0 => text.insert(at, rng.next() as u8),
            1 if at < text.len() => text[at] ^= 1 << rng.below(8),
            2 => text.truncate(at),
            3 if at < text.len() => {
                let to = at + rng.below(text.len() - at) + 1;
                text.drain(at..to);
            }
            _ => {
                let word = rng.one_of(words).repeat(1 + rng.below(12) / 11 * 400);
                text.splice(at..at, word.bytes());
            }
        }
    }
}

/// Puts one of [`NUMBERS`] in the place of a number.
fn other_number(text: &mut Vec<u8>, rng: &mut SplitMix) {
    let starts: Vec<usize> = (1..text.len())
        .filter(|at| text[*at].is_ascii_digit() && !text[at - 1].is_ascii_digit() && text[at - 1] != b'.')
        .collect();
    if starts.is_empty() {
        return;
    }
    let from = starts[rng.below(starts.len())];
    let to = from + text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.splice(from..to, rng.one_of(&NUMBERS.map(|n| n)).bytes());
}

#[test]
fn weights_survive_any_header() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"b":{"dtype":"BF16","shape":[8],"data_offsets":[32,48]},"c":{"dtype":"F16","shape":[1,1,2],"data_offsets":[48,52]}}"#;
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"dtype\":\"I64\"",
        "\"F8_E4M3\"",
        "null",
        "-1",
        "\u{0}",
        "[[",
        "1e9",
    ];
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let make = |rng: &mut SplitMix| {
        let mut text = header.as_bytes().to_vec();
        (0..rng.below(3)).for_each(|_| other_number(&mut text, rng));
        faults(&mut text, &words, rng);
        let length = match rng.below(8) {
            0 => rng.next(),
            1 => rng.below(300) as u64,
            _ => text.len() as u64,
        };
        let data = if rng.below(6) == 0 { rng.below(60) } else { 52 };
        [&length.to_le_bytes()[..], &text, &vec![1; data]].concat()
    };
    fuzz("safetensors", make, |input, _| {
        fs::write(&path, input).unwrap();
        let Ok(files) = WeightFiles::open_model(folder.path()) else { return false };
        for name in files.names() {
            let shape = files.shape(name).unwrap().to_vec();
            if let Ok(tensor) = files.tensor(name, &shape) {
                assert_eq!(tensor.to_f32_vec().len(), shape.iter().product::<usize>());
            }
            assert!(files.tensor(name, &[usize::MAX, 2]).is_err());
        }
        true
    });
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    let outer = folder();
    let folder = outer.path().join("model");
    fs::create_dir(&folder).unwrap();
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let whole = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    fs::write(folder.join("part.safetensors"), &whole).unwrap();
    let secret = String::from_utf8(header.to_vec()).unwrap().replace("\"a\"", "\"secret\"");
    let secret = [&(secret.len() as u64).to_le_bytes()[..], secret.as_bytes(), &[0; 4]].concat();
    fs::write(outer.path().join("secret.safetensors"), secret).unwrap();
    let absolute = outer.path().join("secret.safetensors").display().to_string();
    let seeds = [
        json!({"weight_map": {"a": "part.safetensors"}}),
        json!({"metadata": {"total_size": 4}, "weight_map": {"a": "part.safetensors", "secret": "../secret.safetensors"}}),
        json!({"weight_map": {"secret": absolute, "b": "./part.safetensors"}}),
        json!({"weight_map": {"secret": "part.safetensors/../../secret.safetensors", "c": ".", "d": ".."}}),
    ];
    let seeds = seeds.map(|seed| seed.to_string());
    let words = [
        "../",
        "/",
        "\\u002e\\u002e/",
        "\\\\",
        "\"",
        "{",
        "}",
        ":",
        ",",
        "..",
        "%2e%2e/",
        "\\u0000",
        "[",
        "null",
    ];
    let make = |rng: &mut SplitMix| {
        let mut text = seeds[rng.below(seeds.len())].clone().into_bytes();
        faults(&mut text, &words, rng);
        text
    };
    fuzz("index files", make, |input, _| {
        fs::write(folder.join("model.safetensors.index.json"), input).unwrap();
        let Ok(files) = WeightFiles::open_model(&folder) else { return false };
        assert!(!files.contains("secret"));
        true
    });
}

/// The configurations of the parity cases.
fn configs() -> Vec<String> {
    let mut cases: Vec<_> = fs::read_dir(case("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases.iter().filter_map(|folder| fs::read_to_string(folder.join("config.json")).ok()).collect()
}

#[test]
fn configurations_of_impossible_models_are_refused_or_counted() {
    let seeds = configs();
    assert!(seeds.len() > 10);
    let folder = folder();
    let words = ["null", "true", "\"", "{", "}", "[", "]", ",", ":", "-", "[]", "{}", "\"llama\"", "NaN"];
    let make = |rng: &mut SplitMix| {
        let text = &seeds[rng.below(seeds.len())];
        let mut text = text.clone().into_bytes();
        (0..=rng.below(3)).for_each(|_| other_number(&mut text, rng));
        if rng.below(4) == 0 {
            faults(&mut text, &words, rng);
        }
        text
    };
    fuzz("config.json", make, |input, _| {
        fs::write(folder.path().join("config.json"), input).unwrap();
        let Ok(spec) = families::read_spec(folder.path()) else { return false };
        for method in [Method::Full, Method::Inference] {
            // As the plan of memory does it.
            if loading::count(&spec, &method, None).is_err() {
                continue;
            }
            if let Ok(adapters) = method.adapters(&spec) {
                let purpose = Purpose::Training(Recomputed::Blocks(0));
                let _ = Workspace::plan(&spec, &adapters, DType::BF16, 16, purpose, false);
            }
        }
        true
    });
}

#[test]
fn adapter_configurations_survive_any_text() {
    let seed = json!({
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"],
        "bias": "none", "fan_in_fan_out": false, "use_rslora": false, "modules_to_save": ["lm_head"],
        "rank_pattern": {"^model.layers.0.*q_proj": 4}, "alpha_pattern": {}, "base_model_name_or_path": "m",
        "task_type": "CAUSAL_LM", "layers_to_transform": [0, 1], "layers_pattern": null, "exclude_modules": null,
        "use_dora": false, "init_lora_weights": true
    });
    let rotations = json!({
        "peft_type": "OFT", "peft_version": "0.18.1", "r": 0, "oft_block_size": 8, "module_dropout": 0.1,
        "target_modules": "all-linear", "bias": "none", "use_cayley_neumann": true, "num_cayley_neumann_terms": 5
    });
    let seeds = [
        seed.to_string(),
        rotations.to_string(),
        {
            let mut seed = seed.clone();
            seed["target_modules"] = Value::String("all-linear".into());
            seed["layers_to_transform"] = Value::Null;
            seed.to_string()
        },
        {
            let mut seed = seed.clone();
            seed["target_parameters"] = json!(["experts.gate_up_proj", "down_proj", "gate.weight"]);
            seed["lora_dropout"] = json!(0);
            seed["peft_version"] = json!("0.19.1");
            seed.to_string()
        },
    ];
    let folder = folder();
    let specs = ["llama", "qwen2_moe"].map(|name| families::read_spec(&case(name)).unwrap());
    let tensors = "adapter_model.safetensors";
    fs::copy(case("qwen2_moe").join("experts").join(tensors), folder.path().join(tensors)).unwrap();
    // Expressions that take others a time without end.
    let words = [
        "(a+)+$",
        "(x*)*y",
        ".*",
        "{999999}",
        "(?:a{1000}){1000}",
        "\\",
        "[",
        "]",
        "{",
        "}",
        "null",
        "-1",
        ",",
        "\"",
    ];
    let make = |rng: &mut SplitMix| {
        let mut text = seeds[rng.below(seeds.len())].clone().into_bytes();
        (0..rng.below(3)).for_each(|_| other_number(&mut text, rng));
        faults(&mut text, &words, rng);
        text
    };
    fuzz("adapter_config.json", make, |input, _| {
        fs::write(folder.path().join("adapter_config.json"), input).unwrap();
        let Ok(adapter) = PeftAdapter::read(folder.path()) else { return false };
        for path in ["model.layers.0.self_attn.q_proj", "lm_head", &"a".repeat(3000)] {
            let _ = (adapter.config.targets(path), adapter.config.rank_of(path));
        }
        for spec in &specs {
            let options = adapter.options_for(spec);
            let _ = loading::count(spec, &Method::from(options), Some(Quantization::Made(Scheme::Int8)));
        }
        true
    });
}
