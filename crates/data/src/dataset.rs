//! Assembly: the data sets of a run → conversations to train on and to evaluate on.
//!
//! In: names and the options of the configuration. Out: [`LoadedData`] with every dropped row counted
//! and kept with its reason. Data sets are concatenated in the order of their names; the order of an
//! epoch is the loader's business.

use std::path::PathBuf;

use crate::conversation::Conversation;
use crate::dataset_info::{self, Entry};
use crate::error::DataError;
use crate::formats::{Format, detect};
use crate::rows::{FileKind, Row, RowProblem, Rows, Source};
use crate::shuffle::Pcg64;

/// How many first rows tell the format of a plain path.
const DETECT_ROWS: usize = 32;
/// How many malformed rows an error lists.
const LISTED_PROBLEMS: usize = 5;
/// What to do when no row is good: the rows are rarely to blame.
const NONE_FITS: &str =
    "check `formatting`, `columns` and `tags` of the data set's entry, and that `stage` is the right one";
/// How many names of unread columns are kept.
const UNREAD_COLUMNS: usize = 32;

/// What the rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Plain text, everything supervised (`stage: pt`).
    Pt,
    /// Questions and answers (`stage: sft`).
    Sft,
}

/// How much of the training data is held out for evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValSize {
    /// So many rows.
    Rows(usize),
    /// This part of them, above 0 and below 1; rounded up to whole rows.
    Fraction(f64),
}

/// How many malformed rows are dropped before it is an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ProblemLimit {
    /// So many rows over all data sets.
    Rows(u64),
    /// This part of all rows read, from 0 to 1.
    Fraction(f64),
}

impl ProblemLimit {
    /// Lets dropped rows pass up to the limit; `are` says what is wrong with them ("malformed").
    ///
    /// # Errors
    /// [`DataError::TooManyProblems`] with the first of them.
    pub fn check(self, problems: &[RowProblem], rows: u64, are: &str) -> Result<(), DataError> {
        let dropped = problems.len() as u64;
        let (over, limit) = match self {
            Self::Rows(count) => (dropped > count, format!("{count} rows")),
            Self::Fraction(part) => (dropped as f64 > part * rows as f64, format!("{} %", part * 100.0)),
        };
        if !over {
            return Ok(());
        }
        let summary = format!("{dropped} of {rows} rows are {are}, more than the limit of {limit}");
        Err(too_many(summary, problems, "mend or remove these rows, or raise `max_malformed`"))
    }
}

/// What is to be loaded: the keys of the configuration that concern rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetOptions {
    /// Names or paths of the data sets to train on.
    pub dataset: Vec<String>,
    /// Names or paths of the data sets to evaluate on.
    pub eval_dataset: Vec<String>,
    /// The folder of `dataset_info.json` and of the files it names.
    pub dataset_dir: PathBuf,
    /// What the rows are for.
    pub stage: Stage,
    /// Only the first so many rows of each data set.
    pub max_samples: Option<usize>,
    /// What is held out of the training data; not together with `eval_dataset`.
    pub val_size: Option<ValSize>,
    /// Seed of the held-out choice and of `num_samples`.
    pub seed: u64,
    /// When dropped rows are an error.
    pub problem_limit: ProblemLimit,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedData {
    /// Rows to train on.
    pub train: Vec<Conversation>,
    /// Rows to evaluate on: held out of the training data, or of `eval_dataset`.
    pub eval: Vec<Conversation>,
    /// How each data set was read, those of `dataset` first.
    pub reports: Vec<DatasetReport>,
    /// Every row that was dropped, and why.
    pub problems: Vec<RowProblem>,
}

/// How a data set was read.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetReport {
    /// Its name in the configuration.
    pub name: String,
    /// Its files, in the order read.
    pub files: Vec<PathBuf>,
    /// How its rows are written.
    pub format: Format,
    /// Whether the format was told from the columns, not from `dataset_info.json`.
    pub detected: bool,
    /// Records read, good and bad.
    pub rows_read: u64,
    /// Records dropped as malformed.
    pub rows_dropped: u64,
    /// Rows given to the run (with `num_samples` not the difference of the two).
    pub rows_used: u64,
    /// Columns that rows have and the format does not read, the first 32 met.
    pub unread_columns: Vec<String>,
    /// What a reader of its entry would not expect.
    pub notes: Vec<String>,
}

