//! The ledger: every run of a user in one SQLite file, with its record and its curves.
//!
//! In: a [`RunRecord`] when a run begins, points of its curves while it goes on, its end → out: lists, and runs by
//! number, name or folder (stage 14). Beside, [`diff`] says how two runs differ and [`comparison`] draws several.
//!
//! It lies in `$XDG_DATA_HOME/sft/runs.sqlite` (`~/.local/share`), or where the key `ledger` or `SFT_LEDGER` says;
//! `off` keeps none. Nothing in it is needed by a run: one that is missing, locked by another program or damaged costs
//! a note, never a step.

pub mod comparison;
pub mod diff;

use crate::lock;
use crate::run_record::{RUN_RECORD, RunRecord, Status};
use crate::trainer_log::{self, LogLine, TRAINER_LOG};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another program may hold the file.
const PATIENCE: Duration = Duration::from_secs(2);
/// The layout that this program writes and reads.
const LAYOUT: i64 = 1;

/// The points of a run's curves by their name: `loss`, `eval_loss`, `learning_rate`, `grad_norm`, …
pub type CurvesOfRun = BTreeMap<String, Vec<(u64, f64)>>;

/// Why the ledger cannot be used; the message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite refuses.
    #[error("{}: the ledger of runs cannot be used: {source}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A later program wrote it.
    #[error("{}: the ledger of runs has layout {found}, this program reads layout {LAYOUT}", .path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// Its folder cannot be made.
    #[error("{}: the folder of the ledger of runs cannot be made: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No such run.
    #[error("{name}: no run of this number, name or folder\nhelp: `sft runs` lists those in {}", .path.display())]
    NoSuchRun {
        /// What was asked for.
        name: String,
        /// The ledger.
        path: PathBuf,
    },
}

/// A run as it was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptRun {
    /// Its number in the ledger; `None` when it was read from its folder.
    pub number: Option<i64>,
    /// What it was made of.
    pub record: RunRecord,
    /// Its curves.
    pub curves: CurvesOfRun,
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    connection: Connection,
}

/// Where the ledger lies: what the key `ledger` or else `SFT_LEDGER` says (`off` is nowhere), or else the user's data
/// folder; `None` where there is none.
pub fn place(key: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let named = variable("SFT_LEDGER").filter(|value| !value.is_empty());
    match key.or(named.as_deref()) {
        Some("off" | "false" | "none") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(data_folder(variable)?.join("runs.sqlite")),
    }
}

/// The user's data folder of this program: `$XDG_DATA_HOME/sft`, else `~/.local/share/sft`.
pub fn data_folder(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let home = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    let home = || variable(home).map(|home| Path::new(&home).join(".local").join("share"));
    Some(variable("XDG_DATA_HOME").map(PathBuf::from).or_else(home)?.join("sft"))
}

