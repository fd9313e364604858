use super::*;
use crate::folder::ResumeFrom;
use crate::records::BestMetric;
use crate::trainer_log::{self, TRAINER_LOG};

fn open_run(path: &Path) -> RunFolder {
    RunFolder::open(path, false, &ResumeFrom::Automatic).unwrap()
}

fn options() -> RecorderOptions {
    RecorderOptions {
        total_steps: 10,
        num_train_epochs: 2.0,
        logging_steps: 2,
        save_steps: 4,
        eval_steps: Some(4),
        train_batch_size: 1,
        best_metric: Some(BestMetric { name: "eval_loss".into(), greater_is_better: false }),
        ..RecorderOptions::default()
    }
}

fn step(step: u64) -> StepRecord {
    StepRecord {
        step,
        epoch: step as f64 / 5.0,
        loss: 1.0 / step as f64,
        learning_rate: 1e-4,
        grad_norm: Some(0.5),
        tokens: 100,
        supervised_tokens: 40,
        samples: 2,
        ..StepRecord::default()
    }
}

fn eval(step: u64, loss: f64) -> EvalRecord {
    EvalRecord {
        step,
        epoch: step as f64 / 5.0,
        loss,
        runtime_s: 2.0,
        samples: 8,
        batches: 4,
        ..EvalRecord::default()
    }
}

fn lines(path: &Path) -> Vec<LogLine> {
    trainer_log::read(&path.join(TRAINER_LOG)).unwrap()
}

/// Steps `range`, an evaluation and a checkpoint after step 4.
fn train(run: &RunFolder, recorder: &mut Recorder, range: std::ops::RangeInclusive<u64>) {
    for number in range {
        recorder.record_step(&step(number)).unwrap();
        if number == 4 {
            recorder.record_eval(&eval(4, 2.0)).unwrap();
            let writer = CheckpointWriter::begin(run, 4).unwrap();
            recorder.save(&writer).unwrap();
            writer.finish().unwrap();
        }
    }
}

/// The lines and history with the times taken out.
fn without_times(path: &Path) -> (Vec<LogLine>, TrainerState) {
    let clean = |line: LogLine| LogLine {
        elapsed_time: String::new(),
        remaining_time: String::new(),
        throughput: None,
        ..line
    };
    let mut state = TrainerState::load(path).unwrap();
    for entry in &mut state.log_history {
        entry.retain(|key, _| !key.ends_with("runtime") && !key.ends_with("per_second"));
    }
    state.best_model_checkpoint = None;
    (lines(path).into_iter().map(clean).collect(), state)
}

#[test]
fn a_line_is_due_every_logging_steps_with_the_mean_loss_since_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    assert_eq!(recorder.record_step(&step(1)).unwrap(), None);
    let line = recorder.record_step(&step(2)).unwrap().unwrap();
    assert_eq!(line.loss, Some(0.75));
    assert_eq!(line.percentage, 20.0);
    assert_eq!(line.total_tokens, Some(200));
    assert_eq!(lines(folder.path()), [line]);
}

#[test]
fn logging_first_step_writes_step_one_too() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder =
        Recorder::open(&run, RecorderOptions { logging_first_step: true, ..options() }).unwrap();
    assert_eq!(recorder.record_step(&step(1)).unwrap().unwrap().loss, Some(1.0));
    assert_eq!(recorder.record_step(&step(2)).unwrap().unwrap().loss, Some(0.5));
}

