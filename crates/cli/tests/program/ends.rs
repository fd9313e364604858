//! How a run ends that does not end by itself: Ctrl-C, SIGTERM, a full or read-only folder, a second run in its folder,
//! data that changes, a clock that jumps. Each has one outcome.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::place::{Place, QUICKSTART, digest, log, text};

/// Waits until a run has logged so many lines.
fn wait_for_lines(place: &Place, output: &str, lines: usize) {
    let path = place.path(output).join("trainer_log.jsonl");
    let started = Instant::now();
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < lines {
        assert!(started.elapsed() < Duration::from_secs(300), "no {lines} lines");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn ctrl_c_and_sigterm_end_after_the_step_in_hand_with_a_checkpoint_and_status_130() {
    let place = Place::new("max_steps: 30\nsave_strategy: 'no'\n");
    let whole = place.train("whole", &[]).output().unwrap();
    for name in ["-INT", "-TERM"] {
        let output = format!("ended{name}");
        let mut child = place.start(&output, &[]);
        wait_for_lines(&place, &output, 2);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        let listing = sft_runs::checkpoint::list(&place.path(&output)).unwrap();
        assert_eq!((listing.complete.len(), listing.damaged.len(), listing.partial.len()), (1, 0, 0));
        let again = place.train(&output, &[]).output().unwrap();
        assert!(again.status.success(), "{}", text(&again));
        assert_eq!(digest(&again), digest(&whole), "{name}");
        assert_eq!(log(&place.path(&output)), log(&place.path("whole")), "{name}");
    }
}

#[test]
fn a_closed_terminal_ends_a_run_but_not_one_under_nohup() {
    let place = Place::new("max_steps: 30\nsave_strategy: 'no'\n");
    let mut child = place.start("ended", &[]);
    wait_for_lines(&place, "ended", 2);
    signal(&child, "-HUP");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let sft = place.train("goes_on", &[]);
    let mut nohup = Command::new("nohup");
    nohup.arg(sft.get_program()).args(sft.get_args()).current_dir(place.path("."));
    nohup.envs(sft.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let silent = [Stdio::null(), Stdio::null(), Stdio::null()];
    let [input, output, errors] = silent;
    let mut child = nohup.stdin(input).stdout(output).stderr(errors).spawn().unwrap();
    wait_for_lines(&place, "goes_on", 2);
    signal(&child, "-HUP");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_interrupt_during_an_evaluation_breaks_it_off_and_the_resume_repeats_it() {
    // The evaluation takes far longer than the step before it.
    let keys = "max_steps: 3\nsave_strategy: 'no'\neval_dataset: quickstart_heldout\neval_strategy: steps\neval_steps: 1\n\
                per_device_eval_batch_size: 1\n";
    let place = Place::new(keys);
    let whole = place.train("whole", &[]).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    let mut child = place.start("ended", &[]);
    // The first line is the first step's: its evaluation is next.
    wait_for_lines(&place, "ended", 1);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let again = place.train("ended", &[]).output().unwrap();
    assert_eq!(digest(&again), digest(&whole), "{}", text(&again));
    assert_eq!(log(&place.path("ended")), log(&place.path("whole")), "{}", text(&again));
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on() {
    let place = Place::new("max_steps: 20\nsave_strategy: 'no'\n");
    let mut first = place.start("out", &[]);
    wait_for_lines(&place, "out", 1);
    let second = place.train("out", &["overwrite_output_dir=true"]).output().unwrap();
    assert!(!second.status.success());
    assert!(text(&second).contains("in use by another run (process "), "{}", text(&second));
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_folder_that_may_only_be_read_is_named_before_the_first_step() {
    let place = Place::new("max_steps: 1\n");
    fs::create_dir(place.path("out")).unwrap();
    fs::set_permissions(place.path("out"), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(place.path("out").join("probe"), "").is_ok() {
        println!("not run: this user may write anywhere");
        return;
    }
    let output = place.train("out", &[]).output().unwrap();
    fs::set_permissions(place.path("out"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!output.status.success());
    let text = text(&output);
    assert!(text.contains("out") && text.contains("check the owner and the permissions"), "{text}");
}

#[test]
fn a_place_that_takes_no_files_is_named_before_the_first_step() {
    // Of a file system in which nothing can be made, whoever asks.
    if !cfg!(target_os = "linux") {
        return;
    }
    let place = Place::new("max_steps: 1\n");
    let output = place.train("/proc/sft-run", &[]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("error: /proc/sft-run: cannot create the folder"), "{}", text(&output));
}

#[test]
fn data_that_changes_during_a_run_is_told_and_a_resume_with_other_rows_is_refused() {
    let place = Place::new("max_steps: 30\nsave_strategy: 'no'\n");
    let data = place.path("train.json");
    fs::copy(format!("{QUICKSTART}/data/train.json"), &data).unwrap();
    let key = format!("dataset={}", data.display());
    let mut child = place.start("out", &[&key]);
    wait_for_lines(&place, "out", 2);
    let text_of_rows = fs::read_to_string(&data).unwrap();
    // The first row asks something else.
    fs::write(&data, text_of_rows.replacen("\"instruction\": \"", "\"instruction\": \"Now: ", 1)).unwrap();
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let log = fs::read_to_string(place.path("out").join("trainer_log.jsonl")).unwrap();
    assert!(log.contains("train.json: the file changed while the run went on"), "{log}");
    let again = place.train("out", &[&key]).output().unwrap();
    assert!(!again.status.success());
    assert!(text(&again).contains("it was trained on other rows"), "{}", text(&again));
    // With its rows back it goes on.
    fs::write(&data, text_of_rows).unwrap();
    let again = place.train("out", &[&key]).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
}

#[test]
fn files_from_the_future_or_from_1970_change_nothing() {
    let place = Place::new("max_steps: 6\nsave_steps: 2\n");
    let whole = place.train("whole", &[]).output().unwrap();
    let mut child = place.start("out", &[]);
    wait_for_lines(&place, "out", 3);
    signal(&child, "-TERM");
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    // What a clock that jumps leaves: the newer checkpoint has the older time, and all others are of the future.
    for checkpoint in sft_runs::checkpoint::list(&place.path("out")).unwrap().complete {
        let time = match checkpoint.step {
            2 => std::time::SystemTime::now() + Duration::from_secs(10 * 365 * 86_400),
            _ => std::time::UNIX_EPOCH + Duration::from_secs(1),
        };
        for entry in fs::read_dir(&checkpoint.path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
            }
        }
    }
    let again = place.train("out", &[]).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(digest(&again), digest(&whole));
    assert_eq!(log(&place.path("out")), log(&place.path("whole")));
}