impl Ledger {
    /// Opens the ledger, and makes it where there is none.
    ///
    /// # Errors
    /// A folder that cannot be made, a file that is no ledger, of another layout, or locked.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|source| LedgerError::Folder { path: folder.to_path_buf(), source })?;
        }
        Self::with(path, OpenFlags::default())
    }

    /// Opens a ledger that is there, to read it.
    ///
    /// # Errors
    /// As [`Ledger::open`]; there is none.
    pub fn read(path: &Path) -> Result<Self, LedgerError> {
        Self::with(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
    }

    fn with(path: &Path, flags: OpenFlags) -> Result<Self, LedgerError> {
        let at = |source| LedgerError::Sqlite { path: path.to_path_buf(), source };
        let connection = Connection::open_with_flags(path, flags).map_err(at)?;
        connection.busy_timeout(PATIENCE).map_err(at)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(at)?;
        match found {
            LAYOUT => {}
            0 => connection.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS runs (
                     number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
                 CREATE TABLE IF NOT EXISTS points (
                     number INTEGER NOT NULL REFERENCES runs, curve TEXT NOT NULL, step INTEGER NOT NULL,
                     value REAL NOT NULL, PRIMARY KEY (number, curve, step)) WITHOUT ROWID;
                 PRAGMA user_version = {LAYOUT};
                 COMMIT;"
            )).map_err(at)?,
            found => return Err(LedgerError::Layout { path: path.to_path_buf(), found }),
        }
        Ok(Self { path: path.to_path_buf(), connection })
    }

    fn at(&self) -> impl Fn(rusqlite::Error) -> LedgerError + '_ {
        |source| LedgerError::Sqlite { path: self.path.clone(), source }
    }

    /// Writes a run's record, a new one or anew; returns its number.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn keep(&self, record: &RunRecord) -> Result<i64, LedgerError> {
        let text = serde_json::to_string(record).unwrap_or_default();
        let number = |row: &rusqlite::Row<'_>| row.get(0);
        // Not one statement for both: its numbers would have gaps.
        let known = "UPDATE runs SET record = ?2 WHERE uid = ?1 RETURNING number";
        let known = self.connection.query_row(known, params![record.uid, text], number).optional();
        if let Some(number) = known.map_err(self.at())? {
            return Ok(number);
        }
        let new = "INSERT INTO runs (uid, record) VALUES (?1, ?2) RETURNING number";
        self.connection.query_row(new, params![record.uid, text], number).map_err(self.at())
    }

    /// Forgets the points of a run after a step: those of a session that was broken off.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn forget_after(&self, number: i64, step: u64) -> Result<(), LedgerError> {
        let statement = "DELETE FROM points WHERE number = ?1 AND step > ?2";
        self.connection.execute(statement, params![number, step as i64]).map_err(self.at())?;
        Ok(())
    }

    /// Adds points to the curves of a run, all of them or none.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn add(&mut self, number: i64, points: &[(String, u64, f64)]) -> Result<(), LedgerError> {
        let path = self.path.clone();
        let at = |source| LedgerError::Sqlite { path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(at)?;
        let mut insert = transaction
            .prepare("INSERT OR REPLACE INTO points (number, curve, step, value) VALUES (?1, ?2, ?3, ?4)")
            .map_err(at)?;
        for (curve, step, value) in points.iter().filter(|(.., value)| value.is_finite()) {
            insert.execute(params![number, curve, *step as i64, value]).map_err(at)?;
        }
        drop(insert);
        transaction.commit().map_err(at)
    }

    /// The last `most` runs, the newest first, without their curves but for the last value of each.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn last(&self, most: usize) -> Result<Vec<KeptRun>, LedgerError> {
        let mut statement = self
            .connection
            .prepare("SELECT number, record FROM runs ORDER BY number DESC LIMIT ?1")
            .map_err(self.at())?;
        let rows = statement
            .query_map(params![most as i64], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
            .map_err(self.at())?;
        let rows = rows.collect::<Result<Vec<(i64, String)>, _>>().map_err(self.at())?;
        rows.into_iter().map(|(number, text)| self.kept(number, &text, true)).collect()
    }

    /// A run by its number, its name or the beginning of it.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn find(&self, name: &str) -> Result<Option<KeptRun>, LedgerError> {
        let by = |statement: &str, value: &dyn rusqlite::ToSql| {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
            self.connection.query_row(statement, [value], row).optional().map_err(self.at())
        };
        let mut found = None;
        if let Ok(number) = name.parse::<i64>() {
            found = by("SELECT number, record FROM runs WHERE number = ?1", &number)?;
        }
        let is_name = name.len() >= 4 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if found.is_none() && is_name {
            found =
                by("SELECT number, record FROM runs WHERE uid LIKE ?1 || '%' ORDER BY number DESC", &name)?;
        }
        found.map(|(number, text)| self.kept(number, &text, false)).transpose()
    }

    fn kept(&self, number: i64, text: &str, ends_alone: bool) -> Result<KeptRun, LedgerError> {
        // A record that does not read back is an empty one: the list must not end at it.
        let record: RunRecord = serde_json::from_str(text).unwrap_or_default();
        let statement = match ends_alone {
            // From one curve to the next by the index: a long run has as few of them as a short one.
            true => {
                "WITH RECURSIVE names (curve) AS (
                     SELECT MIN(curve) FROM points WHERE number = ?1
                     UNION ALL
                     SELECT (SELECT MIN(curve) FROM points WHERE number = ?1 AND curve > names.curve)
                     FROM names WHERE names.curve IS NOT NULL)
                 SELECT p.curve, p.step, p.value FROM names JOIN points p
                 ON p.number = ?1 AND p.curve = names.curve
                 AND p.step = (SELECT MAX(step) FROM points WHERE number = ?1 AND curve = names.curve)"
            }
            false => "SELECT curve, step, value FROM points WHERE number = ?1 ORDER BY curve, step",
        };
        let mut statement = self.connection.prepare(statement).map_err(self.at())?;
        let point = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, String>(0)?, (row.get::<_, i64>(1)?.unsigned_abs(), row.get::<_, f64>(2)?)))
        };
        let points = statement.query_map([number], point).map_err(self.at())?;
        let mut curves = CurvesOfRun::new();
        for point in points {
            let (curve, point) = point.map_err(self.at())?;
            curves.entry(curve).or_default().push(point);
        }
        Ok(KeptRun { number: Some(number), record, curves })
    }
}

