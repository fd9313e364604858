//! Text files: opening with a look at the first bytes, lines with their numbers, `.txt` rows.
//!
//! A `.txt` file is one row per line, in a column named `text`, as in Hugging Face's `text` loader;
//! blank lines are no rows.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{MAX_ROW_BYTES, Record, Records, compressed};
use crate::error::DataError;

/// The column that holds the words of a `.txt` file's row.
pub(super) const TEXT_COLUMN: &str = "text";

/// How many first bytes are looked at.
const LOOK_BYTES: usize = 8192;

/// Opens a text file, decompressed, behind its byte order mark, if any.
///
/// # Errors
/// When it cannot be read, is empty, or begins like something that is not UTF-8 text.
pub(super) fn open_checked(path: &Path) -> Result<compressed::Reader, DataError> {
    let mut reader = compressed::open(path)?;
    let start = reader.fill_buf().map_err(|error| DataError::read(path, error))?;
    let look = &start[..start.len().min(LOOK_BYTES)];
    let binary = |found, help| Err(DataError::Binary { path: path.to_owned(), found, help });
    match look {
        [] => {
            return Err(DataError::EmptyFile { path: path.to_owned() });
        }
        [b'P', b'K', 3, 4, ..] => return binary("a zip archive", "unpack it first"),
        [b'P', b'A', b'R', b'1', ..] => {
            return binary("a parquet file", "give it the extension `.parquet`");
        }
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            return binary("an arrow file", "give it the extension `.arrow`");
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return binary("UTF-16", "convert it: `iconv -f UTF-16 -t UTF-8`");
        }
        look if look.contains(&0) => {
            return binary("binary (it has NUL bytes)", "name a json, jsonl, csv or txt file of UTF-8 text");
        }
        _ => {}
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

/// Lines of a reader with their 1-based numbers, without line ends; memory is bounded by
/// [`MAX_ROW_BYTES`].
pub(super) struct Lines<R> {
    path: PathBuf,
    reader: R,
    /// Number of the line that is read next.
    next: u64,
}

/// A line: its text, or why it cannot be used.
pub(super) struct Line {
    pub number: u64,
    pub text: Result<String, String>,
}

impl<R: BufRead> Lines<R> {
    /// `reader` is at the beginning of the line `line`.
    pub(super) fn new(path: &Path, reader: R, line: u64) -> Self {
        Self { path: path.to_owned(), reader, next: line }
    }

    fn read(&mut self) -> Result<Option<Line>, DataError> {
        let unreadable = |error| DataError::read(&self.path, error);
        let mut bytes = Vec::new();
        let limit = MAX_ROW_BYTES as u64 + 1;
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        if read == 0 {
            return Ok(None);
        }
        let number = self.next;
        self.next += 1;
        if read as u64 == limit && bytes.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n').map_err(unreadable)?;
            return Ok(Some(Line { number, text: Err(too_long()) }));
        }
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(Line { number, text: Ok(text) })),
            Err(_) => Err(DataError::NotUtf8 { path: self.path.clone(), line: number }),
        }
    }
}

/// How many line breaks there are.
pub(super) fn breaks(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The reason for a row over [`MAX_ROW_BYTES`].
pub(super) fn too_long() -> String {
    format!("the row is longer than {} MiB", MAX_ROW_BYTES >> 20)
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The rows of a `.txt` file.
pub(super) fn open(path: &Path) -> Result<Records, DataError> {
    let lines = Lines::new(path, open_checked(path)?, 1);
    Ok(Box::new(lines.filter_map(|line| match line {
        Err(error) => Some(Err(error)),
        Ok(Line { text: Ok(text), .. }) if text.trim().is_empty() => None,
        Ok(Line { number, text }) => Some(Ok(Record {
            line: number,
            columns: text.map(|text| Map::from_iter([(TEXT_COLUMN.to_owned(), Value::String(text))])),
        })),
    })))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(bytes).expect("room for the file");
        file
    }

    #[test]
    fn every_line_that_is_not_blank_is_a_row() {
        let file = file(b"\xef\xbb\xbfone\r\n\n \t\ntwo \nthree");
        let records = open(file.path()).expect("a text file");
        let found: Vec<(u64, Value)> = records
            .map(|record| record.expect("a good line"))
            .map(|row| (row.line, row.columns.expect("a good row")["text"].take()))
            .collect();
        assert_eq!(found, [(1, "one".into()), (4, "two ".into()), (5, "three".into())]);
    }

    #[test]
    fn what_is_not_text_is_said_to_be_what_it_is() {
        for (bytes, expected) in [
            (&b"PK\x03\x04...."[..], "a zip archive"),
            (b"PAR1....", "a parquet file"),
            (b"\xff\xfe[\x00", "UTF-16"),
            (b"{\"a\": \"\x00\"}", "binary (it has NUL bytes)"),
        ] {
            match open_checked(file(bytes).path()) {
                Err(DataError::Binary { found, .. }) => assert_eq!(found, expected),
                _ => panic!("{expected}"),
            }
        }
        assert!(matches!(open_checked(file(b"").path()), Err(DataError::EmptyFile { .. })));
    }

    #[test]
    fn a_line_over_the_limit_is_malformed_and_its_bytes_are_passed_over() {
        let mut bytes = vec![b'a'; MAX_ROW_BYTES + 2];
        bytes.extend_from_slice(b"\nb\n");
        let lines = Lines::new(Path::new("t"), Cursor::new(bytes), 1);
        let found: Vec<Line> = lines.map(|line| line.expect("a readable line")).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].text, Err("the row is longer than 64 MiB".to_owned()));
        assert_eq!((found[1].number, found[1].text.as_deref()), (2, Ok("b")));
    }
}
