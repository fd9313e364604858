//! Every optimizer trains as the package that it comes from, and goes on from a checkpoint to the bit.
//!
//! `tools/make_optimizer_goldens.py` made the losses and weights; an entry's keys are those of a configuration, so that what
//! becomes of them is part of what is compared.

use std::path::{Path, PathBuf};

use sft_config::{Purpose as Command, RunConfig, load_text};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::method::Method;
use sft_model::parameter::Parameter;
use sft_model::workspace::{Purpose, Recomputed, Workspace};
use sft_model::{Batch, Decoder, families};
use sft_train::events::{Event, Observer, Silent};
use sft_train::optim::{Bits, Outline, Recipe, Rule};
use sft_train::run::{Outcome, run};
use sft_train::{Job, parity, setup};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

/// The most that a loss is off, relative.
const LOSS: f64 = 1e-4;

/// The most that a weight is off; an update moves it by 3e-3 to 1e-2.
fn weight_limit(optimizer: &str) -> f64 {
    match optimizer {
        // Products of bfloat16 whose sums have another order, five times over: small singular values grow each time.
        "muon" => 2e-3,
        _ => 1e-4,
    }
}

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity/llama")
}

fn config(keys: &[String]) -> RunConfig {
    let text = "model_name_or_path: unused\ndataset: unused\noutput_dir: unused\n";
    load_text(text, "test.yaml", keys, Command::Train).unwrap()
}

/// The golden file: entries by name.
fn goldens() -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(include_str!("../goldens/optimizers.json")).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn recipe(config: &RunConfig, decoder: &mut Decoder, steps: u64) -> Recipe {
    let weights: Vec<Outline> = decoder.trained_mut().iter().map(|p| p.outline()).collect();
    let spec = families::read_spec(&case()).unwrap();
    let mut recipe = setup::optimizer(config, &spec, &weights, steps).unwrap();
    // Weights of the case are smaller than what is kept in 8 bits by default.
    match &mut recipe.rule {
        Rule::AdamW(_, bits) | Rule::Lion(_, bits) | Rule::AdEMAMix(_, bits) if *bits == Bits::B8 => {
            *bits = Bits::B8 { min_elements: 1 };
        }
        _ => {}
    }
    recipe
}

/// The largest relative difference of a loss, and the largest of a weight, of six steps.
fn compare(dev: &Device, golden: &serde_json::Value) -> (f64, f64) {
    let config = config(&read::<Vec<String>>(&golden["keys"]));
    let adapter = config.finetuning_type.is_adapter();
    let rates: Vec<f64> = read(&golden["learning_rates"]);
    let (losses, mut decoder) = parity::train(dev, &case(), adapter, &rates, |decoder| {
        let recipe = recipe(&config, decoder, rates.len() as u64);
        Ok(recipe.make(&mut decoder.trained_mut()))
    })
    .unwrap();
    let expected: Vec<f64> = read(&golden["losses"]);
    let off = losses.iter().zip(&expected).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    let weights = golden["weights"].as_object().unwrap();
    let trained = decoder.trained_mut();
    assert_eq!(trained.len(), weights.len(), "as many trained weights as the package has");
    let mut worst = 0.0f64;
    for parameter in trained {
        let values = parameter.to_host().to_f32_vec();
        let expected: [f64; 3] = read(&weights[parameter.name()]);
        let found = [0, values.len() / 2, values.len() - 1].map(|i| f64::from(values[i]));
        worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
    }
    (off, worst)
}

