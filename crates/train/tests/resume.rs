//! A run that is interrupted and taken up again ends as the undisturbed run does, bit for bit.

use std::path::Path;

use sft_config::{Purpose, load_text};
use sft_train::Job;
use sft_train::events::{Event, Observer, Silent};
use sft_train::run::{Outcome, run};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

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

/// What is said when a run begins.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Ready { notes, .. } = event {
            self.0 = notes.to_vec();
        }
    }
}

fn job(output: &Path, keys: &[&str]) -> Job {
    let text = format!(
        "dataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\nmax_samples: 24\ncutoff_len: 64\n\
         output_dir: {}\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nmax_steps: 9\n\
         learning_rate: 1e-3\nlogging_steps: 1\n",
        output.display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    let config = load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap();
    Job::prepare(config).unwrap()
}

fn train(output: &Path, keys: &[&str], observer: &mut dyn Observer) -> Outcome {
    run(job(output, keys), observer).unwrap()
}

/// Trains 9 steps at once, and 4 + 5; returns both digests.
fn both_ways(keys: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let whole = train(&folder.path().join("whole"), keys, &mut Silent);
    let parts = folder.path().join("parts");
    let first = train(&parts, keys, &mut After(4, 0));
    assert_eq!((first.steps, first.interrupted_at.is_some()), (4, true));
    let second = train(&parts, keys, &mut Silent);
    assert_eq!((second.steps, second.interrupted_at), (9, None));
    (whole.digest, second.digest)
}

#[test]
fn four_steps_and_five_more_equal_nine_of_full_tuning() {
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let (whole, parts) = both_ways(&[&base, "finetuning_type=full", "train_from_scratch=true"]);
    assert_eq!(whole, parts);
}

#[test]
fn an_evaluation_at_the_end_that_is_broken_off_is_made_by_the_resume() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys =
        [&base, "finetuning_type=lora", "eval_dataset=quickstart_heldout", "do_eval=true", "do_train=true"];
    let whole = train(&folder.path().join("whole"), &keys, &mut Silent);
    let parts = folder.path().join("parts");
    // Nine steps are all: what is broken off is the evaluation behind them.
    let first = train(&parts, &keys, &mut After(9, 0));
    assert_eq!((first.steps, first.interrupted_at.is_some()), (9, true));
    assert!(first.results.get("eval_loss").is_none() && !parts.join("eval_results.json").exists());
    let second = train(&parts, &keys, &mut Silent);
    assert_eq!((second.digest, second.interrupted_at), (whole.digest, None));
    assert_eq!(second.results.get("eval_loss"), whole.results.get("eval_loss"));
    assert!(second.results.get("eval_loss").is_some());
}

/// A model with weights, as a key.
fn base_in(folder: &Path) -> String {
    let base = folder.join("base");
    let scratch = format!("model_name_or_path={QUICKSTART}/base");
    let begin = [scratch.as_str(), "finetuning_type=full", "train_from_scratch=true", "max_steps=1"];
    train(&base, &begin, &mut Silent);
    format!("model_name_or_path={}", base.display())
}

/// Trains adapters of a model with weights both ways.
fn both_ways_of_lora(keys: &[&str]) {
    both_ways_of_adapters(&[&["finetuning_type=lora"], keys].concat());
}

fn both_ways_of_adapters(keys: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let base = base_in(folder.path());
    let keys = [&[base.as_str()], keys].concat();
    let (whole, parts) = both_ways(&keys);
    assert_eq!(whole, parts, "{keys:?}");
}

#[test]
fn four_steps_and_five_more_equal_nine_of_lora_with_dropout() {
    both_ways_of_lora(&["lora_dropout=0.1", "packing=true"]);
}

/// Dropout's masks show which micro-batches are one.
#[test]
fn a_run_goes_on_with_micro_batches_joined_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let base = base_in(folder.path());
    let keys = [&base, "finetuning_type=lora", "lora_dropout=0.5", "per_device_train_batch_size=1"];
    let apart = |output: &str| {
        let mut job = job(&folder.path().join(output), &keys);
        assert!(job.joining.room > 0);
        job.join(0).unwrap();
        job
    };
    let joined = train(&folder.path().join("joined"), &keys, &mut Silent);
    let whole = run(apart("whole"), &mut Silent).unwrap();
    assert_ne!(whole.digest, joined.digest, "masks that are the same show nothing");
    run(apart("parts"), &mut After(4, 0)).unwrap();
    let parts = train(&folder.path().join("parts"), &keys, &mut Silent);
    assert_eq!((parts.resumed_at, parts.digest), (4, whole.digest));
}

