//! Assembly: the data sets of a run → conversations to train on and to evaluate on.
//!
//! In: names and the options of the configuration. Out: [`LoadedData`] with every dropped row counted
//! and kept with its reason. Several data sets become one by [`Mix`]; the order of an epoch is the
//! loader's business.

mod buffer;
mod mix;
mod reading;
pub mod stream;

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::conversation::Conversation;
use crate::dataset_info;
use crate::error::DataError;
use crate::formats::Format;
use crate::hub::HubOptions;
use crate::rows::RowProblem;
use crate::shuffle::Pcg64;

pub use mix::{Mix, MixStrategy};
use reading::Reading;

/// How many malformed rows an error lists.
const LISTED_PROBLEMS: usize = 5;
/// What to do when no row is good: the rows are rarely to blame.
const NONE_FITS: &str =
    "check `formatting`, `columns` and `tags` of the data set's entry, and that `stage` is the right one";

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
    /// Where data sets on hubs are, and how to be let in.
    pub hub: HubOptions,
    /// What the rows are for.
    pub stage: Stage,
    /// Only the first so many rows of each data set.
    pub max_samples: Option<usize>,
    /// What is held out of the training data; not together with `eval_dataset`.
    pub val_size: Option<ValSize>,
    /// How several data sets become one.
    pub mix: Mix,
    /// Evaluate each data set of `eval_dataset` by itself too.
    pub eval_on_each_dataset: bool,
    /// Rows are read as they are trained, through a buffer of so many that mixes their order; `None`: all are read first.
    pub streaming: Option<usize>,
    /// Seed of the mix, of the held-out choice and of `num_samples`.
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
    /// Which rows of `eval` are which data set's, where each is evaluated by itself; else empty.
    pub eval_sets: Vec<EvalSet>,
    /// How each data set was read, those of `dataset` first.
    pub reports: Vec<DatasetReport>,
    /// Every row that was dropped, and why.
    pub problems: Vec<RowProblem>,
}

/// The rows of one data set to evaluate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalSet {
    /// Its name in the configuration.
    pub name: String,
    /// Its rows in [`LoadedData::eval`].
    pub rows: Range<usize>,
}

/// How a data set was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Rows given to the run: with `num_samples` or an interleaved mix not the difference of the two.
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
    options.mix.check(options.dataset.len())?;
    options.mix.check(options.eval_dataset.len())?;
    let mut loaded = LoadedData {
        train: Vec::new(),
        eval: Vec::new(),
        eval_sets: Vec::new(),
        reports: Vec::new(),
        problems: Vec::new(),
    };
    match options.streaming {
        None => loaded.train = read_mixed(&options.dataset, options, &mut loaded)?,
        Some(_) => loaded.eval = stream::held_out(options)?,
    }
    if options.eval_on_each_dataset {
        for name in &options.eval_dataset {
            let from = loaded.eval.len();
            let rows = read_mixed(std::slice::from_ref(name), options, &mut loaded)?;
            loaded.eval.extend(rows);
            loaded.eval_sets.push(EvalSet { name: name.clone(), rows: from..loaded.eval.len() });
        }
    } else if !options.eval_dataset.is_empty() {
        loaded.eval = read_mixed(&options.eval_dataset, options, &mut loaded)?;
    }
    check_limit(options.problem_limit, &loaded)?;
    if let (Some(size), None) = (options.val_size, options.streaming) {
        (loaded.train, loaded.eval) = split(loaded.train, size, options.seed)?;
    }
    Ok(loaded)
}

/// What is read for `options`: of each data set how, and its files.
///
/// # Errors
/// A data set that cannot be found.
pub fn inputs(options: &DatasetOptions) -> Result<Vec<(String, Vec<PathBuf>)>, DataError> {
    let names = options.dataset.iter().chain(&options.eval_dataset);
    let input = |name: &String| {
        let entry = dataset_info::find(name, &options.dataset_dir, options.stage, &options.hub)?;
        let mut files = Vec::new();
        for part in &entry.split {
            files.extend(part.source(&entry.path)?.files);
        }
        Ok((format!("{entry:?}"), files))
    };
    names.map(input).collect()
}

/// The rows of several data sets, mixed; `loaded` gets their reports and problems.
fn read_mixed(
    names: &[String],
    options: &DatasetOptions,
    loaded: &mut LoadedData,
) -> Result<Vec<Conversation>, DataError> {
    let mut sets = Vec::with_capacity(names.len());
    for name in names {
        sets.push(read_dataset(name, options, &mut loaded.reports, &mut loaded.problems)?);
    }
    let lengths: Vec<usize> = sets.iter().map(Vec::len).collect();
    let order = mix::order(&lengths, &options.mix, options.seed)?;
    let first_report = loaded.reports.len() - names.len();
    for (set, report) in loaded.reports[first_report..].iter_mut().enumerate() {
        report.rows_used = order.iter().filter(|(of, _)| *of == set).count() as u64;
    }
    if options.mix.strategy == MixStrategy::Concat || sets.len() < 2 {
        return Ok(sets.into_iter().flatten().collect());
    }
    Ok(order.into_iter().map(|(set, row)| sets[set][row].clone()).collect())
}

