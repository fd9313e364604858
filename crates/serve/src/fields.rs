//! The fields of a request, taken one by one: what is wrong with any of them is kept, and what nobody took is unknown.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its name.
    pub field: String,
    /// Why, and what to do.
    pub reason: String,
}

/// The fields that are left of a request, and the problems so far.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Fields {
    pub fn new(request: Map<String, Value>) -> Self {
        Self { left: request, problems: Vec::new() }
    }

    /// Everything that is left, for a reader of its own.
    pub fn rest(&mut self) -> &mut Map<String, Value> {
        &mut self.left
    }

    pub fn refuse(&mut self, field: &str, reason: impl Into<String>) {
        self.problems.push(Problem { field: field.to_owned(), reason: reason.into() });
    }

    /// The value of a field; null is none.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.left.remove(field).filter(|value| !value.is_null())
    }

    /// As `read` sees it; else it is not `what`.
    fn read<T>(&mut self, field: &str, what: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(field)?;
        let read = read(&value);
        if read.is_none() {
            self.refuse(field, format!("is {}, not {what}", shown(&value)));
        }
        read
    }

    pub fn switch(&mut self, field: &str) -> Option<bool> {
        self.read(field, "true or false", Value::as_bool)
    }

    pub fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let what = format!("a number from {} to {}", range.start(), range.end());
        self.read(field, &what, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    pub fn count(&mut self, field: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let what = match *range.end() {
            u64::MAX => format!("a whole number from {} on", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.read(field, &what, |value| value.as_u64().filter(|number| range.contains(number)))
    }

    /// A text or a list of texts, none of them empty.
    pub fn texts(&mut self, field: &str, most: usize) -> Vec<String> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let texts = |value: &Value| match value {
            Value::Array(list) if list.len() <= most => list.iter().map(text).collect(),
            Value::Array(_) => None,
            one => text(one).map(|text| vec![text]),
        };
        self.read(field, &format!("a text that is not empty, or a list of up to {most}"), texts)
            .unwrap_or_default()
    }

    /// Refuses a field, unless it says what holds anyway.
    pub fn only(&mut self, field: &str, holds_anyway: impl FnOnce(&Value) -> bool, why: &str) {
        if let Some(value) = self.take(field).filter(|value| !holds_anyway(value)) {
            self.refuse(field, format!("is {}: {why}", shown(&value)));
        }
    }

    /// The problems; what is left is unknown.
    pub fn finish(mut self) -> Vec<Problem> {
        for (field, _) in std::mem::take(&mut self.left) {
            self.refuse(&field, "is not known");
        }
        self.problems
    }
}

/// A value in a message, not all of a long one.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
