//! Runs: those of the ledger, in whatever way they were started, and what was started here and is none, or none yet.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sft_config::Draft;
use sft_runs::ledger::comparison;
use sft_runs::ledger::diff::RunDiff;
use sft_runs::ledger::{KeptRun, Ledger};
use sft_runs::results::PREDICTIONS;
use sft_runs::run_record::RunRecord;
use sft_runs::trainer_log::{self, TRAINER_LOG};
use sft_runs::{LogLine, lock};

use crate::Shared;
use crate::further;
use crate::jobs::{self, Command, Job};
use crate::recipe::NAME;
use crate::refusal::Refusal;

/// Runs that are listed, the last ones.
const MOST: usize = 100;
/// Answers of a run that are shown.
const MOST_ANSWERS: usize = 200;
/// The answers before and after a run, in its folder.
const HELD_OUT: &str = "held_out_answers.jsonl";
/// The recipe of a run, in its folder.
const TRAINING_ARGS: &str = "training_args.yaml";

/// A line of the list: a run, the last job that worked on it, or both.
#[derive(Debug, Clone)]
struct Entry {
    run: Option<KeptRun>,
    job: Option<Job>,
    state: Option<jobs::State>,
}

/// What may take a while is done beside what others ask.
async fn beside<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&shared)).await;
    done.unwrap_or_else(|error| Err(Refusal::failed("the request could not be done", error)))
}

/// The last runs and jobs, the newest first.
pub async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    beside(shared, |shared| {
        let entries = entries(shared)?;
        Ok(Json(entries.iter().map(Entry::line).collect()))
    })
    .await
}

fn ledger(shared: &Shared) -> Result<Option<Ledger>, Refusal> {
    let place = shared.options.ledger.as_deref().filter(|place| place.is_file());
    place
        .map(Ledger::read)
        .transpose()
        .map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// All entries, the newest first.
fn entries(shared: &Shared) -> Result<Vec<Entry>, Refusal> {
    let kept = ledger(shared)?.map(|ledger| ledger.last(MOST)).transpose();
    let runs = kept.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let jobs = shared.jobs.all().into_iter().filter(|job| job.command != Command::Chat);
    let with_state = jobs.map(|job| (shared.jobs.state(&job), job)).collect();
    Ok(joined(runs.unwrap_or_default(), with_state))
}

/// Puts the last job that worked on a run beside it; what is no run stands by itself.
fn joined(mut runs: Vec<KeptRun>, jobs: Vec<(jobs::State, Job)>) -> Vec<Entry> {
    // Where no ledger is kept, the folder has the run.
    for (_, job) in jobs.iter().filter(|(_, job)| job.command == Command::Train) {
        let Some(folder) = &job.output_dir else { continue };
        let Ok(record) = RunRecord::load(folder) else { continue };
        if touched(&record) >= job.created_at && !runs.iter().any(|run| run.record.uid == record.uid) {
            runs.push(KeptRun::of_folder(folder));
        }
    }
    let (mut taken, mut entries) = (HashSet::new(), Vec::new());
    for (state, job) in jobs {
        let of_it = |run: &&KeptRun| {
            let is_there = Some(&run.record.output_dir) == job.output_dir.as_ref();
            job.command == Command::Train && is_there && touched(&run.record) >= job.created_at
        };
        // Later ones began anew in the same folder.
        match runs.iter().filter(of_it).min_by_key(|run| touched(&run.record)) {
            Some(run) if !taken.insert(run.record.uid.clone()) => {}
            run => entries.push(Entry { run: run.cloned(), job: Some(job), state: Some(state) }),
        }
    }
    let others = runs.into_iter().filter(|run| !taken.contains(&run.record.uid));
    entries.extend(others.map(|run| Entry { run: Some(run), job: None, state: None }));
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.began()));
    entries
}

/// When a run was at work last.
fn touched(record: &RunRecord) -> u64 {
    match &record.end {
        _ if lock::is_held(&record.output_dir) => u64::MAX,
        Some(end) => end.at,
        None => record.started_at,
    }
}

impl Entry {
    fn began(&self) -> u64 {
        let job = self.job.as_ref().map_or(0, |job| job.created_at);
        self.run.as_ref().map_or(0, |run| run.record.started_at).max(job)
    }

    /// What the page calls it: the run's number, or the job's name.
    fn name(&self) -> String {
        let number = self.run.as_ref().and_then(|run| run.number).map(|number| number.to_string());
        number.or_else(|| self.job.as_ref().map(|job| job.id.clone())).unwrap_or_default()
    }

    fn is_called(&self, name: &str) -> bool {
        self.name() == name || self.job.as_ref().is_some_and(|job| job.id == name)
    }

