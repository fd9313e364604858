//! Everything that can stop the preparation of data, each with what to do about it.
//!
//! A malformed row is not here: it is a [`RowProblem`], collected and counted, and becomes
//! [`DataError::TooManyProblems`] only above the limit.

use std::io;
use std::path::{Path, PathBuf};

use crate::proof::Proof;
use crate::rows::RowProblem;

/// Why data could not be prepared; messages name the place and end in a `help:` line.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused to open or read a file.
    #[error(
        "{}: cannot be read: {source}\nhelp: check the permissions of the file and of its folder",
        path.display()
    )]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// A data file or folder does not exist.
    #[error("{}: no such file or folder{}\nhelp: {help}", path.display(), did_you_mean(nearby))]
    MissingFile {
        /// Where it was looked for.
        path: PathBuf,
        /// Names in the same folder that resemble it.
        nearby: Vec<String>,
        /// Where the name came from and how to change it.
        help: String,
    },

    /// A file, or every file of a folder, holds no row.
    #[error(
        "{}: the file holds no rows\nhelp: check that it was written completely, or take it out of the data set",
        path.display()
    )]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },

    /// A folder holds no data file.
    #[error("{}: the folder holds no data files{detail}\nhelp: {help}", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// What was looked for, if not any data file.
        detail: String,
        /// What to do.
        help: String,
    },

    /// A file's bytes are not text.
    #[error("{}: the file is {found}, not text\nhelp: {help}", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: &'static str,
        /// What to do.
        help: &'static str,
    },

    /// A byte that is not UTF-8.
    #[error(
        "{}:{line}: not valid UTF-8\nhelp: convert the file, for example `iconv -f GB18030 -t UTF-8`, and check the text around this line",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// 1-based line of the first such byte.
        line: u64,
    },

    /// A file whose rows cannot be told apart: broken JSON, a damaged parquet file.
    #[error("{}: {reason}\nhelp: {help}", place(path, *line))]
    BrokenFile {
        /// The file.
        path: PathBuf,
        /// 1-based line (parquet: row) where reading stopped; 0: the file as a whole.
        line: u64,
        /// What is wrong there.
        reason: String,
        /// What to do.
        help: String,
    },

    /// A file of a type that is not read, or a folder that mixes types.
    #[error("{}: {reason}\nhelp: {help}", path.display())]
    FileType {
        /// The file or folder.
        path: PathBuf,
        /// What its type is.
        reason: String,
        /// What to do.
        help: String,
    },

    /// A name in `dataset` or `eval_dataset` that is neither an entry nor a file.
    #[error("data set `{name}`: {reason}{}\nhelp: {help}", did_you_mean(nearby))]
    UnknownDataset {
        /// The name.
        name: String,
        /// Where it was looked for.
        reason: String,
        /// Entries and files that resemble it.
        nearby: Vec<String>,
        /// What to do.
        help: String,
    },

    /// `dataset_info.json`, or one of its entries, is wrong.
    #[error("{}: {reason}{}\nhelp: {help}", path.display(), did_you_mean(nearby))]
    DatasetInfo {
        /// The file.
        path: PathBuf,
        /// Entry, key and what is wrong.
        reason: String,
        /// Keys that resemble an unknown one.
        nearby: Vec<String>,
        /// What to do.
        help: String,
    },

    /// Something LLaMA-Factory has and this program does not.
    #[error("data set `{dataset}`: `{key}` is not supported: {reason}\nhelp: {help}")]
    Unsupported {
        /// The data set.
        dataset: String,
        /// The key of its entry.
        key: String,
        /// Why.
        reason: String,
        /// What to do instead.
        help: String,
    },

    /// A data set on a hub that is not there, closed, or cannot be fetched.
    #[error(transparent)]
    Hub(#[from] sft_hub::HubError),

    /// The columns of a plain path fit no format, or not the stage.
    #[error("data set `{dataset}`: {reason}\nhelp: {help}")]
    Format {
        /// The data set.
        dataset: String,
        /// Which columns were found and what was expected.
        reason: String,
        /// What to do.
        help: String,
    },

    /// More malformed rows than the limit allows, or no good one.
    #[error("{summary}:\n{}\nhelp: {help}", listed(first, *more))]
    TooManyProblems {
        /// How many of how many rows, and the limit.
        summary: String,
        /// The first of them.
        first: Vec<RowProblem>,
        /// How many more there are.
        more: usize,
        /// What to do.
        help: String,
    },

    /// A data set without rows, or all of whose rows were dropped.
    #[error("data set `{dataset}` has no rows\nhelp: {help}")]
    Empty {
        /// The data set.
        dataset: String,
        /// What to check.
        help: String,
    },

    /// A value of the options that the data cannot satisfy.
    #[error("`{key}`: {reason}\nhelp: {help}")]
    Option {
        /// The key of the configuration.
        key: &'static str,
        /// Value, limit.
        reason: String,
        /// What to do.
        help: String,
    },

    /// The tokenizer is missing, broken, or lacks something.
    #[error("tokenizer {}: {reason}\nhelp: {help}", path.display())]
    Tokenizer {
        /// The model directory or the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },

    /// The template is unknown, does not parse, or refuses a conversation.
    #[error("template `{name}`: {reason}\nhelp: {help}")]
    Template {
        /// Name of the template; `auto` is the model's own.
        name: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },

    /// Rows that would be trained otherwise than inference asks for them.
    #[error("{}", unproved(proof))]
    Unproved {
        /// What was checked, with the rows that break a rule.
        proof: Box<Proof>,
    },

    /// No example, or none with a token to train.
    #[error(
        "nothing to train: {reason}\nhelp: look at the rows with `sft data show`; check `cutoff_len` and the roles of the data"
    )]
    NothingToTrain {
        /// What happened to the rows.
        reason: String,
    },
}

fn place(path: &Path, line: u64) -> String {
    match line {
        0 => path.display().to_string(),
        line => format!("{}:{line}", path.display()),
    }
}

fn unproved(proof: &Proof) -> String {
    let listed = proof.violations.iter().take(3).map(|violation| format!("\n  {violation}"));
    let help = proof.violations.first().map_or("", |violation| violation.rule.help());
    format!(
        "{} of {} rows would be trained otherwise than they are asked for:{}\nhelp: {help}",
        proof.violated_rows,
        proof.rows,
        listed.collect::<String>()
    )
}

fn did_you_mean(nearby: &[String]) -> String {
    match nearby {
        [] => String::new(),
        names => format!(" (did you mean `{}`?)", names.join("` or `")),
    }
}

fn listed(problems: &[RowProblem], more: usize) -> String {
    let mut text: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    if more > 0 {
        text.push(format!("  … and {more} more"));
    }
    text.join("\n")
}

/// The names that resemble `name` or begin with it, best first, at most three.
pub(crate) fn nearby<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let name = name.to_lowercase();
    let likeness = |other: &str| {
        let other = other.to_lowercase();
        let begins = name.len() > 2 && other.starts_with(&name);
        strsim::normalized_damerau_levenshtein(&name, &other).max(if begins { 0.6 } else { 0.0 })
    };
    let mut scored: Vec<(f64, &str)> = known.into_iter().map(|other| (likeness(other), other)).collect();
    scored.retain(|(score, _)| *score >= 0.6);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, other)| other.to_owned()).collect()
}