/// Loads all data sets of a run.
///
/// # Errors
/// When a data set cannot be found or read, has no good row, when more rows are malformed than
/// `problem_limit` allows, or when `val_size` leaves no row on either side.
pub fn load(options: &DatasetOptions) -> Result<LoadedData, DataError> {
    if options.dataset.is_empty() && options.eval_dataset.is_empty() {
        return Err(DataError::Option {
            key: "dataset",
            reason: "no data set is named".to_owned(),
            help: "set `dataset` to an entry of dataset_info.json or to the path of a data file".to_owned(),
        });
    }
    if options.val_size.is_some() && !options.eval_dataset.is_empty() {
        return Err(DataError::Option {
            key: "val_size",
            reason: "it cannot be set together with `eval_dataset`".to_owned(),
            help: "remove one of the two".to_owned(),
        });
    }
    let mut loaded =
        LoadedData { train: Vec::new(), eval: Vec::new(), reports: Vec::new(), problems: Vec::new() };
    for name in &options.dataset {
        loaded.train.extend(read_dataset(name, options, &mut loaded.reports, &mut loaded.problems)?);
    }
    for name in &options.eval_dataset {
        loaded.eval.extend(read_dataset(name, options, &mut loaded.reports, &mut loaded.problems)?);
    }
    check_limit(options.problem_limit, &loaded)?;
    if let Some(size) = options.val_size {
        (loaded.train, loaded.eval) = split(loaded.train, size, options.seed)?;
    }
    Ok(loaded)
}

/// The rows of one data set that count.
fn read_dataset(
    name: &str,
    options: &DatasetOptions,
    reports: &mut Vec<DatasetReport>,
    problems: &mut Vec<RowProblem>,
) -> Result<Vec<Conversation>, DataError> {
    let entry = dataset_info::find(name, &options.dataset_dir, options.stage)?;
    let source = Source::open(&entry.path, entry.split.as_deref())?;
    // Rows are drawn from all of them (`num_samples`) before the first ones are taken.
    let limit = options.max_samples.unwrap_or(usize::MAX);
    let mut rows =
        Rows::open(name, &source).take(if entry.num_samples.is_some() { usize::MAX } else { limit });
    let first: Vec<_> = rows.by_ref().take(DETECT_ROWS).collect::<Result<_, _>>()?;
    if first.is_empty() {
        return Err(DataError::Empty {
            dataset: name.to_owned(),
            help: format!("check `{}`", entry.path.display()),
        });
    }
    let detected = entry.format.is_none();
    let format = format_of(&entry, &source, &first, options.stage)?;
    let mut report = DatasetReport {
        name: name.to_owned(),
        files: source.files,
        format,
        detected,
        rows_read: 0,
        rows_dropped: 0,
        rows_used: 0,
        unread_columns: Vec::new(),
        notes: entry.notes,
    };
    let mut conversations = Vec::new();
    let dropped_before = problems.len();
    for row in first.into_iter().map(Ok).chain(rows) {
        report.rows_read += 1;
        let converted = row?.and_then(|row| {
            report.note_unread(&row);
            report.format.convert(row)
        });
        match converted {
            Ok(conversation) => conversations.push(conversation),
            Err(problem) => problems.push(problem),
        }
    }
    let dropped = &problems[dropped_before..];
    report.rows_dropped = dropped.len() as u64;
    if conversations.is_empty() {
        return Err(too_many(
            format!("data set `{name}`: all {} rows are malformed", report.rows_read),
            dropped,
            NONE_FITS,
        ));
    }
    if let Some(count) = entry.num_samples {
        conversations = draw(conversations, count, options.seed);
        conversations.truncate(limit);
    }
    report.rows_used = conversations.len() as u64;
    reports.push(report);
    Ok(conversations)
}

