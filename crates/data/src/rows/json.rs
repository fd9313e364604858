//! JSON files: an array of objects, one object a line, or objects one after the other.
//!
//! What a `.json` file holds is told by its beginning, not trusted to its name. Rows are told apart by
//! counting brackets outside strings, without recursion and a row at a time, and each is parsed alone:
//! a malformed row does not cost its neighbours, and every row knows the line where it begins.

use std::io::{BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::text::{Line, Lines, breaks, open_checked, too_long};
use super::{MAX_ROW_BYTES, Record, Records};
use crate::error::DataError;

/// The rows of a `.json` file.
pub(super) fn open(path: &Path) -> Result<Records, DataError> {
    records(path, open_checked(path)?, false)
}

/// The rows of a `.jsonl` file; one that holds an array is read as that.
pub(super) fn open_lines(path: &Path) -> Result<Records, DataError> {
    records(path, open_checked(path)?, true)
}

fn records<R: BufRead + 'static>(path: &Path, reader: R, lines_only: bool) -> Result<Records, DataError> {
    let mut start = Start::read(path, reader)?;
    let line = start.line;
    if start.first == b'[' {
        start.reader.consume(1);
        Ok(Box::new(Elements::new(path, start.into_reader(), line, true)))
    } else if lines_only || start.first_line_is_complete()? {
        Ok(lines(path, start.into_reader(), line))
    } else {
        Ok(Box::new(Elements::new(path, start.into_reader(), line, false)))
    }
}

/// The beginning of a file, read ahead to tell what it holds.
struct Start<R> {
    path: PathBuf,
    reader: R,
    /// The line of the first byte that is not white space; `reader` is there.
    line: u64,
    /// What was read of `reader` since.
    ahead: Vec<u8>,
    /// The first byte that is not white space.
    first: u8,
}

impl<R: BufRead> Start<R> {
    fn read(path: &Path, mut reader: R) -> Result<Self, DataError> {
        let mut line = 1;
        loop {
            let unreadable = |error| DataError::read(path, error);
            let chunk = reader.fill_buf().map_err(unreadable)?;
            if chunk.is_empty() {
                return Err(DataError::EmptyFile { path: path.to_owned() });
            }
            let blank = chunk.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let first = chunk.get(blank).copied();
            line += breaks(&chunk[..blank]);
            reader.consume(blank);
            if let Some(first) = first {
                return Ok(Self { path: path.to_owned(), reader, line, ahead: Vec::new(), first });
            }
        }
    }

    /// Whether the first line that is not blank is a whole JSON value.
    fn first_line_is_complete(&mut self) -> Result<bool, DataError> {
        let unreadable = |error| DataError::read(&self.path, error);
        (&mut self.reader)
            .take(MAX_ROW_BYTES as u64)
            .read_until(b'\n', &mut self.ahead)
            .map_err(unreadable)?;
        // A value that goes on behind the line, or a second one on it, says that the file is not one value a line.
        let mut values =
            serde_json::Deserializer::from_slice(&self.ahead).into_iter::<serde::de::IgnoredAny>();
        Ok(match values.next() {
            Some(Ok(_)) => !self.ahead[values.byte_offset()..].trim_ascii_start().starts_with(b"{"),
            Some(Err(error)) => !error.is_eof(),
            None => true,
        })
    }

    fn into_reader(self) -> impl BufRead + use<R> {
        Cursor::new(self.ahead).chain(self.reader)
    }
}

/// One object a line; blank lines are no rows.
fn lines(path: &Path, reader: impl BufRead + 'static, line: u64) -> Records {
    Box::new(Lines::new(path, reader, line).filter_map(|line| match line {
        Err(error) => Some(Err(error)),
        Ok(Line { text: Ok(text), .. }) if text.trim().is_empty() => None,
        Ok(Line { number, text }) => {
            let columns = text.and_then(|text| parse(&text, number));
            Some(Ok(Record { line: number, columns }))
        }
    }))
}

