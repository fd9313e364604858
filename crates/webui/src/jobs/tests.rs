use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use super::*;

/// A program that reads what it does from the folder it runs in. It is written once, before any process begins: one that is
/// begun meanwhile would hold the file open, and then nobody can run it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<tempfile::TempPath> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"#!/bin/sh\n. ./script\n").unwrap();
        fs::set_permissions(file.path(), PermissionsExt::from_mode(0o700)).unwrap();
        file.into_temp_path()
    })
}

/// A folder with jobs that do what a script says; `$1` is the command's word, `$2` the recipe.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("script"), script).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn jobs(&self) -> Jobs {
        Jobs::open(&self.path("jobs"), program(), None).unwrap()
    }

    /// The jobs as another server finds them, while the processes of the first one are at work.
    fn found_again(&self, first: Jobs) -> Jobs {
        let held = std::mem::take(&mut *first.held());
        // Nobody waits for what was begun.
        std::mem::forget(held);
        drop(first);
        let begun = Instant::now();
        loop {
            match Jobs::open(&self.path("jobs"), program(), None) {
                Ok(jobs) => return jobs,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
            }
            std::thread::sleep(TURN / 10);
        }
    }

    fn start(&self, jobs: &Jobs, command: Command, waits: bool) -> Job {
        let config = RunConfig { output_dir: "out".into(), ..RunConfig::default() };
        let folder = self.folder.path().to_path_buf();
        jobs.start(Start { command, text: "seed: 1\n", config: &config, folder, waits }).unwrap()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(TURN / 10);
    }
}

fn state(jobs: &Jobs, job: &Job) -> State {
    jobs.find(&job.id).unwrap().0
}

fn said(jobs: &Jobs, job: &Job) -> String {
    jobs.output(job, None).unwrap().text
}

fn ended(jobs: &Jobs, job: &Job) -> Ended {
    until("it ends", || jobs.find(&job.id).unwrap().1.ended.is_some());
    jobs.find(&job.id).unwrap().1.ended.unwrap()
}

#[test]
fn a_job_has_its_recipe_its_words_and_its_status() {
    let place = Place::new("echo \"$1 $(cat $2)\"; echo wrong >&2; exit 3");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Predict, false);
    assert_eq!(ended(&jobs, &job).status, Some(3));
    assert_eq!(said(&jobs, &job), "predict seed: 1\nwrong\n");
    assert_eq!(jobs.recipe(&job).unwrap(), "seed: 1\n");
    assert_eq!(job.output_dir, Some(place.path("out")));
    assert_eq!(state(&jobs, &job), State::Ended);
}

#[test]
fn what_a_job_is_made_of_is_its_owners_alone() {
    let place = Place::new("");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    ended(&jobs, &job);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = place.path("jobs").join(&job.id);
    assert_eq!([mode(folder.clone()), mode(folder.join(RECIPE))], [0o700, 0o600]);
    assert_eq!(mode(place.path("jobs")), 0o700);
}

