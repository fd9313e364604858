//! Commands that outlive the page and this server: each a process of its own, with a folder that says what it is.
//!
//! ```text
//! <id>/recipe.yaml   what it was started with
//!      output.txt    what it says; the process holds a lock on it as long as it lives, whoever started it (not on Windows)
//!      job.json      a [`Job`]: read when a server begins, which has them in memory from then on
//! ```
//!
//! A process writes into a file, not into a pipe that somebody would have to read, and is in no terminal that could end it. Jobs
//! that wait begin one after the other, when nothing else is at work.

mod job;
mod process;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sft_config::RunConfig;
use sft_runs::ledger::Ledger;
use sft_runs::lock::{self, FolderLock};
use sft_runs::{RunError, atomic, run_record};

use crate::key;

pub use job::{Command, Ended, Job, Served, State};
pub use process::end;

const JOB: &str = "job.json";
const RECIPE: &str = "recipe.yaml";
const OUTPUT: &str = "output.txt";
/// Bytes of a job's words that are read at a time, and that are shown of those before.
const PIECE: u64 = 1 << 18;
/// How often processes are looked at.
const TURN: Duration = Duration::from_millis(100);
/// How often the ledger is asked whether a run is at work, while a job waits.
const ASKS: Duration = Duration::from_secs(1);
/// How long a model that is to be unloaded may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Runs of the ledger, the last ones, that may be at work.
const RECENT: usize = 20;

/// A command that is about to be started.
#[derive(Debug)]
pub struct Start<'a> {
    /// What it is.
    pub command: Command,
    /// Its recipe.
    pub text: &'a str,
    /// The same, resolved.
    pub config: &'a RunConfig,
    /// What its paths are relative to.
    pub folder: PathBuf,
    /// Whether it waits until nothing else is at work.
    pub waits: bool,
}

/// A part of what a job has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The words.
    pub text: String,
    /// Where the next part begins.
    pub next: u64,
    /// Whether there is more already.
    pub more: bool,
}

/// The jobs of a folder.
#[derive(Debug, Clone)]
pub struct Jobs {
    place: Arc<Place>,
    /// All of them by their order, and one change at a time.
    held: Arc<Mutex<BTreeMap<Order, Held>>>,
    /// Jobs that were made so far: a name is never given twice.
    number: Arc<AtomicU32>,
    /// One model is loaded at a time.
    loading: Arc<Mutex<()>>,
    /// No other server may begin what waits here.
    _lock: Arc<FolderLock>,
}

/// What is needed to begin a job.
#[derive(Debug)]
struct Place {
    /// Where jobs are kept.
    folder: PathBuf,
    /// What is started.
    program: PathBuf,
    /// Where runs are kept that are started here.
    ledger: Option<PathBuf>,
}

/// When a job was made, and which one of its server it is.
type Order = (u64, u32);

/// A job and its process, if that is a child of this one.
#[derive(Debug)]
struct Held {
    job: Job,
    child: Option<Child>,
}