/// As a checkpoint of a program that knew of no sharing: what is rounded otherwise shows after some steps.
#[test]
fn a_run_goes_on_with_beginnings_computed_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let base = base_in(folder.path());
    let keys = [&base, "finetuning_type=lora", "per_device_train_batch_size=4", "learning_rate=0.01"];
    let apart =
        |output: &str| job(&folder.path().join(output), &[&keys[..], &["share_prefixes=false"]].concat());
    let shared = train(&folder.path().join("shared"), &keys, &mut Silent);
    let whole = run(apart("whole"), &mut Silent).unwrap();
    assert_ne!(whole.digest, shared.digest, "sums that are rounded alike show nothing");
    run(apart("parts"), &mut After(4, 0)).unwrap();
    let parts = train(&folder.path().join("parts"), &keys, &mut Silent);
    assert_eq!((parts.resumed_at, parts.digest), (4, whole.digest));
    // The other way round it cannot be kept, and is said.
    train(&folder.path().join("other"), &keys, &mut After(4, 0));
    let mut notes = Notes::default();
    run(apart("other"), &mut notes).unwrap();
    assert!(notes.0.iter().any(|note| note.contains("is computed for each row now")), "{:?}", notes.0);
}

#[test]
fn four_steps_and_five_more_equal_nine_of_dora() {
    both_ways_of_lora(&["use_dora=true", "lora_dropout=0.1", "weight_decay=0.1"]);
}

#[test]
fn four_steps_and_five_more_equal_nine_of_oft_and_qoft() {
    both_ways_of_adapters(&["finetuning_type=oft", "module_dropout=0.4", "weight_decay=0.1"]);
    let keys = ["finetuning_type=oft", "oft_rank=4", "oft_block_size=0", "quantization_bit=4", "bf16=true"];
    both_ways_of_adapters(&keys);
}

