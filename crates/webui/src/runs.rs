//! Requests about runs: lists, one of them, several beside each other; starting, stopping, going on.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use sft_config::Draft;
use sft_runs::ledger::diff::RunDiff;
use sft_runs::ledger::{CurvesOfRun, KeptRun, comparison, points_of};
use sft_runs::results::{HELD_OUT_ANSWERS, PREDICTIONS};
use sft_runs::run_record;
use sft_runs::trainer_log::{self, TRAINER_LOG};

use crate::Shared;
use crate::entry::{self, Entry, find};
use crate::further;
use crate::jobs::{self, Command, Job};
use crate::recipe::NAME;
use crate::refusal::{Body, Params, Refusal, beside};

/// Answers of a run that are shown.
const MOST_ANSWERS: usize = 200;
/// The recipe of a run, in its folder.
const TRAINING_ARGS: &str = "training_args.yaml";

/// The last runs and jobs, the newest first.
pub async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    beside(shared, |shared| {
        let (entries, wrong) = entry::all(shared);
        let lines: Vec<Value> = entries.iter().map(Entry::line).collect();
        Ok(Json(json!({"runs": lines, "wrong": wrong})))
    })
    .await
}

/// What the page has of a run already.
#[derive(Debug, Default, Deserialize)]
pub struct Seen {
    /// Which run it was, in which session.
    #[serde(default)]
    session: String,
    /// Bytes of its log.
    #[serde(default)]
    log: u64,
    /// Where what its process says goes on.
    from: Option<u64>,
}

/// A run: what the list says, what has come to its curves, and what its process has said since.
pub async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Params(seen): Params<Seen>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let mut shown = entry.line();
        if let Some(run) = &entry.run {
            let record = &run.record;
            let (session, log, curves) = news(shared, &entry, run, &seen);
            (shown["anew"], shown["session"]) = ((session != seen.session).into(), session.into());
            (shown["log"], shown["curves"]) = (log.into(), json!(curves));
            shown["progress"] = json!(entry.progress());
            shown["record"] = json!({
                "started_at": record.started_at, "machine": record.machine, "program": record.program, "end": record.end,
                "files": record.files, "config": sft_config::changed(&record.config),
            });
        }
        if let Some(job) = &entry.job {
            let output = shared.jobs.output(job, seen.from).map_err(|error| Refusal::failed("what it said", error))?;
            shown["output"] = json!({"text": output.text, "next": output.next, "more": output.more});
        }
        shown["can_resume"] = entry.can_resume().into();
        Ok(Json(shown))
    })
    .await
}

/// The points that have come to the curves of a run: since `seen`, if that was the same session and its log has only grown.
fn news(shared: &Shared, entry: &Entry, run: &KeptRun, seen: &Seen) -> (String, u64, CurvesOfRun) {
    let log = entry.run_in_its_folder().map(|run| run.record.output_dir.join(TRAINER_LOG));
    let length = log.as_ref().and_then(|log| fs::metadata(log).ok()).map_or(0, |found| found.len());
    let kind = if log.is_some() { "folder" } else { "ledger" };
    let session = format!("{}-{}-{kind}", run.record.uid, run.record.processes.len());
    let is_same = session == seen.session && length >= seen.log;
    let Some(log) = log else {
        // Of a folder that is gone or another run's by now, the ledger has all.
        let whole = || entry::find_whole(shared, run).map(|run| run.curves).unwrap_or_default();
        return (session, 0, if is_same { CurvesOfRun::new() } else { whole() });
    };
    let from = if is_same { seen.log } else { 0 };
    // What cannot be read now is read the next time.
    let (lines, end) = trainer_log::read_from(&log, from).unwrap_or((Vec::new(), from));
    let mut curves = CurvesOfRun::new();
    for (curve, step, value) in lines.iter().flat_map(points_of) {
        curves.entry(curve).or_default().push((step, value));
    }
    // A log that was cut back is told anew.
    let session = if length < seen.log { format!("{session}-{length}") } else { session };
    (session, end, curves)
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
    Body(asked): Body<Start>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let folder = shared.options.folder.clone();
        begin(shared, asked.command, &asked.text, NAME, folder, asked.waits)
    })
    .await
}

fn begin(
    shared: &Shared,
    command: Command,
    text: &str,
    name: &str,
    folder: PathBuf,
    waits: bool,
) -> Result<Json<Value>, Refusal> {
    let draft = Draft::read(text, name, &command.overrides(), command.purpose());
    let config = draft.config.map_err(Refusal::bad)?;
    if command == Command::Chat {
        // A slip of the pen does not cost the model that is loaded.
        let paths = [&config.model_name_or_path].into_iter().chain(&config.adapter_name_or_path);
        let is_path = |name: &&String| FilePath::new(name).is_absolute() || name.starts_with('.');
        if let Some(missing) = paths.filter(is_path).find(|name| !folder.join(name).is_dir()) {
            return Err(Refusal::bad(format!("{missing}: there is no such folder")));
        }
    }
    let job = shared.jobs.start(jobs::Start { command, text, config: &config, folder, waits });
    let job = job.map_err(|error| match error.kind() {
        ErrorKind::StorageFull => {
            let jobs = shared.options.jobs.display();
            let help = format!("help: make room in {jobs}, or name another folder with `--jobs`");
            Refusal::failed("it cannot be started", format!("{error}\n{help}"))
        }
        _ => Refusal::failed("it cannot be started", error),
    })?;
    Ok(Json(json!({"name": job.id})))
}

