//! What the list of runs shows: runs of the ledger, in whatever way they were started, the jobs that worked on them, and jobs
//! that are no run, or none yet.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value, json};
use sft_runs::checkpoint;
use sft_runs::ledger::{KeptRun, Ledger, LedgerError};
use sft_runs::run_record::RunRecord;
use sft_runs::trainer_log::{self, TRAINER_LOG};
use sft_runs::{LogLine, lock};

use crate::Shared;
use crate::jobs::{Command, Job, State};
use crate::refusal::Refusal;

/// Runs that are listed, the last ones, and as many jobs.
const MOST: usize = 100;
/// The exit status of a command that was asked to end.
const INTERRUPTED: i32 = 130;

/// A line of the list: a run, the last job that worked on it, or both.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The run, with the last points of its curves.
    pub run: Option<KeptRun>,
    /// The job.
    pub job: Option<Job>,
    /// What the job is doing.
    pub state: Option<State>,
}

/// All entries, the newest first, and what is wrong with the ledger: jobs are listed without it.
pub fn all(shared: &Shared) -> (Vec<Entry>, Option<String>) {
    let mut wrong = None;
    let runs = with_ledger(shared, |ledger| ledger.last(MOST)).unwrap_or_else(|error| {
        wrong = Some(error.to_string());
        None
    });
    let mut jobs = shared.jobs.all();
    jobs.retain(|(_, job)| job.command != Command::Chat);
    jobs.truncate(MOST);
    (joined(runs.unwrap_or_default(), jobs), wrong)
}

/// What the ledger says, if there is one.
fn with_ledger<T>(
    shared: &Shared,
    ask: impl FnOnce(&Ledger) -> Result<T, LedgerError>,
) -> Result<Option<T>, LedgerError> {
    let place = shared.options.ledger.as_deref().filter(|place| place.is_file());
    place.map(|place| ask(&Ledger::read(place)?)).transpose()
}

/// Puts the last job that worked on a run beside it; what is no run stands by itself.
fn joined(mut runs: Vec<KeptRun>, jobs: Vec<(State, Job)>) -> Vec<Entry> {
    // A ledger may be missing, or behind the folder.
    let mut folders: Vec<&Path> = jobs.iter().filter_map(|(_, job)| job.output_dir.as_deref()).collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        let Ok(record) = RunRecord::load(folder) else { continue };
        match runs.iter_mut().find(|run| run.record.uid == record.uid) {
            Some(run) => run.record = RunRecord { output_dir: folder.to_path_buf(), ..record },
            None if jobs.iter().any(|(_, job)| is_of(&record, job)) => runs.push(KeptRun::of_folder(folder)),
            None => {}
        }
    }
    let (mut taken, mut entries) = (HashSet::new(), Vec::new());
    for (state, job) in jobs {
        match runs.iter().find(|run| is_of(&run.record, &job)) {
            // An earlier job of the same run.
            Some(run) if !taken.insert(run.record.uid.clone()) => {}
            run => entries.push(Entry { run: run.cloned(), job: Some(job), state: Some(state) }),
        }
    }
    let others = runs.into_iter().filter(|run| !taken.contains(&run.record.uid));
    entries.extend(others.map(|run| Entry { run: Some(run), job: None, state: None }));
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.began()));
    entries
}

/// Whether a job worked on a run: its process says so there.
fn is_of(record: &RunRecord, job: &Job) -> bool {
    let is_there = Some(&record.output_dir) == job.output_dir.as_ref();
    is_there && job.process.is_some_and(|process| record.processes.contains(&process))
}

/// An entry by its number, or by the name of a job that worked on it: then that one's words and recipe.
///
/// # Errors
/// There is none.
pub fn find(shared: &Shared, name: &str) -> Result<Entry, Refusal> {
    let (entries, wrong) = all(shared);
    let none = || match &wrong {
        Some(wrong) => Refusal::none(format!("run `{name}`: {wrong}")),
        None => Refusal::none(format!("run `{name}`")),
    };
    if let Some(entry) = entries.iter().find(|entry| entry.name() == name) {
        return Ok(entry.clone());
    }
    if let Some((state, job)) = shared.jobs.find(name) {
        let run = entries.into_iter().find_map(|entry| entry.run.filter(|run| is_of(&run.record, &job)));
        return Ok(Entry { run, job: Some(job), state: Some(state) });
    }
    // An old one, which is not listed any more.
    let run = with_ledger(shared, |ledger| ledger.find(name)).ok().flatten().flatten();
    Ok(Entry { run: Some(run.ok_or_else(none)?), job: None, state: None })
}