#[test]
fn a_resumed_run_leaves_the_same_log_and_history_as_one_that_was_never_stopped() {
    let whole = tempfile::tempdir().unwrap();
    let run = open_run(whole.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    train(&run, &mut recorder, 1..=10);
    let whole_metrics = recorder.finish(&Summary::default()).unwrap();

    let broken = tempfile::tempdir().unwrap();
    {
        let run = open_run(broken.path());
        let mut recorder = Recorder::open(&run, options()).unwrap();
        train(&run, &mut recorder, 1..=7); // and dies here, three steps after its checkpoint
    }
    let run = open_run(broken.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    assert_eq!(recorder.state().global_step, 4);
    train(&run, &mut recorder, 5..=10);
    let metrics = recorder.finish(&Summary::default()).unwrap();

    assert_eq!(without_times(broken.path()), without_times(whole.path()));
    for key in ["train_loss", "num_input_tokens_seen", "num_supervised_tokens_seen", "epoch"] {
        assert_eq!(metrics[key], whole_metrics[key], "{key}");
    }
}

#[test]
fn a_checkpoint_between_two_lines_keeps_the_half_window() {
    let folder = tempfile::tempdir().unwrap();
    let odd = RecorderOptions { logging_steps: 3, ..options() };
    {
        let run = open_run(folder.path());
        let mut recorder = Recorder::open(&run, odd.clone()).unwrap();
        train(&run, &mut recorder, 1..=4);
    }
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, odd).unwrap();
    recorder.record_step(&step(5)).unwrap();
    let line = recorder.record_step(&step(6)).unwrap().unwrap();
    assert_eq!(line.loss, Some((1.0 / 4.0 + 1.0 / 5.0 + 1.0 / 6.0) / 3.0));
}

#[test]
fn a_resume_into_another_folder_brings_the_whole_log_along() {
    let first = tempfile::tempdir().unwrap();
    {
        let run = open_run(first.path());
        let mut recorder = Recorder::open(&run, options()).unwrap();
        train(&run, &mut recorder, 1..=4);
    }
    let second = tempfile::tempdir().unwrap();
    let from = ResumeFrom::Path(first.path().join("checkpoint-4"));
    let run = RunFolder::open(second.path(), false, &from).unwrap();
    Recorder::open(&run, options()).unwrap();
    assert_eq!(lines(second.path()), lines(first.path()));
}

#[test]
fn the_best_evaluation_is_remembered_with_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    train(&run, &mut recorder, 1..=5);
    let outcome = recorder.record_eval(&eval(8, 2.5)).unwrap();
    assert!(!outcome.is_best);
    assert_eq!(outcome.evals_since_best, 1);
    assert_eq!(recorder.best_checkpoint_step(), Some(4));
    let path = folder.path().join("checkpoint-4");
    assert_eq!(recorder.state().best_model_checkpoint.as_deref(), path.to_str());
    assert_eq!(recorder.state().best_metric, Some(2.0));
}

#[test]
fn another_metric_begins_anew_over_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    {
        let run = open_run(folder.path());
        let mut recorder = Recorder::open(&run, options()).unwrap();
        train(&run, &mut recorder, 1..=4); // evaluates to 2.0
    }
    let run = open_run(folder.path());
    let best_metric = Some(BestMetric { name: "eval_accuracy".into(), greater_is_better: true });
    let mut recorder = Recorder::open(&run, RecorderOptions { best_metric, ..options() }).unwrap();
    assert_eq!((recorder.best_checkpoint_step(), recorder.evals_since_best()), (None, 0));
    // No accuracy is above a loss of 2.
    let record = EvalRecord { accuracy: Some(0.5), ..eval(6, 1.0) };
    assert!(recorder.record_eval(&record).unwrap().is_best);
}

#[test]
fn patience_is_counted_over_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    {
        let run = open_run(folder.path());
        let mut recorder = Recorder::open(&run, options()).unwrap();
        recorder.record_eval(&eval(2, 1.0)).unwrap();
        train(&run, &mut recorder, 3..=4); // evaluates to 2.0: one without improvement
    }
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    assert_eq!(recorder.record_eval(&eval(6, 1.5)).unwrap().evals_since_best, 2);
    assert_eq!(recorder.record_eval(&eval(8, 0.5)).unwrap().evals_since_best, 0);
}

#[test]
fn an_evaluation_that_is_not_finite_is_never_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    assert!(!recorder.record_eval(&eval(2, f64::NAN)).unwrap().is_best);
    assert!(recorder.record_eval(&eval(4, 3.0)).unwrap().is_best);
}

