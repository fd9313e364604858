//! Where the rows of a run are from: evaluation sets by themselves, and rows that an earlier start kept.

use std::path::Path;

use sft_config::{Purpose, RunConfig, load_text};
use sft_train::Job;
use sft_train::events::Silent;
use sft_train::run::run;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

fn config(output: &Path, keys: &[&str]) -> RunConfig {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\nfinetuning_type: full\ntrain_from_scratch: true\n\
         dataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\nmax_samples: 8\ncutoff_len: 64\n\
         output_dir: {}\nmax_steps: 2\nlogging_steps: 1\n",
        output.display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap()
}

/// How a model with the tokenizer of the quick start is named whose shape is that of `config`.
fn base_of(folder: &Path, name: &str, config: &serde_json::Value) -> String {
    let base = folder.join(name);
    std::fs::create_dir(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{QUICKSTART}/base/{file}"), base.join(file)).unwrap();
    }
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    format!("model_name_or_path={}", base.display())
}

#[test]
fn each_evaluation_set_has_figures_of_its_own_beside_those_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let sets = "eval_dataset=quickstart_heldout,quickstart_train";
    let keys = [sets, "eval_strategy=steps", "eval_steps=1", "eval_on_each_dataset=true"];
    let outcome = run(Job::prepare(config(folder.path(), &keys)).unwrap(), &mut Silent).unwrap();
    let loss = |key: &str| outcome.results[key].as_f64().unwrap();
    let (test, train) = (loss("eval_quickstart_heldout_loss"), loss("eval_quickstart_train_loss"));
    let all = loss("eval_loss");
    assert!(test != train && all > test.min(train) && all < test.max(train), "{test} {train} {all}");
    let together = tempfile::tempdir().unwrap();
    let keys = [sets, "eval_strategy=steps", "eval_steps=1"];
    let outcome = run(Job::prepare(config(together.path(), &keys)).unwrap(), &mut Silent).unwrap();
    assert!((outcome.results["eval_loss"].as_f64().unwrap() - all).abs() < 1e-6, "the same rows as one set");
    let log = std::fs::read_to_string(folder.path().join("trainer_log.jsonl")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("quickstart_heldout")).count(), 2, "{log}");
}

#[test]
fn rows_kept_by_an_earlier_start_are_those_that_would_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let kept = format!("tokenized_path={}", folder.path().join("kept").display());
    let keys = [kept.as_str(), "val_size=2", "eval_strategy=steps"];
    let first = Job::prepare(config(&folder.path().join("a"), &keys)).unwrap();
    let second = Job::prepare(config(&folder.path().join("b"), &keys)).unwrap();
    assert_eq!(first.rows_note, None);
    assert!(second.rows_note.as_ref().unwrap().starts_with("rows tokenised earlier were read"));
    assert_eq!(first.encoded, second.encoded);
    assert_eq!((&first.datasets, &first.eval_rows), (&second.datasets, &second.eval_rows));
    let (mut first, mut second) = (first, second);
    for _ in 0..4 {
        assert_eq!(first.train.next_step().unwrap(), second.train.next_step().unwrap());
    }
    let other = [kept.as_str(), "val_size=2", "eval_strategy=steps", "cutoff_len=32"];
    let error = Job::prepare(config(&folder.path().join("c"), &other)).unwrap_err().to_string();
    assert!(error.contains("`tokenized_path`") && error.contains("another set of options"), "{error}");
    let anew = [&other[..], &["overwrite_cache=true"]].concat();
    assert_eq!(Job::prepare(config(&folder.path().join("c"), &anew)).unwrap().rows_note, None);
    assert!(Job::prepare(config(&folder.path().join("c"), &other)).unwrap().rows_note.is_some());
}

/// Loss, norm of the gradient and supervised tokens of the first step.
#[derive(Default)]
struct First(Vec<(f64, f64, usize)>);

