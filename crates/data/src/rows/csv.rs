//! CSV and TSV files with a header line; every cell is text, an empty cell the empty text.
//!
//! RFC 4180: a cell in double quotes may hold separators, line breaks and doubled quotes. Lines end with
//! LF or CRLF; blank lines are no rows; a row's line is where it begins. Rows are split here and not by
//! a library so that their lines are exact and a missing quote cannot take more memory than
//! [`MAX_ROW_BYTES`].

use std::collections::HashSet;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::text::{breaks, open_checked, too_long};
use super::{MAX_ROW_BYTES, Record, Records, compressed};
use crate::error::DataError;

/// The rows of a file whose cells are separated by `separator`.
pub(super) fn open(path: &Path, separator: u8) -> Result<Records, DataError> {
    let reader = open_checked(path)?;
    let mut rows = CsvRows { path: path.to_owned(), reader, separator, line: 1, header: Vec::new() };
    let broken = |line, reason| DataError::BrokenFile {
        path: path.to_owned(),
        line,
        reason,
        help: "the first line names the columns, each once; mend it".to_owned(),
    };
    let (line, header) = match rows.read()? {
        None => return Err(DataError::EmptyFile { path: path.to_owned() }),
        Some((line, Err(reason))) => return Err(broken(line, reason)),
        Some((line, Ok(header))) => (line, header),
    };
    if header.iter().any(|name| name.contains('\r')) {
        let reason = "its lines end with CR alone, as nothing writes them any more".to_owned();
        let help = "save it with line ends of LF or CRLF".to_owned();
        return Err(DataError::BrokenFile { path: path.to_owned(), line, reason, help });
    }
    rows.header = header.iter().map(|name| name.trim().to_owned()).collect();
    let mut seen = HashSet::new();
    if let Some(name) = rows.header.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(broken(line, format!("the header names the column `{name}` twice")));
    }
    Ok(Box::new(rows))
}

struct CsvRows {
    path: PathBuf,
    reader: compressed::Reader,
    separator: u8,
    /// Line that is read next.
    line: u64,
    header: Vec<String>,
}

/// The line where a row begins, and its cells or why there are none.
type Cells = (u64, Result<Vec<String>, String>);

impl CsvRows {
    /// The next row that is not a blank line.
    fn read(&mut self) -> Result<Option<Cells>, DataError> {
        loop {
            let line = self.line;
            let Some((bytes, length, place)) = self.read_bytes()? else {
                return Ok(None);
            };
            if length > MAX_ROW_BYTES {
                return Ok(Some((line, Err(format!("{} (a missing quote?)", too_long())))));
            }
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => text.strip_suffix('\n').unwrap_or(text),
                Err(error) => {
                    let line = line + breaks(&bytes[..error.valid_up_to()]);
                    return Err(DataError::NotUtf8 { path: self.path.clone(), line });
                }
            };
            if place == Place::Quoted {
                return Ok(Some((line, Err("a quote is not closed before the end of the file".to_owned()))));
            }
            let text = text.strip_suffix('\r').unwrap_or(text);
            if !text.trim().is_empty() {
                return Ok(Some((line, Ok(cells(text, self.separator)))));
            }
        }
    }

    /// The bytes of the next row with its line end, their number (those over the limit are not kept),
    /// and where in a cell the row ended.
    fn read_bytes(&mut self) -> Result<Option<(Vec<u8>, usize, Place)>, DataError> {
        let mut bytes = Vec::new();
        let mut length = 0_usize;
        let mut place = Place::Start;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) => return Err(DataError::read(&self.path, error)),
            };
            if chunk.is_empty() {
                return Ok((length > 0).then_some((bytes, length, place)));
            }
            let mut ended = false;
            let mut taken = 0;
            for byte in chunk {
                taken += 1;
                ended = *byte == b'\n' && place != Place::Quoted;
                if ended {
                    break;
                }
                place = place.after(*byte, self.separator);
            }
            length = length.saturating_add(taken);
            if length <= MAX_ROW_BYTES {
                bytes.extend_from_slice(&chunk[..taken]);
            }
            self.line += breaks(&chunk[..taken]);
            self.reader.consume(taken);
            if ended {
                return Ok(Some((bytes, length, place)));
            }
        }
    }
}

impl Iterator for CsvRows {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (line, cells) = match self.read().transpose()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let columns = cells.and_then(|cells| {
            if cells.len() != self.header.len() {
                let (cells, header) = (cells.len(), self.header.len());
                return Err(format!(
                    "the row has {cells} cells, the header {header} (a separator without quotes, or a missing quote?)"
                ));
            }
            let cells = cells.into_iter().map(Value::String);
            Ok(self.header.iter().cloned().zip(cells).collect::<Map<_, _>>())
        });
        Some(Ok(Record { line, columns }))
    }
}