    /// In a word: what the run says, or what its process does.
    fn status(&self) -> &'static str {
        let run = self.run.as_ref().map(KeptRun::status);
        match (self.state, run) {
            (_, Some("running")) => "running",
            (Some(jobs::State::Waiting), _) => "waiting",
            (Some(jobs::State::Running), _) if self.is_training() => "starting",
            (Some(jobs::State::Running), _) => "running",
            (_, Some(run)) => run,
            (_, None) => match self.job.as_ref().and_then(|job| job.ended.as_ref()).map(|ended| ended.status)
            {
                Some(Some(0)) => "done",
                Some(Some(INTERRUPTED)) => "interrupted",
                Some(Some(_)) => "failed",
                Some(None) if self.job.as_ref().is_some_and(|job| job.process.is_none()) => "taken back",
                _ => "ended without a word",
            },
        }
    }

    fn is_training(&self) -> bool {
        self.job.as_ref().is_none_or(|job| job.command == Command::Train)
    }

    fn output_dir(&self) -> Option<&FilePath> {
        let of_run = self.run.as_ref().map(|run| run.record.output_dir.as_path());
        of_run.or_else(|| self.job.as_ref()?.output_dir.as_deref())
    }

    /// The last line of its log, if the folder still is that of the run.
    fn progress(&self) -> Option<LogLine> {
        let run = self.run.as_ref().filter(|run| is_in_its_folder(run))?;
        trainer_log::read(&run.record.output_dir.join(TRAINER_LOG)).ok()?.pop()
    }

    /// What the list says of it.
    fn line(&self) -> Value {
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

/// The exit status of a command that was asked to end.
const INTERRUPTED: i32 = 130;

/// Whether the folder of a run is still its own.
fn is_in_its_folder(run: &KeptRun) -> bool {
    RunRecord::load(&run.record.output_dir).is_ok_and(|record| record.uid == run.record.uid)
}

/// An entry by its name, with all points of its curves.
fn find(shared: &Shared, name: &str) -> Result<Entry, Refusal> {
    let none = || Refusal::none(format!("run `{name}`"));
    let found = entries(shared)?.into_iter().find(|entry| entry.is_called(name));
    let mut entry = match found {
        Some(entry) => entry,
        // An old one, which is not listed any more.
        None => {
            let run = ledger(shared)?.and_then(|ledger| ledger.find(name).ok().flatten());
            Entry { run: Some(run.ok_or_else(none)?), job: None, state: None }
        }
    };
    if let Some(run) = &mut entry.run {
        let number = run.number;
        if is_in_its_folder(run) {
            *run = KeptRun { number, ..KeptRun::of_folder(&run.record.output_dir) };
        } else if let Some(number) = number
            && let Some(whole) =
                ledger(shared)?.and_then(|ledger| ledger.find(&number.to_string()).ok().flatten())
        {
            *run = whole;
        }
    }
    Ok(entry)
}

#[derive(Debug, Deserialize)]
pub struct Seen {
    /// Points of the curves that are there already.
    points: Option<usize>,
    /// Where what its process says goes on.
    from: Option<u64>,
}

/// A run: what the list says, its curves if they have grown, what its process has said since.
pub async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(seen): Query<Seen>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let mut shown = entry.line();
        if let Some(run) = &entry.run {
            let points = run.curves.values().map(Vec::len).sum::<usize>();
            shown["points"] = points.into();
            if seen.points != Some(points) {
                shown["curves"] = json!(run.curves);
            }
            let record = &run.record;
            shown["record"] = json!({
                "uid": record.uid, "started_at": record.started_at, "machine": record.machine, "program": record.program,
                "end": record.end, "files": record.files, "config": sft_config::changed(&record.config),
            });
            shown["progress"] = json!(entry.progress());
        }
        if let Some(job) = &entry.job {
            let failed = |error| Refusal::failed("what it said", error);
            let (output, next) = shared.jobs.output(job, seen.from).map_err(failed)?;
            (shown["output"], shown["next"]) = (output.into(), next.into());
        }
        shown["can_resume"] = can_resume(&entry).into();
        Ok(Json(shown))
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct Start {
    command: Command,
    text: String,
    /// Whether it waits until nothing else is at work.
    #[serde(default)]
    waits: bool,
}

/// Starts a command with a recipe that nothing is wrong with.
pub async fn start(
    State(shared): State<Arc<Shared>>,
    Json(asked): Json<Start>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let command = asked.command;
        let draft = Draft::read(&asked.text, NAME, &command.overrides(), command.purpose());
        let config = draft.config.map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Refusal::bad(lines.join("\n"))
        })?;
        if command == Command::Chat {
            // One at a time: a model is large.
            shared.jobs.end_chats();
        }
        let folder = shared.options.folder.clone();
        let job = shared.jobs.start(command, &asked.text, &config, folder, asked.waits);
        let job = job.map_err(|error| Refusal::failed("it cannot be started", error))?;
        Ok(Json(json!({"name": job.id})))
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct Stop {
    /// Whether it ends at once, and saves nothing.
    #[serde(default)]
    now: bool,
}

