//! CSV and TSV files with a header line; every cell is text, an empty cell the empty text.
//!
//! Quoting is RFC 4180's: a quoted cell may hold line breaks, and a row's line is where it begins.

use std::path::Path;

use serde_json::{Map, Value};

use super::text::open_checked;
use super::{Record, Records};
use crate::error::DataError;

/// The rows of a file whose cells are separated by `delimiter`.
pub(super) fn open(path: &Path, delimiter: u8) -> Result<Records, DataError> {
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .from_reader(open_checked(path)?);
    let path = path.to_owned();
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(|name| name.trim().to_owned()).collect(),
        Err(error) => return Err(unreadable(&path, error)),
    };
    if let Some(twice) = header
        .iter()
        .enumerate()
        .find(|(i, name)| header[..*i].contains(name))
    {
        return Err(DataError::BrokenFile {
            path,
            line: 1,
            reason: format!("the header names the column `{}` twice", twice.1),
            help: "rename one of the columns".to_owned(),
        });
    }
    Ok(Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| unreadable(&path, error))?;
        let columns = if record.len() == header.len() {
            let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
            Ok(header.iter().cloned().zip(cells).collect::<Map<_, _>>())
        } else {
            Err(format!(
                "{} cells where the header has {} (an unquoted separator or a missing quote?)",
                record.len(),
                header.len()
            ))
        };
        let line = record.position().map_or(0, ::csv::Position::line);
        Ok(Record { line, columns })
    })))
}

fn unreadable(path: &Path, error: ::csv::Error) -> DataError {
    let line = error.position().map_or(1, ::csv::Position::line);
    let reason = error.to_string();
    match error.into_kind() {
        ::csv::ErrorKind::Io(source) => DataError::Io {
            path: path.to_owned(),
            source,
        },
        ::csv::ErrorKind::Utf8 { .. } => DataError::NotUtf8 {
            path: path.to_owned(),
            line,
        },
        _ => DataError::BrokenFile {
            path: path.to_owned(),
            line,
            reason,
            help: "check the quotes around this line".to_owned(),
        },
    }
}