#[test]
fn a_job_goes_on_without_the_server_and_is_found_again() {
    let place = Place::new("echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    until("it begins", || said(&jobs, &job) == "begun\n");
    let jobs = place.found_again(jobs);
    assert_eq!(state(&jobs, &job), State::Running);
    let waiting = place.start(&jobs, Command::Train, true);
    std::thread::sleep(2 * TURN);
    assert_eq!(state(&jobs, &waiting), State::Waiting);
    fs::write(place.path("go"), "").unwrap();
    until("it ends", || state(&jobs, &job) == State::Ended);
    assert_eq!(said(&jobs, &job), "begun\nover\n");
    assert_eq!(ended(&jobs, &waiting).status, Some(0));
    let unseen = ended(&jobs, &job);
    assert_eq!((unseen.status, unseen.seen), (None, false));
}

#[test]
fn jobs_that_wait_begin_in_their_order_one_at_a_time() {
    let place =
        Place::new("echo $2 >> order; while [ ! -e go$(wc -l < order | tr -d ' ') ]; do sleep 0.02; done");
    let jobs = place.jobs();
    let all: Vec<Job> = (0..3).map(|_| place.start(&jobs, Command::Train, true)).collect();
    let states: Vec<State> = all.iter().map(|job| state(&jobs, job)).collect();
    assert_eq!(states, [State::Running, State::Waiting, State::Waiting]);
    for (name, job) in ["go1", "go2", "go3"].into_iter().zip(&all) {
        fs::write(place.path(name), "").unwrap();
        assert_eq!(ended(&jobs, job).status, Some(0));
    }
    let order = fs::read_to_string(place.path("order")).unwrap();
    let order: Vec<&str> = order.lines().map(|line| line.rsplit('/').nth(1).unwrap()).collect();
    assert_eq!(order, all.iter().map(|job| job.id.as_str()).collect::<Vec<_>>());
    let listed: Vec<String> = jobs.all().into_iter().map(|(_, job)| job.id).rev().collect();
    assert_eq!(listed, order);
}

#[test]
fn a_job_is_asked_to_end_and_one_that_waits_never_begins() {
    let place = Place::new("trap 'echo saved; exit 130' TERM; echo begun; while :; do sleep 0.02; done");
    let jobs = place.jobs();
    let (job, waiting) =
        (place.start(&jobs, Command::Train, false), place.start(&jobs, Command::Train, true));
    until("it begins", || said(&jobs, &job) == "begun\n");
    jobs.stop(&waiting.id, false).unwrap();
    let (ended_at, stopped) = (ended(&jobs, &waiting), jobs.find(&waiting.id).unwrap().1);
    assert_eq!((ended_at.status, stopped.process, stopped.stopped), (None, None, true));
    assert!(!jobs.forget(&job.id).unwrap(), "what is at work is not forgotten");
    jobs.stop(&job.id, false).unwrap();
    assert_eq!(ended(&jobs, &job).status, Some(130));
    assert!(said(&jobs, &job).ends_with("saved\n"));
    assert!(jobs.forget(&job.id).unwrap() && jobs.find(&job.id).is_none());
}

#[test]
fn a_model_that_is_loaded_takes_the_place_of_the_one_before() {
    let place = Place::new("echo \"$1 $3 $4 $5 $6 ${#API_KEY}\"; while :; do sleep 0.02; done");
    let jobs = place.jobs();
    let first = place.start(&jobs, Command::Chat, false);
    until("it begins", || said(&jobs, &first).ends_with(" 32\n"));
    let served = first.served.clone().unwrap();
    assert_eq!(said(&jobs, &first), format!("serve --host 127.0.0.1 --port {} 32\n", served.port));
    let second = place.start(&jobs, Command::Chat, false);
    assert!(jobs.find(&first.id).is_none(), "it is gone before the next one begins");
    assert_eq!(jobs.chat().map(|(state, job)| (state, job.id)), Some((State::Running, second.id.clone())));
    jobs.unload().unwrap();
    assert_eq!(jobs.chat(), None);
}

#[test]
fn what_a_job_says_is_read_piece_by_piece_without_breaking_a_character() {
    let place =
        Place::new("printf 'a\\377\\346'; while [ ! -e go ]; do sleep 0.02; done; printf '\\261\\211b'");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    let output = |from| {
        let Output { text, next, more } = jobs.output(&job, from).unwrap();
        (text, next, more)
    };
    let own = |text: &str| text.to_owned();
    until("it begins", || output(None) == (own("a\u{fffd}"), 2, false));
    assert_eq!(output(Some(2)), (String::new(), 2, false));
    fs::write(place.path("go"), "").unwrap();
    ended(&jobs, &job);
    assert_eq!(output(Some(2)), (own("汉b"), 6, false));
    assert_eq!(output(Some(99)).0, "a\u{fffd}汉b", "a place beyond the end is none");
}

#[test]
fn the_last_part_of_a_long_text_begins_with_a_line() {
    let place = Place::new("i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    ended(&jobs, &job);
    let last = jobs.output(&job, None).unwrap();
    assert!(last.text.starts_with("line ") && last.text.ends_with("line 29999\n") && !last.more);
    let first = jobs.output(&job, Some(0)).unwrap();
    assert!(first.more && first.text.starts_with("line 0\n") && first.next == PIECE);
}

#[test]
fn a_program_that_cannot_be_started_says_so() {
    let place = Place::new("");
    let jobs = Jobs::open(&place.path("jobs"), &place.path("none"), None).unwrap();
    let job = place.start(&jobs, Command::Train, false);
    assert_eq!(ended(&jobs, &job).status, None);
    let said = said(&jobs, &job);
    assert!(said.starts_with("error: ") && said.contains("none cannot be started"), "{said}");
    let config = RunConfig::default();
    let start = Start {
        command: Command::Train,
        text: "",
        config: &config,
        folder: place.path("gone"),
        waits: false,
    };
    let refused = jobs.start(start).unwrap_err().to_string();
    assert!(refused.contains("gone"), "{refused}");
}

#[test]
fn a_job_that_cannot_be_kept_is_not_begun_again_and_again() {
    let place = Place::new("echo begun >> begun; while :; do sleep 0.02; done");
    let jobs = place.jobs();
    let first = place.start(&jobs, Command::Train, false);
    let waiting = place.start(&jobs, Command::Train, true);
    // A folder in the place of the file.
    let file = place.path("jobs").join(&waiting.id).join(JOB);
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("in the way")).unwrap();
    until("the first begins", || place.path("begun").exists());
    jobs.stop(&first.id, true).unwrap();
    until("it has been tried", || state(&jobs, &waiting) == State::Ended);
    std::thread::sleep(5 * TURN);
    let begun = fs::read_to_string(place.path("begun")).unwrap();
    assert!(begun.lines().count() <= 2, "{begun}");
}

#[test]
fn of_a_job_that_cannot_be_started_nothing_stays() {
    let place = Place::new("");
    let jobs = place.jobs();
    // A file where its folder would be.
    fs::remove_dir_all(place.path("jobs")).unwrap();
    fs::write(place.path("jobs"), "").unwrap();
    let config = RunConfig::default();
    let start =
        Start { command: Command::Train, text: "", config: &config, folder: place.path(""), waits: false };
    assert!(jobs.start(start).is_err());
    assert!(jobs.all().is_empty());
    fs::remove_file(place.path("jobs")).unwrap();
    fs::create_dir(place.path("jobs")).unwrap();
    let job = place.start(&jobs, Command::Train, false);
    assert_eq!(ended(&jobs, &job).status, Some(0));
    assert_eq!(fs::read_dir(place.path("jobs")).unwrap().count(), 1);
}

#[test]
fn a_second_server_does_not_take_the_jobs_of_the_first() {
    let place = Place::new("");
    let _first = place.jobs();
    let refused = Jobs::open(&place.path("jobs"), program(), None).unwrap_err();
    assert!(matches!(&refused, RunError::FolderInUse { .. }), "{refused}");
}

#[test]
fn bytes_of_a_character_that_has_not_come_are_counted() {
    for (text, cut, expected) in
        [("a", 0, 0), ("é", 1, 1), ("汉", 1, 2), ("汉", 2, 1), ("👋", 1, 3), ("汉", 0, 0), ("", 0, 0)]
    {
        let bytes = &text.as_bytes()[..text.len() - cut];
        assert_eq!(begun(bytes), expected, "{text} without {cut}");
    }
    assert_eq!(begun(&[0xff]), 0, "no beginning of anything");
}