#[test]
fn a_greater_accuracy_can_be_what_is_best() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let best_metric = Some(BestMetric { name: "eval_accuracy".into(), greater_is_better: true });
    let mut recorder = Recorder::open(&run, RecorderOptions { best_metric, ..options() }).unwrap();
    let with_accuracy = |step, accuracy| EvalRecord { accuracy: Some(accuracy), ..eval(step, 1.0) };
    assert!(recorder.record_eval(&with_accuracy(2, 0.5)).unwrap().is_best);
    assert!(!recorder.record_eval(&with_accuracy(4, 0.4)).unwrap().is_best);
    assert!(recorder.record_eval(&with_accuracy(6, 0.6)).unwrap().is_best);
}

#[test]
fn the_evaluation_of_all_rows_decides_what_is_best_and_none_of_one_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    let of_one = EvalRecord { dataset: Some("a".into()), ..eval(2, 0.5) };
    assert!(!recorder.record_eval(&of_one).unwrap().is_best);
    assert!(recorder.record_eval(&eval(2, 1.0)).unwrap().is_best);
}

#[test]
fn a_loss_that_is_not_finite_is_logged_as_null_counted_and_kept_out_of_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, RecorderOptions { logging_steps: 1, ..options() }).unwrap();
    recorder.record_step(&StepRecord { loss: f64::NAN, ..step(1) }).unwrap();
    recorder.record_step(&step(2)).unwrap();
    let metrics = recorder.finish(&Summary::default()).unwrap();
    let text = fs::read_to_string(folder.path().join(TRAINER_LOG)).unwrap();
    assert!(text.lines().next().unwrap().contains("\"loss\":null"), "{text}");
    assert_eq!(metrics["nonfinite_losses"], 1);
    assert_eq!(metrics["train_loss"], 0.5);
}

#[test]
fn the_results_have_transformers_keys_and_the_rates_of_this_program() {
    let folder = tempfile::tempdir().unwrap();
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, options()).unwrap();
    train(&run, &mut recorder, 1..=4);
    let mut extra = Map::new();
    extra.insert("effective_tokens_per_sec".into(), 7.5.into());
    recorder.finish(&Summary { peak_bytes: Some(1 << 20), extra }).unwrap();
    let written = results::load(&folder.path().join("train_results.json")).unwrap();
    let keys: Vec<_> = written.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "effective_tokens_per_sec",
            "epoch",
            "num_input_tokens_seen",
            "num_supervised_tokens_seen",
            "peak_bytes",
            "supervised_tokens_per_s",
            "tokens_per_s",
            "total_flos",
            "train_loss",
            "train_runtime",
            "train_samples_per_second",
            "train_steps_per_second",
        ]
    );
    assert_eq!(written["train_loss"], (1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 4.0);
    assert_eq!(results::load(&folder.path().join(results::ALL_RESULTS)).unwrap(), written);
}

#[test]
fn a_fresh_start_removes_the_results_of_the_run_before() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all_results.json"), "{\"eval_loss\": 1.0}").unwrap();
    fs::write(folder.path().join(TRAINER_LOG), "{\"current_steps\": 99}\n").unwrap();
    let run = open_run(folder.path());
    Recorder::open(&run, options()).unwrap();
    assert!(!folder.path().join("all_results.json").exists());
    assert!(lines(folder.path()).is_empty());
}

#[test]
fn a_resume_beyond_the_last_step_is_at_100_percent() {
    let folder = tempfile::tempdir().unwrap();
    {
        let run = open_run(folder.path());
        let mut recorder = Recorder::open(&run, options()).unwrap();
        train(&run, &mut recorder, 1..=4);
    }
    let run = open_run(folder.path());
    let mut recorder = Recorder::open(&run, RecorderOptions { total_steps: 2, ..options() }).unwrap();
    recorder.finish(&Summary::default()).unwrap();
    assert_eq!(lines(folder.path()).last().unwrap().percentage, 100.0);
}