#[derive(Debug, Deserialize)]
pub struct Stop {
    /// Whether it ends at once, and saves nothing.
    #[serde(default)]
    now: bool,
}

/// Asks a run to end, wherever on this machine it was started.
pub async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Body(asked): Body<Stop>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let is_here = |host: &str| host == run_record::host();
        let stopped = match (&entry.job, entry.state) {
            (Some(job), Some(jobs::State::Running | jobs::State::Waiting)) => {
                shared.jobs.stop(&job.id, asked.now)
            }
            _ => match entry.holder() {
                Some((process, host)) if is_here(&host) => jobs::end(process, asked.now),
                Some((process, host)) => {
                    return Err(Refusal::not_now(format!(
                        "it runs on another machine: process {process} on {host}\nhelp: end it there"
                    )));
                }
                None => return Err(Refusal::not_now("it has ended already")),
            },
        };
        stopped.map_err(|error| Refusal::failed("it cannot be stopped", error))?;
        Ok(Json(json!({})))
    })
    .await
}

/// Lets a run go on from its last checkpoint, as a job.
pub async fn resume(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let run = entry.run.as_ref().filter(|_| entry.can_resume());
        let run =
            run.ok_or_else(|| Refusal::not_now("it cannot go on: it works, is done, or has no checkpoint"))?;
        let is_there = |(state, job): &(jobs::State, Job)| {
            *state != jobs::State::Ended && job.output_dir.as_ref() == Some(&run.record.output_dir)
        };
        if shared.jobs.all().iter().any(is_there) {
            return Err(Refusal::not_now("it goes on already"));
        }
        let path = run.record.output_dir.join(TRAINING_ARGS);
        let text = fs::read_to_string(&path)
            .map_err(|error| Refusal::of_file(&path.display().to_string(), &error))?;
        let text = further::resumed(&text, &run.record).map_err(Refusal::bad)?;
        let folder = match run.record.folder.is_dir() {
            true => run.record.folder.clone(),
            false => shared.options.folder.clone(),
        };
        begin(shared, Command::Train, &text, TRAINING_ARGS, folder, false)
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
    Params(asked): Params<Further>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let entry = find(shared, &name)?;
        let here = &shared.options.folder;
        let text = match (asked.command, &entry.run, &entry.job) {
            (Some(command), Some(run), _) => {
                further::recipe(&run.record, here, command).map_err(Refusal::bad)?
            }
            (_, _, Some(job)) if job.folder == *here || entry.run.is_none() => {
                shared.jobs.recipe(job).map_err(|error| Refusal::failed("its recipe", error))?
            }
            (_, Some(run), _) => further::again(&run.record, here).map_err(Refusal::bad)?,
            _ => String::new(),
        };
        Ok(Json(json!({"text": text})))
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
        // A job that was refused has none: those there are another run's.
        let is_there = match &entry.run {
            Some(run) => run.is_in_its_folder(),
            None => entry.job.as_ref().is_some_and(|job| job.command == Command::Predict),
        };
        let folder = entry.output_dir().filter(|_| is_there);
        let of = |file: &str| folder.map_or_else(Vec::new, |folder| lines(&folder.join(file)));
        Ok(Json(json!({"held_out": of(HELD_OUT_ANSWERS), "predictions": of(PREDICTIONS)})))
    })
    .await
}

/// The first lines of a file of JSON; those that are none are left out.
fn lines(path: &FilePath) -> Vec<Value> {
    let Ok(file) = fs::File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok).take(MOST_ANSWERS);
    lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
}

#[derive(Debug, Deserialize)]
pub struct Compared {
    /// Names with commas between.
    runs: String,
}

/// Several runs: their curves, a table of their figures, and of two how they differ.
pub async fn compare(
    State(shared): State<Arc<Shared>>,
    Params(asked): Params<Compared>,
) -> Result<Json<Value>, Refusal> {
    beside(shared, move |shared| {
        let names = asked.runs.split(',').filter(|name| !name.is_empty());
        let entries = names.map(|name| find(shared, name)).collect::<Result<Vec<_>, _>>()?;
        let whole = |entry: &Entry| entry.run.as_ref().and_then(|run| entry::find_whole(shared, run));
        let runs: Vec<KeptRun> = entries.iter().filter_map(whole).collect();
        let differ = match runs.as_slice() {
            [a, b] => RunDiff::of(a, b).to_string(),
            _ => String::new(),
        };
        let curves = runs.iter().map(|run| {
            let folder = run.record.output_dir.file_name().unwrap_or_default().to_string_lossy();
            json!({"name": format!("{} {folder}", run.name()), "curves": run.curves})
        });
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
        let Some(job) = entry.job.as_ref().filter(|_| entry.run.is_none()) else {
            return Err(Refusal::not_now("a run stays in the ledger"));
        };
        match shared.jobs.forget(&job.id) {
            Ok(true) => Ok(Json(json!({}))),
            Ok(false) => Err(Refusal::not_now("it has not ended\nhelp: stop it first")),
            Err(error) => Err(Refusal::failed("it cannot be forgotten", error)),
        }
    })
    .await
}
