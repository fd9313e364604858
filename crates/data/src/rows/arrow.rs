//! Arrow files, row by row: those that `datasets` writes (`save_to_disk`, its cache) and any other, file or stream.
//!
//! A row's `line` is its 1-based number in the file. As with parquet, what the decoder makes of a hostile file is
//! caught here and becomes an error.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{ArrowError, DataType, Field};
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
    fn next(&mut self) -> Option<Result<RecordBatch, ArrowError>> {
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
    open: Option<(RecordBatch, usize)>,
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
                        Some(batch) => *open = Some((writable(&batch)?, 0)),
                        None => return Ok(Vec::new()),
                    },
                }
            };
            let rows = SLICE_ROWS.min(batch.num_rows() - from);
            let lines = json_lines(&batch.slice(from, rows))?;
            *open = Some((batch, from + rows));
            let parsed = serde_json::Deserializer::from_slice(&lines).into_iter();
            parsed.collect::<Result<_, _>>().map_err(|error| ArrowError::JsonError(error.to_string()))
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

fn json_lines(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut lines = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut lines);
    writer.write(rows)?;
    writer.finish()?;
    drop(writer);
    Ok(lines)
}

/// The batch with its columns as JSON has them: bytes as the text that they spell (null where they spell none), times of a
/// zone as those of UTC. A column that cannot be written at all is null: few are read, and a map or a union beside them is
/// no fault of the file.
fn writable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let column = |(field, column): (&Arc<Field>, &ArrayRef)| -> Result<(String, ArrayRef), ArrowError> {
        let column = match column.data_type() {
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => {
                let bytes = arrow_cast::cast(column, &DataType::LargeBinary)?;
                arrow_cast::cast(&bytes, &DataType::LargeUtf8)?
            }
            DataType::Timestamp(unit, Some(_)) => {
                let utc = column.to_data().into_builder().data_type(DataType::Timestamp(*unit, None));
                arrow_array::make_array(utc.build()?)
            }
            _ => Arc::clone(column),
        };
        let probe = RecordBatch::try_from_iter_with_nullable([(
            "probe",
            new_null_array(column.data_type(), 1),
            true,
        )]);
        let column = match probe.and_then(|probe| json_lines(&probe)) {
            Ok(_) => column,
            Err(_) => new_null_array(&DataType::Null, column.len()),
        };
        Ok((field.name().clone(), column))
    };
    let columns: Vec<_> =
        batch.schema_ref().fields().iter().zip(batch.columns()).map(column).collect::<Result<_, _>>()?;
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
}

/// Runs a step of the decoder; its errors and panics name the file and the row.
fn guarded<T>(path: &Path, row: u64, step: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, DataError> {
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
    fn bytes_are_text_times_have_no_zone_and_what_json_has_no_form_for_is_null() {
        use arrow_array::{BinaryArray, StringArray, TimestampMicrosecondArray};
        let text = Arc::new(StringArray::from(vec![Some("hat"), None]));
        let bytes = Arc::new(BinaryArray::from(vec![Some("é {".as_bytes()), Some(&[0xff][..])]));
        let times =
            TimestampMicrosecondArray::from(vec![Some(1_000_000), None]).with_timezone("Europe/Berlin");
        let union = new_null_array(
            &DataType::Map(
                Arc::new(Field::new_struct(
                    "entries",
                    vec![
                        Field::new("key", DataType::Int32, false),
                        Field::new("value", DataType::Utf8, true),
                    ],
                    false,
                )),
                false,
            ),
            2,
        );
        let columns: [(&str, ArrayRef); 4] =
            [("text", text), ("bytes", bytes), ("time", Arc::new(times)), ("map", union)];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
                .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("columns.arrow");
        let file = File::create(&path).unwrap();
        let mut writer = arrow_ipc::writer::FileWriter::try_new(file, batch.schema_ref()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        let expected = [
            (1, json!({"text": "hat", "bytes": "é {", "time": "1970-01-01T00:00:01", "map": null})),
            (2, json!({"text": null, "bytes": null, "time": null, "map": null})),
        ];
        assert_eq!(rows(&path).unwrap(), expected);
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
