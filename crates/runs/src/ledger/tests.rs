use super::diff::RunDiff;
use super::*;
use crate::lock::FolderLock;
use crate::run_record::{End, FileDigest, FileKind};
use std::fs;

fn record(uid: &str, output_dir: &Path) -> RunRecord {
    RunRecord { uid: uid.into(), output_dir: output_dir.into(), total_steps: 10, ..RunRecord::default() }
}

fn line(step: u64, loss: f64) -> LogLine {
    LogLine { current_steps: step, loss: Some(loss), ..LogLine::default() }
}

#[test]
fn a_run_is_kept_with_its_curves_and_found_by_number_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/sft/runs.sqlite");
    let mut ledger = Ledger::open(&path).unwrap();
    let mut first = record("aaaa1111", folder.path());
    let number = ledger.keep(&first).unwrap();
    ledger.add(number, &[points_of(&line(1, 2.0)), points_of(&line(2, f64::NAN))].concat()).unwrap();
    ledger.add(number, &points_of(&line(3, 1.5))).unwrap();
    first.end = Some(End { status: Status::Done, steps: 3, ..End::default() });
    assert_eq!(ledger.keep(&first).unwrap(), number, "the same run, written anew");
    assert_ne!(ledger.keep(&record("bbbb2222", folder.path())).unwrap(), number);
    drop(ledger);
    let ledger = Ledger::read(&path).unwrap();
    let found = ledger.find(&number.to_string()).unwrap().unwrap();
    assert_eq!(found.curves["loss"], [(1, 2.0), (3, 1.5)]);
    assert_eq!(found.record, first);
    assert_eq!(ledger.find("aaaa1").unwrap().unwrap(), found);
    assert_eq!(ledger.find("cccc").unwrap(), None);
    let last = ledger.last(5).unwrap();
    assert_eq!(last.iter().map(|run| run.record.uid.as_str()).collect::<Vec<_>>(), ["bbbb2222", "aaaa1111"]);
    assert_eq!(last[1].last("loss"), Some(1.5));
}

#[test]
fn a_resumed_run_leaves_no_points_of_the_session_that_was_broken_off() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join("runs.sqlite")).unwrap();
    let number = ledger.keep(&record("aaaa", folder.path())).unwrap();
    for step in 1..=7 {
        ledger.add(number, &points_of(&line(step, 9.0))).unwrap();
    }
    ledger.forget_after(number, 4).unwrap();
    ledger.add(number, &points_of(&line(5, 1.0))).unwrap();
    let run = ledger.find("aaaa").unwrap().unwrap();
    assert_eq!(run.curves["loss"].last(), Some(&(5, 1.0)));
    assert_eq!(run.curves["loss"].len(), 5);
}

#[test]
fn a_damaged_a_later_and_a_locked_ledger_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.sqlite");
    fs::write(&damaged, "not a database, whatever its name says, and long enough to be one").unwrap();
    let error = Ledger::open(&damaged).unwrap_err().to_string();
    assert!(error.contains("damaged.sqlite"), "{error}");

    let later = folder.path().join("later.sqlite");
    Connection::open(&later).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let error = Ledger::open(&later).unwrap_err().to_string();
    assert!(error.contains("layout 9"), "{error}");

    let locked = folder.path().join("locked.sqlite");
    let ledger = Ledger::open(&locked).unwrap();
    let other = Connection::open(&locked).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = ledger.keep(&record("aaaa", folder.path())).unwrap_err().to_string();
    assert!(error.contains("locked.sqlite") && error.contains("locked"), "{error}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Ledger::open(&file.join("runs.sqlite")).unwrap_err().to_string();
    assert!(error.contains("folder of the ledger"), "{error}");
}