impl sft_train::events::Observer for First {
    fn on(&mut self, event: &sft_train::events::Event<'_>) {
        if let sft_train::events::Event::Step(progress) = event {
            self.0.push((progress.loss, progress.grad_norm, progress.sums.supervised));
        }
    }
}

/// The steps of a run that changes nothing, its micro-batches joined up to so many tokens.
fn steps_of(keys: &[&str], room: usize) -> Vec<(f64, f64, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let keys = [keys, &["disable_shuffling=true", "learning_rate=0"]].concat();
    let (mut seen, mut job) = (First::default(), Job::prepare(config(folder.path(), &keys)).unwrap());
    job.join(room).unwrap();
    run(job, &mut seen).unwrap();
    seen.0
}

/// A mean of means, which other trainers took for it, is another number.
#[test]
fn many_micro_batches_are_one_batch_and_not_a_mean_of_their_means() {
    let steps = |keys: &[&str]| steps_of(keys, 0);
    let joined = |keys: &[&str]| steps_of(keys, 512);
    let whole = steps(&["per_device_train_batch_size=8", "max_steps=1"])[0];
    let parts = ["per_device_train_batch_size=1", "gradient_accumulation_steps=8", "max_steps=1"];
    for parts in [steps(&parts)[0], joined(&parts)[0]] {
        assert_eq!(whole.2, parts.2);
        assert!((whole.0 - parts.0).abs() < 1e-6 && (whole.1 - parts.1).abs() < 1e-5, "{whole:?} {parts:?}");
    }
    let rows = steps(&["per_device_train_batch_size=1", "max_steps=8"]);
    let tokens: usize = rows.iter().map(|row| row.2).sum();
    let weighted = rows.iter().map(|row| row.0 * row.2 as f64).sum::<f64>() / tokens as f64;
    let mean_of_means = rows.iter().map(|row| row.0).sum::<f64>() / rows.len() as f64;
    assert!((whole.0 - weighted).abs() < 1e-6, "{whole:?} {weighted}");
    assert!((whole.0 - mean_of_means).abs() > 1e-5, "rows of one length would show nothing");
}

/// Rows whose answers count 0.25, 1, 4 or not at all: in one batch, in many, and one by one.
#[test]
fn weights_of_rows_are_normalised_once_in_a_step() {
    let data = tempfile::tempdir().unwrap();
    let weight = |row: usize| [0.25, 1.0, 4.0][row % 3];
    let row = |row: usize| {
        let words = "so ".repeat(3 + 5 * (row % 4));
        serde_json::json!({"messages": [
            {"role": "user", "content": "who?"}, {"role": "assistant", "content": "nobody", "weight": 0},
            {"role": "user", "content": "what?"}, {"role": "assistant", "content": words, "weight": weight(row)}]})
    };
    let rows: String = (0..8).map(|at| format!("{}\n", row(at))).collect();
    std::fs::write(data.path().join("rows.jsonl"), rows).unwrap();
    let dataset = format!("dataset={}", data.path().join("rows.jsonl").display());
    let of = |keys: &[&str], room| steps_of(&[keys, &[&dataset, "cutoff_len=128"]].concat(), room);
    let steps = |keys: &[&str]| of(keys, 0);
    let whole = steps(&["per_device_train_batch_size=8", "max_steps=1"])[0];
    let packed = steps(&["per_device_train_batch_size=8", "packing=true", "max_steps=1"])[0];
    let parts = ["per_device_train_batch_size=1", "gradient_accumulation_steps=8", "max_steps=1"];
    let joined = of(&parts, 512)[0];
    for other in [packed, steps(&parts)[0], joined] {
        assert_eq!(whole.2, other.2);
        assert!((whole.0 - other.0).abs() < 1e-6 && (whole.1 - other.1).abs() < 1e-5, "{whole:?} {other:?}");
    }
    // Alone, a row's weight does not matter: its tokens all have the same.
    let rows = steps(&["per_device_train_batch_size=1", "max_steps=8"]);
    let weights = |row: usize| weight(row) * rows[row].2 as f64;
    let total: f64 = (0..8).map(weights).sum();
    let mean = (0..8).map(|row| rows[row].0 * weights(row)).sum::<f64>() / total;
    assert!((whole.0 - mean).abs() < 1e-6, "{whole:?} {mean}");
    let unweighted = rows.iter().map(|row| row.0 * row.2 as f64).sum::<f64>() / whole.2 as f64;
    assert!((whole.0 - unweighted).abs() > 1e-5, "weights that change nothing show nothing");
}

