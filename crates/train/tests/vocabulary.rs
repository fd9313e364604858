//! Tokens that a run adds: they are trained as LLaMA-Factory trains them, and what the run leaves has them.

use std::fs;
use std::path::Path;

use sft_config::{Purpose, RunConfig, load_text};
use sft_data::tokenize::Tokenizer;
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::adapter::{self, Last};
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::weights::WeightFiles;
use sft_train::events::{Event, Observer, Silent};
use sft_train::run::run;
use sft_train::{Job, TrainError, setup};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn config(output: &Path, keys: &[&str]) -> RunConfig {
    let text = format!(
        "model_name_or_path: {ROOT}/quickstart/base\ndataset_dir: {ROOT}/crates/train/goldens/vocabulary\n\
         dataset: rows\ntemplate: default\ncutoff_len: 128\noutput_dir: {}\nper_device_train_batch_size: 2\n\
         learning_rate: 1e-3\nlr_scheduler_type: constant\nmax_steps: 6\nlogging_steps: 1\n",
        output.display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap()
}

fn described() -> String {
    format!("new_special_tokens_config={ROOT}/crates/train/goldens/vocabulary/tokens.yaml")
}

#[derive(Default)]
struct Losses {
    all: Vec<f64>,
    until: Option<usize>,
}

impl Observer for Losses {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Step(progress) = event {
            self.all.push(progress.loss);
        }
    }
    fn interrupted(&self) -> bool {
        self.until.is_some_and(|until| self.all.len() >= until)
    }
}

#[test]
fn described_tokens_are_trained_as_llama_factory_trains_them() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["finetuning_type=full", &described(), "init_special_tokens=desc_init"];
    let mut losses = Losses::default();
    run(Job::prepare(config(folder.path(), &keys)).unwrap(), &mut losses).unwrap();
    let expected: Vec<f64> = serde_json::from_str(include_str!("../goldens/vocabulary/losses.json")).unwrap();
    assert_eq!(losses.all.len(), expected.len());
    for (found, expected) in losses.all.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{:?}\n{expected:?}", losses.all);
    }
}

#[test]
fn a_trained_folder_has_the_tokens_and_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["finetuning_type=full", "add_special_tokens=<|sum|>,<|end of sum|>", "add_tokens=color,the"];
    run(Job::prepare(config(folder.path(), &keys)).unwrap(), &mut Silent).unwrap();
    let base = Tokenizer::load(format!("{ROOT}/quickstart/base")).unwrap();
    let trained = Tokenizer::load(folder.path()).unwrap();
    let first = base.vocab_size() as u32;
    // A word that is in the vocabulary keeps its id; special tokens come last.
    let word = trained.token_id("color").unwrap();
    let sum = trained.token_id("<|sum|>").unwrap();
    let new_words = ["color", "the"].iter().filter(|word| base.token_id(word).is_none()).count() as u32;
    assert_eq!(sum, first + new_words);
    assert_eq!(trained.token_id("<|end of sum|>"), Some(sum + 1));
    assert_eq!(trained.encode("<|sum|><|end of sum|>").unwrap(), [sum, sum + 1]);
    assert!(trained.is_special(sum) && !trained.is_special(word));
    // Rows are asked as they were trained, also where an added word was a piece of others.
    let asked = setup::tokenizer(&config(folder.path(), &keys)).unwrap();
    for text in ["color", "the colors<|sum|>9", "discolored"] {
        assert_eq!(trained.encode(text).unwrap(), asked.encode(text).unwrap(), "{text}");
    }
    let said: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("config.json")).unwrap()).unwrap();
    let rows = said["vocab_size"].as_u64().unwrap() as usize;
    assert!(rows >= trained.vocab_size(), "{rows}");
    let files = WeightFiles::open_model(folder.path()).unwrap();
    assert_eq!(files.shape("model.embed_tokens.weight").unwrap()[0], rows);
}

#[test]
fn an_adapter_with_new_tokens_brings_them_along() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["finetuning_type=lora", &described()];
    run(Job::prepare(config(folder.path(), &keys)).unwrap(), &mut Silent).unwrap();
    // Nothing but the adapter is named when it is used.
    let adapter = format!("adapter_name_or_path={}", folder.path().display());
    let text = format!("model_name_or_path: {ROOT}/quickstart/base\ntemplate: default\n");
    let used = load_text(&text, "test.yaml", &[adapter], Purpose::Chat).unwrap();
    let tokenizer = setup::tokenizer(&used).unwrap();
    assert!(tokenizer.token_id("<|end of sum|>").is_some());
    let spec = setup::spec(&used).unwrap();
    assert!(spec.vocab_size >= tokenizer.vocab_size());
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let files = WeightFiles::open_model(&used.model_folder()).unwrap();
    let source = Source::Files(&files);
    let mut decoder = loading::load(&dev, &spec, &source, &Method::Inference, DType::F32, 0).unwrap();
    adapter::apply(&dev, &mut decoder, &used.adapter_folders(), Last::Merged).unwrap();
    assert_eq!(decoder.embed_tokens.shape()[0], spec.vocab_size);
}

#[test]
fn three_steps_and_three_more_equal_six_with_new_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["finetuning_type=lora", &described(), "init_special_tokens=desc_init_w_noise"];
    let job = |name: &str| Job::prepare(config(&folder.path().join(name), &keys)).unwrap();
    let whole = run(job("whole"), &mut Silent).unwrap();
    let mut first = Losses { until: Some(3), ..Losses::default() };
    assert!(run(job("parts"), &mut first).unwrap().interrupted_at.is_some());
    assert_eq!(run(job("parts"), &mut Silent).unwrap().digest, whole.digest);
}

#[test]
fn the_end_of_a_templates_turns_is_added_where_vocabularies_may_grow() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["finetuning_type=lora", "template=llama3"];
    let error = Job::prepare(config(folder.path(), &keys)).unwrap_err();
    assert!(matches!(error, TrainError::Data(_)) && error.to_string().contains("resize_vocab"), "{error}");
    let job = Job::prepare(config(folder.path(), &[keys[0], keys[1], "resize_vocab=true"])).unwrap();
    assert!(job.spec.new_rows.is_some());
}
