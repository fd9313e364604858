use super::*;
use crate::checkpoint::CheckpointWriter;
use std::fs;

fn open(path: &Path, overwrite: bool, resume: ResumeFrom) -> Result<RunFolder> {
    RunFolder::open(path, overwrite, &resume)
}

fn with_checkpoints(steps: &[u64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path(), false, ResumeFrom::Automatic).unwrap();
    for &step in steps {
        write_checkpoint(&run, step);
    }
    folder
}

fn write_checkpoint(run: &RunFolder, step: u64) {
    let writer = CheckpointWriter::begin(run, step).unwrap();
    fs::write(writer.folder().join("model.safetensors"), format!("weights {step}")).unwrap();
    writer.finish().unwrap();
}

fn resumed_step(run: &RunFolder) -> Option<u64> {
    match run.start() {
        Start::Fresh | Start::Beside => None,
        Start::Resume(checkpoint) => Some(checkpoint.step),
    }
}

#[test]
fn a_new_folder_is_made_with_its_parents_and_starts_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(&folder.path().join("a/b"), false, ResumeFrom::Automatic).unwrap();
    assert_eq!(run.start(), &Start::Fresh);
    assert!(run.notes().is_empty());
}

#[test]
fn two_runs_never_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), false, ResumeFrom::Automatic).unwrap();
    let error = open(folder.path(), true, ResumeFrom::Automatic).unwrap_err().to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    assert!(error.contains(&format!("(process {} on ", std::process::id())), "{error}");
    assert!(error.contains("help:"), "{error}");
    drop(first);
    open(folder.path(), false, ResumeFrom::Automatic).unwrap();
}

#[test]
fn the_last_checkpoint_is_resumed_by_number_not_by_name() {
    let folder = with_checkpoints(&[90, 100]);
    let run = open(folder.path(), false, ResumeFrom::Automatic).unwrap();
    assert_eq!(resumed_step(&run), Some(100));
    assert!(run.notes()[0].contains("resuming from"), "{:?}", run.notes());
}

#[test]
fn a_damaged_last_checkpoint_is_named_and_the_one_before_it_resumed() {
    let folder = with_checkpoints(&[10, 20]);
    fs::write(folder.path().join("checkpoint-20/model.safetensors"), "weights 2!").unwrap();
    let run = open(folder.path(), false, ResumeFrom::Automatic).unwrap();
    assert_eq!(resumed_step(&run), Some(10));
    assert!(run.notes()[0].contains("checkpoint-20: model.safetensors does not have"), "{:?}", run.notes());
}

#[test]
fn only_damaged_checkpoints_are_an_error_that_names_each() {
    let folder = with_checkpoints(&[10, 20]);
    for step in ["10", "20"] {
        fs::remove_file(folder.path().join(format!("checkpoint-{step}/model.safetensors"))).unwrap();
    }
    let error = open(folder.path(), false, ResumeFrom::Automatic).unwrap_err().to_string();
    assert!(error.contains("checkpoint-10: model.safetensors is missing"), "{error}");
    assert!(error.contains("checkpoint-20: model.safetensors is missing"), "{error}");
    assert!(error.contains("overwrite_output_dir"), "{error}");
}

#[test]
fn final_weights_without_a_checkpoint_need_overwrite_output_dir() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), "w").unwrap();
    let error = open(folder.path(), false, ResumeFrom::Automatic).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors") && error.contains("overwrite_output_dir"), "{error}");
    open(folder.path(), true, ResumeFrom::Automatic).unwrap();
}

#[test]
fn logs_of_a_run_that_died_before_its_first_checkpoint_do_not_stop_the_next() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("trainer_log.jsonl"), "{}\n").unwrap();
    assert_eq!(open(folder.path(), false, ResumeFrom::Automatic).unwrap().start(), &Start::Fresh);
}

#[test]
fn overwriting_keeps_the_old_checkpoints_until_the_first_new_one_is_complete() {
    let folder = with_checkpoints(&[10, 20]);
    let run = open(folder.path(), true, ResumeFrom::Automatic).unwrap();
    assert_eq!(run.start(), &Start::Fresh);
    assert!(folder.path().join("checkpoint-20.previous/model.safetensors").exists());
    write_checkpoint(&run, 5);
    assert!(!folder.path().join("checkpoint-20.previous").exists());
    drop(run);
    let run = open(folder.path(), false, ResumeFrom::Automatic).unwrap();
    assert_eq!(resumed_step(&run), Some(5));
}

#[test]
fn overwriting_never_deletes_a_checkpoint_that_another_program_wrote() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("checkpoint-10")).unwrap();
    fs::write(folder.path().join("checkpoint-10/optimizer.pt"), "x").unwrap();
    let run = open(folder.path(), true, ResumeFrom::Automatic).unwrap();
    write_checkpoint(&run, 5);
    assert!(folder.path().join("checkpoint-10.previous/optimizer.pt").exists());
}

#[test]
fn an_explicit_checkpoint_wins_over_overwrite_output_dir() {
    let folder = with_checkpoints(&[10, 20]);
    let run = open(folder.path(), true, ResumeFrom::Path(folder.path().join("checkpoint-10"))).unwrap();
    assert_eq!(resumed_step(&run), Some(10));
    assert!(folder.path().join("checkpoint-10").exists(), "the checkpoint resumed from stays");
    assert!(folder.path().join("checkpoint-20.previous").exists(), "the abandoned future is set aside");
}

