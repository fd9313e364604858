//! A data set that is being read: its files → [`Conversation`]s, one after the other, and a report of them.

use serde_json::Value;

use crate::conversation::Conversation;
use crate::dataset_info::{self, Entry, SplitPart};
use crate::error::{DataError, nearby};
use crate::formats::{Format, detect};
use crate::rows::{FileKind, Row, RowProblem, Rows, Source};

use super::{DatasetOptions, DatasetReport, Stage, too_many};

/// How many first rows tell the format of a plain path.
const DETECT_ROWS: usize = 32;
/// How many names of unread columns are kept.
const UNREAD_COLUMNS: usize = 32;

/// What a reader yields: a row, good or bad, or the end of all reading.
type Found<T> = Result<Result<T, RowProblem>, DataError>;

/// A data set with its format known; it can be read any number of times.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// What the configuration says of it.
    pub entry: Entry,
    /// How it is read; counts are of all that was read through this.
    pub report: DatasetReport,
    sources: Vec<(Source, SplitPart)>,
    /// Columns that the entry names and no row has had.
    absent: Vec<String>,
}

impl Reading {
    /// Finds the data set and tells its format.
    ///
    /// # Errors
    /// When it cannot be found or read, or has no row.
    pub fn open(name: &str, options: &DatasetOptions) -> Result<Self, DataError> {
        let entry = dataset_info::find(name, &options.dataset_dir, options.stage, &options.hub)?;
        let mut sources = Vec::new();
        for part in &entry.split {
            sources.push((part.source(&entry.path)?, part.clone()));
        }
        let first: Vec<_> = rows_of(name, &sources)?.take(DETECT_ROWS).collect::<Result<_, _>>()?;
        if first.is_empty() {
            return Err(DataError::Empty {
                dataset: name.to_owned(),
                help: match entry.split.iter().all(SplitPart::is_whole) {
                    true => format!("check `{}`", entry.path.display()),
                    false => format!(
                        "check `{}`, and the slice that `split` of the entry names",
                        entry.path.display()
                    ),
                },
            });
        }
        let format = format_of(&entry, sources[0].0.kind, &first, options.stage)?;
        let report = DatasetReport {
            name: name.to_owned(),
            files: sources.iter().flat_map(|(source, _)| source.files.clone()).collect(),
            format,
            detected: entry.format.is_none(),
            rows_read: 0,
            rows_dropped: 0,
            rows_used: 0,
            unread_columns: Vec::new(),
            notes: entry.notes.clone(),
        };
        let absent = entry.listed.clone();
        let mut reading = Self { entry, report, sources, absent };
        if options.streaming.is_some() {
            // Nobody knows when a stream ends.
            first.iter().flatten().for_each(|row| reading.note_present(row));
            reading.note_absent(first.len());
        }
        Ok(reading)
    }

    /// Its rows from the beginning.
    ///
    /// # Errors
    /// A slice of its split needs to count rows that cannot be read.
    pub fn rows(&self) -> Result<impl Iterator<Item = Found<Row>> + use<>, DataError> {
        rows_of(&self.report.name, &self.sources)
    }

    /// What a row says; counts it.
    pub fn convert(&mut self, row: Result<Row, RowProblem>) -> Result<Conversation, RowProblem> {
        self.report.rows_read += 1;
        let converted = row.and_then(|row| {
            self.report.note_unread(&row);
            self.note_present(&row);
            match self.report.detected.then(|| media(&row)).flatten() {
                Some(column) => Err(RowProblem {
                    origin: row.origin,
                    reason: format!("it has `{column}`, and only text is trained"),
                }),
                None => self.report.format.convert(row),
            }
        });
        self.report.rows_dropped += u64::from(converted.is_err());
        converted
    }

    fn note_present(&mut self, row: &Row) {
        self.absent.retain(|name| !row.columns.contains_key(name));
    }

    fn note_absent(&mut self, rows: usize) {
        let text = |name: &String| {
            format!("none of the first {rows} rows has the column `{name}` that its entry names")
        };
        self.report.notes.extend(self.absent.iter().map(text));
    }

