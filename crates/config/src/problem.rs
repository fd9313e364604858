//! What can be wrong with a configuration, and how all of it is said at once.
//!
//! In: one [`Problem`] per mistake, found anywhere between the file and the last cross-check.
//! Out: [`ConfigErrors`], whose `Display` prints every problem with its place and a `help:` line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// Where a key or a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, counted from 1.
    Line {
        /// The file as it was named by the caller.
        file: Arc<Path>,
        /// The line, from 1.
        line: usize,
    },
    /// A file as a whole.
    File(Arc<Path>),
    /// One `key=value` argument.
    CommandLine(Arc<str>),
    /// Nowhere: a key that should be there and is not, when no file was given.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Place::File(file) => write!(f, "{}", file.display()),
            Place::CommandLine(argument) => write!(f, "command line: {argument}"),
            Place::Nowhere => f.write_str("configuration"),
        }
    }
}

/// What is wrong. The place and the help stand in [`Problem`].
#[derive(Debug, Error, Clone, PartialEq)]
pub enum ConfigError {
    /// The file is not there.
    #[error("no such file")]
    FileMissing,
    /// The file is there but cannot be read.
    #[error("cannot read the file: {0}")]
    FileUnreadable(String),
    /// The text is neither YAML nor JSON.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// A limit that keeps hostile input harmless was passed.
    #[error("{what} is over the limit of {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How much of it is allowed.
        limit: usize,
    },
    /// The document is a list or a single value.
    #[error("the configuration is {found}, not `key: value` lines")]
    NotAMapping {
        /// What it is instead.
        found: &'static str,
    },
    /// Nothing in the file.
    #[error("the file holds no key")]
    Empty,
    /// An argument without `=`.
    #[error("`{0}` is not of the form key=value")]
    NotAnOverride(String),
    /// The same key twice in one file.
    #[error("`{key}` was already given in line {first_line}")]
    Duplicate {
        /// The key.
        key: String,
        /// Where it stood first.
        first_line: usize,
    },
    /// A key whose value is part of something larger.
    #[error("`{key}` cannot be changed by itself")]
    NotAlone {
        /// The key.
        key: String,
    },
    /// A key that no one knows.
    #[error("unknown key `{0}`")]
    UnknownKey(String),
    /// A value of another kind than the key takes.
    #[error("`{key}` takes {takes}, not {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What it takes, in words.
        takes: String,
        /// What was given.
        found: String,
    },
    /// A key without a value.
    #[error("`{key}` has no value; it takes {takes}")]
    NoValue {
        /// The key.
        key: String,
        /// What it takes, in words.
        takes: String,
    },
    /// A number outside of its range.
    #[error("`{key}` is {value}, but must be {range}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The number given.
        value: f64,
        /// The range, in words.
        range: String,
    },
    /// A value that is wrong for a reason of its own.
    #[error("`{key}`: {reason}")]
    BadValue {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A key or value of LLaMA-Factory that is not built; the help says what to do instead.
    #[error("`{key}: {value}` is not supported yet")]
    NotYet {
        /// The key.
        key: String,
        /// The value given.
        value: String,
    },
    /// Two keys that cannot both hold.
    #[error("{0}")]
    Contradiction(String),
    /// A key that this command needs.
    #[error("`{key}` is missing: {purpose} needs it")]
    Missing {
        /// The key.
        key: &'static str,
        /// The command, in words.
        purpose: &'static str,
    },
}

/// One mistake: where, what, and what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// What is wrong.
    pub error: Box<ConfigError>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Problem {
    pub(crate) fn new(place: &Place, error: ConfigError) -> Self {
        Problem { place: place.clone(), error: Box::new(error), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.error)?;
        if let Some(help) = &self.help {
            write!(f, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// All that is wrong with a configuration, in the order of the file; never empty.
#[derive(Debug, Error, Clone, PartialEq)]
pub struct ConfigErrors {
    /// Every problem found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the configuration has 1 problem")?,
            n => write!(f, "the configuration has {n} problems")?,
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        ConfigErrors { problems: vec![problem] }
    }
}

/// A key that was accepted but changes nothing, so that the program can say so once.
#[derive(Debug, Clone, PartialEq)]
pub struct NoEffect {
    /// The key as written.
    pub key: String,
    /// Where it was given.
    pub place: Place,
    /// Why it changes nothing.
    pub reason: String,
}

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.place, self.reason)
    }
}

/// A path shared by all places of one file.
pub(crate) fn shared_path(path: &Path) -> Arc<Path> {
    Arc::from(PathBuf::from(path))
}