/// A folder with the tokenizer of the quick start, and the configuration of a small model of another family.
fn model_of(folder: &Path, config: &serde_json::Value) {
    std::fs::create_dir(folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{QUICKSTART}/base/{file}"), folder.join(file)).unwrap();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// GPT-2 stores [in, out], and a mixture a tensor for each expert.
#[test]
fn four_steps_and_five_more_equal_nine_of_weights_that_files_have_in_another_form() {
    let folder = tempfile::tempdir().unwrap();
    let gpt2 = serde_json::json!({"model_type": "gpt2", "vocab_size": 1536, "n_embd": 32, "n_head": 2, "n_layer": 2,
        "n_positions": 128, "torch_dtype": "float32"});
    let mixture = serde_json::json!({"model_type": "qwen3_moe", "vocab_size": 1536, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": true, "torch_dtype": "float32"});
    for (name, config) in [("gpt2", gpt2), ("mixture", mixture)] {
        let base = folder.path().join(name);
        model_of(&base, &config);
        let model = format!("model_name_or_path={}", base.display());
        let (whole, parts) = both_ways(&[&model, "finetuning_type=full", "train_from_scratch=true"]);
        assert_eq!(whole, parts, "{name}");
    }
    // Adapters of all experts, on a model with weights of each.
    let (base, trained) = (folder.path().join("mixture"), folder.path().join("trained"));
    let model = format!("model_name_or_path={}", base.display());
    let keys = [model.as_str(), "finetuning_type=full", "train_from_scratch=true", "max_steps=1"];
    train(&trained, &keys, &mut Silent);
    let model = format!("model_name_or_path={}", trained.display());
    for more in [&["bf16=true"][..], &["loraplus_lr_ratio=4", "optim=adafactor"]] {
        let keys = [&[model.as_str(), "finetuning_type=lora", "lora_target_parameters=all"], more].concat();
        let (whole, parts) = both_ways(&keys);
        assert_eq!(whole, parts, "{keys:?}");
    }
}

#[test]
fn four_steps_and_five_more_equal_nine_of_pissa() {
    both_ways_of_lora(&["pissa_init=true", "pissa_iter=4", "pissa_convert=true"]);
    both_ways_of_lora(&["pissa_init=true", "pissa_iter=-1", "use_dora=true", "bf16=true"]);
}

#[test]
fn four_steps_and_five_more_equal_nine_with_each_loss() {
    both_ways_of_lora(&["use_asft_loss=true", "neftune_noise_alpha=5"]);
    both_ways_of_lora(&["use_eaft_loss=true"]);
    both_ways_of_lora(&["label_smoothing_factor=0.1", "use_dora=true"]);
}

#[test]
fn four_steps_and_five_more_of_a_stream_equal_nine() {
    let folder = tempfile::tempdir().unwrap();
    let slices = r#"{"some": {"file_name": "train.json", "split": "train[:26]"}}"#;
    std::fs::write(folder.path().join("dataset_info.json"), slices).unwrap();
    let data = format!("{QUICKSTART}/data/train.json");
    std::fs::copy(data, folder.path().join("train.json")).unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let place = format!("dataset_dir={}", folder.path().display());
    let keys = ["dataset=some", "max_samples=null", "streaming=true", "buffer_size=5", "val_size=2"];
    let keys =
        [&[base.as_str(), &place, "finetuning_type=full", "train_from_scratch=true"], &keys[..]].concat();
    let (whole, parts) = both_ways(&keys);
    assert_eq!(whole, parts);
}

#[test]
fn a_stream_that_ends_before_the_place_of_the_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |count: usize| {
        let slices = format!(r#"{{"some": {{"file_name": "train.json", "split": "train[:{count}]"}}}}"#);
        std::fs::write(folder.path().join("dataset_info.json"), slices).unwrap();
    };
    let data = format!("{QUICKSTART}/data/train.json");
    std::fs::copy(data, folder.path().join("train.json")).unwrap();
    let (base, out) = (format!("model_name_or_path={QUICKSTART}/base"), folder.path().join("out"));
    let place = format!("dataset_dir={}", folder.path().display());
    let keys = ["dataset=some", "max_samples=null", "streaming=true", "finetuning_type=lora", "save_steps=4"];
    let keys = [&[base.as_str(), &place], &keys[..]].concat();
    rows(40);
    train(&out, &keys, &mut After(4, 0));
    // Four steps of four rows were taken.
    rows(10);
    let error = run(job(&out, &keys), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("the stream ends before the place where the run was"), "{error}");
}

#[test]
fn one_thread_and_recomputation_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let digest = |name: &str, more: &[&str]| {
        let keys = [&[base.as_str(), "finetuning_type=full", "train_from_scratch=true"], more].concat();
        train(&folder.path().join(name), &keys, &mut Silent).digest
    };
    let expected = digest("plain", &[]);
    assert_eq!(digest("one", &["threads=1"]), expected);
    assert_eq!(digest("recomputed", &["disable_gradient_checkpointing=false"]), expected);
    assert_eq!(digest("kept", &["disable_gradient_checkpointing=true"]), expected);
}

#[test]
fn frozen_weights_packed_once_or_in_every_step_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let digest = |pack: &str| {
        let keys = [base.as_str(), "finetuning_type=lora", "bf16=true", pack];
        train(&folder.path().join(pack), &keys, &mut Silent).digest
    };
    assert_eq!(digest("pack_weights=true"), digest("pack_weights=false"));
}

/// Breaks an evaluation off, the one after this many steps.
struct DuringEvaluation(u64, u64);

impl Observer for DuringEvaluation {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Step(progress) = event {
            self.1 = progress.step;
        }
    }
    fn interrupted(&self) -> bool {
        self.1 >= self.0
    }
}

/// The log without what depends on the clock.
fn log(output: &Path) -> Vec<String> {
    let lines = sft_runs::trainer_log::read(&output.join("trainer_log.jsonl")).unwrap();
    lines.iter().map(|line| format!("{} {:?} {:?}", line.current_steps, line.loss, line.eval_loss)).collect()
}

const EVALUATED: [&str; 4] = ["val_size=4", "eval_strategy=steps", "eval_steps=2", "save_steps=2"];

#[test]
fn an_evaluation_that_is_broken_off_is_made_by_the_resume_and_no_line_of_the_log_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let more = [base.as_str(), "finetuning_type=full", "train_from_scratch=true", "eval_on_start=true"];
    let keys = [&more[..], &EVALUATED].concat();
    let whole = train(&folder.path().join("whole"), &keys, &mut Silent);
    for steps in [0, 4] {
        let parts = folder.path().join(format!("parts-{steps}"));
        let first = train(&parts, &keys, &mut DuringEvaluation(steps, 0));
        assert_eq!((first.steps, first.interrupted_at.is_some()), (steps, true));
        let second = train(&parts, &keys, &mut Silent);
        assert_eq!(second.digest, whole.digest);
        assert_eq!(log(&parts), log(&folder.path().join("whole")));
    }
}