/// The object that `text` is; `line` is where it begins.
fn parse(text: &str, line: u64) -> Result<Map<String, Value>, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(columns)) => Ok(columns),
        Ok(other) => Err(format!("the row is {}, not an object", super::kind_of(&other))),
        Err(error) if error.to_string().starts_with("recursion limit") => {
            Err("the row is nested more than 127 levels deep".to_owned())
        }
        Err(error) => {
            let place = format!(" at line {} column {}", error.line(), error.column());
            let reason = error.to_string().replace(&place, "");
            let line = line + (error.line() as u64).saturating_sub(1);
            Err(format!("invalid JSON: {reason} (line {line}, column {})", error.column()))
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
    /// `reader` is at the first value, or behind the opening bracket of the array.
    fn new(path: &Path, reader: R, line: u64, in_array: bool) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            line,
            in_array,
            after_element: false,
            done: false,
            element_line: line,
            open_string: None,
        }
    }

    fn unreadable(&self, source: std::io::Error) -> DataError {
        DataError::read(&self.path, source)
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
            let blank = chunk.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.line += breaks(&chunk[..blank]);
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
            return Ok(Record { line, columns: Err(too_long()) });
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Record { line, columns: parse(text, line) }),
            Err(error) => {
                let line = line + breaks(&bytes[..error.valid_up_to()]);
                Err(DataError::NotUtf8 { path: self.path.clone(), line })
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
        let what = if self.in_array { "the array is not closed" } else { "the last object is not closed" };
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
            help: "the file was cut off or lacks a bracket or a quote: write it again or mend its end"
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
    fn advance(&mut self, chunk: &[u8], line: &mut u64, open_string: &mut Option<u64>) -> (usize, bool) {
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

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Every record of a file, read through a buffer of `buffer` bytes.
    fn read(bytes: &[u8], lines_only: bool, buffer: usize) -> Result<Vec<Record>, DataError> {
        let reader = BufReader::with_capacity(buffer, Cursor::new(bytes.to_vec()));
        records(Path::new("t.json"), reader, lines_only)?.collect()
    }

    fn rows(text: &str) -> Vec<(u64, Result<Value, String>)> {
        let records = read(text.as_bytes(), false, 8).expect("the file is readable");
        records.into_iter().map(|row| (row.line, row.columns.map(Value::Object))).collect()
    }

    fn error(text: &str) -> String {
        let error = read(text.as_bytes(), false, 8).err().expect("the file is broken").to_string();
        error.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn rows_of_an_array_know_the_line_where_they_begin() {
        let text = "\n[\n  {\"a\": 1},\n  {\n    \"a\": \"x\\n]\\\"}\"\n  }\n, {}]\n";
        let expected = [(3, Ok(json!({"a": 1}))), (4, Ok(json!({"a": "x\n]\"}"}))), (7, Ok(json!({})))];
        assert_eq!(rows(text), expected);
    }

    #[test]
    fn lines_and_values_one_after_the_other_are_told_apart_by_the_first_line() {
        let expected = |second| vec![(1, Ok(json!({"a": 1}))), (second, Ok(json!({"a": 2})))];
        assert_eq!(rows("{\"a\": 1}\r\n\r\n{\"a\": 2}"), expected(3));
        assert_eq!(rows("{\n\"a\": 1\n}\n{\"a\": 2}\n"), expected(4));
        assert_eq!(rows("{\"a\": 1} {\"a\": 2}\n"), expected(1));
    }

    #[test]
    fn a_malformed_row_does_not_cost_its_neighbours() {
        let text = "[{\"a\": 1},\n{\"a\":\n tru},\n7, {\"a\": 2}]";
        let found = rows(text);
        assert_eq!(found[0], (1, Ok(json!({"a": 1}))));
        assert_eq!(found[1].0, 2);
        assert_eq!(found[1].1.as_ref().map_err(|reason| reason.ends_with("(line 3, column 5)")), Err(true));
        assert_eq!(found[2], (4, Err("the row is a number, not an object".to_owned())));
        assert_eq!(found[3], (4, Ok(json!({"a": 2}))));
    }

    #[test]
    fn broken_arrays_name_the_line_and_what_is_missing() {
        for (text, expected) in [
            (
                "[\n{}",
                "t.json:2: invalid JSON: the file ends where the array is not closed; its last element begins on line 2",
            ),
            ("[{}\n{}]", "t.json:2: invalid JSON: `,` or `]` must follow the element that begins on line 1"),
            ("[{},]", "t.json:1: invalid JSON: a comma with no element behind it"),
            ("[,{}]", "t.json:1: invalid JSON: a comma with no element before it"),
            ("[{}]\n{}", "t.json:2: invalid JSON: text behind the end of the array"),
            (
                "[{\"a\": \"x},\n{}]",
                "t.json:2: invalid JSON: the file ends where the array is not closed; its last element begins on line 1, and a string is not closed on line 1",
            ),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error_with_their_line() {
        for (bytes, line) in [(&b"[{},\n{\"a\":\n\"\xff\"}]"[..], 3), (b"{}\n{\"a\": \"\xff\"}\n", 2)] {
            match read(bytes, false, 8) {
                Err(DataError::NotUtf8 { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{:?}", other.map(|records| records.len())),
            }
        }
    }

    #[test]
    fn nesting_without_end_is_a_malformed_row() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let found = rows(&format!("[{{}}, {deep}, {{}}]"));
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].1, Err("the row is nested more than 127 levels deep".to_owned()));
    }

    #[test]
    fn of_a_name_given_twice_the_last_value_counts() {
        assert_eq!(rows(r#"{"a": 1, "b": 2, "a": 3}"#), [(1, Ok(json!({"a": 3, "b": 2})))]);
    }

    #[test]
    fn keys_keep_their_order() {
        let row = rows(r#"{"z": {"b": 1, "a": 2}, "y": 0}"#).remove(0).1.expect("a good row");
        assert_eq!(row.to_string(), r#"{"z":{"b":1,"a":2},"y":0}"#);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn objects() -> impl Strategy<Value = Vec<Value>> {
        let object = prop::collection::vec((".*", value()), 0..4);
        prop::collection::vec(object.prop_map(|pairs| Value::Object(pairs.into_iter().collect())), 1..5)
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_with_its_line(objects in objects(), buffer in 1..20_usize, layout in 0..4) {
            let compact: fn(&Value) -> String = Value::to_string;
            let pretty: fn(&Value) -> String = |value| format!("{value:#}");
            let (open, between, close, print) = match layout {
                0 => ("[", ", ", "]", compact),
                1 => ("\n [\n", "\n,\n", "\n]\n", pretty),
                2 => ("", "\r\n", "\r\n", compact),
                _ => ("", "\n\n", "", pretty),
            };
            // Printed over several lines, as the first line tells the layout.
            prop_assume!(layout != 3 || objects[0] != json!({}));
            let mut text = open.to_owned();
            let mut lines = Vec::new();
            for (at, object) in objects.iter().enumerate() {
                text += if at > 0 { between } else { "" };
                lines.push(1 + text.matches('\n').count() as u64);
                text += &print(object);
            }
            text += close;
            let found = read(text.as_bytes(), layout == 2, buffer).expect("valid JSON");
            prop_assert_eq!(found.iter().map(|row| row.line).collect::<Vec<_>>(), lines);
            let found: Vec<Value> =
                found.into_iter().map(|row| Value::Object(row.columns.expect("a good row"))).collect();
            prop_assert_eq!(found, objects);
        }

        #[test]
        fn no_bytes_make_the_scanner_panic_or_go_backwards(
            bytes in prop::collection::vec(prop_oneof![Just(b'['), Just(b']'), Just(b'{'), Just(b'}'), Just(b'"'),
                Just(b','), Just(b'\\'), Just(b'\n'), Just(b' '), any::<u8>()], 0..200),
            buffer in 1..20_usize,
            lines_only: bool,
        ) {
            if let Ok(found) = read(&bytes, lines_only, buffer) {
                prop_assert!(found.windows(2).all(|pair| pair[0].line <= pair[1].line));
                prop_assert!(found.len() <= bytes.len());
            }
        }
    }
}