/// Asks a run to end, wherever it was started.
pub async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(asked): Json<Stop>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let chat = shared.jobs.chat().filter(|job| job.id == name);
        let entry = match chat {
            Some(job) => Entry { run: None, state: Some(shared.jobs.state(&job)), job: Some(job) },
            None => find(shared, &name)?,
        };
        let stopped = match (&entry.job, entry.state) {
            (Some(job), Some(jobs::State::Running | jobs::State::Waiting)) => {
                shared.jobs.stop(job, asked.now)
            }
            _ => match entry.output_dir().and_then(lock::holder_of) {
                Some(process) => jobs::end(process, asked.now),
                None => return Err(Refusal(StatusCode::CONFLICT, "it has ended already".into())),
            },
        };
        stopped.map_err(|error| Refusal::failed("it cannot be stopped", error))?;
        Ok(Json(json!({})))
    })
    .await
}

/// Whether a run has ended before its last step, and can go on.
fn can_resume(entry: &Entry) -> bool {
    let at_work = matches!(entry.status(), "running" | "starting" | "waiting" | "done");
    entry.is_training() && !at_work && entry.run.as_ref().is_some_and(is_in_its_folder)
}

/// Lets a run go on from its last checkpoint, as a job.
pub async fn resume(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let run = entry.run.as_ref().filter(|_| can_resume(&entry));
        let run = run.ok_or_else(|| {
            Refusal(StatusCode::CONFLICT, "it cannot go on: it has not been broken off".into())
        })?;
        let path = run.record.output_dir.join(TRAINING_ARGS);
        let mut text =
            fs::read_to_string(&path).map_err(|error| Refusal::failed(&path.display().to_string(), error))?;
        let again = run.record.config.get("overwrite_output_dir").is_some_and(|value| value == true);
        // As it is, the recipe would begin anew.
        let keys =
            [("resume_from_checkpoint", "true"), ("output_dir", &run.record.output_dir.to_string_lossy())];
        for (key, value) in &keys[if again { 0 } else { 1 }..] {
            text = sft_config::with_value(&text, key, Some(value)).map_err(Refusal::bad)?;
        }
        let config = Draft::read(&text, TRAINING_ARGS, &[], Command::Train.purpose()).config;
        let config = config.map_err(|problems| {
            Refusal::bad(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        let folder =
            entry.job.as_ref().map_or_else(|| shared.options.folder.clone(), |job| job.folder.clone());
        let job = shared.jobs.start(Command::Train, &text, &config, folder, false);
        let job = job.map_err(|error| Refusal::failed("it cannot be started", error))?;
        Ok(Json(json!({"name": job.id})))
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct Further {
    /// What is to be done with what was trained.
    command: Option<Command>,
}

/// The recipe of a run, as it was written here, or the keys that differ from their defaults; or that of a command that goes on
/// with what was trained.
pub async fn recipe(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(asked): Query<Further>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        if let (Some(command), Some(run)) = (asked.command, &entry.run) {
            let text = further::recipe(&run.record.config, &run.record.output_dir, command);
            return Ok(Json(json!({"text": text.map_err(Refusal::bad)?})));
        }
        let written = entry.job.as_ref().and_then(|job| shared.jobs.recipe(job).ok());
        let text = written.or_else(|| Some(sft_config::changed(&entry.run.as_ref()?.record.config)));
        Ok(Json(json!({"text": text.unwrap_or_default()})))
    })
    .await
}

/// The answers that a run has left in its folder.
pub async fn answers(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let of = |file: &str| match entry.output_dir() {
            Some(folder) if entry.run.as_ref().is_none_or(is_in_its_folder) => lines(&folder.join(file)),
            _ => Vec::new(),
        };
        Ok(Json(json!({"held_out": of(HELD_OUT), "predictions": of(PREDICTIONS)})))
    })
    .await
}

/// The first lines of a file of JSON; those that are none are left out.
fn lines(path: &FilePath) -> Vec<Value> {
    let Ok(file) = fs::File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_str(&line).ok()).take(MOST_ANSWERS).collect()
}

#[derive(Debug, Deserialize)]
pub struct Compared {
    /// Names with commas between.
    runs: String,
}

/// Several runs: their curves, a table of their figures, and of two how they differ.
pub async fn compare(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Compared>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let names = asked.runs.split(',').filter(|name| !name.is_empty());
        let entries = names.map(|name| find(shared, name)).collect::<Result<Vec<_>, _>>()?;
        let runs: Vec<KeptRun> = entries.into_iter().filter_map(|entry| entry.run).collect();
        let differ = match runs.as_slice() {
            [a, b] => RunDiff::of(a, b).to_string(),
            _ => String::new(),
        };
        let curves = runs.iter().map(|run| json!({"name": run.name(), "curves": run.curves}));
        Ok(Json(
            json!({"runs": curves.collect::<Vec<_>>(), "table": comparison::table(&runs), "differ": differ}),
        ))
    })
    .await
}

/// Forgets what was started here and left no run: a recipe that failed.
pub async fn forget(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        match (&entry.job, &entry.run) {
            (Some(job), None) => {
                shared.jobs.forget(job).map_err(|error| Refusal::failed("it cannot be forgotten", error))?
            }
            _ => return Err(Refusal(StatusCode::CONFLICT, "a run stays in the ledger".into())),
        }
        Ok(Json(json!({})))
    })
    .await
}