#[test]
fn short_micro_batches_of_a_step_are_joined_whatever_memory_is_free_unless_nothing_else_fits() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["per_device_train_batch_size=1", "gradient_accumulation_steps=8"];
    let of = |keys: &[&str], free_of: Option<usize>| {
        let mut job = Job::prepare(config(folder.path(), keys)).unwrap();
        let room = job.joining.room;
        if let Some(tokens) = free_of {
            job.available = Some(job.plan_of(tokens).unwrap().total() as u64);
            job.join(room).unwrap();
        }
        assert!(room <= 64 && job.check_memory().is_ok(), "{room}");
        (job.train.next_step().unwrap().micro_batches, job.plan)
    };
    let (joined, plan) = of(&keys, None);
    assert!(joined.len() < 8 && joined.iter().all(|batch| batch.tokens() <= plan.max_tokens));
    // As much memory as the largest micro-batch needs by itself: blocks are computed again.
    let longest = joined.iter().map(|batch| batch.longest_row()).max().unwrap();
    let (again, tight) = of(&keys, Some(longest));
    assert_eq!(again, joined);
    assert!(tight.recomputed.blocks() > plan.recomputed.blocks());
    // Or may not be.
    let (apart, tight) = of(&[&keys[..], &["disable_gradient_checkpointing=true"]].concat(), Some(longest));
    assert!(apart.len() > joined.len() && apart.iter().all(|batch| batch.tokens() <= longest));
    assert_eq!(tight.max_tokens, longest);
}

/// A folder with rows of one system prompt, and how rows are told to be from it.
fn rows_with_a_system_prompt() -> (tempfile::TempDir, String) {
    let data = tempfile::tempdir().unwrap();
    let row = |row: usize| {
        let answer = "so ".repeat(2 + 3 * (row % 4));
        serde_json::json!({"messages": [
            {"role": "system", "content": "You sell seeds, and you never promise a date."},
            {"role": "user", "content": format!("what {row}?")}, {"role": "assistant", "content": answer}]})
    };
    let rows: String = (0..8).map(|at| format!("{}\n", row(at))).collect();
    std::fs::write(data.path().join("rows.jsonl"), rows).unwrap();
    let dataset = format!("dataset={}", data.path().join("rows.jsonl").display());
    (data, dataset)
}

#[test]
fn what_rows_begin_with_in_common_is_computed_once_and_changes_nothing_else() {
    let (_data, dataset) = rows_with_a_system_prompt();
    let rows = [&dataset, "cutoff_len=128", "max_steps=1"];
    let of = |keys: &[&str]| steps_of(&[&rows, keys].concat(), 0)[0];
    let whole = ["per_device_train_batch_size=8"];
    let shared = of(&whole);
    let parts = ["per_device_train_batch_size=2", "gradient_accumulation_steps=4"];
    for keys in [&[whole[0], "share_prefixes=false"][..], &parts, &[whole[0], "packing=true"]] {
        let other = of(keys);
        assert_eq!(shared.2, other.2);
        assert!(
            (shared.0 - other.0).abs() < 1e-6 && (shared.1 - other.1).abs() < 1e-5,
            "{shared:?} {other:?}"
        );
    }
    // With the model before training beside it.
    let [shared, apart] = ["true", "false"].map(|share| {
        of(&[
            whole[0],
            &format!("share_prefixes={share}"),
            "use_asft_loss=true",
            "finetuning_type=lora",
            "train_from_scratch=false",
        ])
    });
    assert!((shared.0 - apart.0).abs() < 1e-6 && (shared.1 - apart.1).abs() < 1e-5, "{shared:?} {apart:?}");
    let folder = tempfile::tempdir().unwrap();
    let step = |keys: &[&str]| {
        Job::prepare(config(folder.path(), &[&rows, keys].concat())).unwrap().train.next_step().unwrap()
    };
    let (shared, apart) = (step(&whole), step(&[whole[0], "share_prefixes=false"]));
    assert_eq!((shared.tokens(), shared.supervised()), (apart.tokens(), apart.supervised()));
    assert_eq!(apart.computed_tokens(), apart.tokens());
    assert!(
        shared.computed_tokens() < apart.tokens() / 2,
        "{} of {}",
        shared.computed_tokens(),
        apart.tokens()
    );
}

