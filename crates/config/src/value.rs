//! How each type of a key reads its value, writes it back and describes itself.
//!
//! In: a [`Node`] (text with a place). Out: a typed value, or a [`Reject`] that says why not.
//! One implementation per type; the table of keys names the type and nothing more.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use crate::source::{Content, Node};

/// Why a value was not taken.
#[derive(Debug)]
pub(crate) enum Reject {
    /// Another kind of value than [`KeyType::takes`] says.
    Type,
    /// Null where a value is needed.
    NoValue,
    /// A fault of its own, with help.
    Because { reason: String, help: Option<String> },
    /// A value of LLaMA-Factory that is not built, with what to do instead.
    NotYet { value: String, help: &'static str },
}

impl Reject {
    pub fn because(reason: impl Into<String>, help: impl Into<String>) -> Self {
        Reject::Because { reason: reason.into(), help: Some(help.into()) }
    }
}

/// A type that a key can have.
pub(crate) trait KeyType: Sized {
    /// Reads a value.
    fn parse(node: &Node) -> Result<Self, Reject>;
    /// The value as it is written to the resolved configuration.
    fn to_json(&self) -> Json;
    /// What the key takes, in words ("a whole number").
    fn takes() -> String;
    /// JSON schema of what the key takes.
    fn schema() -> Json;
    /// The number that a range is checked against, if it is one.
    fn number(&self) -> Option<f64> {
        None
    }
}

/// The numbers that a key accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    low: f64,
    low_open: bool,
    high: f64,
    high_open: bool,
}

impl Range {
    pub const ANY: Range =
        Range { low: f64::NEG_INFINITY, low_open: false, high: f64::INFINITY, high_open: false };

    pub const fn at_least(low: f64) -> Range {
        Range { low, ..Range::ANY }
    }

    pub const fn above(low: f64) -> Range {
        Range { low, low_open: true, ..Range::ANY }
    }

    pub const fn between(low: f64, high: f64) -> Range {
        Range { low, high, ..Range::ANY }
    }

    /// `low` belongs to the range, `high` does not.
    pub const fn until(low: f64, high: f64) -> Range {
        Range { low, high, high_open: true, ..Range::ANY }
    }

    /// `low` does not belong to the range, `high` does.
    pub const fn above_to(low: f64, high: f64) -> Range {
        Range { low, low_open: true, high, ..Range::ANY }
    }

    pub fn contains(self, n: f64) -> bool {
        let low = if self.low_open { n > self.low } else { n >= self.low };
        let high = if self.high_open { n < self.high } else { n <= self.high };
        low && high
    }

    pub fn is_any(self) -> bool {
        self.low == f64::NEG_INFINITY && self.high == f64::INFINITY
    }

    /// The bounds as JSON schema keywords.
    pub fn keywords(self) -> Vec<(&'static str, f64)> {
        let mut keywords = Vec::new();
        if self.low.is_finite() {
            keywords.push((if self.low_open { "exclusiveMinimum" } else { "minimum" }, self.low));
        }
        if self.high.is_finite() {
            keywords.push((if self.high_open { "exclusiveMaximum" } else { "maximum" }, self.high));
        }
        keywords
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { low, high, .. } = *self;
        match (low.is_finite(), high.is_finite(), self.low_open, self.high_open) {
            (true, true, false, false) => write!(f, "from {low} to {high}"),
            (true, true, false, true) => write!(f, "at least {low} and below {high}"),
            (true, true, true, _) => write!(f, "above {low} and at most {high}"),
            (true, false, false, _) => write!(f, "at least {low}"),
            (true, false, true, _) => write!(f, "above {low}"),
            _ => f.write_str("any number"),
        }
    }
}

/// Text of a scalar; `NoValue` for null, `Type` for lists and mappings.
pub(crate) fn scalar(node: &Node) -> Result<&str, Reject> {
    match node.text() {
        Some(text) => Ok(text),
        None if node.is_null() => Err(Reject::NoValue),
        None => Err(Reject::Type),
    }
}

/// A finite number as people write them: `1e-4`, `1.0e-4`, `2_000`, `.5`.
pub(crate) fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let starts_like_one = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    let n: f64 = starts_like_one.then(|| without_separators(text).parse().ok())??;
    n.is_finite().then_some(n)
}

fn whole(text: &str) -> Option<i64> {
    if let Ok(n) = without_separators(text.trim()).parse::<i64>() {
        return Some(n);
    }
    // Whole numbers up to 2^53 are exact in f64.
    number(text).filter(|n| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0).map(|n| n as i64)
}

fn without_separators(text: &str) -> String {
    let between_digits = |i: usize| {
        let at = |i: usize| text.as_bytes().get(i).is_some_and(u8::is_ascii_digit);
        i > 0 && at(i - 1) && at(i + 1)
    };
    text.char_indices().filter(|&(i, c)| c != '_' || !between_digits(i)).map(|(_, c)| c).collect()
}