/// The format of an entry, or of the first rows of a plain path.
fn format_of(
    entry: &Entry,
    source: &Source,
    first: &[Result<Row, RowProblem>],
    stage: Stage,
) -> Result<Format, DataError> {
    let unfit = |reason: String, help: &str| {
        Err(DataError::Format { dataset: entry.name.clone(), reason, help: help.to_owned() })
    };
    const PLAIN: &str = "set `stage: pt` to train on plain text, or name a data set of questions and answers";
    if source.kind == FileKind::Text && stage == Stage::Sft {
        return unfit("a `.txt` file holds plain text, without questions and answers".to_owned(), PLAIN);
    }
    if let Some(format) = &entry.format {
        return Ok(format.clone());
    }
    let good: Vec<Row> = first.iter().filter_map(|row| row.as_ref().ok().cloned()).collect();
    if good.is_empty() {
        let problems: Vec<RowProblem> = first.iter().filter_map(|row| row.as_ref().err().cloned()).collect();
        let summary = format!("data set `{}`: the first {} rows are malformed", entry.name, first.len());
        return Err(too_many(summary, &problems, NONE_FITS));
    }
    match detect(&good) {
        Ok(Format::Plain(_)) => unfit("its rows hold plain text in the column `text`".to_owned(), PLAIN),
        Ok(format) => Ok(format),
        Err(reason) => unfit(
            reason,
            "make an entry in dataset_info.json whose `columns` say what the columns are, or rename them",
        ),
    }
}

impl DatasetReport {
    fn note_unread(&mut self, row: &Row) {
        let read = self.format.columns();
        for name in row.columns.keys() {
            if self.unread_columns.len() < UNREAD_COLUMNS
                && !read.contains(&name.as_str())
                && !self.unread_columns.contains(name)
            {
                self.unread_columns.push(name.clone());
            }
        }
    }
}

/// `count` rows in random order: each at most once while there are enough, then every row once and
/// further ones drawn with replacement.
///
/// LLaMA-Factory draws the same way from NumPy's global generator; here the seed alone decides.
fn draw(rows: Vec<Conversation>, count: usize, seed: u64) -> Vec<Conversation> {
    let mut rng = Pcg64::new(seed);
    let mut order = rng.permutation(rows.len());
    order.truncate(count);
    while order.len() < count {
        order.push(rng.at_most(rows.len() as u64 - 1) as usize);
    }
    order.into_iter().map(|row| rows[row].clone()).collect()
}

/// Training and held-out rows: `datasets.Dataset.train_test_split(test_size, seed=seed)`, the same
/// rows in the same order.
fn split(
    rows: Vec<Conversation>,
    size: ValSize,
    seed: u64,
) -> Result<(Vec<Conversation>, Vec<Conversation>), DataError> {
    let total = rows.len();
    let held_out = match size {
        ValSize::Rows(count) => count,
        ValSize::Fraction(part) => (part * total as f64).ceil() as usize,
    };
    let fits = match size {
        ValSize::Fraction(part) => part > 0.0 && part < 1.0,
        ValSize::Rows(_) => true,
    };
    if !fits || held_out == 0 || held_out >= total {
        return Err(DataError::Option {
            key: "val_size",
            reason: format!(
                "{held_out} of {total} rows would be held out, which leaves nothing to train or to evaluate"
            ),
            help: "give a number of rows below the total, or a fraction between 0 and 1".to_owned(),
        });
    }
    let order = Pcg64::new(seed).permutation(total);
    let mut rows: Vec<Option<Conversation>> = rows.into_iter().map(Some).collect();
    let mut shuffled = order.into_iter().filter_map(|row| rows[row].take());
    let eval = shuffled.by_ref().take(held_out).collect();
    Ok((shuffled.collect(), eval))
}

fn check_limit(limit: ProblemLimit, loaded: &LoadedData) -> Result<(), DataError> {
    let read: u64 = loaded.reports.iter().map(|report| report.rows_read).sum();
    limit.check(&loaded.problems, read, "malformed")
}