#[test]
fn its_place_is_the_key_or_the_variable_or_the_users_data_folder() {
    let env = |pairs: &'static [(&str, &str)]| {
        move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let home = env(&[("HOME", "/h"), ("USERPROFILE", "/h")]);
    assert_eq!(place(None, home), Some("/h/.local/share/sft/runs.sqlite".into()));
    let xdg = env(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")]);
    assert_eq!(place(None, xdg), Some("/x/sft/runs.sqlite".into()));
    assert_eq!(place(Some("k.sqlite"), env(&[("HOME", "/h")])), Some("k.sqlite".into()));
    assert_eq!(place(Some("off"), env(&[("HOME", "/h")])), None);
    assert_eq!(place(Some("k"), env(&[("SFT_LEDGER", "v")])), Some("k".into()));
    assert_eq!(place(Some("off"), env(&[("SFT_LEDGER", "v")])), None);
    assert_eq!(place(None, env(&[("HOME", "/h"), ("SFT_LEDGER", "v")])), Some("v".into()));
    assert_eq!(place(None, env(&[("HOME", "/h"), ("SFT_LEDGER", "off")])), None);
    assert_eq!(place(None, env(&[])), None);
}

#[test]
fn a_run_that_was_killed_is_told_from_one_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = KeptRun { number: Some(1), record: record("a", folder.path()), curves: CurvesOfRun::new() };
    run.record.save(folder.path()).unwrap();
    let lock = FolderLock::acquire(folder.path()).unwrap();
    assert_eq!(run.status(), "running");
    // Another run has begun there.
    record("b", folder.path()).save(folder.path()).unwrap();
    assert_eq!(run.status(), "ended without a word");
    run.record.save(folder.path()).unwrap();
    drop(lock);
    assert_eq!(run.status(), "ended without a word");
}

/// Two runs that differ in a key, a data file, the program and the third step.
fn two(folder: &Path) -> [KeptRun; 2] {
    ["1e-4", "2e-4"].map(|rate| {
        let is_second = rate == "2e-4";
        let mut record = record(rate, folder);
        record.config.insert("learning_rate".into(), rate.into());
        record.config.insert("seed".into(), 42.into());
        record.config.insert("output_dir".into(), rate.into());
        record.program.version = if is_second { "0.2.0" } else { "0.1.0" }.into();
        let file = |name: &str, sha256: &str, kind| FileDigest {
            kind,
            path: name.into(),
            bytes: 1,
            sha256: sha256.into(),
        };
        record.files = vec![
            file("/a/train.json", if is_second { "22" } else { "11" }, FileKind::Data),
            file("/m/model.safetensors", "33", FileKind::Model),
        ];
        record.end = Some(End { status: Status::Done, steps: 3, digest: rate.into(), ..End::default() });
        let loss = vec![(1, 3.0), (2, 2.5), (3, if is_second { 1.0 } else { 2.0 })];
        let curves = CurvesOfRun::from([("loss".to_owned(), loss)]);
        KeptRun { number: Some(1 + i64::from(is_second)), record, curves }
    })
}

#[test]
fn a_diff_names_keys_files_program_and_the_step_from_which_curves_part() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = two(folder.path());
    let diff = RunDiff::of(&a, &b);
    assert_eq!(diff.keys, [("learning_rate".to_owned(), ["1e-4".into(), "2e-4".into()])]);
    assert_eq!(diff.files, [(FileKind::Data, "train.json".into(), ["11".into(), "22".into()])]);
    assert_eq!(diff.others, [("version of the program", ["0.1.0".into(), "0.2.0".into()])]);
    assert_eq!((diff.curves[0].first, diff.curves[0].largest), (Some(3), Some((-1.0, 3))));
    let text = diff.to_string();
    for part in [
        "learning_rate: \"1e-4\" → \"2e-4\"",
        "model: the same",
        "differs from step 3 on",
        "trained weights: 1e-4 → 2e-4",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let same = RunDiff::of(&a, &a).to_string();
    assert!(same.contains("the same at all 3 common steps") && same.contains("the same bits"), "{same}");
}

#[test]
fn a_comparison_draws_all_runs_in_one_picture_and_tables_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let runs = two(folder.path());
    let drawn = comparison::draw(&runs, &folder.path().join("compare")).unwrap();
    assert_eq!(drawn, [folder.path().join("compare_loss")]);
    let svg = fs::read_to_string(folder.path().join("compare_loss.svg")).unwrap();
    assert!(svg.contains("run 1") && svg.contains("run 2"), "both are in the legend");
    let table = comparison::table(&runs);
    let row = |name: &str| {
        table
            .lines()
            .find(|line| line.starts_with(name))
            .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    assert_eq!(row("loss").unwrap(), ["loss", "2.00000", "1.00000"]);
    assert_eq!(row("learning_rate").unwrap(), ["learning_rate", "1e-4", "2e-4"]);
    assert_eq!(row("seed"), None, "the same in both");
}