#[test]
fn a_run_that_was_to_stop_early_and_was_killed_before_its_end_stops_there_when_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    // Nothing changes, so no evaluation is better than the first.
    let more = [base.as_str(), "finetuning_type=full", "train_from_scratch=true", "learning_rate=0"];
    let keys = [&more[..], &EVALUATED, &["early_stopping_steps=1", "load_best_model_at_end=true"]].concat();
    let output = folder.path().join("out");
    let whole = train(&output, &keys, &mut Silent);
    assert_eq!(whole.steps, 4);
    std::fs::remove_file(output.join("model.safetensors")).unwrap();
    let again = train(&output, &keys, &mut Silent);
    assert_eq!((again.steps, again.digest), (4, whole.digest));
}

#[test]
fn a_resume_with_another_method_is_refused_with_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys = [&base, "finetuning_type=lora", "lora_rank=4"];
    train(folder.path(), &keys, &mut After(4, 0));
    for (key, said) in [
        ("lora_alpha=64", "`lora_alpha` was 8.0, and is 64.0 now"),
        ("lora_rank=2", "`lora_rank` was 4, and is 2 now"),
        ("finetuning_type=full", "`finetuning_type` was \"lora\", and is \"full\" now"),
        ("optim=sgd", "`optim` was \"adamw_torch\", and is \"sgd\" now"),
    ] {
        let job = job(folder.path(), &[&keys[..], &[key]].concat());
        let error = run(job, &mut Silent).expect_err("another run").to_string();
        assert!(error.contains("checkpoint-4: it belongs to another run") && error.contains(said), "{error}");
    }
    for (key, said) in [
        ("pissa_init=true", "`pissa_init` was false, and is true now"),
        ("data_seed=7", "`data_seed` was 42, and is 7 now"),
        ("rope_scaling=linear", "`rope_scaling` was null, and is \"linear\" now"),
    ] {
        let job = job(folder.path(), &[&keys[..], &[key, "cutoff_len=300"]].concat());
        let error = run(job, &mut Silent).expect_err("other frozen weights or rows").to_string();
        assert!(error.contains(said), "{error}");
    }
    let more = train(folder.path(), &[&keys[..], &["learning_rate=1e-4"]].concat(), &mut Silent);
    assert_eq!(more.steps, 9);
}

#[test]
fn an_interrupted_run_that_saves_models_alone_goes_on_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys = [&base, "finetuning_type=lora", "save_only_model=true", "save_steps=2"];
    let whole = train(&folder.path().join("whole"), &keys, &mut Silent);
    let parts = folder.path().join("parts");
    // The fourth step has a checkpoint of the model already.
    let first = train(&parts, &keys, &mut After(4, 0));
    assert_eq!(first.interrupted_at, Some(parts.join("checkpoint-4")));
    let second = train(&parts, &keys, &mut Silent);
    assert_eq!((second.steps, second.digest), (9, whole.digest));
}

