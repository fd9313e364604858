//! A GPU trains as a CPU does. Needs one, or the emulated one of `crates/kernels/emulator`: with `SFT_TEST_CUDA` set it
//! has to be there, without it nothing of this file runs.

use std::io::Write;
use std::path::Path;

use sft_config::{Purpose, load_text};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::method::Method;
use sft_model::workspace::{self, Workspace};
use sft_model::{Batch, Decoder};
use sft_train::Job;
use sft_train::evaluate::evaluate;
use sft_train::job::EvalRows;
use sft_train::parity::{Limits, compare};
use sft_train::trainer::Trainer;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

fn gpu() -> Option<Device> {
    if std::env::var_os("SFT_TEST_CUDA").is_none() {
        not_run("on a GPU: SFT_TEST_CUDA is not set");
        return None;
    }
    let dev = Device::gpu(0, CpuOptions::default()).unwrap();
    if dev.name() == "Emulated GPU" {
        not_run("on a real GPU");
    }
    Some(dev)
}

/// Past the harness, which shows nothing of a test that passes.
fn not_run(what: &str) {
    let thread = std::thread::current();
    let line = format!("{}: not run {what}\n", thread.name().unwrap_or("a test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn cpu() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

/// Losses and norms of gradients of the first steps of a run with these keys.
fn steps_of(dev: &Device, keys: &[&str]) -> Vec<[f64; 2]> {
    let mut job = job(keys);
    dev.install(|| {
        let mut trainer = Trainer::new(dev, &job).unwrap();
        let steps = 0..job.total_steps;
        steps
            .map(|step| {
                let batch = job.train.next_step().unwrap();
                let outcome = trainer.step(&job, step, &batch).unwrap();
                [outcome.loss, outcome.grad_norm]
            })
            .collect()
    })
}

fn job(keys: &[&str]) -> Job {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         max_samples: 24\ncutoff_len: 64\noutput_dir: unused\nper_device_train_batch_size: 2\n\
         gradient_accumulation_steps: 2\nmax_steps: 2\nlearning_rate: 1e-3\ndevice: cpu\n"
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    let mut job = Job::prepare(load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap()).unwrap();
    // Several micro-batches, whose gradients add up.
    job.join(0).unwrap();
    // It is a choice of the CPU's plan.
    job.plan.pack = false;
    job
}

#[test]
fn a_gpu_trains_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    // Sums are in another order; in bf16 a value here and there rounds the other way.
    for (keys, tolerance) in [
        (&["finetuning_type=full"][..], 1e-3),
        (&["finetuning_type=full", "bf16=true", "packing=true"], 2e-2),
        (&["finetuning_type=lora", "bf16=true", "lora_dropout=0.1"], 2e-2),
        (&["finetuning_type=lora", "bf16=true", "disable_gradient_checkpointing=false"], 2e-2),
        (&["finetuning_type=lora", "bf16=true", "lora_dropout=0.1", "use_dora=true"], 2e-2),
        (&["finetuning_type=full", "use_asft_loss=true", "neftune_noise_alpha=5"], 1e-3),
        (&["finetuning_type=lora", "label_smoothing_factor=0.1"], 1e-3),
        (&["finetuning_type=lora", "use_eaft_loss=true"], 1e-3),
        (&["finetuning_type=lora", "bf16=true", "quantization_bit=4"], 2e-2),
        (&["finetuning_type=lora", "quantization_bit=8"], 1e-3),
        (&["finetuning_type=oft", "module_dropout=0.3"], 1e-3),
        (&["finetuning_type=oft", "bf16=true", "quantization_bit=4"], 2e-2),
        (&["finetuning_type=full", "optim=schedule_free_adamw"], 1e-3),
        (&["finetuning_type=full", "optim=sgd", "optim_args=momentum=0.9"], 1e-3),
        (&["finetuning_type=full", "optim=adamw_8bit", "bf16=true"], 2e-2),
        (&["finetuning_type=full", "optim=ademamix_8bit", "bf16=true"], 2e-2),
        (&["finetuning_type=lora", "optim=lion_32bit", "loraplus_lr_ratio=4", "bf16=true"], 2e-2),
    ] {
        let (found, expected) = (steps_of(&gpu, keys), steps_of(&cpu(), keys));
        println!("{keys:?}: {found:?}, on the CPU {expected:?}");
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            let difference = (found - expected).abs();
            assert!(difference <= tolerance * expected, "{keys:?}: {found} and not {expected}");
        }
    }
}

#[test]
fn a_gpu_evaluates_alone_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    for (keys, tolerance) in [
        (&["finetuning_type=full"][..], 1e-5),
        (&["bf16=true"], 1e-3),
        (&["bf16=true", "quantization_bit=4"], 1e-3),
    ] {
        let keys = [&["do_train=false", "do_eval=true", "eval_dataset=quickstart_train"], keys].concat();
        let job = job(&keys);
        let evaluated = |dev: &Device| {
            dev.install(|| {
                let Trainer { decoder, mut work, .. } = Trainer::new(dev, &job).unwrap();
                let [EvalRows { rows, .. }] = &job.eval[..] else { panic!("one set of rows") };
                evaluate(dev, &decoder, rows, &mut work, || false).unwrap()
            })
        };
        let (found, expected) = (evaluated(&gpu), evaluated(&cpu()));
        assert_eq!(found.sums.supervised, expected.sums.supervised);
        let difference = (found.loss() - expected.loss()).abs();
        assert!(difference <= tolerance * expected.loss(), "{keys:?}: {found:?} and not {expected:?}");
    }
}

