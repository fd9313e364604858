//! A job's process: how it begins, whether it lives, how it is asked to end.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Job, OUTPUT, Place, RECIPE, Served};

/// Starts it, with a lock on what it writes that is its own as soon as this process closes the file.
///
/// # Errors
/// The system's; a process that lives already.
pub fn spawn(place: &Place, job: &Job, folder: &Path) -> io::Result<Child> {
    let output = OpenOptions::new().create(true).read(true).append(true).open(folder.join(OUTPUT))?;
    // On Windows a lock would keep the process from writing.
    if cfg!(unix) {
        match output.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("it is at work already")),
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return Err(error);
            }
            _ => {}
        }
    }
    let mut command = Command::new(&place.program);
    command.arg(job.command.word()).arg(folder.join(RECIPE)).current_dir(&job.folder);
    if let Some(Served { port, key }) = &job.served {
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).env("API_KEY", key);
    }
    command.env("SFT_LEDGER", place.ledger.as_deref().unwrap_or(Path::new("off")));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(&mut command, OF_NO_WINDOW);
    command.spawn()
}

/// `CREATE_NEW_PROCESS_GROUP` and `CREATE_NO_WINDOW`: a window that is closed ends it as little as Ctrl-C there.
#[cfg(windows)]
const OF_NO_WINDOW: u32 = 0x200 | 0x0800_0000;

/// Whether a process holds the lock on what it writes; on Windows nobody knows.
pub fn is_alive(output: &Path) -> bool {
    let file = File::open(output);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Asks a process to end by SIGTERM, or ends it.
///
/// # Errors
/// The system's.
#[cfg(unix)]
pub fn end(process: u32, now: bool) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let signal = if now { Signal::KILL } else { Signal::TERM };
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    Ok(kill_process(process.ok_or(io::ErrorKind::NotFound)?, signal)?)
}

/// Ends a process: Windows has no signal that asks for it.
///
/// # Errors
/// The system's.
#[cfg(not(unix))]
pub fn end(process: u32, _: bool) -> io::Result<()> {
    let status = Command::new("taskkill").args(["/F", "/T", "/PID", &process.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("taskkill refuses")) }
}
