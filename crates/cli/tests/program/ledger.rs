//! What `sft train` keeps of a run, and what `sft runs` says of it.

use std::fs;

use crate::place::{Place, text};
use sft_runs::run_record::{FileKind, RunRecord, Status};

const TOKEN: &str = "hf_aSecretThatNobodyMayRead";

/// Every file below a folder.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_run_is_in_the_ledger_and_two_are_told_apart_by_keys_curves_and_weights() {
    let place = Place::new("max_steps: 3\nsave_steps: 2\n");
    for (output, rate) in
        [("a", "learning_rate=1e-3"), ("b", "learning_rate=2e-3"), ("c", "learning_rate=1e-3")]
    {
        let run = place.train(output, &[rate]).output().unwrap();
        assert!(run.status.success(), "{}", text(&run));
    }
    let list = text(&place.sft(&["runs"]).output().unwrap());
    assert_eq!(list.matches(" done ").count(), 3, "{list}");
    assert!(list.lines().nth(1).unwrap().starts_with('3'), "the newest first: {list}");

    let diff = text(&place.sft(&["runs", "diff", "1", "2"]).output().unwrap());
    assert!(diff.contains("learning_rate: 0.001 → 0.002"), "{diff}");
    assert!(diff.contains("data: the same") && diff.contains("model: the same"), "{diff}");
    assert!(diff.contains("loss: ") && diff.contains("differs from step"), "{diff}");
    let same = text(&place.sft(&["runs", "diff", "1", "c"]).output().unwrap());
    assert!(same.contains("configuration: the same") && same.contains("the same bits"), "{same}");

    let compare = text(&place.sft(&["runs", "compare", "1", "2", "3", "--output", "all"]).output().unwrap());
    assert!(compare.contains("learning_rate"), "{compare}");
    assert!(place.path("all_loss.png").is_file() && place.path("all_loss.svg").is_file());
    let none = place.sft(&["runs", "diff", "1", "99"]).output().unwrap();
    assert!(!none.status.success() && text(&none).contains("99: no run of this number"), "{}", text(&none));
}

#[test]
fn a_folder_has_the_record_of_its_run_with_the_digests_that_sha256sum_prints() {
    let place = Place::new("max_steps: 2\n");
    assert!(place.train("out", &["ledger=off"]).status().unwrap().success());
    assert!(!place.path("runs.sqlite").exists());
    let record = RunRecord::load(&place.path("out")).unwrap();
    let end = record.end.as_ref().unwrap();
    assert_eq!((end.status, end.steps), (Status::Done, 2));
    let has = |kind: FileKind| record.files.iter().any(|file| file.kind == kind && file.sha256.len() == 64);
    assert!(has(FileKind::Data) && has(FileKind::Model));
    assert_eq!(record.config["max_steps"], 2);
    assert_eq!(record.program.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(record.program.sha256.len(), 64);
}

#[test]
fn a_ledger_that_is_damaged_or_cannot_be_made_costs_a_note_and_no_step() {
    let place = Place::new("max_steps: 2\n");
    fs::write(place.path("damaged"), "no database, and long enough that SQLite looks at its first bytes")
        .unwrap();
    for ledger in ["damaged", "damaged/below/runs.sqlite"] {
        let mut command = place.train(&ledger.replace('/', "-").replace("damaged", "out"), &[]);
        let run = command.env("SFT_LEDGER", place.path(ledger)).output().unwrap();
        assert!(run.status.success(), "{}", text(&run));
        assert!(text(&run).contains("this run is not in the ledger: "), "{}", text(&run));
    }
}

#[test]
fn a_resumed_run_is_one_entry_and_one_that_fails_says_why() {
    let place = Place::new("max_steps: 4\nsave_steps: 2\n");
    assert!(place.train("out", &["max_steps=4"]).status().unwrap().success());
    fs::remove_dir_all(place.path("out/checkpoint-4")).unwrap();
    assert!(place.train("out", &["max_steps=4"]).status().unwrap().success());
    let failed = place.train("bad", &["learning_rate=1e30", "max_steps=9"]).output().unwrap();
    assert!(!failed.status.success());
    let list = text(&place.sft(&["runs"]).output().unwrap());
    assert_eq!(list.matches(" done ").count(), 1, "{list}");
    assert_eq!(list.matches(" failed ").count(), 1, "{list}");
    let record = RunRecord::load(&place.path("bad")).unwrap();
    assert!(record.end.unwrap().error.unwrap().contains("is not finite"));
}

#[test]
fn a_resume_of_the_checkpoint_before_the_first_step_is_one_entry() {
    let place = Place::new("max_steps: 2\nsave_strategy: 'no'\n");
    let keys = ["eval_dataset=quickstart_heldout", "eval_strategy=epoch", "eval_on_start=true"];
    let keys = [&keys[..], &["max_samples=200", "per_device_eval_batch_size=1"]].concat();
    let mut child = place.start("out", &keys);
    // The record is written when the evaluation begins.
    let record = place.path("out/run_record.json");
    while !record.is_file() {
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
    }
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(place.path("out/checkpoint-0").is_dir());
    let again = place.train("out", &keys).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
    let list = text(&place.sft(&["runs"]).output().unwrap());
    assert_eq!((list.lines().count(), list.matches(" done ").count()), (2, 1), "{list}");
}

#[test]
fn a_resume_from_another_folder_is_an_entry_beside_the_run_that_was_there() {
    let place = Place::new("max_steps: 2\nsave_steps: 1\n");
    for output in ["a", "b"] {
        assert!(place.train(output, &[]).status().unwrap().success());
    }
    let uid = |output: &str| RunRecord::load(&place.path(output)).unwrap().uid;
    let before = uid("a");
    let keys = ["resume_from_checkpoint=b/checkpoint-1", "overwrite_output_dir=true"];
    let run = place.train("a", &keys).output().unwrap();
    assert!(run.status.success(), "{}", text(&run));
    assert!(uid("a") != before && uid("a") != uid("b"));
    let list = text(&place.sft(&["runs"]).output().unwrap());
    assert_eq!(list.matches(" done ").count(), 3, "{list}");
}

#[test]
fn the_token_of_a_hub_is_in_no_file_and_no_word_of_a_run() {
    let place =
        Place::new(&format!("max_steps: 2\nsave_steps: 1\nhf_hub_token: {TOKEN}\nms_hub_token: {TOKEN}\n"));
    let run = place.train("out", &[]).env("HF_TOKEN", TOKEN).output().unwrap();
    assert!(run.status.success(), "{}", text(&run));
    let dry = place.train("out2", &["--dry-run"]).output().unwrap();
    let list = place.sft(&["runs", "diff", "1", "1"]).output().unwrap();
    for said in [&run, &dry, &list] {
        assert!(!text(said).contains(TOKEN), "{}", text(said));
    }
    let wrong = place.train("out", &["no_such_key=1", "cutoff_len=-1"]).output().unwrap();
    assert!(!wrong.status.success() && !text(&wrong).contains(TOKEN), "{}", text(&wrong));
    let holds = |path: &std::path::PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes())
    };
    fs::remove_file(place.path("config.yaml")).unwrap();
    let all = files(&place.path("."));
    assert!(all.len() > 20, "{all:?}");
    assert_eq!(all.into_iter().filter(holds).collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
}
