//! JSON files: an array of objects, one object a line, or objects one after the other.
//!
//! What a `.json` file holds is told by its beginning, not trusted to its name. Rows are told apart by
//! counting brackets outside strings, without recursion and a row at a time, and each is parsed alone:
//! a malformed row does not cost its neighbours, and every row knows the line where it begins.

use std::io::{BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::text::{Line, Lines, open_checked, too_long};
use super::{MAX_ROW_BYTES, Record, Records};
use crate::error::DataError;

/// The rows of a `.json` file.
pub(super) fn open(path: &Path) -> Result<Records, DataError> {
    let mut start = Start::read(path)?;
    if start.first == b'[' {
        Ok(Box::new(Elements::array(path, start.into_reader())?))
    } else if start.first_line_is_complete()? {
        Ok(lines(path, start.into_reader()))
    } else {
        Ok(Box::new(Elements::stream(path, start.into_reader())))
    }
}

/// The rows of a `.jsonl` file; one that holds an array is read as that.
pub(super) fn open_lines(path: &Path) -> Result<Records, DataError> {
    let start = Start::read(path)?;
    match start.first {
        b'[' => Ok(Box::new(Elements::array(path, start.into_reader())?)),
        _ => Ok(lines(path, start.into_reader())),
    }
}

/// The beginning of a file, read ahead to tell what it holds.
struct Start<R> {
    path: PathBuf,
    reader: R,
    /// What was read of `reader`.
    ahead: Vec<u8>,
    /// The first byte that is not white space.
    first: u8,
}

impl Start<std::io::BufReader<std::fs::File>> {
    fn read(path: &Path) -> Result<Self, DataError> {
        let mut reader = open_checked(path)?;
        let mut ahead = Vec::new();
        loop {
            let unreadable = |source| DataError::Io {
                path: path.to_owned(),
                source,
            };
            let chunk = reader.fill_buf().map_err(unreadable)?;
            if chunk.is_empty() {
                return Err(DataError::EmptyFile {
                    path: path.to_owned(),
                });
            }
            let blank = chunk
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let first = chunk.get(blank).copied();
            ahead.extend_from_slice(&chunk[..blank]);
            reader.consume(blank);
            if let Some(first) = first {
                return Ok(Self {
                    path: path.to_owned(),
                    reader,
                    ahead,
                    first,
                });
            }
        }
    }
}

impl<R: BufRead> Start<R> {
    /// Whether the first line that is not blank is a whole JSON value.
    fn first_line_is_complete(&mut self) -> Result<bool, DataError> {
        let unreadable = |source| DataError::Io {
            path: self.path.clone(),
            source,
        };
        let from = self.ahead.len();
        (&mut self.reader)
            .take(MAX_ROW_BYTES as u64)
            .read_until(b'\n', &mut self.ahead)
            .map_err(unreadable)?;
        let line = &self.ahead[from..];
        // Only a value that goes on behind the line says that the file is not one value a line.
        Ok(!matches!(
            serde_json::from_slice::<serde::de::IgnoredAny>(line),
            Err(error) if error.is_eof()
        ))
    }

    fn into_reader(self) -> impl BufRead + use<R> {
        Cursor::new(self.ahead).chain(self.reader)
    }
}

/// One object a line; blank lines are no rows.
fn lines(path: &Path, reader: impl BufRead + 'static) -> Records {
    Box::new(Lines::new(path, reader).filter_map(|line| match line {
        Err(error) => Some(Err(error)),
        Ok(Line { text: Ok(text), .. }) if text.trim().is_empty() => None,
        Ok(Line { number, text }) => {
            let columns = text.and_then(|text| parse(&text, number));
            Some(Ok(Record {
                line: number,
                columns,
            }))
        }
    }))
}

/// The object that `text` is; `line` is where it begins.
fn parse(text: &str, line: u64) -> Result<Map<String, Value>, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(columns)) => Ok(columns),
        Ok(other) => Err(format!(
            "the row is {}, not an object",
            super::kind_of(&other)
        )),
        Err(error) if error.to_string().starts_with("recursion limit") => {
            Err("the row is nested more than 127 levels deep".to_owned())
        }
        Err(error) => {
            let place = format!(" at line {} column {}", error.line(), error.column());
            let reason = error.to_string().replace(&place, "");
            let line = line + (error.line() as u64).saturating_sub(1);
            Err(format!(
                "invalid JSON: {reason} (line {line}, column {})",
                error.column()
            ))
        }
    }
}

/// The values of an array, or values one after the other.
struct Elements<R> {
    path: PathBuf,
    reader: R,
    line: u64,
    in_array: bool,
    /// Whether a comma must come before the next element.
    after_element: bool,
    done: bool,
    /// Line of the last element that was begun.
    element_line: u64,
    /// Line of a line break inside a string of it: where a quote is likely missing.
    open_string: Option<u64>,
}