    /// Says which columns that the entry names no row had; `all` were read, not only the first ones.
    ///
    /// # Errors
    /// When no row at all has one: its name is wrong.
    pub fn check_columns(&mut self, all: bool) -> Result<(), DataError> {
        let Some(name) = self.absent.first() else { return Ok(()) };
        if !(all && self.entry.split.iter().all(SplitPart::is_whole)) {
            let rows = usize::try_from(self.report.rows_read).unwrap_or(usize::MAX);
            self.note_absent(rows);
            return Ok(());
        }
        let unread = &self.report.unread_columns;
        let help = match nearby(name, unread.iter().map(String::as_str)).first() {
            Some(near) => format!("did you mean `{near}`? Correct `columns` of the entry"),
            None if unread.is_empty() => "take it out of `columns` of the entry".to_owned(),
            None => format!(
                "correct `columns` of the entry; what the rows have and is not read: `{}`",
                unread.join("`, `")
            ),
        };
        Err(DataError::Format {
            dataset: self.report.name.clone(),
            reason: format!("no row has the column `{name}` that its entry names"),
            help,
        })
    }
}

/// The rows of all parts, each from its first to its last row that counts.
fn rows_of(
    name: &str,
    sources: &[(Source, SplitPart)],
) -> Result<impl Iterator<Item = Found<Row>> + use<>, DataError> {
    let mut parts = Vec::new();
    for (source, part) in sources {
        let total = match part.needs_total() {
            true => Rows::open(name, source).try_fold(0, |total, row| row.map(|_| total + 1))?,
            false => usize::MAX,
        };
        let range = part.rows(total);
        parts.push(Rows::open(name, source).skip(range.start).take(range.len()));
    }
    Ok(parts.into_iter().flatten())
}

/// The format of an entry, or of the first rows of a plain path.
fn format_of(
    entry: &Entry,
    kind: FileKind,
    first: &[Result<Row, RowProblem>],
    stage: Stage,
) -> Result<Format, DataError> {
    let unfit = |reason: String, help: &str| {
        Err(DataError::Format { dataset: entry.name.clone(), reason, help: help.to_owned() })
    };
    const PLAIN: &str = "set `stage: pt` to train on plain text, or name a data set of questions and answers";
    if kind == FileKind::Text && stage == Stage::Sft {
        return unfit("a `.txt` file holds plain text, without questions and answers".to_owned(), PLAIN);
    }
    if let Some(format) = &entry.format {
        return Ok(format.clone());
    }
    let good: Vec<Row> = first.iter().filter_map(|row| row.as_ref().ok().cloned()).collect();
    if good.is_empty() {
        let problems: Vec<RowProblem> = first.iter().filter_map(|row| row.as_ref().err().cloned()).collect();
        let summary = format!("data set `{}`: the first {} rows are malformed", entry.name, first.len());
        let help =
            "mend these rows, or name the file by the kind of data that it holds (`.jsonl`, `.csv`, …)";
        return Err(too_many(summary, &problems, help));
    }
    match detect(&good) {
        Ok(Format::Plain(_)) => unfit("its rows hold plain text in the column `text`".to_owned(), PLAIN),
        Ok(format) => Ok(format),
        Err(reason) => unfit(
            reason,
            "make an entry in dataset_info.json whose `columns` say what the columns are, or rename them",
        ),
    }
}

/// The column of pictures and the like that a row of a plain path has; an entry says itself which columns it means.
fn media(row: &Row) -> Option<&'static str> {
    let is_there = |column: &Value| match column {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    dataset_info::MEDIA.into_iter().find(|name| row.columns.get(*name).is_some_and(is_there))
}

impl DatasetReport {
    fn note_unread(&mut self, row: &Row) {
        let read = self.format.columns();
        for name in row.columns.keys() {
            if self.unread_columns.len() < UNREAD_COLUMNS
                && !read.contains(&name.as_str())
                && !self.unread_columns.contains(name)
            {
                self.unread_columns.push(name.clone());
            }
        }
    }
}