#[test]
fn an_evaluation_alone_reads_no_checkpoint_and_changes_its_results_alone() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let trained = folder.path().join("trained");
    train(&trained, &[&base, "finetuning_type=lora", "save_steps=3", "plot_loss=true"], &mut Silent);
    let files = |folder: &Path| -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> =
            std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
        all.retain(|path| path.is_file());
        all.sort();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        all.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
    };
    let before = files(&trained);
    let evaluate = |output: &Path, overwrite: &str| {
        let keys = [
            &base,
            "finetuning_type=lora",
            "do_train=false",
            "do_eval=true",
            "dataset=null",
            "eval_dataset=quickstart_heldout",
            overwrite,
        ];
        train(output, &keys, &mut Silent).results["eval_loss"].clone()
    };
    // The adapter that is evaluated is a new one, not that of a checkpoint.
    let new = folder.path().join("new");
    let expected = evaluate(&new, "overwrite_output_dir=false");
    assert!(!new.join("trainer_log.jsonl").exists(), "nothing was trained");
    for overwrite in ["overwrite_output_dir=false", "overwrite_output_dir=true"] {
        assert_eq!(evaluate(&trained, overwrite), expected);
    }
    for step in [3, 6, 9] {
        assert!(trained.join(format!("checkpoint-{step}")).is_dir());
    }
    let after = files(&trained);
    let results = ["all_results.json", "eval_results.json", ".sft.lock"];
    let others = |files: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
        files.iter().filter(|(name, _)| !results.contains(&name.as_str())).cloned().collect()
    };
    assert_eq!(others(&after), others(&before));
    let all = std::fs::read_to_string(trained.join("all_results.json")).unwrap();
    assert!(all.contains("train_loss") && all.contains("eval_loss"), "{all}");
}

#[test]
fn an_evaluation_alone_gives_the_loss_of_training_and_takes_no_memory_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys =
        [&base, "finetuning_type=full", "bf16=true", "do_eval=true", "eval_dataset=quickstart_heldout"];
    let evaluated = |name: &str, keys: &[&str]| {
        train(&folder.path().join(name), keys, &mut Silent).results["eval_loss"].clone()
    };
    // So small a rate leaves the weights as they are.
    let trained = [&keys[..], &["do_train=true", "learning_rate=1e-30", "max_steps=1"]].concat();
    let alone = [&keys[..], &["do_train=false", "use_galore=true"]].concat();
    assert_eq!(evaluated("alone", &alone), evaluated("trained", &trained));
    let plan = job(&folder.path().join("planned"), &alone).plan;
    assert_eq!((plan.trained_weights, plan.gradients, plan.optimizer), (0, 0, 0));
    let training = job(&folder.path().join("planned"), &trained).plan;
    assert!(2 * plan.work.activations < training.work.activations, "{plan:?} and {training:?}");
}

#[test]
fn the_last_step_is_evaluated_and_saved_whatever_the_intervals_so_that_a_run_can_be_prolonged() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys = [
        &base,
        "finetuning_type=full",
        "eval_dataset=quickstart_heldout",
        "lr_scheduler_type=constant",
        "eval_strategy=steps",
    ];
    let train = |name: &str, more: &[&str]| {
        train(&folder.path().join(name), &[&keys[..], more].concat(), &mut Silent).digest
    };
    train("parts", &["max_steps=5", "eval_steps=2", "save_steps=4"]);
    let steps = |name: &str| -> Vec<u64> {
        let lines = sft_runs::trainer_log::read(&folder.path().join(name).join("trainer_log.jsonl")).unwrap();
        lines.iter().filter(|line| line.eval_loss.is_some()).map(|line| line.current_steps).collect()
    };
    assert_eq!(steps("parts"), [2, 4, 5]);
    assert!(folder.path().join("parts/checkpoint-5").is_dir());
    let prolonged = train("parts", &["max_steps=8", "eval_steps=2", "save_steps=4"]);
    assert_eq!(prolonged, train("whole", &["max_steps=8", "eval_steps=100", "save_strategy=epoch"]));
    assert_eq!((steps("parts"), steps("whole")), (vec![2, 4, 5, 6, 8], vec![8]));
    assert!(folder.path().join("whole/checkpoint-8").is_dir());
}

#[test]
fn frozen_layers_are_not_trained_further_around_other_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (base, other, out) =
        (format!("{QUICKSTART}/base"), folder.path().join("other"), folder.path().join("out"));
    let model = |folder: &str| format!("model_name_or_path={folder}");
    train(&other, &[&model(&base), "finetuning_type=full", "max_steps=1"], &mut Silent);
    let freeze = ["finetuning_type=freeze", "freeze_trainable_layers=1"];
    let run_on = |model: String, steps| run(job(&out, &[&model, freeze[0], freeze[1], steps]), &mut Silent);
    run_on(model(&base), "max_steps=2").unwrap();
    let error = run_on(model(&other.display().to_string()), "max_steps=4").unwrap_err().to_string();
    assert!(error.contains("it was trained on another model"), "{error}");
    assert_eq!(run_on(model(&base), "max_steps=4").unwrap().steps, 4);
}