/// Where in a row a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first byte of a cell.
    Start,
    /// In a cell, outside quotes.
    Plain,
    /// Between quotes.
    Quoted,
    /// Behind a quote between quotes: the closing one, or the first of two.
    Quote,
}

impl Place {
    fn after(self, byte: u8, separator: u8) -> Self {
        match (self, byte) {
            (Self::Start | Self::Quote, b'"') => Self::Quoted,
            (Self::Quoted, b'"') => Self::Quote,
            (Self::Quoted, _) => Self::Quoted,
            (_, byte) if byte == separator => Self::Start,
            _ => Self::Plain,
        }
    }
}

/// The cells of a whole row without its line end.
fn cells(row: &str, separator: u8) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut place = Place::Start;
    for letter in row.chars() {
        // Bytes of other letters than ASCII are neither quotes nor separators.
        let next = place.after(u8::try_from(letter).unwrap_or(u8::MAX), separator);
        match (place, next) {
            (_, Place::Start) => cells.push(String::new()),
            (Place::Start, Place::Quoted) | (Place::Quoted, Place::Quote) => {}
            _ => cells.last_mut().expect("there is a first cell").push(letter),
        }
        place = next;
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    type Found = (u64, Result<Value, String>);

    fn rows(text: &[u8], delimiter: u8) -> Result<Vec<Found>, DataError> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text).expect("room for the file");
        let records = open(file.path(), delimiter)?;
        records.map(|record| record.map(|row| (row.line, row.columns.map(Value::Object)))).collect()
    }

    #[test]
    fn quoted_cells_hold_separators_quotes_and_line_breaks() {
        let text = b"\xef\xbb\xbfinstruction,output\r\n\"a, \"\"b\"\"\nc\",42\r\n,last";
        let expected = [
            (2, Ok(serde_json::json!({"instruction": "a, \"b\"\nc", "output": "42"}))),
            (4, Ok(serde_json::json!({"instruction": "", "output": "last"}))),
        ];
        assert_eq!(rows(text, b',').expect("a good file"), expected);
        let tabs = rows(b"a\tb\nx,y\tz\n", b'\t').expect("a good file");
        assert_eq!(tabs, [(2, Ok(serde_json::json!({"a": "x,y", "b": "z"})))]);
    }

    #[test]
    fn line_ends_of_cr_alone_are_named() {
        let error = rows(b"a,b\r1,2\r3,4\r", b',').expect_err("one line").to_string();
        assert!(error.contains("its lines end with CR alone") && error.contains("save it with"), "{error}");
    }

    #[test]
    fn a_row_of_another_width_is_malformed() {
        let found = rows(b"a,b\n1,2\n3\n4,5\n", b',').expect("a readable file");
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].0, 3);
        assert!(
            found[1].1.as_ref().is_err_and(|reason| reason.starts_with("the row has 1 cells, the header 2"))
        );
    }

    #[test]
    fn a_column_named_twice_and_bytes_that_are_not_utf8_are_errors() {
        assert!(matches!(rows(b"a,a\n1,2\n", b','), Err(DataError::BrokenFile { line: 1, .. })));
        assert!(matches!(rows(b"a,b\n\n1,\"2\n\n\xff\"\n", b','), Err(DataError::NotUtf8 { line: 5, .. })));
    }

    #[test]
    fn quotes_count_only_where_a_cell_begins() {
        for (row, expected) in [
            (r#"5" pipe,b"#, vec![r#"5" pipe"#, "b"]),
            (r#""a"x,b"#, vec!["ax", "b"]),
            (r#""a""b","""#, vec![r#"a"b"#, ""]),
            ("\u{e9},\"\u{4e2d},\"", vec!["\u{e9}", "\u{4e2d},"]),
            (",", vec!["", ""]),
        ] {
            assert_eq!(cells(row, b','), expected, "{row}");
        }
    }

    #[test]
    fn a_quote_that_is_not_closed_is_a_malformed_row() {
        let found = rows(b"a,b\n1,2\n3,\"4\n5,6\n", b',').expect("a readable file");
        assert_eq!(found[1], (3, Err("a quote is not closed before the end of the file".to_owned())));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn blank_lines_are_no_rows_but_count() {
        let found = rows(b"\na,b\r\n\r\n1,2\n\n\n3,4", b',').expect("a readable file");
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 7]);
    }
}
