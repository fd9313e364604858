//! Commands that outlive the page and this server: each a process of its own, with a folder that says what it is.
//!
//! ```text
//! <id>/recipe.yaml   what it was started with
//!      output.txt    what it says; the process holds a lock on it as long as it lives, whoever started it
//!      job.json      a [`Job`]
//! ```
//!
//! A process writes into a file, not into a pipe that somebody would have to read, and is no child of a terminal that could
//! end it. Jobs that wait begin one after the other, when nothing else that was started here is at work.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sft_config::{Purpose, RunConfig};
use sft_runs::lock::FolderLock;
use sft_runs::{atomic, run_record};

use crate::key;

const JOB: &str = "job.json";
const RECIPE: &str = "recipe.yaml";
const OUTPUT: &str = "output.txt";
/// Jobs that are listed, the last ones.
const MOST: usize = 200;
/// Bytes of a job's words that are read at a time, and that are shown of those before.
const PIECE: u64 = 1 << 18;

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `sft train`.
    Train,
    /// `sft predict`.
    Predict,
    /// `sft export`.
    Export,
    /// `sft serve`, to talk to.
    Chat,
}

impl Command {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Predict => "predict",
            Self::Export => "export",
            Self::Chat => "serve",
        }
    }

    /// What its recipe is for.
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Train | Self::Predict => Purpose::Train,
            Self::Export => Purpose::Export,
            Self::Chat => Purpose::Chat,
        }
    }

    /// What the command says instead of a recipe.
    pub fn overrides(self) -> Vec<String> {
        match self {
            Self::Predict => ["do_train=false", "do_predict=true"].map(String::from).to_vec(),
            _ => Vec::new(),
        }
    }

    /// The folder that it writes into.
    fn output_dir(self, config: &RunConfig) -> Option<&Path> {
        match self {
            Self::Train | Self::Predict => Some(&config.output_dir),
            Self::Export => Some(&config.export_dir),
            Self::Chat => None,
        }
    }
}

/// A command that was started, or waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name: that of its folder.
    pub id: String,
    /// What it is.
    pub command: Command,
    /// Seconds since 1970.
    pub created_at: u64,
    /// What its paths are relative to.
    pub folder: PathBuf,
    /// Where its results go, absolute.
    pub output_dir: Option<PathBuf>,
    /// The model that it is about, as the recipe names it.
    pub model: String,
    /// Its process, once it has begun.
    pub process: Option<u32>,
    /// How it ended, if somebody was there to see it.
    pub ended: Option<Ended>,
    /// Where a model is served.
    pub served: Option<Served>,
}

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Seconds since 1970.
    pub at: u64,
    /// Its exit status; `None` if it never began or a signal ended it.
    pub status: Option<i32>,
}

/// Where and to whom a model answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The port, on this machine alone.
    pub port: u16,
    /// What it asks for.
    pub key: String,
}

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Others are at work.
    Waiting,
    /// Its process lives.
    Running,
    /// It does not.
    Ended,
}

/// The jobs of a folder.
#[derive(Debug, Clone)]
pub struct Jobs {
    folder: PathBuf,
    program: PathBuf,
    /// Where runs are kept that are started here.
    ledger: Option<PathBuf>,
    /// Jobs whose process is a child of this one: where a file system has no locks, that is all that is known.
    children: Arc<Mutex<HashSet<String>>>,
    /// One change at a time.
    changing: Arc<Mutex<()>>,
    /// No other server may begin what waits here.
    _lock: Arc<FolderLock>,
}

impl Jobs {
    /// The jobs in `folder`; what waits there begins when it can.
    ///
    /// # Errors
    /// The system's; another server that uses the folder.
    pub fn open(folder: &Path, program: &Path, ledger: Option<&Path>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        #[cfg(unix)]
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let lock = FolderLock::acquire(folder).map_err(io::Error::other)?;
        let jobs = Self {
            folder: folder.to_path_buf(),
            program: program.to_path_buf(),
            ledger: ledger.map(Path::to_path_buf),
            children: Arc::default(),
            changing: Arc::default(),
            _lock: Arc::new(lock),
        };
        let (waiting, still) = (jobs.clone(), Arc::downgrade(&jobs.changing));
        std::thread::Builder::new().name("waiting jobs".into()).spawn(move || {
            // The clone here is one of two that are there at least while somebody else has the jobs.
            while still.strong_count() > 1 {
                waiting.begin_next();
                std::thread::sleep(Duration::from_millis(500));
            }
        })?;
        Ok(jobs)
    }

