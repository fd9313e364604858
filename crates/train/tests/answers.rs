//! What runs leave of a model's answers to the rows to evaluate on.

use std::path::Path;

use serde_json::Value;
use sft_config::{Purpose, load_text};
use sft_infer::similarity::Similarity;
use sft_runs::results::PREDICTIONS;
use sft_train::events::{Event, Observer, Silent};
use sft_train::run::{Outcome, run};
use sft_train::{Job, TrainError};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");
const ROWS: usize = 5;

/// Interrupts when so many rows are answered.
struct AfterAnswers(usize, usize);

impl Observer for AfterAnswers {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Answered { done, of } = event {
            assert_eq!(*of, ROWS);
            self.1 = *done;
        }
    }
    fn interrupted(&self) -> bool {
        self.1 >= self.0
    }
}

fn run_of(output: &Path, keys: &str, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ntrain_from_scratch: true\ndo_train: true\ndataset_dir: {QUICKSTART}/data\n\
         dataset: quickstart_train\nmax_samples: 24\nval_size: {ROWS}\ncutoff_len: 64\nfinetuning_type: full\n\
         output_dir: {}\nper_device_train_batch_size: 2\nper_device_eval_batch_size: 3\nmax_steps: 4\n\
         learning_rate: 1e-3\nlogging_steps: 2\nmax_new_tokens: 6\ndo_sample: false\n{keys}",
        output.display()
    );
    run(Job::prepare(load_text(&text, "test.yaml", &[], Purpose::Train).unwrap()).unwrap(), observer)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_leaves_its_answers_and_how_like_the_expected_ones_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "do_predict: true\n";
    let outcome = run_of(folder.path(), keys, &mut Silent).unwrap();
    let answers = lines(&folder.path().join(PREDICTIONS));
    assert_eq!(answers.len(), ROWS);
    for answer in &answers {
        let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["prompt", "predict", "label"]);
        assert!(!answer["label"].as_str().unwrap().is_empty());
    }
    let results = json(&folder.path().join("predict_results.json"));
    let of = |row: &Value| Similarity::of(row["predict"].as_str().unwrap(), row["label"].as_str().unwrap());
    let mean = Similarity::mean(&answers.iter().map(of).collect::<Vec<_>>());
    assert!(mean.bleu_4 > 0.0);
    assert_eq!(results["predict_bleu-4"].as_f64(), Some(mean.bleu_4));
    assert_eq!(results["predict_rouge-l"].as_f64(), Some(mean.rouge_l));
    for name in ["predict_bleu-4", "predict_rouge-1", "predict_rouge-2", "predict_rouge-l", "predict_runtime"]
    {
        assert!(results[name].is_number(), "{name} in {results}");
        assert_eq!(json(&folder.path().join("all_results.json"))[name], results[name]);
        assert_eq!(outcome.results[name], results[name]);
    }
}

#[test]
fn evaluations_that_ask_have_figures_in_the_log_that_can_say_which_is_best() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "predict_with_generate: true\neval_strategy: steps\neval_steps: 2\nsave_steps: 2\n\
                load_best_model_at_end: true\nmetric_for_best_model: eval_rouge-l\ndo_predict: true\n";
    let outcome = run_of(folder.path(), keys, &mut Silent).unwrap();
    let logged = lines(&folder.path().join("trainer_log.jsonl"));
    let evaluated: Vec<&Value> = logged.iter().filter(|line| !line["eval_loss"].is_null()).collect();
    assert_eq!(evaluated.len(), 2);
    assert!(evaluated.iter().all(|line| line["eval_bleu-4"].is_number()), "{logged:?}");
    let state = json(&folder.path().join("trainer_state.json"));
    let best = evaluated.iter().map(|line| line["eval_rouge-l"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(state["best_metric"].as_f64(), Some(best));
    // At the end the weights are the best ones, and so are the answers.
    assert_eq!(outcome.results["predict_rouge-l"].as_f64(), Some(best));
}

#[test]
fn answers_alone_change_nothing_else_and_a_trained_model_answers_as_it_did_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (trained, alone) = (folder.path().join("trained"), folder.path().join("alone"));
    run_of(&trained, "do_predict: true\n", &mut Silent).unwrap();
    let text = format!(
        "model_name_or_path: {}\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\nmax_samples: 24\n\
         val_size: {ROWS}\ncutoff_len: 64\nfinetuning_type: full\noutput_dir: {}\nmax_new_tokens: 6\n\
         do_sample: false\ndo_predict: true\n",
        trained.display(),
        alone.display()
    );
    let job = Job::prepare(load_text(&text, "test.yaml", &[], Purpose::Train).unwrap()).unwrap();
    run(job, &mut Silent).unwrap();
    assert_eq!(lines(&alone.join(PREDICTIONS)), lines(&trained.join(PREDICTIONS)));
    let mut left: Vec<String> = std::fs::read_dir(&alone)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".sft.lock", "all_results.json", PREDICTIONS, "predict_results.json"]);
}

#[test]
fn answers_that_are_interrupted_are_given_when_the_run_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let keys = "do_predict: true\n";
    run_of(&whole, keys, &mut Silent).unwrap();
    let first = run_of(&parts, keys, &mut AfterAnswers(2, 0)).unwrap();
    assert!(first.interrupted_at.is_some());
    assert!(!parts.join(PREDICTIONS).exists());
    let second = run_of(&parts, keys, &mut Silent).unwrap();
    assert_eq!((second.resumed_at, second.interrupted_at), (4, None));
    assert_eq!(lines(&parts.join(PREDICTIONS)), lines(&whole.join(PREDICTIONS)));
}