#[test]
fn six_steps_of_every_optimizer_are_those_of_its_package() {
    let dev = Device::cpu(CpuOptions { threads: None, isa: None }).unwrap();
    let mut wrong = Vec::new();
    for (name, golden) in goldens() {
        let (loss, weight) = compare(&dev, &golden);
        println!("{name:24} loss {loss:.1e}, weights {weight:.1e}");
        if !(loss <= LOSS && weight <= weight_limit(&name)) {
            wrong.push(format!("{name}: loss {loss:.1e}, weights {weight:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Interrupts after a number of steps.
struct After(u64, u64);

impl Observer for After {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Step(progress) = event {
            self.1 = progress.step;
        }
    }
    fn interrupted(&self) -> bool {
        self.1 >= self.0
    }
}

fn job(output: &Path, keys: &[&str]) -> Job {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         train_from_scratch: true\nfinetuning_type: full\nmax_samples: 12\ncutoff_len: 32\noutput_dir: {}\n\
         per_device_train_batch_size: 2\nmax_steps: 7\nlearning_rate: 1e-3\nweight_decay: 0.01\nlogging_steps: 1\n\
         val_size: 2\neval_strategy: steps\neval_steps: 2\ndevice: cpu\nsave_strategy: \"no\"\n",
        output.display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    Job::prepare(load_text(&text, "test.yaml", &keys, Command::Train).unwrap()).unwrap()
}

fn train(output: &Path, keys: &[&str], observer: &mut dyn Observer) -> Outcome {
    run(job(output, keys), observer).unwrap()
}

/// A recipe for every optimizer, and for every way that one keeps its state.
const RECIPES: [&[&str]; 23] = [
    &["optim=adamw_torch"],
    &["optim=adamw_8bit"],
    &["optim=sgd"],
    &["optim=sgd", "optim_args=momentum=0.9"],
    &["optim=adafactor"],
    &["optim=lion_32bit"],
    &["optim=lion_8bit"],
    &["optim=ademamix"],
    &["optim=ademamix_8bit"],
    &["optim=schedule_free_adamw", "warmup_steps=2"],
    &["use_adam_mini=true"],
    &["use_muon=true"],
    &["use_galore=true", "galore_rank=4", "galore_update_interval=2"],
    &["use_galore=true", "galore_rank=4", "galore_proj_type=full", "optim=adafactor"],
    &["use_apollo=true", "apollo_rank=4", "apollo_update_interval=3"],
    &["use_apollo=true", "apollo_rank=1", "apollo_scale_type=tensor", "apollo_proj=svd"],
    &["use_galore=true", "galore_rank=4", "galore_layerwise=true"],
    &["use_apollo=true", "apollo_rank=4", "apollo_layerwise=true"],
    &["use_badam=true", "badam_switch_interval=2"],
    &["use_badam=true", "badam_switch_interval=1", "badam_switch_mode=random"],
    &["use_badam=true", "badam_switch_interval=-1", "badam_switch_mode=fixed", "badam_start_block=1"],
    &["use_badam=true", "badam_mode=ratio", "weight_decay=0"],
    &["use_badam=true", "badam_mode=ratio", "badam_mask_mode=scatter", "weight_decay=0"],
];

#[test]
fn a_run_that_is_taken_up_again_equals_one_that_was_not_stopped_with_every_optimizer() {
    for keys in RECIPES {
        let folder = tempfile::tempdir().unwrap();
        let whole = train(&folder.path().join("whole"), keys, &mut Silent);
        let parts = folder.path().join("parts");
        let first = train(&parts, keys, &mut After(3, 0));
        assert_eq!((first.steps, first.interrupted_at.is_some()), (3, true), "{keys:?}");
        let second = train(&parts, keys, &mut Silent);
        assert_eq!((second.steps, second.interrupted_at), (7, None), "{keys:?}");
        assert_eq!(second.digest, whole.digest, "{keys:?}");
    }
}

#[test]
fn threads_do_not_change_what_an_optimizer_does() {
    for keys in RECIPES {
        let folder = tempfile::tempdir().unwrap();
        let digest = |threads: &str| {
            let keys = [keys, &[threads, "max_steps=3", "eval_strategy=no", "val_size=0"]].concat();
            train(&folder.path().join(threads), &keys, &mut Silent).digest
        };
        assert_eq!(digest("threads=1"), digest("threads=2"), "{keys:?}");
    }
}

#[test]
fn gradients_take_the_bytes_that_the_plan_counts() {
    let dev = Device::cpu(CpuOptions { threads: None, isa: None }).unwrap();
    for (keys, share_at_most) in
        [(["finetuning_type=full", "use_badam=true"], 0.4), (["finetuning_type=full", "seed=1"], 1.0)]
    {
        let config = config(&keys.map(str::to_owned));
        let mut decoder = Decoder::read(&dev, &case(), &Method::Full, DType::F32, 0).unwrap();
        let recipe = recipe(&config, &mut decoder, 1);
        let mut trained = decoder.trained_mut();
        let weights: Vec<Outline> = trained.iter().map(|p| p.outline()).collect();
        recipe.make(&mut trained).choose(&mut trained);
        let bytes: usize =
            trained.iter().filter_map(|p| p.gradient()).map(|gradient| gradient.byte_len()).sum();
        assert_eq!(bytes, recipe.gradient_bytes(&weights, false), "{keys:?}");
        let all = weights.iter().map(Outline::elements).sum::<usize>() * DType::F32.bytes();
        assert!(bytes as f64 <= share_at_most * all as f64, "{keys:?}: {bytes} of {all} bytes");
    }
}

#[test]
fn gradients_of_parts_take_the_bytes_that_the_plan_counts() {
    let dev = Device::cpu(CpuOptions { threads: None, isa: None }).unwrap();
    let keys = ["finetuning_type=full", "use_galore=true", "galore_layerwise=true"];
    let mut decoder = Decoder::read(&dev, &case(), &Method::Full, DType::F32, 0).unwrap();
    let recipe = recipe(&config(&keys.map(str::to_owned)), &mut decoder, 1);
    let weights: Vec<Outline> = decoder.trained_mut().iter().map(|p| p.outline()).collect();
    let (spec, adapters) = (decoder.spec.clone(), decoder.adapters().clone());
    let purpose = Purpose::Training(Recomputed::Blocks(0));
    let mut work = Workspace::new(&dev, &spec, &adapters, DType::F32, 4, purpose);
    let (input_ids, targets) = ([3, 5, 7, 9], [5, 7, 9, -100]);
    let position_ids = [0, 1, 2, 3];
    let rows = Batch {
        input_ids: &input_ids,
        position_ids: &position_ids,
        cu_seqlens: &[0, 4],
        shared: None,
        targets: &targets,
        weights: &[],
    };
    let mut parts = Vec::new();
    let mut seen = |part: &mut [&mut Parameter]| {
        parts.push(part.iter().filter_map(|p| p.gradient()).map(|g| g.byte_len()).sum::<usize>());
    };
    decoder.loss_and_updates(&dev, rows, 1.0, None, &mut work, &mut seen).unwrap();
    assert_eq!(parts.len(), spec.layers.len() + 2, "behind the blocks, the blocks, before them");
    assert_eq!(parts.iter().max(), Some(&recipe.gradient_bytes(&weights, spec.tie_word_embeddings)));
    assert!(decoder.trained_mut().iter().all(|p| !p.takes_gradient()), "all rest afterwards");
}

#[test]
fn checkpoints_hold_the_bytes_that_the_plan_counts() {
    for keys in RECIPES {
        let folder = tempfile::tempdir().unwrap();
        let (planned, trained) = {
            let job = job(folder.path(), keys);
            let trained: usize = job.trained.iter().map(Outline::elements).sum();
            (job.optimizer.checkpoint_bytes(&job.trained), trained)
        };
        let stopped = train(&folder.path().join("run"), keys, &mut After(1, 0));
        let file = stopped.interrupted_at.unwrap().join("optimizer.safetensors");
        let bytes = std::fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let kept: usize = tensors.iter().map(|(_, tensor)| tensor.data().len()).sum();
        println!("{keys:?}: {:.3} bytes a weight", kept as f64 / trained as f64);
        // Besides, schedule-free AdamW has two numbers, and a block that is not the largest of BAdam is smaller.
        assert!(kept <= planned + 16, "{keys:?}: {kept} bytes in the checkpoint, {planned} in the plan");
        assert!(
            kept + 16 >= planned || keys[0] == "use_badam=true",
            "{keys:?}: {kept} bytes, {planned} in the plan"
        );
    }
}
