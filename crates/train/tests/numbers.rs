//! Numbers that go wrong: where it happened is named, down to the op and the row, and what then becomes of the run.

use std::fs;
use std::path::{Path, PathBuf};

use sft_config::{Purpose, load_text};
use sft_data::batches::Batches;
use sft_train::events::{Event, Observer, Silent};
use sft_train::run::{Outcome, run};
use sft_train::{Job, TrainError};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

fn job(model: &Path, output: &Path, keys: &[&str]) -> Job {
    let text = format!(
        "model_name_or_path: {}\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\nmax_samples: 24\n\
         cutoff_len: 64\noutput_dir: {}\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n\
         disable_shuffling: true\nlogging_steps: 1\n",
        model.display(),
        output.display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    let mut job = Job::prepare(load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap()).unwrap();
    job.join(0).unwrap();
    job
}

/// Hears warnings, and interrupts after a number of steps.
#[derive(Default)]
struct Ears {
    warnings: Vec<String>,
    step: u64,
    until: Option<u64>,
}

impl Observer for Ears {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Warned { text, .. } => self.warnings.push((*text).to_owned()),
            Event::Step(progress) => self.step = progress.step,
            _ => {}
        }
    }
    fn interrupted(&self) -> bool {
        self.until.is_some_and(|until| self.step >= until)
    }
}

/// A model whose embedding overflows for one token, which only one of the rows has; and the place of that row.
fn model_that_one_row_breaks(folder: &Path) -> (PathBuf, String) {
    let plain = folder.join("plain");
    fs::create_dir(&plain).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{QUICKSTART}/base/{name}"), plain.join(name)).unwrap();
    }
    let config = fs::read_to_string(format!("{QUICKSTART}/base/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    // Granite multiplies what the embedding gives.
    config["model_type"] = "granite".into();
    config["architectures"] = serde_json::json!(["GraniteForCausalLM"]);
    config["embedding_multiplier"] = 12.0.into();
    config["logits_scaling"] = 1.0.into();
    config["residual_multiplier"] = 1.0.into();
    config["attention_multiplier"] = 0.2.into();
    config["tie_word_embeddings"] = false.into();
    fs::write(plain.join("config.json"), config.to_string()).unwrap();
    let model = folder.join("model");
    let keys = ["finetuning_type=full", "train_from_scratch=true", "max_steps=1", "learning_rate=0"];
    run(job(&plain, &model, &keys), &mut Silent).unwrap();

    let job = job(&model, &folder.join("unused"), &["finetuning_type=lora"]);
    let Batches::Kept(loader) = &job.train else { panic!("rows are kept") };
    let rows = loader.examples();
    // A row of the third step: each has four.
    let row = &rows[9];
    let is_rare = |id: &&u32| rows.iter().filter(|other| other.input_ids.contains(id)).count() == 1;
    let id = *row.input_ids.iter().find(is_rare).expect("a token that no other row has");
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let tensor = &header["model.embed_tokens.weight"];
    assert_eq!(tensor["dtype"], "F32");
    let width = tensor["shape"][1].as_u64().unwrap() as usize * 4;
    let begin = 8 + header_bytes + tensor["data_offsets"][0].as_u64().unwrap() as usize + id as usize * width;
    bytes[begin..begin + 4].copy_from_slice(&1e38_f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    (model, row.origin.to_string())
}

fn refusal(job: Job) -> TrainError {
    run(job, &mut Silent).expect_err("must end")
}

#[test]
fn the_row_and_the_op_of_a_loss_that_is_not_finite_are_named_with_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (model, row) = model_that_one_row_breaks(folder.path());
    let output = folder.path().join("out");
    let keys = ["finetuning_type=lora", "max_steps=6", "save_steps=1"];
    let error = refusal(job(&model, &output, &keys));
    let TrainError::NonFinite { step, what, place, rows, last_good } = &error else { panic!("{error}") };
    assert_eq!((*step, *what, place.as_str()), (3, "loss", "embedding"));
    assert_eq!(*rows, row, "the one row, not all of its step");
    assert!(last_good.ends_with("checkpoint-2"), "{last_good}");
    assert!(error.to_string().contains("on_non_finite: skip_step"), "{error}");
    // Two rows a step, and only the gradients of a block at a time.
    let keys = ["finetuning_type=full", "use_galore=true", "galore_layerwise=true"];
    let keys = [&keys[..], &["gradient_accumulation_steps=1", "max_steps=6", "learning_rate=1e-5"]].concat();
    let error = refusal(job(&model, &folder.path().join("parts"), &keys));
    let TrainError::NonFinite { step, what, place, rows, .. } = &error else { panic!("{error}") };
    assert_eq!((*step, *what, place.as_str(), rows), (5, "loss", "embedding", &row));
}

#[test]
fn a_step_that_is_skipped_changes_nothing_is_counted_and_counted_over_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let (model, row) = model_that_one_row_breaks(folder.path());
    let keys = ["finetuning_type=lora", "max_steps=6", "on_non_finite=skip_step", "save_strategy=no"];
    let whole = folder.path().join("whole");
    let mut ears = Ears::default();
    let outcome = run(job(&model, &whole, &keys), &mut ears).unwrap();
    assert_eq!(outcome.results["skipped_steps"], 1);
    assert_eq!(ears.warnings.len(), 1);
    assert!(ears.warnings[0].starts_with("skipped: the loss is not finite, first in embedding"));
    assert!(ears.warnings[0].ends_with(&row), "{:?}", ears.warnings);
    let log = fs::read_to_string(whole.join("trainer_log.jsonl")).unwrap();
    assert_eq!(log.matches("\"skipped_steps\":1").count(), 5, "{log}");

    let parts = folder.path().join("parts");
    let ended = |outcome: &Outcome| outcome.interrupted_at.is_none();
    let first = run(job(&model, &parts, &keys), &mut Ears { until: Some(4), ..Ears::default() }).unwrap();
    assert!(!ended(&first));
    let second = run(job(&model, &parts, &keys), &mut Silent).unwrap();
    assert!(ended(&second));
    assert_eq!(second.digest, outcome.digest);
    assert_eq!(second.results["skipped_steps"], 1);
}