#[test]
fn a_run_on_a_gpu_repeats_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    let keys = ["finetuning_type=lora", "bf16=true", "packing=true"];
    assert_eq!(steps_of(&gpu, &keys), steps_of(&gpu, &keys));
}

#[test]
fn a_gpu_computes_models_as_transformers_and_peft_compute_them() {
    let Some(gpu) = gpu() else { return };
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity");
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
        "mistral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3__alike",
    ] {
        let found = compare(&gpu, &cases.join(case), DType::F32).unwrap();
        assert!(found.holds(&Limits::FLOAT32), "{case}: {found:?}");
    }
}

/// The loss of two rows with all weights trained in bfloat16, and the norm of each gradient.
fn in_bf16(dev: &Device, folder: &Path, weights: &[f32]) -> (f64, Vec<(String, f32)>) {
    let mut decoder = Decoder::read(dev, folder, &Method::Full, DType::BF16, 0).unwrap();
    let purpose = workspace::Purpose::Training(workspace::Recomputed::Least);
    let (spec, adapters) = (decoder.spec.clone(), decoder.adapters().clone());
    let mut work = Workspace::new(dev, &spec, &adapters, DType::BF16, 40, purpose);
    let input_ids: Vec<u32> = (0..40).map(|i| 3 + i * i * 7 % 41).collect();
    let position_ids: Vec<u32> = (0..33).chain(0..7).collect();
    let targets: Vec<i32> = input_ids.iter().map(|id| *id as i32 + 1).collect();
    let batch = Batch {
        input_ids: &input_ids,
        position_ids: &position_ids,
        cu_seqlens: &[0, 33, 40],
        shared: None,
        targets: &targets,
        weights,
    };
    decoder.loss_and_gradients(dev, batch, 1.0, None, &mut work).unwrap();
    let norm = |values: Vec<f32>| values.iter().map(|x| x * x).sum::<f32>().sqrt();
    let norms = decoder.trained_mut();
    let norms = norms.iter().map(|p| (p.name().to_owned(), norm(p.gradient().unwrap().to_f32_vec())));
    (work.loss_sums(dev).nll, norms.collect())
}

#[test]
fn a_gpu_weighs_tokens_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity/llama");
    let weights: Vec<f32> = (0..40).map(|i| [0.25, 1.0, 3.0][i % 3]).collect();
    let (found, expected) = (in_bf16(&gpu, &folder, &weights), in_bf16(&cpu(), &folder, &weights));
    let (found_plain, plain) = (in_bf16(&gpu, &folder, &[]), in_bf16(&cpu(), &folder, &[]));
    assert!((expected.0 / plain.0 - 1.0).abs() > 0.1, "weights that change nothing show nothing");
    for (found, expected) in [(found, expected), (found_plain, plain)] {
        assert!((found.0 / expected.0 - 1.0).abs() < 5e-3, "{} and not {}", found.0, expected.0);
        let largest = expected.1.iter().fold(0.0f32, |m, (_, norm)| m.max(*norm));
        for ((name, found), (_, expected)) in found.1.iter().zip(&expected.1) {
            let tolerance = 0.05 * expected + 2e-3 * largest;
            assert!((found - expected).abs() < tolerance, "{name}: {found} and not {expected}");
        }
    }
}

#[test]
fn a_gpu_trains_all_weights_of_a_hybrid_in_bf16_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity");
    for case in ["falcon_h1", "lfm2", "qwen3_5_text"] {
        let (found, expected) =
            (in_bf16(&gpu, &cases.join(case), &[]), in_bf16(&cpu(), &cases.join(case), &[]));
        assert!((found.0 / expected.0 - 1.0).abs() < 5e-3, "{case}: {} and not {}", found.0, expected.0);
        let largest = expected.1.iter().fold(0.0f32, |m, (_, norm)| m.max(*norm));
        for ((name, found), (_, expected)) in found.1.iter().zip(&expected.1) {
            let tolerance = 0.05 * expected + 2e-3 * largest;
            assert!((found - expected).abs() < tolerance, "{case} {name}: {found} and not {expected}");
        }
    }
}