impl Jobs {
    /// The jobs in `folder`; what waits there begins when it can.
    ///
    /// # Errors
    /// The system's; another server that uses the folder.
    pub fn open(folder: &Path, program: &Path, ledger: Option<&Path>) -> Result<Self, RunError> {
        let made = key::private_folder(folder);
        made.map_err(|source| RunError::at(folder, "make the folder")(source))?;
        let lock = FolderLock::acquire(folder)?;
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let jobs = entries.filter_map(|entry| {
            let job: Job = serde_json::from_slice(&fs::read(entry.path().join(JOB)).ok()?).ok()?;
            Some((order(&job.id)?, Held { job, child: None }))
        });
        let jobs = Self {
            place: Arc::new(Place {
                folder: folder.to_path_buf(),
                program: program.to_path_buf(),
                ledger: ledger.map(Path::to_path_buf),
            }),
            held: Arc::new(Mutex::new(jobs.collect())),
            number: Arc::default(),
            loading: Arc::default(),
            _lock: Arc::new(lock),
        };
        let (still, place) = (Arc::downgrade(&jobs.held), Arc::clone(&jobs.place));
        let watch = move || watch(&still, &place);
        std::thread::Builder::new()
            .name("jobs".into())
            .spawn(watch)
            .map_err(RunError::at(folder, "watch what is started there"))?;
        Ok(jobs)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Order, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command, or lets it wait.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&self, start: Start<'_>) -> io::Result<Job> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let served = match start.command {
            Command::Chat => {
                self.unload()?;
                // Whoever takes the port meanwhile keeps the process from serving.
                Some(Served { port: free_port()?, key: key::new_key()? })
            }
            _ => None,
        };
        if !start.folder.is_dir() {
            let reason =
                format!("the folder it was started in is not there any more: {}", start.folder.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let elsewhere = start.waits && is_run_at_work(self.place.ledger.as_deref());
        let mut held = self.held();
        let mut order = (run_record::now(), self.number.fetch_add(1, Ordering::Relaxed));
        while held.contains_key(&order) {
            // Of a server that ended in this second.
            order.1 = self.number.fetch_add(1, Ordering::Relaxed);
        }
        let id = format!("{}-{}", order.0, order.1);
        // As the run's record has it.
        let absolute = |folder: &Path| {
            std::path::absolute(start.folder.join(folder)).unwrap_or_else(|_| folder.to_path_buf())
        };
        let mut job = Job {
            id,
            command: start.command,
            created_at: order.0,
            output_dir: start.command.output_dir(start.config).map(absolute),
            model: start.config.model_name_or_path.clone(),
            host: run_record::host(),
            folder: start.folder,
            process: None,
            stopped: false,
            ended: None,
            served,
        };
        let is_waiting = |held: &Held| held.state(&self.place.folder) == State::Waiting;
        let waits = start.waits
            && (elsewhere || is_any_at_work(&held, &self.place.folder) || held.values().any(is_waiting));
        let folder = self.place.folder.join(&job.id);
        let mut make = || {
            key::private_folder(&folder)?;
            key::private(&folder.join(RECIPE))?.write_all(start.text.as_bytes())?;
            if waits { self.place.save(&job).map(|()| None) } else { self.place.begin(&mut job) }
        };
        // Of one that cannot be kept nothing stays.
        let child = make().inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        held.insert(order, Held { job: job.clone(), child });
        Ok(job)
    }

    /// All jobs and what they are doing, the newest first.
    pub fn all(&self) -> Vec<(State, Job)> {
        let state = |held: &Held| (held.state(&self.place.folder), held.job.clone());
        self.held().values().rev().map(state).collect()
    }

    /// A job by its name, and what it is doing.
    pub fn find(&self, id: &str) -> Option<(State, Job)> {
        let held = self.held();
        let found = held.get(&order(id)?).filter(|held| held.job.id == id)?;
        Some((found.state(&self.place.folder), found.job.clone()))
    }

    /// The recipe that a job was started with.
    ///
    /// # Errors
    /// The system's.
    pub fn recipe(&self, job: &Job) -> io::Result<String> {
        fs::read_to_string(self.place.folder.join(&job.id).join(RECIPE))
    }

    /// What a job has said from byte `from` on; without one the last of it, from the beginning of a line.
    ///
    /// # Errors
    /// The system's.
    pub fn output(&self, job: &Job, from: Option<u64>) -> io::Result<Output> {
        let mut file = match File::open(self.place.folder.join(&job.id).join(OUTPUT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Output { text: String::new(), next: 0, more: false });
            }
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let given = from.filter(|from| *from <= length);
        let mut from = given.unwrap_or_else(|| length.saturating_sub(PIECE));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(PIECE).read_to_end(&mut bytes)?;
        if given.is_none() && from > 0 {
            let line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            bytes.drain(..line);
            from += line as u64;
        }
        // A character of which a part is there comes with the next piece.
        let whole = bytes.len() - begun(&bytes);
        let next = from + whole as u64;
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        Ok(Output { text, next, more: next + 4 < length })
    }

    /// Asks a job to end, which saves what it has first; at once if `now`. One that waits never begins.
    ///
    /// # Errors
    /// The system's.
    pub fn stop(&self, id: &str, now: bool) -> io::Result<()> {
        let mut held = self.held();
        let found = order(id).and_then(|order| held.get_mut(&order));
        let Some(Held { job, .. }) = found.filter(|held| held.state(&self.place.folder) != State::Ended)
        else {
            return Ok(());
        };
        if job.host != run_record::host() {
            return Err(io::Error::other(format!("it runs on another machine, {}: end it there", job.host)));
        }
        match job.process {
            // Its number is nobody else's: a child is reaped under this lock, and any other one holds its own.
            Some(process) => end(process, now)?,
            None => job.ended = Some(Ended::now(None)),
        }
        job.stopped = true;
        self.place.save(job)
    }

    /// Forgets a job that has ended: its folder here, and nothing that it wrote. Whether it is gone.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(&self, id: &str) -> io::Result<bool> {
        let mut held = self.held();
        let order = order(id).unwrap_or_default();
        let Some(found) = held.get(&order) else { return Ok(true) };
        let has_ended = found.state(&self.place.folder) == State::Ended;
        if has_ended {
            fs::remove_dir_all(self.place.folder.join(id))?;
            held.remove(&order);
        }
        Ok(has_ended)
    }

    /// The model that is talked to, or was last, and whether it is there.
    pub fn chat(&self) -> Option<(State, Job)> {
        let held = self.held();
        let last = held.values().rev().find(|held| held.job.command == Command::Chat)?;
        Some((last.state(&self.place.folder), last.job.clone()))
    }

    /// Ends models that are talked to; none is loaded any more.
    pub fn close(&self) {
        // Kept, not let go of: this process ends.
        std::mem::forget(self.loading.lock());
        // One that does not end is told nobody.
        let _ = self.unload();
    }

