use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::*;

/// A folder with jobs whose program is a script.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `$1` is the command's word, `$2` the recipe.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        Self { folder }
    }

    fn jobs(&self) -> Jobs {
        let (folder, program) = (self.folder.path().join("jobs"), self.folder.path().join("program"));
        let begun = Instant::now();
        loop {
            match Jobs::open(&folder, &program, None) {
                Ok(jobs) => return jobs,
                // One that was dropped is let go of within its turn.
                Err(_) if begun.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn start(&self, jobs: &Jobs, command: Command, waits: bool) -> Job {
        let config = RunConfig { output_dir: "out".into(), ..RunConfig::default() };
        jobs.start(command, "seed: 1\n", &config, self.folder.path().to_path_buf(), waits).unwrap()
    }

    fn touch(&self, name: &str) {
        fs::write(self.folder.path().join(name), "").unwrap();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ended(jobs: &Jobs, job: &Job) -> Option<i32> {
    until("it ends", || jobs.find(&job.id).unwrap().ended.is_some());
    jobs.find(&job.id).unwrap().ended.unwrap().status
}

#[test]
fn a_job_has_its_recipe_its_words_and_its_status() {
    let place = Place::new("echo \"$1 $(cat $2)\"; echo wrong >&2; exit 3");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Predict, false);
    assert_eq!(ended(&jobs, &job), Some(3));
    assert_eq!(jobs.output(&job, None).unwrap().0, "predict seed: 1\nwrong\n");
    assert_eq!(jobs.recipe(&job).unwrap(), "seed: 1\n");
    assert_eq!(job.output_dir, Some(place.folder.path().join("out")));
    assert_eq!(jobs.state(&jobs.find(&job.id).unwrap()), State::Ended);
}

#[test]
fn a_job_goes_on_without_the_server_and_is_found_again() {
    let place = Place::new("echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    // What an ended server leaves: files, and a process.
    let folder = place.folder.path().join("jobs");
    let later = Jobs { children: Arc::default(), ..jobs.clone() };
    until("it begins", || later.output(&job, None).unwrap().0 == "begun\n");
    assert_eq!(later.state(&later.find(&job.id).unwrap()), State::Running);
    place.touch("go");
    let written = || fs::read_to_string(folder.join(&job.id).join(OUTPUT)).unwrap();
    until("it ends", || written() == "begun\nover\n");
    until("its lock is gone", || later.state(&job) == State::Ended);
}

#[test]
fn jobs_that_wait_begin_in_their_order_one_at_a_time() {
    let place = Place::new("echo $2 >> order; while [ ! -e go$(wc -l < order) ]; do sleep 0.02; done");
    let jobs = place.jobs();
    let all: Vec<Job> = (0..3).map(|_| place.start(&jobs, Command::Train, true)).collect();
    let state = |job: &Job| jobs.state(&jobs.find(&job.id).unwrap());
    assert_eq!(all.iter().map(state).collect::<Vec<_>>(), [State::Running, State::Waiting, State::Waiting]);
    for (name, job) in ["go1", "go2", "go3"].into_iter().zip(&all) {
        place.touch(name);
        assert_eq!(ended(&jobs, job), Some(0));
    }
    let order = fs::read_to_string(place.folder.path().join("order")).unwrap();
    let order: Vec<&str> = order.lines().map(|line| line.rsplit('/').nth(1).unwrap()).collect();
    assert_eq!(order, all.iter().map(|job| job.id.as_str()).collect::<Vec<_>>());
}

#[test]
fn a_job_is_asked_to_end_and_one_that_waits_never_begins() {
    let place = Place::new("trap 'echo saved; exit 130' TERM; echo begun; while :; do sleep 0.02; done");
    let jobs = place.jobs();
    let (job, waiting) =
        (place.start(&jobs, Command::Train, false), place.start(&jobs, Command::Train, true));
    until("it begins", || jobs.output(&job, None).unwrap().0 == "begun\n");
    jobs.stop(&waiting, false).unwrap();
    assert_eq!(ended(&jobs, &waiting), None);
    assert!(jobs.find(&waiting.id).unwrap().process.is_none());
    jobs.forget(&job).unwrap();
    assert!(jobs.find(&job.id).is_some(), "what is at work is not forgotten");
    jobs.stop(&job, false).unwrap();
    assert_eq!(ended(&jobs, &job), Some(130));
    assert!(jobs.output(&job, None).unwrap().0.ends_with("saved\n"));
    jobs.forget(&job).unwrap();
    assert_eq!(jobs.find(&job.id), None);
}

#[test]
fn what_a_job_says_is_read_piece_by_piece_without_breaking_a_character() {
    let place = Place::new("printf 'a\\346'; while [ ! -e go ]; do sleep 0.02; done; printf '\\261\\211b'");
    let jobs = place.jobs();
    let job = place.start(&jobs, Command::Train, false);
    let output = |from| jobs.output(&job, from).unwrap();
    until("it begins", || output(None) == ("a".to_owned(), 1));
    assert_eq!(output(Some(1)), (String::new(), 1));
    place.touch("go");
    ended(&jobs, &job);
    assert_eq!(output(Some(1)), ("汉b".to_owned(), 5));
    assert_eq!(output(Some(99)).0, "a汉b", "a place beyond the end is none");
}

#[test]
fn a_program_that_cannot_be_started_says_so() {
    let place = Place::new("");
    let jobs = place.jobs();
    fs::remove_file(place.folder.path().join("program")).unwrap();
    let job = place.start(&jobs, Command::Train, false);
    assert_eq!(ended(&jobs, &job), None);
    let said = jobs.output(&job, None).unwrap().0;
    assert!(said.starts_with("error: ") && said.contains("program"), "{said}");
}

#[test]
fn a_second_server_does_not_take_the_jobs_of_the_first() {
    let place = Place::new("");
    let _first = place.jobs();
    let refused = Jobs::open(&place.folder.path().join("jobs"), Path::new("program"), None).unwrap_err();
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
}