#[test]
fn a_run_that_blows_up_is_ended_although_such_steps_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let base = PathBuf::from(format!("{QUICKSTART}/base"));
    let keys = ["finetuning_type=full", "train_from_scratch=true", "learning_rate=1e30", "max_steps=40"];
    let skip = [&keys[..], &["on_non_finite=skip_step"]].concat();
    let error = refusal(job(&base, &folder.path().join("a"), &skip));
    let TrainError::NonFinite { step, what, place, .. } = &error else { panic!("{error}") };
    assert!(*step > 10, "{step}");
    // One update makes logits whose loss is finite and whose gradient is not.
    assert_eq!((*what, place.as_str()), ("gradient", "the gradient from head"));
    let error = refusal(job(&base, &folder.path().join("b"), &keys));
    let TrainError::NonFinite { step, last_good, .. } = &error else { panic!("{error}") };
    assert!(*step <= 3 && last_good == "there is no checkpoint yet", "{error}");
}

#[test]
fn a_learning_rate_of_0_is_warned_of_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let base = PathBuf::from(format!("{QUICKSTART}/base"));
    let mut ears = Ears::default();
    let keys = ["finetuning_type=full", "train_from_scratch=true", "learning_rate=0", "max_steps=2"];
    run(job(&base, folder.path(), &keys), &mut ears).unwrap();
    assert_eq!(ears.warnings, ["learning_rate is 0: no step changes a weight"]);
    let log = fs::read_to_string(folder.path().join("trainer_log.jsonl")).unwrap();
    assert!(log.lines().next().unwrap().contains("\"warning\":\"learning_rate is 0"), "{log}");
}