    /// Ends models that are talked to, and forgets those of earlier.
    ///
    /// # Errors
    /// One that does not end.
    fn unload(&self) -> io::Result<()> {
        let begun = Instant::now();
        let is_chat = |(_, job): &(State, Job)| job.command == Command::Chat;
        for (state, job) in self.all().into_iter().filter(is_chat) {
            if state != State::Ended {
                self.stop(&job.id, true)?;
            }
            // What it held is free when its process is gone.
            while !self.forget(&job.id)? {
                if begun.elapsed() > PATIENCE {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the model that is loaded does not end",
                    ));
                }
                std::thread::sleep(TURN / 5);
            }
        }
        Ok(())
    }
}

/// Keeps how processes end and begins what waits, until nobody has the jobs any more.
fn watch(jobs: &Weak<Mutex<BTreeMap<Order, Held>>>, place: &Place) {
    let (mut asked, mut elsewhere) = (None::<Instant>, false);
    while let Some(held) = jobs.upgrade() {
        let is_waiting = |held: &Held| held.state(&place.folder) == State::Waiting;
        // The ledger is another program's, too, and takes its time.
        let waits = held.lock().unwrap_or_else(PoisonError::into_inner).values().any(is_waiting);
        if waits && asked.is_none_or(|asked| asked.elapsed() > ASKS) {
            (elsewhere, asked) = (is_run_at_work(place.ledger.as_deref()), Some(Instant::now()));
        }
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        for one in held.values_mut() {
            one.reap(place);
        }
        let is_free = !is_any_at_work(&held, &place.folder);
        let next = held.values_mut().find(|held| is_waiting(held));
        if let Some(next) = next.filter(|_| is_free && !elsewhere && asked.is_some()) {
            match place.begin(&mut next.job) {
                Ok(child) => next.child = child,
                // It is not tried again and again where nothing can be written.
                Err(_) => next.job.ended = Some(Ended::now(None)),
            }
        }
        drop(held);
        std::thread::sleep(TURN);
    }
}

impl Place {
    /// Lets a job begin: its process lives as long as it likes. What cannot be started has ended, and says why.
    fn begin(&self, job: &mut Job) -> io::Result<Option<Child>> {
        let folder = self.folder.join(&job.id);
        let mut child = match process::spawn(self, job, &folder) {
            Ok(child) => child,
            Err(error) => {
                let said = format!("error: {} cannot be started: {error}\n", self.program.display());
                fs::write(folder.join(OUTPUT), said)?;
                job.ended = Some(Ended::now(None));
                return self.save(job).map(|()| None);
            }
        };
        job.process = Some(child.id());
        if let Err(error) = self.save(job) {
            // A process that nobody knows of would never be found again.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(error);
        }
        Ok(Some(child))
    }

    fn save(&self, job: &Job) -> io::Result<()> {
        atomic::write_json(&self.folder.join(&job.id).join(JOB), job, 2).map_err(io::Error::other)
    }
}

impl Held {
    fn state(&self, folder: &Path) -> State {
        match (&self.job.ended, self.job.process) {
            (Some(_), _) => State::Ended,
            (None, None) => State::Waiting,
            _ if self.child.is_some() || process::is_alive(&folder.join(&self.job.id).join(OUTPUT)) => {
                State::Running
            }
            _ => State::Ended,
        }
    }

    /// Keeps how the process ended, if it has.
    fn reap(&mut self, place: &Place) {
        self.job.ended = match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Some(Ended::now(status.code())),
            // Somebody else has waited for it: its lock tells the rest.
            Some(Err(_)) => None,
            // One that an earlier server began, and that ended while there was none.
            None if self.job.ended.is_none()
                && self.job.process.is_some()
                && self.state(&place.folder) == State::Ended =>
            {
                Some(Ended { seen: false, ..Ended::now(None) })
            }
            _ => return,
        };
        self.child = None;
        // Who reads the job later sees that its process is gone, if not how.
        let _ = place.save(&self.job);
    }
}

/// Whether something that trains, answers or exports is at work.
fn is_any_at_work(held: &BTreeMap<Order, Held>, folder: &Path) -> bool {
    held.values().any(|held| held.job.command != Command::Chat && held.state(folder) == State::Running)
}

/// Whether a run of the ledger is at work, wherever it was started.
fn is_run_at_work(ledger: Option<&Path>) -> bool {
    let runs =
        ledger.filter(|place| place.is_file()).and_then(|place| Ledger::read(place).ok()?.last(RECENT).ok());
    runs.is_some_and(|runs| runs.iter().any(|run| lock::is_held(&run.record.output_dir)))
}

/// The order that a job's name tells.
fn order(id: &str) -> Option<Order> {
    let (second, number) = id.split_once('-')?;
    Some((second.parse().ok()?, number.parse().ok()?))
}

/// Bytes of a character at the end of which the rest has not come.
fn begun(bytes: &[u8]) -> usize {
    let last = bytes.iter().rev().take(4).position(|byte| byte & 0xc0 != 0x80).map_or(0, |back| back + 1);
    let lead = bytes.len().checked_sub(last).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    let whole = match lead {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    if last < whole { last } else { 0 }
}

/// A port that nobody listens on now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(all(test, unix))]
mod tests;