fn too_many(summary: String, problems: &[RowProblem], help: &str) -> DataError {
    DataError::TooManyProblems {
        summary,
        first: problems.iter().take(LISTED_PROBLEMS).cloned().collect(),
        more: problems.len().saturating_sub(LISTED_PROBLEMS),
        help: help.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn alpaca(rows: std::ops::Range<usize>) -> String {
        rows.map(|row| format!("{{\"instruction\": \"q{row}\", \"output\": \"a{row}\"}}\n")).collect()
    }

    /// A folder with a file of ten rows, one of five, and one whose second row of four is malformed.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bad = format!("{}{{\"instruction\": 7}}\n{}", alpaca(0..1), alpaca(2..4));
        for (name, text) in [("ten.jsonl", alpaca(0..10)), ("five.jsonl", alpaca(10..15)), ("bad.jsonl", bad)]
        {
            fs::write(folder.path().join(name), text).expect("room for the file");
        }
        folder
    }

    fn options(folder: &tempfile::TempDir, dataset: &[&str]) -> DatasetOptions {
        DatasetOptions {
            dataset: dataset.iter().map(|name| (*name).to_owned()).collect(),
            eval_dataset: Vec::new(),
            dataset_dir: folder.path().to_owned(),
            stage: Stage::Sft,
            max_samples: None,
            val_size: None,
            seed: 42,
            problem_limit: ProblemLimit::Rows(0),
        }
    }

    fn questions(conversations: &[Conversation]) -> Vec<usize> {
        let number = |talk: &Conversation| talk.messages[0].content[1..].parse().expect("q and a number");
        conversations.iter().map(number).collect()
    }

    #[test]
    fn data_sets_follow_each_other_and_keep_their_origin() {
        let folder = folder();
        let loaded = load(&options(&folder, &["five.jsonl", "ten.jsonl"])).expect("good data");
        assert_eq!(questions(&loaded.train), [10, 11, 12, 13, 14, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let origin = &loaded.train[6].origin;
        assert_eq!((&*origin.dataset, origin.line, origin.row), ("ten.jsonl", 2, 1));
        assert!(loaded.reports.iter().all(|report| report.detected && report.rows_dropped == 0));
        assert!(loaded.eval.is_empty());
    }

    #[test]
    fn max_samples_takes_the_first_rows_of_each() {
        let folder = folder();
        let options = DatasetOptions {
            eval_dataset: vec!["ten.jsonl".to_owned()],
            max_samples: Some(2),
            ..options(&folder, &["ten.jsonl", "five.jsonl"])
        };
        let loaded = load(&options).expect("good data");
        assert_eq!(questions(&loaded.train), [0, 1, 10, 11]);
        assert_eq!(questions(&loaded.eval), [0, 1]);
    }

    // Printed by datasets 4.0: Dataset.from_list(10 rows).train_test_split(test_size=0.25, seed=42).
    #[test]
    fn held_out_rows_are_those_of_train_test_split() {
        let folder = folder();
        let mut options = options(&folder, &["ten.jsonl"]);
        for size in [ValSize::Fraction(0.25), ValSize::Rows(3)] {
            options.val_size = Some(size);
            let loaded = load(&options).expect("good data");
            assert_eq!(questions(&loaded.eval), [5, 6, 0]);
            assert_eq!(questions(&loaded.train), [7, 3, 2, 4, 9, 1, 8]);
        }
    }

    #[test]
    fn a_held_out_part_that_leaves_nothing_is_refused() {
        let folder = folder();
        let mut options = options(&folder, &["ten.jsonl"]);
        for size in [ValSize::Rows(10), ValSize::Rows(0), ValSize::Fraction(1.0), ValSize::Fraction(f64::NAN)]
        {
            options.val_size = Some(size);
            assert!(matches!(load(&options), Err(DataError::Option { key: "val_size", .. })), "{size:?}");
        }
    }

    #[test]
    fn malformed_rows_are_counted_and_an_error_above_the_limit() {
        let folder = folder();
        let mut options = options(&folder, &["ten.jsonl", "bad.jsonl"]);
        let message = load(&options).expect_err("over the limit").to_string();
        assert!(
            message.starts_with("1 of 14 rows are malformed, more than the limit of 0 rows:\n"),
            "{message}"
        );
        assert!(message.contains("bad.jsonl:2: no `output` (the row has `instruction`)"), "{message}");
        for limit in [ProblemLimit::Rows(1), ProblemLimit::Fraction(0.1)] {
            options.problem_limit = limit;
            let loaded = load(&options).expect("within the limit");
            assert_eq!((loaded.train.len(), loaded.problems.len()), (13, 1));
            assert_eq!((loaded.reports[1].rows_read, loaded.reports[1].rows_dropped), (4, 1));
            assert_eq!(loaded.problems[0].origin.line, 2);
        }
        options.problem_limit = ProblemLimit::Fraction(0.05);
        assert!(load(&options).is_err());
    }

    #[test]
    fn no_rows_and_no_good_rows_are_errors_whatever_the_limit() {
        let folder = folder();
        for (name, text) in [("empty.json", "[]"), ("none.jsonl", "{}\n{}\n")] {
            fs::write(folder.path().join(name), text).expect("room for the file");
        }
        let error = |name: &str| {
            let options =
                DatasetOptions { problem_limit: ProblemLimit::Fraction(1.0), ..options(&folder, &[name]) };
            load(&options).expect_err("no rows").to_string()
        };
        assert!(error("empty.json").starts_with("data set `empty.json` has no rows"));
        let info = r#"{"none": {"file_name": "none.jsonl"}}"#;
        fs::write(folder.path().join("dataset_info.json"), info).expect("room for the file");
        assert!(error("none").starts_with("data set `none`: all 2 rows are malformed:"), "{}", error("none"));
    }

    #[test]
    fn num_samples_draws_every_row_before_any_twice() {
        let folder = folder();
        let info = r#"{"few": {"file_name": "ten.jsonl", "num_samples": 4}, "many": {"file_name": "ten.jsonl", "num_samples": 25}}"#;
        fs::write(folder.path().join("dataset_info.json"), info).expect("room for the file");
        let drawn = |name| questions(&load(&options(&folder, &[name])).expect("good data").train);
        assert_eq!(drawn("few"), [5, 6, 0, 7], "the first of NumPy's permutation");
        let many = drawn("many");
        assert_eq!(many.len(), 25);
        assert!((0..10).all(|row| many[..10].contains(&row)));
        assert_eq!(many, drawn("many"), "the seed alone decides");
    }

    #[test]
    fn columns_that_nothing_reads_are_reported() {
        let folder = folder();
        let rows = r#"{"instruction": "q0", "output": "a", "system": "s", "id": 1}"#;
        fs::write(folder.path().join("more.jsonl"), rows).expect("room for the file");
        let detected = load(&options(&folder, &["more.jsonl"])).expect("good data");
        assert_eq!(detected.reports[0].unread_columns, ["id"], "a plain path reads the system column");
        let info = r#"{"more": {"file_name": "more.jsonl"}}"#;
        fs::write(folder.path().join("dataset_info.json"), info).expect("room for the file");
        let listed = load(&options(&folder, &["more"])).expect("good data");
        assert_eq!(listed.reports[0].unread_columns, ["system", "id"]);
    }

    #[test]
    fn plain_text_and_stage_must_agree() {
        let folder = folder();
        fs::write(folder.path().join("corpus.txt"), "one\n\ntwo\n").expect("room for the file");
        fs::write(folder.path().join("corpus.jsonl"), "{\"text\": \"one\"}\n").expect("room for the file");
        let mut options = options(&folder, &["corpus.txt", "corpus.jsonl"]);
        assert!(load(&options).expect_err("sft needs answers").to_string().contains("`stage: pt`"));
        options.stage = Stage::Pt;
        let loaded = load(&options).expect("plain text");
        let texts: Vec<&str> = loaded.train.iter().map(|talk| talk.messages[0].content.as_str()).collect();
        assert_eq!(texts, ["one", "two", "one"]);
        options.dataset = vec!["ten.jsonl".to_owned()];
        assert!(load(&options).expect_err("no text").to_string().contains("no text column"));
    }

    #[test]
    fn contradicting_and_missing_names_are_refused() {
        let folder = folder();
        assert!(matches!(load(&options(&folder, &[])), Err(DataError::Option { key: "dataset", .. })));
        let mut both = options(&folder, &["ten.jsonl"]);
        both.eval_dataset = vec!["five.jsonl".to_owned()];
        both.val_size = Some(ValSize::Rows(1));
        assert!(matches!(load(&both), Err(DataError::Option { key: "val_size", .. })));
    }
}
