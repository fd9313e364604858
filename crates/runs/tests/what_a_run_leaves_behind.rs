//! The stage as a whole: a run that is killed and resumed, and every file it leaves.

use sft_runs::{
    BestMetric, CheckpointWriter, EvalRecord, Library, ModelCard, Recorder, RecorderOptions, ResumeFrom,
    RunFolder, Start, StepRecord, Summary, checkpoint,
};
use std::fs;
use std::path::Path;

fn options() -> RecorderOptions {
    RecorderOptions {
        total_steps: 12,
        num_train_epochs: 1.0,
        logging_steps: 1,
        save_steps: 4,
        eval_steps: Some(4),
        train_batch_size: 1,
        best_metric: Some(BestMetric { name: "eval_loss".into(), greater_is_better: false }),
        plot_loss: true,
        tensorboard: true,
        ..RecorderOptions::default()
    }
}

/// Runs from where the folder says to `last`; step 12 is the end.
fn train_until(output_dir: &Path, last: u64) {
    let run = RunFolder::open(output_dir, false, &ResumeFrom::Automatic).unwrap();
    let mut recorder = Recorder::open(&run, options()).unwrap();
    let done = match run.start() {
        Start::Fresh | Start::Beside => 0,
        Start::Resume(checkpoint) => checkpoint.step,
    };
    for step in done + 1..=last {
        let (epoch, loss) = (step as f64 / 12.0, 2.0 / step as f64);
        let record =
            StepRecord { step, epoch, loss, tokens: 64, supervised_tokens: 16, ..StepRecord::default() };
        recorder.record_step(&record).unwrap();
        if step % 4 != 0 {
            continue;
        }
        let accuracy = Some(1.0 - loss / 2.0);
        recorder.record_eval(&EvalRecord { step, epoch, loss, accuracy, ..EvalRecord::default() }).unwrap();
        let writer = CheckpointWriter::begin(&run, step).unwrap();
        fs::write(writer.folder().join("model.safetensors"), [step as u8]).unwrap();
        recorder.save(&writer).unwrap();
        writer.finish().unwrap();
        checkpoint::rotate(&run, Some(2), recorder.best_checkpoint_step()).unwrap();
    }
    if last == 12 {
        recorder.finish(&Summary::default()).unwrap();
        let card = ModelCard {
            title: "run".into(),
            library: Library::Transformers,
            base_model: None,
            method: "full".into(),
            datasets: vec!["identity".into()],
            step: None,
            hyperparameters: vec![],
            versions: vec![],
        };
        card.save(run.path(), recorder.state()).unwrap();
    }
}

#[test]
fn a_killed_and_resumed_run_leaves_every_file_once() {
    let folder = tempfile::tempdir().unwrap();
    train_until(folder.path(), 6);
    train_until(folder.path(), 12);
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            ".sft.lock",
            "README.md",
            "all_results.json",
            "checkpoint-12",
            "checkpoint-8",
            "runs",
            "train_results.json",
            "trainer_log.jsonl",
            "trainer_state.json",
            "training_eval_accuracy.png",
            "training_eval_accuracy.svg",
            "training_eval_loss.png",
            "training_eval_loss.svg",
            "training_loss.png",
            "training_loss.svg",
        ]
    );
    let event_folders: Vec<_> = fs::read_dir(folder.path().join("runs")).unwrap().collect();
    assert_eq!(event_folders.len(), 1, "the resumed run adds a file to the folder it had");
}