/// Room is counted in tokens that are computed, so that a long prompt before short questions lets more rows together.
#[test]
fn rows_that_share_much_are_joined_to_more_rows() {
    let (_data, dataset) = rows_with_a_system_prompt();
    let folder = tempfile::tempdir().unwrap();
    let batches = |share: &str| {
        let keys = [
            &dataset,
            share,
            "cutoff_len=80",
            "per_device_train_batch_size=1",
            "gradient_accumulation_steps=8",
        ];
        let mut job = Job::prepare(config(folder.path(), &keys)).unwrap();
        let batches = job.train.next_step().unwrap().micro_batches;
        assert!(batches.iter().all(|batch| batch.tokens() <= job.joining.room));
        assert!(
            batches.iter().all(|batch| batch.seen_keys() <= job.plan.capacity().seen.max(batch.tokens()))
        );
        batches.len()
    };
    let (shared, apart) = (batches("share_prefixes=true"), batches("share_prefixes=false"));
    assert!(shared < apart, "{shared} {apart}");
}

#[test]
fn rows_share_nothing_where_their_tokens_differ_though_they_are_alike() {
    let (_data, dataset) = rows_with_a_system_prompt();
    let folder = tempfile::tempdir().unwrap();
    let shares = |keys: &[&str]| {
        let keys = [&[&dataset, "cutoff_len=128", "per_device_train_batch_size=8"], keys].concat();
        let mut job = Job::prepare(config(folder.path(), &keys)).unwrap();
        let step = job.train.next_step().unwrap();
        assert_eq!(step.micro_batches[0].shared.is_some(), job.joining.shares_prefixes);
        job.joining.shares_prefixes
    };
    assert!(shares(&[]));
    assert!(shares(&["finetuning_type=lora", "train_from_scratch=false"]));
    assert!(!shares(&["finetuning_type=lora", "train_from_scratch=false", "lora_dropout=0.1"]), "masks");
    assert!(!shares(&["neftune_noise_alpha=5"]), "noise");
    assert!(!shares(&["share_prefixes=false"]));
    let convolution = serde_json::json!({"model_type": "lfm2", "vocab_size": 1536, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "torch_dtype": "float32"});
    let model = base_of(folder.path(), "lfm2", &convolution);
    assert!(!shares(&[&model]), "a token of a convolution sees the tokens beside it");
}

/// Its slopes are those of a micro-batch, as transformers computes them.
#[test]
fn micro_batches_whose_experts_are_balanced_are_not_joined() {
    let folder = tempfile::tempdir().unwrap();
    let mixture = serde_json::json!({"model_type": "qwen3_moe", "vocab_size": 1536, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": true, "torch_dtype": "float32"});
    let model = base_of(folder.path(), "mixture", &mixture);
    let joined = |balance: &str| {
        let keys = [&model, balance, "per_device_train_batch_size=1", "gradient_accumulation_steps=8"];
        Job::prepare(config(folder.path(), &keys)).unwrap().train.next_step().unwrap().micro_batches.len()
    };
    assert_eq!(joined("moe_aux_loss_coef=0.01"), 8);
    assert!(joined("moe_aux_loss_coef=0") < 8);
}
