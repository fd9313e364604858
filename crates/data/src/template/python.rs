//! Values written as Python writes them: `json.dumps`, `str` and `repr`.
//!
//! Chat templates and tool descriptions were made with Python; a model has seen its spacing and its
//! way of writing numbers, so the bytes matter. Source: CPython's `json.encoder` and `float.__repr__`.

use std::fmt::Write;

use serde_json::Value;

/// Options of `json.dumps`.
#[derive(Debug, Clone)]
pub struct JsonStyle {
    /// Spaces a level, each element on a line of its own; `None`: all on one line.
    pub indent: Option<String>,
    /// Between elements; Python's default is `", "`, or `","` with an indent.
    pub item_separator: String,
    /// Between key and value, by default `": "`.
    pub key_separator: String,
    /// Writes everything beyond ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Keys in the order of their code points.
    pub sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

impl JsonStyle {
    /// The style with an indent of `spaces`.
    pub fn indented(spaces: usize) -> Self {
        Self { indent: Some(" ".repeat(spaces)), item_separator: ",".into(), ..Self::default() }
    }
}

/// `json.dumps(value, ensure_ascii=False)`.
pub fn json(value: &Value) -> String {
    json_styled(value, &JsonStyle::default())
}

/// `json.dumps(value, …)`.
pub fn json_styled(value: &Value, style: &JsonStyle) -> String {
    let mut out = String::new();
    write_json(&mut out, value, style, 0);
    out
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, level: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&self::number(number)),
        Value::String(text) => write_json_text(out, text, style.ensure_ascii),
        Value::Array(items) => {
            write_list(out, style, level, ('[', ']'), items.iter(), |out, item| {
                write_json(out, item, style, level + 1);
            });
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(b.0));
            }
            let entries = entries.into_iter();
            write_list(out, style, level, ('{', '}'), entries, |out, (key, item)| {
                write_json_text(out, key, style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_json(out, item, style, level + 1);
            });
        }
    }
}

fn write_list<T>(
    out: &mut String,
    style: &JsonStyle,
    level: usize,
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    mut write_item: impl FnMut(&mut String, T),
) {
    let empty = items.len() == 0;
    let new_line = |out: &mut String, level: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, level + 1);
        write_item(out, item);
    }
    if !empty {
        new_line(out, level);
    }
    out.push(close);
}

fn write_json_text(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => float(value),
        _ => number.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and
/// from 1e16.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return format!("{value:?}");
    }
    // Rust writes `1.5e-7`, Python `1.5e-07`: at least two digits, and a sign.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `str(value)`: what a template prints.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => self::number(number),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let items = map.iter().map(|(key, value)| format!("{}: {}", quoted(key), repr(value)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
    }
}

/// `repr` of a text: single quotes unless it holds some and no double ones.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    // Expected texts printed by CPython 3.11.
    #[test]
    fn json_is_spaced_as_python_spaces_it() {
        let v = value!({"b": [1, 2.0, "ü\n\"\u{1}"], "a": {}, "c": [], "d": null, "e": true});
        assert_eq!(json(&v), r#"{"b": [1, 2.0, "ü\n\"\u0001"], "a": {}, "c": [], "d": null, "e": true}"#);
        assert_eq!(
            json_styled(&value!({"a": [1, {"b": []}], "c": {}}), &JsonStyle::indented(2)),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": {}\n}"
        );
        let ascii = JsonStyle { ensure_ascii: true, sort_keys: true, ..JsonStyle::default() };
        assert_eq!(
            json_styled(&value!({"é": "👋", "a": 1}), &ascii),
            r#"{"a": 1, "\u00e9": "\ud83d\udc4b"}"#
        );
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e300, "-2.5e+300"),
            (-0.0, "-0.0"),
            (123_456_789.125, "123456789.125"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn values_print_as_python_prints_them() {
        let v = value!({"a": [null, true, "it's", "\"'", "x\ty"], "b": 1.0});
        assert_eq!(text(&v), r#"{'a': [None, True, "it's", '"\'', 'x\ty'], 'b': 1.0}"#);
    }
}