#[test]
fn an_adapter_is_not_trained_further_on_others_than_were_merged() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let lora = [&base, "finetuning_type=lora"];
    let path = |name: &str| folder.path().join(name);
    for (name, rate) in [("first", "learning_rate=1e-3"), ("second", "learning_rate=1e-2")] {
        train(&path(name), &[&lora[..], &[rate, "max_steps=1"]].concat(), &mut Silent);
    }
    let run_on = |merged: &str, steps| {
        let merged = format!("adapter_name_or_path={}", path(merged).display());
        let keys = [&lora[..], &["create_new_adapter=true", &merged, steps]].concat();
        run(job(&path("out"), &keys), &mut Silent)
    };
    run_on("first", "max_steps=2").unwrap();
    let error = run_on("second", "max_steps=4").unwrap_err().to_string();
    assert!(error.contains("it was trained on another model"), "{error}");
    assert_eq!(run_on("first", "max_steps=4").unwrap().steps, 4);
}

#[test]
fn the_best_checkpoint_is_found_where_the_run_was_and_one_that_is_gone_costs_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!("model_name_or_path={QUICKSTART}/base");
    let keys = [
        &base,
        "finetuning_type=lora",
        "save_steps=2",
        "eval_strategy=steps",
        "eval_steps=2",
        "eval_dataset=quickstart_heldout",
        "load_best_model_at_end=true",
    ];
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    train(&first, &[&keys[..], &["max_steps=4"]].concat(), &mut Silent);
    let from = format!("resume_from_checkpoint={}", first.join("checkpoint-4").display());
    // Every further step makes it worse.
    let worse = [&keys[..], &["max_steps=6", "learning_rate=1", &from]].concat();
    let found = train(&second, &worse, &mut Silent);
    let digest_of_best = train(&first, &[&keys[..], &["max_steps=4"]].concat(), &mut Silent).digest;
    assert_eq!((found.steps, found.digest), (6, digest_of_best.clone()));
    // `checkpoint-4` is there to go on from alone.
    let aside = folder.path().join("aside");
    std::fs::rename(first.join("checkpoint-4"), &aside).unwrap();
    let from = format!("resume_from_checkpoint={}", aside.display());
    let worse = [&keys[..], &["max_steps=6", "learning_rate=1", &from]].concat();
    let found = train(&folder.path().join("third"), &worse, &mut Silent);
    assert_eq!(found.steps, 6);
    assert_ne!(found.digest, digest_of_best);
    let log = std::fs::read_to_string(folder.path().join("third/trainer_log.jsonl")).unwrap();
    assert!(log.contains("the checkpoint of step 4, the best one, is not there any more"), "{log}");
}

#[test]
fn an_adapter_is_not_trained_further_on_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let (model, other, out) =
        (format!("{QUICKSTART}/base"), folder.path().join("other"), folder.path().join("out"));
    let adapter = |model: &str| [format!("model_name_or_path={model}"), "finetuning_type=lora".to_owned()];
    let run_on = |model: &str, steps: &str| {
        let keys = adapter(model);
        let keys = [&keys[0], &keys[1], steps];
        run(job(&out, &keys), &mut Silent)
    };
    // One step of full tuning makes another model of the same shape.
    let full = [&format!("model_name_or_path={model}"), "finetuning_type=full", "max_steps=1"];
    train(&other, &full, &mut Silent);
    run_on(&model, "max_steps=2").unwrap();
    let error = run_on(&other.display().to_string(), "max_steps=4").unwrap_err().to_string();
    assert!(error.contains("it was trained on another model"), "{error}");
    // The same weights from another place are the same model.
    let moved = folder.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    for entry in std::fs::read_dir(&model).unwrap().flatten() {
        std::fs::copy(entry.path(), moved.join(entry.file_name())).unwrap();
    }
    assert_eq!(run_on(&moved.display().to_string(), "max_steps=4").unwrap().steps, 4);
}
