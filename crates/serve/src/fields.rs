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

    /// A whole number, written with or without a point.
    pub fn whole(&mut self, field: &str) -> Option<i128> {
        self.read(field, "a whole number", whole)
    }

    /// A count that −1 lifts.
    pub fn limit(&mut self, field: &str) -> Option<Option<usize>> {
        let limit = |value: &Value| match whole(value)? {
            -1 => Some(None),
            count => usize::try_from(count).ok().map(Some),
        };
        self.read(field, "a whole number from 0 on, or -1 for no limit", limit)
    }

    pub fn count(&mut self, field: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let count = |value: &Value| u64::try_from(whole(value)?).ok().filter(|number| range.contains(number));
        self.read(field, &what, count)
    }

    /// A text or a list of texts, none of them empty or longer than so many bytes.
    pub fn texts(&mut self, field: &str, (most, longest): (usize, usize)) -> Vec<String> {
        let fits = |text: &&str| (1..=longest).contains(&text.len());
        let text = |value: &Value| value.as_str().filter(fits).map(str::to_owned);
        let texts = |value: &Value| match value {
            Value::Array(list) if list.len() <= most => list.iter().map(text).collect(),
            Value::Array(_) => None,
            one => text(one).map(|text| vec![text]),
        };
        self.read(field, &format!("a text of 1 to {longest} bytes, or a list of up to {most}"), texts)
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

/// A whole number: 5.0 is one, too.
fn whole(value: &Value) -> Option<i128> {
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e18);
    let unsigned = || value.as_u64().map(i128::from);
    value.as_i64().map(i128::from).or_else(unsigned).or_else(|| float().map(|number| number as i128))
}

/// A value in a message, not all of a long one.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
