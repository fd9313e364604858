//! Signals: those that ask a command to end (Ctrl-C, SIGTERM, SIGHUP of a terminal that is closed), and that of a limit.

/// Calls `f` at each of them, on a thread of its own. Those that whoever started the program wants it to ignore stay
/// ignored: SIGHUP under `nohup`, Ctrl-C behind `&` in a script.
///
/// # Errors
/// The system takes no handler.
#[cfg(unix)]
pub fn on_end(f: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let ignored = ignored();
    let asked = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = signal_hook::iterator::Signals::new(asked)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(|_| f()))?;
    Ok(())
}

/// As on Unix.
///
/// # Errors
/// As there.
#[cfg(not(unix))]
pub fn on_end(f: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    Ok(ctrlc::set_handler(f)?)
}

/// Lets a file that grows beyond a limit (`ulimit -f`) be an error of whoever writes it, not the end of the program.
pub fn limits_are_errors() {
    #[cfg(unix)]
    // Without a handler a limit ends the program, which is then all that is lost.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Default::default());
}

/// The signals that are ignored, a bit each from 1 on: `SigIgn` of `/proc/self/status`; none where there is no such file.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
