//! Parquet files, row by row: lists become arrays, structs objects in the order of the schema.
//!
//! A row's `line` is its 1-based number in the file. The decoder of the `parquet` crate is not meant
//! for hostile files and may panic on one; that is caught here and becomes an error.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::Value;

use super::{Record, Records};
use crate::error::DataError;

/// The rows of the file `path`.
pub(super) fn open(path: &Path) -> Result<Records, DataError> {
    let unreadable = |source| DataError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Err(DataError::EmptyFile { path: path.to_owned() });
    }
    let rows = guarded(path, 0, || Ok(RowIter::from_file_into(Box::new(SerializedFileReader::new(file)?))))?;
    Ok(Box::new(ParquetRows { path: path.to_owned(), rows: Some(rows), number: 0 }))
}

struct ParquetRows {
    path: PathBuf,
    /// `None` after an error: the decoder's state is not to be trusted then.
    rows: Option<RowIter<'static>>,
    number: u64,
}

impl Iterator for ParquetRows {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        self.number += 1;
        // Writing a value as text may overflow as well (a date in the year 10^9), so it is guarded too.
        let columns = guarded(&self.path, self.number, || {
            let row = rows.next().transpose()?;
            Ok(row.map(|row| {
                let columns = row.into_columns().into_iter();
                columns.map(|(name, field)| (name, value_of(field))).collect()
            }))
        });
        match columns {
            Ok(columns) => Some(Ok(Record { line: self.number, columns: Ok(columns?) })),
            Err(error) => {
                self.rows = None;
                Some(Err(error))
            }
        }
    }
}

/// Runs a step of the decoder; its errors and panics name the file and the row.
fn guarded<T>(path: &Path, row: u64, step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
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

/// A cell as JSON; dates and decimals as their usual text, bytes as text when they are UTF-8.
fn value_of(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => value.to_f64().into(),
        Field::Float(value) => f64::from(value).into(),
        Field::Double(value) => value.into(),
        Field::Str(text) => text.into(),
        Field::Bytes(ref bytes) => match bytes.as_utf8() {
            Ok(text) => text.into(),
            Err(_) => Value::Array(bytes.data().iter().map(|byte| (*byte).into()).collect()),
        },
        Field::Group(row) => {
            row.into_columns().into_iter().map(|(name, field)| (name, value_of(field))).collect()
        }
        Field::ListInternal(list) => list.elements().iter().cloned().map(value_of).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, value)| {
                let key = match value_of(key.clone()) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                (key, value_of(value.clone()))
            });
            entries.collect()
        }
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Written by pyarrow; `tests/data/README.md` says how.
    const TURNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/turns.parquet");

    #[test]
    fn nested_columns_are_read_as_their_writer_meant_them() {
        let records = open(Path::new(TURNS)).expect("a parquet file");
        let found: Vec<(u64, Value)> = records
            .map(|record| record.expect("a good row"))
            .map(|row| (row.line, Value::Object(row.columns.expect("a good row"))))
            .collect();
        let turn = |role: &str, content: Value, calls: Value| json!({"role": role, "content": content, "tool_calls": calls});
        let call = json!([{"name": "f", "arguments": "{\"b\": 1}"}]);
        let first = json!({
            "messages": [
                turn("user", "q0".into(), Value::Null),
                turn("assistant", Value::Null, call),
                turn("tool", "r".into(), Value::Null),
                turn("assistant", "ä0".into(), Value::Null),
            ],
            "n": 1, "f": 0.5, "day": "2020-01-02", "dec": "1.25",
        });
        let second = json!({
            "messages": [turn("user", "q1".into(), Value::Null), turn("assistant", "a1".into(), Value::Null)],
            "n": null, "f": null, "day": null, "dec": null,
        });
        let third = json!({"messages": null, "n": 3, "f": null, "day": null, "dec": null});
        assert_eq!(found, [(1, first), (2, second), (3, third)]);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_a_panic() {
        let good = fs::read(TURNS).expect("the file of the test");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("damaged.parquet");
        let mut errors = 0;
        for at in (0..good.len()).step_by(5) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x5a;
            fs::write(&path, bytes).expect("room for the file");
            let read = open(&path).and_then(|records| records.collect::<Result<Vec<_>, _>>());
            errors += usize::from(matches!(read, Err(DataError::BrokenFile { .. })));
        }
        assert!(errors > good.len() / 20, "{errors}");
        fs::write(&path, &good[..good.len() / 2]).expect("room for the file");
        assert!(matches!(open(&path), Err(DataError::BrokenFile { line: 0, .. })));
    }
}