impl KeyType for bool {
    fn parse(node: &Node) -> Result<Self, Reject> {
        match scalar(node)?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(Reject::Type),
        }
    }
    fn to_json(&self) -> Json {
        json!(self)
    }
    fn takes() -> String {
        "true or false".into()
    }
    fn schema() -> Json {
        json!({"type": "boolean"})
    }
}

macro_rules! whole_numbers {
    ($($type:ty, $takes:literal;)*) => { $(
        impl KeyType for $type {
            fn parse(node: &Node) -> Result<Self, Reject> {
                whole(scalar(node)?).and_then(|n| <$type>::try_from(n).ok()).ok_or(Reject::Type)
            }
            fn to_json(&self) -> Json {
                json!(self)
            }
            fn takes() -> String {
                $takes.into()
            }
            fn schema() -> Json {
                json!({"type": "integer"})
            }
            fn number(&self) -> Option<f64> {
                Some(*self as f64)
            }
        }
    )* };
}

whole_numbers! {
    i64, "a whole number";
    u64, "a whole number of at least 0";
    u32, "a whole number of at least 0";
    usize, "a whole number of at least 0";
}

impl KeyType for f64 {
    fn parse(node: &Node) -> Result<Self, Reject> {
        number(scalar(node)?).ok_or(Reject::Type)
    }
    fn to_json(&self) -> Json {
        json!(self)
    }
    fn takes() -> String {
        "a number".into()
    }
    fn schema() -> Json {
        json!({"type": "number"})
    }
    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl KeyType for String {
    fn parse(node: &Node) -> Result<Self, Reject> {
        Ok(scalar(node)?.to_string())
    }
    fn to_json(&self) -> Json {
        json!(self)
    }
    fn takes() -> String {
        "a text".into()
    }
    fn schema() -> Json {
        json!({"type": "string"})
    }
}

/// A path in which `~` stands for the home folder, which no shell has seen: transformers expands it too.
fn expanded(path: &str, home: impl Fn() -> Option<PathBuf>) -> PathBuf {
    let in_home = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match in_home.and_then(|rest| Some(home()?.join(rest.trim_start_matches('/')))) {
        Some(path) => path,
        None => PathBuf::from(path),
    }
}

/// The same for a text that may be a path.
pub(crate) fn expand_home(text: &mut String) {
    if let Some(path) = expanded(text, std::env::home_dir).to_str().filter(|path| path != text) {
        *text = path.to_owned();
    }
}

impl KeyType for PathBuf {
    fn parse(node: &Node) -> Result<Self, Reject> {
        match scalar(node)? {
            "" => Err(Reject::Type),
            path => Ok(expanded(path, std::env::home_dir)),
        }
    }
    fn to_json(&self) -> Json {
        json!(self.to_string_lossy())
    }
    fn takes() -> String {
        "a path".into()
    }
    fn schema() -> Json {
        json!({"type": "string"})
    }
}

impl<T: KeyType> KeyType for Option<T> {
    fn parse(node: &Node) -> Result<Self, Reject> {
        if node.is_null() {
            return Ok(None);
        }
        if matches!(&node.content, Content::Scalar { text, plain: true } if text == "None") {
            return Err(Reject::because("`None` is Python's word", "write `null`, or leave the key out"));
        }
        T::parse(node).map(Some)
    }
    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::to_json)
    }
    fn takes() -> String {
        format!("{} or null", T::takes())
    }
    fn schema() -> Json {
        json!({"anyOf": [T::schema(), {"type": "null"}]})
    }
    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }
}

/// Names: a comma list or a YAML list; empty for null.
impl KeyType for Vec<String> {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let names = match &node.content {
            _ if node.is_null() => Vec::new(),
            Content::Scalar { text, .. } => text.split(',').map(|s| s.trim().to_string()).collect(),
            Content::List(items) => items
                .iter()
                .map(|item| item.text().map(|s| s.trim().to_string()).ok_or(Reject::Type))
                .collect::<Result<_, _>>()?,
            Content::Map(_) => return Err(Reject::Type),
        };
        Ok(names.into_iter().filter(|name| !name.is_empty()).collect())
    }
    fn to_json(&self) -> Json {
        json!(self)
    }
    fn takes() -> String {
        "names, as a comma list or a YAML list".into()
    }
    fn schema() -> Json {
        json!({"anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}},
            {"type": "null"},
        ]})
    }
}

/// Which modules a method touches: all that fit, or those named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// `all`.
    All,
    /// Module names, such as `q_proj`.
    Names(Vec<String>),
}

impl KeyType for Targets {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let names = Vec::<String>::parse(node)?;
        if names.is_empty() {
            return Err(Reject::NoValue);
        }
        match names.iter().any(|name| name == "all") {
            true if names.len() == 1 => Ok(Targets::All),
            true => {
                Err(Reject::because("`all` stands beside other names", "write `all` alone, or only names"))
            }
            false => Ok(Targets::Names(names)),
        }
    }
    fn to_json(&self) -> Json {
        match self {
            Targets::All => json!("all"),
            Targets::Names(names) => json!(names),
        }
    }
    fn takes() -> String {
        "`all`, or names as a comma list or a YAML list".into()
    }
    fn schema() -> Json {
        json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    }
}

