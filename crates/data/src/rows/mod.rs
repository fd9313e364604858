//! Stage 2 of the walk: files → [`Row`]s with file and line.
//!
//! In: a file or a folder of one type (json, jsonl, csv, tsv, txt, compressed or not; parquet, arrow). Out: one [`Row`] per
//! record, in file order, streamed; a record that cannot be read is a [`RowProblem`] in its place.
//! Nothing is known here of what the columns mean.

mod arrow;
mod compressed;
mod csv;
mod json;
mod parquet;
mod source;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conversation::Origin;
use crate::error::DataError;

pub(crate) use source::is_of_split;
pub use source::{FileKind, Source};

/// Longest row that is read, in bytes: a bound on memory against a file without line breaks.
pub const MAX_ROW_BYTES: usize = 64 << 20;

/// One record of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The columns by name, in the order of the file. Of a name given twice the last value counts,
    /// as in Python's `json`.
    pub columns: Map<String, Value>,
    /// Where it was read.
    pub origin: Origin,
}

/// A record that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowProblem {
    /// Where it was read.
    pub origin: Origin,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for RowProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.reason)
    }
}

/// What a reader of one file finds: a record, good or bad, and the line where it begins.
struct Record {
    line: u64,
    columns: Result<Map<String, Value>, String>,
}

/// A reader of one file.
type Records = Box<dyn Iterator<Item = Result<Record, DataError>>>;

/// What a JSON value is, for a message: "a number", "an array", …
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The rows of a [`Source`], file after file.
///
/// Yields `Err` when a file cannot be read further (and then ends), `Ok(Err(_))` for a record that is
/// malformed, `Ok(Ok(_))` for a row.
pub struct Rows {
    dataset: Arc<str>,
    kind: FileKind,
    waiting: std::vec::IntoIter<PathBuf>,
    current: Option<(Arc<PathBuf>, Records)>,
    row: u64,
}

impl Rows {
    /// The rows of `source`; `dataset` is the name that their origins carry.
    pub fn open(dataset: &str, source: &Source) -> Self {
        Self {
            dataset: dataset.into(),
            kind: source.kind,
            waiting: source.files.clone().into_iter(),
            current: None,
            row: 0,
        }
    }

    fn open_file(&self, path: &Path) -> Result<Records, DataError> {
        Ok(match self.kind {
            FileKind::Json => json::open(path)?,
            FileKind::JsonLines => json::open_lines(path)?,
            FileKind::Csv => csv::open(path, b',')?,
            FileKind::Tsv => csv::open(path, b'\t')?,
            FileKind::Parquet => parquet::open(path)?,
            FileKind::Arrow => arrow::open(path)?,
            FileKind::Text => text::open(path)?,
        })
    }

    fn fail(&mut self, error: DataError) -> Option<<Self as Iterator>::Item> {
        self.current = None;
        self.waiting = Vec::new().into_iter();
        Some(Err(error))
    }
}

impl Iterator for Rows {
    type Item = Result<Result<Row, RowProblem>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((file, records)) = &mut self.current else {
                let path = self.waiting.next()?;
                match self.open_file(&path) {
                    Ok(records) => self.current = Some((Arc::new(path), records)),
                    Err(error) => return self.fail(error),
                }
                continue;
            };
            match records.next() {
                None => self.current = None,
                Some(Err(error)) => return self.fail(error),
                Some(Ok(Record { line, columns })) => {
                    let origin = Origin {
                        dataset: Arc::clone(&self.dataset),
                        file: Arc::clone(file),
                        line,
                        row: self.row,
                    };
                    self.row += 1;
                    return Some(Ok(match columns {
                        Ok(columns) => Ok(Row { columns, origin }),
                        Err(reason) => Err(RowProblem { origin, reason }),
                    }));
                }
            }
        }
    }
}
