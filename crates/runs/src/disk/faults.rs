//! Faults on purpose: the k-th change that a run makes to its files fails, in one of five ways.
//!
//! In: a [`Fault`] and the number of the change → out: what a broken disk, a full one or a power cut does to a run. One
//! plan for the whole process: a test that makes faults is a program of its own with one test.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Op, Verdict};

/// How a change fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not made; later ones are.
    Error,
    /// A write takes half of the bytes and says so: no error, what is left has to be written by another call.
    ShortWrite,
    /// A write takes half of the bytes and fails.
    TornWrite,
    /// The disk is full, and stays so: half of the bytes are written, later writes take none; removing still works.
    NoSpace,
    /// Nothing works any more, and what was written and not synced is lost by half.
    PowerCut,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Error, Self::ShortWrite, Self::TornWrite, Self::NoSpace, Self::PowerCut];
}

#[derive(Debug, Default)]
struct State {
    /// Changes so far.
    changes: u64,
    plan: Option<(Fault, u64)>,
    /// The change that failed, in words.
    struck: Option<String>,
    /// Files that were written and not synced since.
    dirty: BTreeSet<PathBuf>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts changes from now on, and makes the one of this number (from 1) fail.
pub fn plan(fault: Option<(Fault, u64)>) {
    *state() = Some(State { plan: fault, ..State::default() });
}

/// Ends the plan: how many changes there were, and which one failed. After a power cut, what was not synced is lost.
pub fn end() -> (u64, Option<String>) {
    let Some(state) = state().take() else { return (0, None) };
    if matches!(state.plan, Some((Fault::PowerCut, _))) && state.struck.is_some() {
        for path in &state.dirty {
            let Ok(file) = OpenOptions::new().write(true).open(path) else { continue };
            let bytes = fs::metadata(path).map_or(0, |found| found.len());
            // Half of it never reached the disk.
            let _ = file.set_len(bytes / 2);
        }
    }
    (state.changes, state.struck)
}

pub(super) fn ask(op: Op<'_>) -> Verdict {
    let mut state = state();
    let Some(state) = state.as_mut() else { return Verdict::Go };
    state.changes += 1;
    let verdict = state.verdict(op);
    if matches!(verdict, Verdict::Go | Verdict::Short(_)) {
        state.follow(op);
    } else if let Op::Write(path, _) = op {
        state.dirty.insert(path.to_path_buf());
    }
    verdict
}

impl State {
    fn verdict(&mut self, op: Op<'_>) -> Verdict {
        let Some((fault, at)) = self.plan else { return Verdict::Go };
        let half = if let Op::Write(_, bytes) = op { bytes.len() / 2 } else { 0 };
        if self.changes < at {
            return Verdict::Go;
        }
        let is_first = self.struck.is_none();
        if is_first {
            self.struck = Some(describe(op));
        }
        let full = |bytes| Verdict::Fail(bytes, io::ErrorKind::StorageFull.into());
        let broken = |bytes| Verdict::Fail(bytes, io::Error::other("a fault made by a test"));
        match (fault, op) {
            (Fault::Error, _) if is_first => broken(0),
            (Fault::TornWrite, _) if is_first => broken(half),
            (Fault::ShortWrite, Op::Write(_, bytes)) if is_first && bytes.len() > 1 => Verdict::Short(half),
            (Fault::NoSpace, Op::Write(..) | Op::Create(_)) => full(if is_first { half } else { 0 }),
            (Fault::PowerCut, _) => broken(if is_first { half } else { 0 }),
            _ => Verdict::Go,
        }
    }

    /// Which files a power cut would cost.
    fn follow(&mut self, op: Op<'_>) {
        match op {
            Op::Create(path) | Op::Write(path, _) | Op::Cut(path) => {
                self.dirty.insert(path.to_path_buf());
            }
            Op::Sync(path) | Op::Remove(path) => self.forget(path, matches!(op, Op::Remove(_))),
            Op::Rename(from, to) => {
                let moved: Vec<PathBuf> =
                    self.dirty.iter().filter(|path| path.starts_with(from)).cloned().collect();
                self.forget(from, true);
                self.forget(to, true);
                for path in moved {
                    let rest = path.strip_prefix(from).unwrap_or(Path::new("")).to_path_buf();
                    self.dirty.insert(if rest.as_os_str().is_empty() {
                        to.to_path_buf()
                    } else {
                        to.join(rest)
                    });
                }
            }
        }
    }

    fn forget(&mut self, path: &Path, with_what_is_in_it: bool) {
        match with_what_is_in_it {
            true => self.dirty.retain(|dirty| !dirty.starts_with(path)),
            false => _ = self.dirty.remove(path),
        }
    }
}

fn describe(op: Op<'_>) -> String {
    match op {
        Op::Create(path) => format!("create {}", path.display()),
        Op::Write(path, bytes) => format!("write {} bytes to {}", bytes.len(), path.display()),
        Op::Cut(path) => format!("cut {}", path.display()),
        Op::Sync(path) => format!("sync {}", path.display()),
        Op::Rename(from, to) => format!("rename {} to {}", from.display(), to.display()),
        Op::Remove(path) => format!("remove {}", path.display()),
    }
}