/// So many, or a share of a whole that is known later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// A count, 0 included.
    Count(u64),
    /// A fraction above 0 and below 1.
    Fraction(f64),
}

impl Amount {
    /// The amount of a whole of `total`: a fraction is rounded up, as transformers (steps) and
    /// datasets (`train_test_split`) do.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Amount::Count(n) => n,
            Amount::Fraction(share) => (share * total as f64).ceil() as u64,
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(self) -> bool {
        self == Amount::Count(0)
    }
}

impl Default for Amount {
    fn default() -> Self {
        Amount::Count(0)
    }
}

impl KeyType for Amount {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let n = number(scalar(node)?).ok_or(Reject::Type)?;
        match n {
            n if n < 0.0 => {
                Err(Reject::because(format!("{n} is below 0"), "give a count, or a fraction below 1"))
            }
            n if n > 0.0 && n < 1.0 => Ok(Amount::Fraction(n)),
            _ => whole(scalar(node)?).map(|n| Amount::Count(n as u64)).ok_or_else(|| {
                let fault = if n.fract() == 0.0 { "larger than any count" } else { "above 1 and not whole" };
                Reject::because(format!("{n} is {fault}"), "give a count, or a fraction below 1")
            }),
        }
    }
    fn to_json(&self) -> Json {
        match self {
            Amount::Count(n) => json!(n),
            Amount::Fraction(share) => json!(share),
        }
    }
    fn takes() -> String {
        "a count, or a fraction below 1".into()
    }
    fn schema() -> Json {
        json!({"type": "number", "minimum": 0})
    }
    fn number(&self) -> Option<f64> {
        Some(match *self {
            Amount::Count(n) => n as f64,
            Amount::Fraction(share) => share,
        })
    }
}

/// A token that lets the program in somewhere. It is not shown and not written down.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Option<String>);

impl Secret {
    /// The token itself.
    pub fn reveal(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "…" } else { "null" })
    }
}

impl KeyType for Secret {
    fn parse(node: &Node) -> Result<Self, Reject> {
        Option::<String>::parse(node).map(|text| Self(text.filter(|text| !text.is_empty())))
    }
    fn to_json(&self) -> Json {
        Json::Null
    }
    fn takes() -> String {
        "a text or null".into()
    }
    fn schema() -> Json {
        json!({"type": ["string", "null"]})
    }
}

/// Probabilities that sum to 1; none for null.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Probabilities(pub Vec<f64>);

impl Probabilities {
    /// How far the sum may be from 1: NumPy's tolerance, the root of the machine's precision.
    const TOLERANCE: f64 = 1.5e-8;
}

impl KeyType for Probabilities {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let words = Vec::<String>::parse(node)?;
        let numbers: Option<Vec<f64>> = words.iter().map(|word| number(word)).collect();
        let numbers = numbers.ok_or(Reject::Type)?;
        let (sum, help) =
            (numbers.iter().sum::<f64>(), "give one number from 0 to 1 for each data set, 1 in all");
        if numbers.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return Err(Reject::because(format!("{} has a number outside of 0 to 1", node.shown()), help));
        }
        if !numbers.is_empty() && (sum - 1.0).abs() > Self::TOLERANCE {
            return Err(Reject::because(format!("the numbers sum to {sum}, not to 1"), help));
        }
        Ok(Self(numbers))
    }
    fn to_json(&self) -> Json {
        match self.0.is_empty() {
            true => Json::Null,
            false => json!(self.0),
        }
    }
    fn takes() -> String {
        "probabilities, as a comma list or a YAML list, or null".into()
    }
    fn schema() -> Json {
        json!({"anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
            {"type": "null"},
        ]})
    }
}

/// Where training begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Null: at the newest checkpoint of `output_dir` if there is one, else at the start.
    Automatic,
    /// `false`: at the start.
    No,
    /// `true`: at the newest checkpoint of `output_dir`, which must exist.
    Newest,
    /// At this checkpoint.
    From(PathBuf),
}

impl KeyType for Resume {
    fn parse(node: &Node) -> Result<Self, Reject> {
        match Option::<PathBuf>::parse(node)? {
            None => Ok(Resume::Automatic),
            Some(path) => Ok(match bool::parse(node) {
                Ok(true) => Resume::Newest,
                Ok(false) => Resume::No,
                Err(_) => Resume::From(path),
            }),
        }
    }
    fn to_json(&self) -> Json {
        match self {
            Resume::Automatic => Json::Null,
            Resume::No => json!(false),
            Resume::Newest => json!(true),
            Resume::From(path) => path.to_json(),
        }
    }
    fn takes() -> String {
        "a path, true, false or null".into()
    }
    fn schema() -> Json {
        json!({"type": ["string", "boolean", "null"]})
    }
}