    /// Starts a command with a recipe, whose paths are relative to `working`, or lets it wait until nothing else is at work.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        &self,
        command: Command,
        text: &str,
        config: &RunConfig,
        working: PathBuf,
        waits: bool,
    ) -> io::Result<Job> {
        let created_at = run_record::now();
        // As the run's record has it.
        let absolute = |folder: &Path| {
            std::path::absolute(working.join(folder)).unwrap_or_else(|_| folder.to_path_buf())
        };
        let output_dir = command.output_dir(config).map(absolute);
        let served = match command {
            // Whoever takes the port meanwhile is told from the model by the key.
            Command::Chat => Some(Served { port: free_port()?, key: key::new_key()? }),
            _ => None,
        };
        let (id, folder) = self.new_folder(created_at, command)?;
        fs::write(folder.join(RECIPE), text)?;
        let mut job = Job {
            id,
            command,
            created_at,
            folder: working,
            output_dir,
            model: config.model_name_or_path.clone(),
            process: None,
            ended: None,
            served,
        };
        let _changing = self.changing();
        self.save(&job)?;
        if !(waits && self.is_any_at_work()) {
            self.begin(&mut job)?;
        }
        Ok(job)
    }

    fn new_folder(&self, created_at: u64, command: Command) -> io::Result<(String, PathBuf)> {
        let name = |number: u32| match number {
            0 => format!("{created_at}-{}", command.word()),
            number => format!("{created_at}-{}-{number}", command.word()),
        };
        let mut number = 0;
        loop {
            let folder = self.folder.join(name(number));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok((name(number), folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets a job begin: its process lives as long as it likes.
    fn begin(&self, job: &mut Job) -> io::Result<()> {
        let folder = self.folder.join(&job.id);
        let started = self.spawn(job, &folder);
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                fs::write(folder.join(OUTPUT), format!("error: {}: {error}\n", self.program.display()))?;
                job.ended = Some(Ended { at: run_record::now(), status: None });
                return self.save(job);
            }
        };
        job.process = Some(child.id());
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id.clone());
        self.save(job)?;
        let (jobs, id) = (self.clone(), job.id.clone());
        std::thread::Builder::new().name("a job's end".into()).spawn(move || jobs.wait(child, &id))?;
        Ok(())
    }

    fn spawn(&self, job: &Job, folder: &Path) -> io::Result<Child> {
        let output = OpenOptions::new().create(true).append(true).open(folder.join(OUTPUT))?;
        // The lock is the process's as soon as this one closes the file.
        match output.try_lock() {
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return Err(error);
            }
            _ => {}
        }
        let mut command = std::process::Command::new(&self.program);
        command.arg(job.command.word()).arg(folder.join(RECIPE)).current_dir(&job.folder);
        if let Some(Served { port, key }) = &job.served {
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).env("API_KEY", key);
        }
        if let Some(ledger) = &self.ledger {
            command.env("SFT_LEDGER", ledger);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        #[cfg(windows)]
        std::os::windows::process::CommandExt::creation_flags(&mut command, CREATE_NEW_PROCESS_GROUP);
        command.spawn()
    }

    /// Waits for a process, and keeps how it ended.
    fn wait(&self, mut child: Child, id: &str) {
        let status = child.wait().ok().and_then(|status| status.code());
        let _changing = self.changing();
        if let Some(mut job) = self.find(id) {
            job.ended = Some(Ended { at: run_record::now(), status });
            // Who reads the job later sees that its process is gone, if not how.
            let _ = self.save(&job);
        }
        self.children.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Lets the job begin that has waited longest, unless another one is at work.
    fn begin_next(&self) {
        let _changing = self.changing();
        if self.is_any_at_work() {
            return;
        }
        let waiting = |job: &Job| self.state(job) == State::Waiting;
        if let Some(mut job) = self.all().into_iter().rev().find(waiting) {
            // What cannot begin has said so in its folder, if that can be written.
            let _ = self.begin(&mut job);
        }
    }

    /// Whether something that trains, answers or exports is at work.
    fn is_any_at_work(&self) -> bool {
        let at_work = |job: &Job| job.command != Command::Chat && self.state(job) == State::Running;
        self.all().iter().any(at_work)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, job: &Job) -> io::Result<()> {
        atomic::write_json(&self.folder.join(&job.id).join(JOB), job, 2).map_err(io::Error::other)
    }

    /// The last jobs, the newest first.
    pub fn all(&self) -> Vec<Job> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.iter().filter_map(|name| self.find(name)).take(MOST).collect()
    }

    /// A job by its name.
    pub fn find(&self, id: &str) -> Option<Job> {
        let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let text = is_name.then(|| fs::read(self.folder.join(id).join(JOB)).ok())??;
        serde_json::from_slice(&text).ok()
    }

    /// What a job is doing.
    pub fn state(&self, job: &Job) -> State {
        if job.ended.is_some() {
            return State::Ended;
        }
        if job.process.is_none() {
            return State::Waiting;
        }
        let is_child = self.children.lock().unwrap_or_else(PoisonError::into_inner).contains(&job.id);
        let is_locked = || {
            let output = File::open(self.folder.join(&job.id).join(OUTPUT));
            output.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
        };
        if is_child || is_locked() { State::Running } else { State::Ended }
    }

    /// The recipe that a job was started with.
    pub fn recipe(&self, job: &Job) -> io::Result<String> {
        fs::read_to_string(self.folder.join(&job.id).join(RECIPE))
    }

    /// What a job has said from byte `from` on, or last, and where it goes on.
    pub fn output(&self, job: &Job, from: Option<u64>) -> io::Result<(String, u64)> {
        let mut file = match File::open(self.folder.join(&job.id).join(OUTPUT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((String::new(), 0)),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let from = from.filter(|from| *from <= length).unwrap_or_else(|| length.saturating_sub(PIECE));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(PIECE).read_to_end(&mut bytes)?;
        // A character of which a part is there comes with the next piece.
        let whole = match std::str::from_utf8(&bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        Ok((String::from_utf8_lossy(&bytes[..whole]).into_owned(), from + whole as u64))
    }

    /// Asks a job to end, which saves what it has first; at once if `now`. One that waits never begins.
    ///
    /// # Errors
    /// The system's.
    pub fn stop(&self, job: &Job, now: bool) -> io::Result<()> {
        let _changing = self.changing();
        let Some(mut job) = self.find(&job.id) else { return Ok(()) };
        match (self.state(&job), job.process) {
            (State::Running, Some(process)) => end(process, now),
            (State::Waiting, _) => {
                job.ended = Some(Ended { at: run_record::now(), status: None });
                self.save(&job)
            }
            _ => Ok(()),
        }
    }

    /// Forgets a job that has ended: its folder here, and nothing that it wrote.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(&self, job: &Job) -> io::Result<()> {
        let _changing = self.changing();
        match self.find(&job.id) {
            Some(job) if self.state(&job) == State::Ended => fs::remove_dir_all(self.folder.join(&job.id)),
            _ => Ok(()),
        }
    }

    /// The model that is talked to now.
    pub fn chat(&self) -> Option<Job> {
        self.all().into_iter().find(|job| job.command == Command::Chat)
    }

    /// Ends models that are talked to.
    pub fn end_chats(&self) {
        for job in self.all().iter().filter(|job| job.command == Command::Chat) {
            // One that is gone meanwhile has ended.
            let _ = self.stop(job, true);
        }
    }
}

/// A port that nobody listens on now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(windows)]
const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;

/// Asks a process to end by SIGTERM, or ends it.
#[cfg(unix)]
pub fn end(process: u32, now: bool) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let signal = if now { Signal::KILL } else { Signal::TERM };
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    Ok(kill_process(process.ok_or(io::ErrorKind::NotFound)?, signal)?)
}

/// Ends a process: Windows has no signal that asks for it.
#[cfg(not(unix))]
pub fn end(process: u32, _: bool) -> io::Result<()> {
    let status =
        std::process::Command::new("taskkill").args(["/F", "/T", "/PID", &process.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("taskkill refuses")) }
}

#[cfg(all(test, unix))]
mod tests;
