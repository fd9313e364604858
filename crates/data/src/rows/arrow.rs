//! Arrow files, row by row: those that `datasets` writes (`save_to_disk`, its cache) and any other, file or stream.
//!
//! A row's `line` is its 1-based number in the file. As with parquet, what the decoder makes of a hostile file is
//! caught here and becomes an error.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use serde_json::{Map, Value};

use super::{Record, Records};
use crate::error::DataError;

/// Rows that are turned into JSON at once: a batch of a file may have millions.
const SLICE_ROWS: usize = 256;

/// The rows of the file `path`.
pub(super) fn open(path: &Path) -> Result<Records, DataError> {
    let unreadable = |source| DataError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let start = reader.fill_buf().map_err(unreadable)?;
    if start.is_empty() {
        return Err(DataError::EmptyFile { path: path.to_owned() });
    }
    let is_file = start.starts_with(b"ARROW1");
    let batches = guarded(path, 0, || {
        Ok(match is_file {
            true => Batches::File(Box::new(FileReader::try_new(reader, None)?)),
            false => Batches::Stream(Box::new(StreamReader::try_new(reader, None)?)),
        })
    })?;
    Ok(Box::new(ArrowRows {
        path: path.to_owned(),
        batches: Some(batches),
        open: None,
        ready: Vec::new().into_iter(),
        number: 0,
    }))
}

enum Batches {
    File(Box<FileReader<BufReader<File>>>),
    Stream(Box<StreamReader<BufReader<File>>>),
}

impl Batches {
    fn next(&mut self) -> Option<Result<arrow_array::RecordBatch, arrow_schema::ArrowError>> {
        match self {
            Self::File(batches) => batches.next(),
            Self::Stream(batches) => batches.next(),
        }
    }
}

struct ArrowRows {
    path: PathBuf,
    /// `None` after an error: the decoder's state is not to be trusted then.
    batches: Option<Batches>,
    /// The batch in hand, and how many of its rows are read.
    open: Option<(arrow_array::RecordBatch, usize)>,
    ready: std::vec::IntoIter<Map<String, Value>>,
    number: u64,
}

impl ArrowRows {
    /// The next rows as JSON; none at the end of the file.
    fn more(&mut self) -> Result<Vec<Map<String, Value>>, DataError> {
        let Self { path, batches, open, .. } = self;
        let Some(batches) = batches else { return Ok(Vec::new()) };
        guarded(path, self.number, || {
            let (batch, from) = loop {
                match open.take() {
                    Some((batch, from)) if from < batch.num_rows() => break (batch, from),
                    _ => match batches.next().transpose()? {
                        Some(batch) => *open = Some((batch, 0)),
                        None => return Ok(Vec::new()),
                    },
                }
            };
            let rows = SLICE_ROWS.min(batch.num_rows() - from);
            let mut lines = Vec::new();
            let mut writer =
                WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut lines);
            writer.write(&batch.slice(from, rows))?;
            writer.finish()?;
            drop(writer);
            *open = Some((batch, from + rows));
            let parsed = serde_json::Deserializer::from_slice(&lines).into_iter();
            parsed
                .collect::<Result<_, _>>()
                .map_err(|error| arrow_schema::ArrowError::JsonError(error.to_string()))
        })
    }
}

impl Iterator for ArrowRows {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.len() == 0 {
            match self.more() {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(error) => {
                    self.batches = None;
                    return Some(Err(error));
                }
            }
        }
        let columns = self.ready.next()?;
        self.number += 1;
        Some(Ok(Record { line: self.number, columns: Ok(columns) }))
    }
}

/// Runs a step of the decoder; its errors and panics name the file and the row.
fn guarded<T>(
    path: &Path,
    row: u64,
    step: impl FnOnce() -> Result<T, arrow_schema::ArrowError>,
) -> Result<T, DataError> {
    let reason = match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the file is damaged (the decoder gave up)".to_owned(),
    };
    Err(DataError::BrokenFile {
        path: path.to_owned(),
        line: row,
        reason,
        help: "the file is incomplete or damaged: fetch or write it again".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Written by `datasets` (stream) and pyarrow (file); `tests/data/README.md` says how.
    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    fn rows(path: &Path) -> Result<Vec<(u64, Value)>, DataError> {
        let record = |record: Record| (record.line, Value::Object(record.columns.expect("a good row")));
        open(path)?.map(|found| found.map(record)).collect()
    }

    #[test]
    fn files_and_streams_are_read_as_their_writer_meant_them() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let expected = [
            (1, json!({"messages": [turn("user", "q0"), turn("assistant", "ä\n0")], "n": 1})),
            (2, json!({"messages": [turn("user", "q1"), turn("assistant", "a1")], "n": null})),
            (3, json!({"messages": null, "n": 3})),
        ];
        for name in ["turns.arrow", "turns_stream.arrow"] {
            assert_eq!(rows(&Path::new(DATA).join(name)).expect("a good file"), expected, "{name}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_a_panic() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("damaged.arrow");
        let mut errors = 0;
        for name in ["turns.arrow", "turns_stream.arrow"] {
            let good = fs::read(Path::new(DATA).join(name)).expect("the file of the test");
            for at in (0..good.len()).step_by(3) {
                let mut bytes = good.clone();
                bytes[at] ^= 0x5a;
                fs::write(&path, bytes).expect("room for the file");
                errors += usize::from(matches!(rows(&path), Err(DataError::BrokenFile { .. })));
            }
            fs::write(&path, &good[..good.len() / 2]).expect("room for the file");
            assert!(rows(&path).is_err());
        }
        assert!(errors > 50, "{errors}");
    }
}