#[test]
fn a_wrong_explicit_checkpoint_is_an_error_that_names_the_good_ones() {
    let folder = with_checkpoints(&[10]);
    let wrong = ResumeFrom::Path(folder.path().join("checkpoint-99"));
    let error = open(folder.path(), false, wrong).unwrap_err().to_string();
    assert!(error.contains("no such folder") && error.contains("checkpoint-10"), "{error}");
}

#[test]
fn asking_for_the_last_checkpoint_where_there_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), false, ResumeFrom::Last).unwrap_err();
    assert!(matches!(error, RunError::NothingToResume { .. }), "{error}");
}

#[test]
fn never_starts_over_and_sets_the_old_ones_aside() {
    let folder = with_checkpoints(&[10]);
    let run = open(folder.path(), false, ResumeFrom::Never).unwrap();
    assert_eq!(run.start(), &Start::Fresh);
    assert!(folder.path().join("checkpoint-10.previous").exists());
}

#[test]
fn never_does_not_replace_a_finished_model_unless_it_may_overwrite() {
    let folder = with_checkpoints(&[10]);
    fs::write(folder.path().join("model.safetensors"), "w").unwrap();
    let error = open(folder.path(), false, ResumeFrom::Never).unwrap_err();
    assert!(matches!(error, RunError::FinishedModel { weights: "model.safetensors", .. }), "{error}");
    assert_eq!(open(folder.path(), true, ResumeFrom::Never).unwrap().start(), &Start::Fresh);
}

#[test]
fn a_run_goes_on_from_a_checkpoint_of_its_own_folder_alone() {
    let (here, elsewhere) = (with_checkpoints(&[0]), with_checkpoints(&[0]));
    let from = |folder: &tempfile::TempDir| ResumeFrom::Path(folder.path().join("checkpoint-0"));
    assert!(open(here.path(), false, from(&here)).unwrap().goes_on(), "also at step 0");
    assert!(!open(here.path(), false, from(&elsewhere)).unwrap().goes_on());
    assert!(!open(here.path(), true, ResumeFrom::Automatic).unwrap().goes_on());
}

#[test]
fn a_checkpoint_of_another_folder_does_not_replace_a_finished_model_unless_it_may_overwrite() {
    let (here, elsewhere) = (tempfile::tempdir().unwrap(), with_checkpoints(&[10]));
    fs::write(here.path().join("model.safetensors"), "w").unwrap();
    let from = || ResumeFrom::Path(elsewhere.path().join("checkpoint-10"));
    let error = open(here.path(), false, from()).unwrap_err();
    assert!(matches!(error, RunError::FinishedModel { .. }), "{error}");
    assert!(matches!(open(here.path(), true, from()).unwrap().start(), Start::Resume(_)));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn with_files(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("pissa_converted")).unwrap();
    names.iter().for_each(|name| fs::write(folder.path().join(name), "old").unwrap());
    folder
}

#[test]
fn a_run_from_the_beginning_removes_weights_of_any_kind_and_what_says_how_to_read_them() {
    let shards = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"];
    for weights in [&["adapter_model.safetensors"][..], &["model.safetensors"], &shards] {
        let others = ["adapter_config.json", "config.json", "tokenizer.json", "chat_template.jinja"];
        let folder =
            with_files(&[weights, &others[..], &["pissa_converted/adapter_model.safetensors"]].concat());
        remove_earlier_run(folder.path(), &["tokenizer.json", "chat_template.jinja", "vocab.txt"]).unwrap();
        assert!(names(folder.path()).is_empty(), "{weights:?}");
    }
}

#[test]
fn a_run_from_the_beginning_removes_answers_results_and_pictures_of_every_data_set() {
    let folder = with_files(&[
        "all_results.json",
        "held_out_answers.jsonl",
        "generated_predictions.jsonl",
        "predict_results.json",
        "trainer_state.json",
        "training_eval_mine_loss.svg",
        "training_loss.png",
    ]);
    remove_earlier_run(folder.path(), &["tokenizer.json", "chat_template.jinja", "vocab.txt"]).unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_no_run_wrote_stays() {
    let own = ["model-of-mine.safetensors", "notes.md", "training_plan.png", "pytorch_model.bin"];
    let folder = with_files(&[&own[..], &["model.safetensors"]].concat());
    remove_earlier_run(folder.path(), &["tokenizer.json", "chat_template.jinja", "vocab.txt"]).unwrap();
    assert_eq!(
        names(folder.path()),
        ["model-of-mine.safetensors", "notes.md", "pytorch_model.bin", "training_plan.png"]
    );
    // Without a run's weights these are somebody's own.
    let own = ["config.json", "model-00001-of-00002.safetensors", "vocab.txt"];
    let folder = with_files(&own);
    remove_earlier_run(folder.path(), &["tokenizer.json", "chat_template.jinja", "vocab.txt"]).unwrap();
    assert_eq!(names(folder.path()), own);
}