impl<R: BufRead> Elements<R> {
    fn stream(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            line: 1,
            in_array: false,
            after_element: false,
            done: false,
            element_line: 1,
            open_string: None,
        }
    }

    /// Behind the array's opening bracket, which is the first byte that is not white space.
    fn array(path: &Path, reader: R) -> Result<Self, DataError> {
        let mut elements = Self::stream(path, reader);
        elements.in_array = true;
        elements.next_byte()?;
        elements.reader.consume(1);
        elements.element_line = elements.line;
        Ok(elements)
    }

    fn unreadable(&self, source: std::io::Error) -> DataError {
        DataError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// The next byte that is not white space, not consumed; `None` at the end.
    fn next_byte(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(source) => return Err(self.unreadable(source)),
            };
            if chunk.is_empty() {
                return Ok(None);
            }
            let blank = chunk
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            self.line += chunk[..blank].iter().filter(|byte| **byte == b'\n').count() as u64;
            let first = chunk.get(blank).copied();
            self.reader.consume(blank);
            if first.is_some() {
                return Ok(first);
            }
        }
    }

    fn read(&mut self) -> Result<Option<Record>, DataError> {
        let mut comma = false;
        loop {
            match self.next_byte()? {
                None if self.in_array => return Err(self.cut_off()),
                None => return Ok(None),
                Some(b']') if self.in_array => {
                    if comma {
                        return Err(self.broken("a comma with no element behind it"));
                    }
                    self.reader.consume(1);
                    if self.next_byte()?.is_some() {
                        return Err(self.broken("text behind the end of the array"));
                    }
                    return Ok(None);
                }
                Some(b',') if self.in_array => {
                    if comma || !self.after_element {
                        return Err(self.broken("a comma with no element before it"));
                    }
                    comma = true;
                    self.reader.consume(1);
                }
                Some(_) if self.in_array && self.after_element && !comma => {
                    return Err(self.broken(&format!(
                        "`,` or `]` must follow the element that begins on line {}",
                        self.element_line
                    )));
                }
                Some(_) => return self.element().map(Some),
            }
        }
    }

    /// Reads the value that begins at the next byte.
    fn element(&mut self) -> Result<Record, DataError> {
        self.element_line = self.line;
        self.open_string = None;
        let mut bytes = Vec::new();
        let mut scan = Scan::default();
        let mut length = 0_usize;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(source) => return Err(self.unreadable(source)),
            };
            if chunk.is_empty() {
                // A bare number or word may end with the file; brackets and strings may not.
                if self.in_array || scan.depth > 0 || scan.in_string {
                    return Err(self.cut_off());
                }
                break;
            }
            let (taken, ended) = scan.advance(chunk, &mut self.line, &mut self.open_string);
            length = length.saturating_add(taken);
            if length <= MAX_ROW_BYTES {
                bytes.extend_from_slice(&chunk[..taken]);
            }
            self.reader.consume(taken);
            if ended {
                break;
            }
        }
        self.after_element = true;
        let line = self.element_line;
        if length > MAX_ROW_BYTES {
            return Ok(Record {
                line,
                columns: Err(too_long()),
            });
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Record {
                line,
                columns: parse(text, line),
            }),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let breaks = before.iter().filter(|byte| **byte == b'\n').count() as u64;
                Err(DataError::NotUtf8 {
                    path: self.path.clone(),
                    line: line + breaks,
                })
            }
        }
    }

    fn broken(&self, reason: &str) -> DataError {
        DataError::BrokenFile {
            path: self.path.clone(),
            line: self.line,
            reason: format!("invalid JSON: {reason}"),
            help: "mend the file at this line; one object a line (jsonl) survives a bad row better"
                .to_owned(),
        }
    }

    /// The file ends inside the array or inside an element.
    fn cut_off(&self) -> DataError {
        let what = if self.in_array {
            "the array is not closed"
        } else {
            "the last object is not closed"
        };
        let mut reason = format!(
            "invalid JSON: the file ends where {what}; its last element begins on line {}",
            self.element_line
        );
        if let Some(line) = self.open_string {
            reason += &format!(", and a string is not closed on line {line}");
        }
        DataError::BrokenFile {
            path: self.path.clone(),
            line: self.line,
            reason,
            help:
                "the file was cut off or lacks a bracket or a quote: write it again or mend its end"
                    .to_owned(),
        }
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Finds the end of one JSON value by its brackets and quotes.
#[derive(Default)]
struct Scan {
    begun: bool,
    depth: u64,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Goes through `chunk`: how many bytes belong to the value, and whether it ended with them.
    fn advance(
        &mut self,
        chunk: &[u8],
        line: &mut u64,
        open_string: &mut Option<u64>,
    ) -> (usize, bool) {
        for (at, byte) in chunk.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    b'\n' => {
                        open_string.get_or_insert(*line);
                    }
                    _ => {}
                }
            } else {
                match byte {
                    // At depth 0 these end a bare number or word and are not part of it.
                    b']' | b'}' | b',' if self.depth == 0 && self.begun => return (at, true),
                    _ if self.depth == 0 && byte.is_ascii_whitespace() => return (at, true),
                    b'"' => self.in_string = true,
                    b'[' | b'{' => self.depth += 1,
                    b']' | b'}' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
            }
            self.begun = true;
            if *byte == b'\n' {
                *line += 1;
            }
        }
        (chunk.len(), false)
    }
}