/// The rows of one data set that count.
fn read_dataset(
    name: &str,
    options: &DatasetOptions,
    reports: &mut Vec<DatasetReport>,
    problems: &mut Vec<RowProblem>,
) -> Result<Vec<Conversation>, DataError> {
    let mut reading = Reading::open(name, options)?;
    let limit = options.max_samples.unwrap_or(usize::MAX);
    // Rows are drawn from all of them (`num_samples`) before the first ones are taken.
    let rows = reading.rows()?.take(if reading.entry.num_samples.is_some() { usize::MAX } else { limit });
    let mut conversations = Vec::new();
    let dropped_before = problems.len();
    for row in rows {
        match reading.convert(row?) {
            Ok(conversation) => conversations.push(conversation),
            Err(problem) => problems.push(problem),
        }
    }
    let read = usize::try_from(reading.report.rows_read).unwrap_or(usize::MAX);
    if conversations.is_empty() {
        return Err(too_many(
            format!("data set `{name}`: all {} rows are malformed", reading.report.rows_read),
            &problems[dropped_before..],
            NONE_FITS,
        ));
    }
    reading.check_columns(read < limit || reading.entry.num_samples.is_some())?;
    if let Some(count) = reading.entry.num_samples {
        conversations = draw(conversations, count, options.seed);
        conversations.truncate(limit);
    }
    reports.push(reading.report);
    Ok(conversations)
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
            hub: HubOptions::default(),
            stage: Stage::Sft,
            max_samples: None,
            val_size: None,
            mix: Mix::default(),
            eval_on_each_dataset: false,
            streaming: None,
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
    fn data_sets_are_mixed_by_turns() {
        let folder = folder();
        let mix = Mix { strategy: MixStrategy::InterleaveUnder, probabilities: Vec::new() };
        let options = DatasetOptions {
            mix,
            eval_dataset: vec!["five.jsonl".to_owned(), "ten.jsonl".to_owned()],
            ..options(&folder, &["ten.jsonl", "five.jsonl"])
        };
        let loaded = load(&options).expect("good data");
        assert_eq!(questions(&loaded.train), [0, 10, 1, 11, 2, 12, 3, 13, 4, 14]);
        assert_eq!(questions(&loaded.eval), [10, 0, 11, 1, 12, 2, 13, 3, 14, 4], "evaluation sets too");
        let used: Vec<u64> = loaded.reports.iter().map(|report| report.rows_used).collect();
        assert_eq!(used, [5, 5, 5, 5]);
    }

    #[test]
    fn each_data_set_to_evaluate_on_can_stand_for_itself() {
        let folder = folder();
        let options = DatasetOptions {
            eval_on_each_dataset: true,
            mix: Mix { strategy: MixStrategy::InterleaveUnder, probabilities: Vec::new() },
            eval_dataset: vec!["five.jsonl".to_owned(), "ten.jsonl".to_owned()],
            ..options(&folder, &["ten.jsonl", "five.jsonl"])
        };
        let loaded = load(&options).expect("good data");
        let sets: Vec<_> = loaded.eval_sets.iter().map(|set| (set.name.as_str(), set.rows.clone())).collect();
        assert_eq!(sets, [("five.jsonl", 0..5), ("ten.jsonl", 5..15)]);
        assert_eq!(questions(&loaded.eval)[4..7], [14, 0, 1]);
    }

    #[test]
    fn a_split_may_be_a_slice_or_several() {
        let folder = folder();
        fs::create_dir(folder.path().join("both")).expect("room for the folder");
        for (name, rows) in [("train.jsonl", 0..10), ("test.jsonl", 20..24)] {
            fs::write(folder.path().join("both").join(name), alpaca(rows)).expect("room for the file");
        }
        let info = r#"{"a": {"file_name": "both", "split": "train[-20%:]+test[:1]"}, "b": {"file_name": "ten.jsonl", "split": "train[2:4]"}}"#;
        fs::write(folder.path().join("dataset_info.json"), info).expect("room for the file");
        let loaded = load(&options(&folder, &["a", "b"])).expect("good data");
        assert_eq!(questions(&loaded.train), [8, 9, 20, 2, 3]);
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

    #[test]
    fn a_column_that_the_entry_names_and_no_row_has_is_an_error_with_the_one_that_was_meant() {
        let folder = folder();
        let rows = r#"[{"instruction": "q0", "input": "i", "output": "a"}, {"instruction": "q1", "output": "a", "context": "c"}]"#;
        fs::write(folder.path().join("rows.json"), rows).expect("room");
        let columns = |query: &str| {
            let columns = serde_json::json!({"prompt": "instruction", "query": query, "response": "output"});
            let info = serde_json::json!({"d": {"file_name": "rows.json", "columns": columns}});
            fs::write(folder.path().join("dataset_info.json"), info.to_string()).expect("room");
        };
        columns("inptu");
        let error = load(&options(&folder, &["d"])).unwrap_err().to_string();
        assert!(
            error.contains("no row has the column `inptu`") && error.contains("did you mean `input`"),
            "{error}"
        );
        // One row has it, and the others leave it out.
        columns("context");
        assert_eq!(load(&options(&folder, &["d"])).expect("good data").train.len(), 2);
        // Rows behind those that are read may have it.
        let first = DatasetOptions { max_samples: Some(1), ..options(&folder, &["d"]) };
        let notes = load(&first).expect("good data").reports.remove(0).notes;
        assert_eq!(notes, ["none of the first 1 rows has the column `context` that its entry names"]);
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
    fn rows_of_a_plain_path_with_pictures_are_refused() {
        let folder = folder();
        let rows = r#"{"instruction": "q", "output": "a", "images": []}
{"instruction": "q", "output": "a", "images": ["x.png"]}"#;
        fs::write(folder.path().join("more.jsonl"), rows).expect("room for the file");
        let mut options = options(&folder, &["more.jsonl"]);
        options.problem_limit = ProblemLimit::Rows(1);
        let loaded = load(&options).expect("one bad row is let pass");
        assert_eq!(loaded.train.len(), 1);
        assert!(loaded.problems[0].reason.contains("`images`"), "{}", loaded.problems[0]);
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