impl KeptRun {
    /// A run by its folder, or by number or name in the ledger at `place`.
    ///
    /// # Errors
    /// No such run; what SQLite says.
    pub fn find(name: &str, place: Option<&Path>) -> Result<Self, LedgerError> {
        if Path::new(name).join(RUN_RECORD).is_file() || Path::new(name).join(TRAINER_LOG).is_file() {
            return Ok(Self::of_folder(Path::new(name)));
        }
        let none = |path: &Path| LedgerError::NoSuchRun { name: name.to_owned(), path: path.to_path_buf() };
        let Some(place) = place else { return Err(none(Path::new("no ledger"))) };
        let found = if place.is_file() { Ledger::read(place)?.find(name)? } else { None };
        found.ok_or_else(|| none(place))
    }

    /// A run as its folder has it; what cannot be read there is empty.
    pub fn of_folder(folder: &Path) -> Self {
        let mut record = RunRecord::load(folder).unwrap_or_default();
        record.output_dir = folder.to_path_buf();
        let lines = trainer_log::read(&folder.join(TRAINER_LOG)).unwrap_or_default();
        let mut curves = CurvesOfRun::new();
        for (curve, step, value) in lines.iter().flat_map(points_of) {
            curves.entry(curve).or_default().push((step, value));
        }
        Self { number: None, record, curves }
    }

    /// What is shown for it: its number, or its folder.
    pub fn name(&self) -> String {
        self.number
            .map_or_else(|| self.record.output_dir.display().to_string(), |number| format!("run {number}"))
    }

    /// What it came to, in words: a run whose folder nobody holds any more has not just begun.
    pub fn status(&self) -> &'static str {
        match &self.record.end {
            Some(end) => end.status.word(),
            None if lock::is_held(&self.record.output_dir) && self.is_in_its_folder() => {
                Status::Running.word()
            }
            None => "ended without a word",
        }
    }

    /// Whether its folder is still its own: another run may have begun there.
    pub fn is_in_its_folder(&self) -> bool {
        RunRecord::load(&self.record.output_dir).is_ok_and(|record| record.uid == self.record.uid)
    }

    /// The last value of a curve.
    pub fn last(&self, curve: &str) -> Option<f64> {
        self.curves.get(curve)?.last().map(|point| point.1)
    }
}

/// The points of a line of the log.
pub fn points_of(line: &LogLine) -> Vec<(String, u64, f64)> {
    let of = line.eval_dataset.as_ref().map_or("eval".to_owned(), |dataset| format!("eval_{dataset}"));
    let values = [
        ("loss".to_owned(), line.loss),
        ("grad_norm".to_owned(), line.grad_norm),
        ("learning_rate".to_owned(), line.lr),
        (format!("{of}_loss"), line.eval_loss),
        (format!("{of}_accuracy"), line.eval_accuracy),
        (format!("{of}_bleu-4"), line.eval_scores.map(|scores| scores.bleu_4)),
        (format!("{of}_rouge-l"), line.eval_scores.map(|scores| scores.rouge_l)),
    ];
    let is_finite = |value: Option<f64>| value.filter(|value| value.is_finite());
    let point = |(curve, value)| Some((curve, line.current_steps, is_finite(value)?));
    values.into_iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests;
