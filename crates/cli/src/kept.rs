//! The record of a run, in its folder and in the ledger: written beside training, and never a reason to stop it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sft_kernels::Device;
use sft_runs::ledger::{self, Ledger, LedgerError};
use sft_runs::run_record::{self, End, FileDigest, FileKind, Machine, RunRecord, Status};
use sft_runs::trainer_log::LogLine;
use sft_train::events::{Event, Observer};
use sft_train::run::Outcome;
use sft_train::{Job, TrainError};

/// Points of curves go to the ledger at most this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Keeps the record of a run for whom it passes events on to.
pub struct Kept<O> {
    /// Who watches the run.
    pub screen: O,
    record: RunRecord,
    files: Vec<(FileKind, PathBuf)>,
    digests: Option<JoinHandle<Vec<FileDigest>>>,
    place: Option<PathBuf>,
    ledger: Option<(Ledger, i64)>,
    points: Vec<(String, u64, f64)>,
    flushed: Instant,
    /// Whether there is a run to be recorded: an evaluation alone is none.
    trains: bool,
    /// Whether it is the run that was in its folder before.
    goes_on: bool,
    /// Whether the folder is locked and the run on its way.
    began: bool,
    /// The last step that was logged.
    step: u64,
}

impl<O: Observer> Kept<O> {
    /// A run that is about to begin, or to go on where it was in its folder.
    pub fn new(screen: O, job: &Job, dev: &Device, goes_on: bool) -> Self {
        let c = &job.config;
        let variable = |name: &str| std::env::var(name).ok();
        let data = job.datasets.iter().flat_map(|set| &set.files).map(|path| (FileKind::Data, path.clone()));
        let folders = [job.base.clone()].into_iter().chain(c.adapter_folders());
        let model = folders.flat_map(|folder| run_record::model_files(&folder));
        let files = data.chain(model.map(|path| (FileKind::Model, path))).collect();
        let record = RunRecord {
            uid: RunRecord::new_uid(&c.output_dir),
            started_at: run_record::now(),
            output_dir: std::path::absolute(&c.output_dir).unwrap_or_else(|_| c.output_dir.clone()),
            folder: std::env::current_dir().unwrap_or_default(),
            processes: vec![std::process::id()],
            config: c.values(),
            program: run_record::program(env!("CARGO_PKG_VERSION")),
            machine: Machine {
                host: run_record::host(),
                device: dev.name(),
                system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            },
            total_steps: job.total_steps,
            ..RunRecord::default()
        };
        Self {
            screen,
            record,
            files,
            digests: None,
            place: ledger::place(c.ledger.as_deref(), variable),
            ledger: None,
            points: Vec::new(),
            flushed: Instant::now(),
            trains: c.do_train,
            goes_on,
            began: false,
            step: 0,
        }
    }

    /// The folder is locked and the first step is next.
    fn begin(&mut self, resumed_at: u64) {
        if !self.trains {
            return;
        }
        (self.began, self.step) = (true, resumed_at);
        let folder = self.record.output_dir.clone();
        if self.goes_on
            && let Ok(earlier) = RunRecord::load(&folder)
        {
            (self.record.uid, self.record.started_at) = (earlier.uid, earlier.started_at);
            self.record.processes.splice(0..0, earlier.processes);
        }
        self.save();
        if let Some(place) = &self.place {
            let opened = Ledger::open(place).and_then(|ledger| {
                let number = ledger.keep(&self.record)?;
                ledger.forget_after(number, resumed_at)?;
                Ok((ledger, number))
            });
            match opened {
                Ok(opened) => self.ledger = Some(opened),
                Err(error) => self.give_up(&error),
            }
        }
        let files = std::mem::take(&mut self.files);
        // Beside the steps: large models take longer to read than steps to take.
        self.digests = std::thread::Builder::new().spawn(move || run_record::digests(&files)).ok();
    }

    fn log(&mut self, line: &LogLine) {
        self.step = line.current_steps;
        self.points.extend(ledger::points_of(line));
        if self.flushed.elapsed() < FLUSH_EVERY {
            return;
        }
        self.flush();
        if self.digests.as_ref().is_some_and(JoinHandle::is_finished) {
            self.take_digests();
            self.save();
            self.keep();
        }
    }

    fn flush(&mut self) {
        self.flushed = Instant::now();
        let points = std::mem::take(&mut self.points);
        let Some((ledger, number)) = &mut self.ledger else { return };
        if let Err(error) = ledger.add(*number, &points) {
            self.give_up(&error);
        }
    }

    fn take_digests(&mut self) {
        if let Some(Ok(files)) = self.digests.take().map(JoinHandle::join) {
            self.record.files = files;
        }
    }

    fn save(&mut self) {
        if let Err(error) = self.record.save(&self.record.output_dir) {
            let text = format!("the record of the run is not written: {}", first_line(&error));
            self.screen.on(&Event::Warned { step: 0, text: &text });
        }
    }

    fn keep(&mut self) {
        let Some((ledger, _)) = &self.ledger else { return };
        if let Err(error) = ledger.keep(&self.record) {
            self.give_up(&error);
        }
    }

    /// The run goes on without a ledger.
    fn give_up(&mut self, error: &LedgerError) {
        self.ledger = None;
        let text = format!("this run is not in the ledger: {}", first_line(error));
        self.screen.on(&Event::Warned { step: 0, text: &text });
    }

    /// The run has ended; one that never began leaves no record.
    pub fn end(&mut self, outcome: &Result<Outcome, TrainError>) {
        if !self.began {
            return;
        }
        let interrupted = outcome.as_ref().is_ok_and(|outcome| outcome.interrupted_at.is_some());
        // Who interrupts a run does not wait for large files to be read through; the resume does it.
        if !interrupted || self.digests.as_ref().is_some_and(JoinHandle::is_finished) {
            self.take_digests();
        }
        let mut end = End { at: run_record::now(), ..End::default() };
        match outcome {
            Ok(outcome) => {
                end.status = if interrupted { Status::Interrupted } else { Status::Done };
                (end.steps, end.digest) = (outcome.steps, outcome.digest.clone());
                end.results = outcome.results.clone();
            }
            Err(error) => {
                end.status = Status::Failed;
                end.steps = self.step;
                end.error = Some(error.to_string());
            }
        }
        self.record.end = Some(end);
        self.flush();
        self.save();
        self.keep();
    }
}

fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl<O: Observer> Observer for Kept<O> {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready { resumed_at, .. } => self.begin(*resumed_at),
            Event::Logged(line) => self.log(line),
            Event::Evaluated { line, .. } => self.log(line),
            _ => {}
        }
        self.screen.on(event);
    }

    fn interrupted(&self) -> bool {
        self.screen.interrupted()
    }
}

/// The ledger that is read: of the variable, or the user's.
pub fn place(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_path_buf).or_else(|| ledger::place(None, |name| std::env::var(name).ok()))
}