/// A run with all points of its curves.
pub fn find_whole(shared: &Shared, run: &KeptRun) -> Option<KeptRun> {
    if run.is_in_its_folder() {
        return Some(KeptRun { number: run.number, ..KeptRun::of_folder(&run.record.output_dir) });
    }
    with_ledger(shared, |ledger| ledger.find(&run.number.unwrap_or_default().to_string())).ok()??
}

impl Entry {
    fn began(&self) -> u64 {
        let job = self.job.as_ref().map_or(0, |job| job.created_at);
        self.run.as_ref().map_or(0, |run| run.record.started_at).max(job)
    }

    /// What the page calls it: the run's number, or the job's name.
    pub fn name(&self) -> String {
        let number = self.run.as_ref().and_then(|run| run.number).map(|number| number.to_string());
        number.or_else(|| self.job.as_ref().map(|job| job.id.clone())).unwrap_or_default()
    }

    /// In a word: what the run says, or what its process does.
    pub fn status(&self) -> &'static str {
        let run = self.run.as_ref().map(KeptRun::status);
        let has_end = self.run.as_ref().is_some_and(|run| run.record.end.is_some());
        let ended = self.job.as_ref().and_then(|job| job.ended.as_ref());
        let (stopped, began) =
            self.job.as_ref().map_or((false, true), |job| (job.stopped, job.process.is_some()));
        match (self.state, run) {
            (_, Some("running")) => "running",
            (Some(State::Waiting), _) => "waiting",
            (Some(State::Running), None) if self.is_training() => "starting",
            // A run whose folder was taken away goes on, too.
            (Some(State::Running), _) if !has_end => "running",
            (_, Some(run)) if has_end || !stopped => run,
            _ => match ended.and_then(|ended| ended.status) {
                Some(0) => "done",
                Some(INTERRUPTED) => "interrupted",
                Some(_) => "failed",
                None if !began && stopped => "taken back",
                None if !began => "failed",
                None if stopped => "stopped",
                None if ended.is_some_and(|ended| !ended.seen) => "ended unseen",
                None => "ended without a word",
            },
        }
    }

    /// Whether something of it is on its way.
    pub fn is_at_work(&self) -> bool {
        matches!(self.status(), "running" | "starting" | "waiting")
    }

    fn is_training(&self) -> bool {
        self.job.as_ref().is_none_or(|job| job.command == Command::Train)
    }

    /// Where its results are.
    pub fn output_dir(&self) -> Option<&Path> {
        let of_run = self.run.as_ref().map(|run| run.record.output_dir.as_path());
        of_run.or_else(|| self.job.as_ref()?.output_dir.as_deref())
    }

    /// The run, if its folder is still its own.
    pub fn run_in_its_folder(&self) -> Option<&KeptRun> {
        self.run.as_ref().filter(|run| run.is_in_its_folder())
    }

    /// The last line of its log.
    pub fn progress(&self) -> Option<LogLine> {
        trainer_log::last(&self.run_in_its_folder()?.record.output_dir.join(TRAINER_LOG)).ok()?
    }

    /// Whether a run has ended before its last step and has a checkpoint to go on from.
    pub fn can_resume(&self) -> bool {
        let has_checkpoint = |folder: &Path| {
            let listed = checkpoint::list(folder);
            listed.is_ok_and(|listed| listed.complete.iter().any(|checkpoint| checkpoint.resumable))
        };
        let ended = !self.is_at_work() && self.status() != "done" && self.is_training();
        ended && self.run_in_its_folder().is_some_and(|run| has_checkpoint(&run.record.output_dir))
    }

    /// The process that works on the run and the machine that it runs on, wherever it was started.
    pub fn holder(&self) -> Option<(u32, String)> {
        let record = &self.run.as_ref()?.record;
        lock::holder_of(&record.output_dir).filter(|(process, _)| record.processes.contains(process))
    }

    /// Whether a process of it lives: a run that is done may still be asked what it has learnt.
    fn is_alive(&self) -> bool {
        self.state == Some(State::Running) || (self.state.is_none() && self.holder().is_some())
    }

    /// What the list says of it.
    pub fn line(&self) -> Value {
        let status = self.status();
        let run = self.run.as_ref();
        let progress = if status == "running" { self.progress() } else { None };
        let key = |key: &str| run.and_then(|run| run.record.config.get(key)).cloned();
        let model = key("model_name_or_path").or_else(|| Some(self.job.as_ref()?.model.clone().into()));
        let end = run.and_then(|run| run.record.end.as_ref());
        let last = |curve: &str| run.and_then(|run| run.last(curve));
        let seen = run.and_then(|run| run.curves.get("loss")?.last()).map(|point| point.0);
        let steps = progress.as_ref().map(|line| line.current_steps).or(end.map(|end| end.steps)).or(seen);
        json!({
            "name": self.name(),
            "number": run.and_then(|run| run.number),
            "job": self.job.as_ref().map(|job| &job.id),
            "command": self.job.as_ref().map_or("train", |job| job.command.word()),
            "status": status,
            "alive": self.is_alive(),
            "output_dir": self.output_dir(),
            "model": model,
            "method": key("finetuning_type"),
            "steps": steps,
            "total_steps": run.map(|run| run.record.total_steps),
            "loss": last("loss"),
            "eval_loss": last("eval_loss"),
            "began": self.began(),
            "remaining": progress.as_ref().map(|line| &line.remaining_time),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sft_runs::run_record::{End, Status};

    use super::*;
    use crate::jobs::Ended;

    fn run(number: i64, processes: &[u32], status: Option<Status>) -> KeptRun {
        let end = status.map(|status| End { status, ..End::default() });
        let record = RunRecord {
            uid: format!("{number:016}"),
            output_dir: PathBuf::from("/no/such/folder"),
            processes: processes.to_vec(),
            end,
            ..RunRecord::default()
        };
        KeptRun { number: Some(number), record, curves: Default::default() }
    }

    fn job(id: &str, process: Option<u32>, status: Option<i32>) -> Job {
        let ended = status.map(|status| Ended { at: 9, status: Some(status), seen: true });
        let command = Command::Train;
        let host = String::new();
        let (folder, output_dir) = (PathBuf::from("/"), Some(PathBuf::from("/no/such/folder")));
        let (model, id) = (String::new(), id.to_owned());
        Job {
            id,
            command,
            created_at: 1,
            host,
            folder,
            output_dir,
            model,
            process,
            stopped: false,
            ended,
            served: None,
        }
    }

    fn shown(entries: &[Entry]) -> Vec<(String, String, &'static str)> {
        let job = |entry: &Entry| entry.job.as_ref().map_or_else(String::new, |job| job.id.clone());
        entries.iter().map(|entry| (entry.name(), job(entry), entry.status())).collect()
    }

    #[test]
    fn a_run_belongs_to_the_jobs_whose_processes_worked_on_it() {
        let runs = vec![run(2, &[30], None), run(1, &[10, 20], Some(Status::Interrupted))];
        let jobs = vec![
            // In the folder of the run that works, and refused.
            (State::Ended, job("5-0", Some(40), Some(1))),
            (State::Running, job("4-0", Some(30), None)),
            (State::Ended, job("3-0", Some(20), Some(130))),
            (State::Ended, job("2-0", Some(10), Some(130))),
        ];
        let entries = joined(runs, jobs);
        let mut found = shown(&entries);
        found.sort();
        let own = |text: &str| text.to_owned();
        assert_eq!(
            found,
            [
                (own("1"), own("3-0"), "interrupted"),
                (own("2"), own("4-0"), "running"),
                (own("5-0"), own("5-0"), "failed"),
            ]
        );
    }

    #[test]
    fn a_job_that_was_stopped_at_once_says_so() {
        let stopped = |process, seen| Job {
            stopped: true,
            ended: Some(Ended { at: 9, status: None, seen }),
            ..job("1-0", process, None)
        };
        let status = |run, job| Entry { run, job: Some(job), state: Some(State::Ended) }.status();
        assert_eq!(status(None, stopped(None, true)), "taken back");
        assert_eq!(status(None, stopped(Some(10), true)), "stopped");
        assert_eq!(status(Some(run(1, &[10], None)), stopped(Some(10), true)), "stopped");
        let unseen = Job { stopped: false, ..stopped(Some(10), false) };
        assert_eq!(status(None, unseen.clone()), "ended unseen");
        assert_eq!(status(Some(run(1, &[10], None)), unseen), "ended without a word");
    }
}
