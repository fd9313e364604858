//! Rows that are read as they are trained (`streaming`): memory does not grow with the files.
//!
//! A thread of its own reads, mixes and shuffles; a short channel lies between it and whoever takes the rows. The
//! order depends on the options and the epoch alone.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::buffer::{Buffer, rng_of_epoch};
use super::mix::{Mix, Mixer};
use super::reading::Reading;
use super::{DatasetOptions, DatasetReport, MixStrategy, ValSize};
use crate::conversation::Conversation;
use crate::error::DataError;
use crate::rows::{Row, RowProblem};
use crate::shuffle::Pcg64;

/// Rows that wait to be taken.
const CHANNEL_ROWS: usize = 256;

/// A row, or why it cannot be used; the end of reading where a file fails.
pub type StreamedRow = Result<Result<Conversation, RowProblem>, DataError>;

/// The data sets of a run, to be read any number of times.
#[derive(Debug, Clone)]
pub struct Stream {
    sets: Vec<Reading>,
    mix: Mix,
    seed: u64,
    /// Rows of the buffer; `None`: the order of the files.
    buffer: Option<usize>,
    held_out: usize,
}

impl Stream {
    /// Opens the data sets of `dataset`. `shuffled`: their rows go through the buffer.
    ///
    /// # Errors
    /// A data set that cannot be found, or that asks for what a stream cannot do.
    pub fn open(options: &DatasetOptions, shuffled: bool) -> Result<Self, DataError> {
        options.mix.check(options.dataset.len())?;
        let refuse =
            |key, reason: String, help: &str| Err(DataError::Option { key, reason, help: help.into() });
        let held_out = match options.val_size {
            None => 0,
            Some(ValSize::Rows(rows)) => rows,
            Some(ValSize::Fraction(part)) => {
                let reason = format!("{part} of a stream is not known before its end");
                return refuse("val_size", reason, "give a number of rows");
            }
        };
        if options.max_samples.is_some() {
            let help = "set `max_steps`, which ends the run, or a slice such as `split: train[:1000]`";
            return refuse("max_samples", "cannot be set together with `streaming`".to_owned(), help);
        }
        let mut sets = Vec::with_capacity(options.dataset.len());
        for name in &options.dataset {
            let reading = Reading::open(name, options)?;
            if reading.entry.num_samples.is_some() {
                return Err(DataError::Unsupported {
                    dataset: name.clone(),
                    key: "num_samples".to_owned(),
                    reason: "rows of a stream cannot be drawn at random".to_owned(),
                    help: "remove it, or set `streaming: false`".to_owned(),
                });
            }
            sets.push(reading);
        }
        let buffer = options.streaming.filter(|_| shuffled);
        Ok(Self { sets, mix: options.mix.clone(), seed: options.seed, buffer, held_out })
    }

    /// How many rows `val_size` holds out.
    pub fn held_out(&self) -> usize {
        self.held_out
    }

    /// How each data set is read; numbers of rows are not known.
    pub fn reports(&self) -> Vec<DatasetReport> {
        self.sets.iter().map(|set| set.report.clone()).collect()
    }

    /// The rows of a pass over the data, without those that are held out.
    pub fn epoch(&self, epoch: u64) -> Receiver<StreamedRow> {
        let (sender, receiver) = sync_channel(CHANNEL_ROWS);
        let stream = self.clone();
        thread::spawn(move || stream.send(epoch, &sender));
        receiver
    }

    /// Sends the rows of a pass; ends early when nobody takes them any more.
    fn send(&self, epoch: u64, to: &SyncSender<StreamedRow>) {
        let mut buffer = self.buffer.map(|size| Buffer::new(size, self.seed, epoch));
        let mut good = 0;
        for row in self.mixed(epoch) {
            let is_good = matches!(row, Ok(Ok(_)));
            if is_good && good < self.held_out {
                good += 1;
                continue;
            }
            let next = match (&mut buffer, row) {
                (Some(buffer), Ok(Ok(row))) => buffer.push(row).into_iter().map(|row| Ok(Ok(row))).collect(),
                (_, row) => vec![row],
            };
            for row in next {
                if to.send(row).is_err() {
                    return;
                }
            }
        }
        let left = buffer.map(Buffer::finish).unwrap_or_default();
        for row in left {
            if to.send(Ok(Ok(row))).is_err() {
                return;
            }
        }
    }

    /// All rows in the order of the mix. Where rows are drawn, each pass draws its own, later ones as datasets 5.2 does it: by
    /// a seed that is the epoch. But the rows that are held out are the first of the mix, which then is the same in all.
    fn mixed(&self, epoch: u64) -> Mixed {
        let rng = match epoch {
            1.. if self.held_out == 0 => rng_of_epoch(epoch, epoch),
            _ => Pcg64::new(self.seed),
        };
        let strategy = if self.sets.len() < 2 { MixStrategy::Concat } else { self.mix.strategy };
        let mix = Mix { strategy, ..self.mix.clone() };
        let sets: Vec<Set> = self.sets.iter().map(|reading| Set::new(reading.clone())).collect();
        let mixer = (strategy != MixStrategy::Concat).then(|| Mixer::new(&mix, sets.len(), rng, false));
        Mixed { sets, mixer, at: 0, problems: VecDeque::new(), has_failed: false }
    }
}

/// The rows that are held out of a stream: its first good ones.
///
/// # Errors
/// As [`Stream::open`]; a file that cannot be read.
pub(super) fn held_out(options: &DatasetOptions) -> Result<Vec<Conversation>, DataError> {
    let Some(ValSize::Rows(rows)) = options.val_size else { return Ok(Vec::new()) };
    let stream = Stream { held_out: 0, ..Stream::open(options, false)? };
    let good = stream.mixed(0).filter_map(|row| row.map(Result::ok).transpose());
    good.take(rows).collect()
}

/// The rows of a data set as they stand in its files.
type RowsOfSet = Box<dyn Iterator<Item = Result<Result<Row, RowProblem>, DataError>>>;

/// A data set that is being read, one good row ahead: so its end is known with its last row.
struct Set {
    reading: Reading,
    /// `None`: it begins, or begins anew.
    rows: Option<RowsOfSet>,
    ahead: Option<Conversation>,
    passes: u64,
}

impl Set {
    fn new(reading: Reading) -> Self {
        Self { reading, rows: None, ahead: None, passes: 0 }
    }

    /// The next row, good or bad.
    fn next(&mut self) -> Result<Option<Result<Conversation, RowProblem>>, DataError> {
        let rows = match &mut self.rows {
            Some(rows) => rows,
            None => {
                self.passes += 1;
                self.rows.insert(Box::new(self.reading.rows()?))
            }
        };
        Ok(rows.next().transpose()?.map(|row| self.reading.convert(row)))
    }

    /// Reads until a good row lies ahead; adds the malformed ones before it, on the first pass alone.
    fn advance(&mut self, problems: &mut VecDeque<RowProblem>) -> Result<(), DataError> {
        self.ahead = None;
        while let Some(row) = self.next()? {
            match row {
                Ok(row) => {
                    self.ahead = Some(row);
                    return Ok(());
                }
                Err(problem) if self.passes == 1 => problems.push_back(problem),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Rows of several data sets in the order of the mix.
struct Mixed {
    sets: Vec<Set>,
    /// `None`: one after the other.
    mixer: Option<Mixer>,
    /// The data set in hand, where they follow one another.
    at: usize,
    /// Malformed rows that were read on the way to a good one.
    problems: VecDeque<RowProblem>,
    has_failed: bool,
}

impl Iterator for Mixed {
    type Item = StreamedRow;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let row = match self.mixer {
            None => self.next_in_turn(),
            Some(_) => self.next_mixed(),
        };
        self.has_failed = row.is_err();
        row.transpose()
    }
}

impl Mixed {
    fn next_in_turn(&mut self) -> Result<Option<Result<Conversation, RowProblem>>, DataError> {
        while let Some(set) = self.sets.get_mut(self.at) {
            if let Some(row) = set.next()? {
                return Ok(Some(row));
            }
            self.at += 1;
        }
        Ok(None)
    }

    fn next_mixed(&mut self) -> Result<Option<Result<Conversation, RowProblem>>, DataError> {
        if let Some(problem) = self.problems.pop_front() {
            return Ok(Some(Err(problem)));
        }
        let Some(mixer) = &mut self.mixer else { return Ok(None) };
        let Some(chosen) = mixer.next() else { return Ok(None) };
        let set = &mut self.sets[chosen];
        if set.ahead.is_none() {
            set.advance(&mut self.problems)?;
        }
        let Some(row) = set.ahead.take() else {
            return Err(DataError::Empty {
                dataset: set.reading.report.name.clone(),
                help: "all of its rows are malformed; look at them with `sft data check`".to_owned(),
            });
        };
        set.advance(&mut self.problems)?;
        if set.ahead.is_none() && mixer.ended(chosen) {
            set.rows = None;
        }
        Ok(Some(Ok(row)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::super::mix::tests::{GOLDENS, mix_of, pairs};
    use super::super::{ProblemLimit, Stage};
    use super::*;

    /// Three files of 3, 4 and 7 rows, `q0-1` the second of the first.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (set, rows) in [3, 4, 7].into_iter().enumerate() {
            let row = |row| format!("{{\"instruction\": \"{set} {row}\", \"output\": \"a\"}}\n");
            let text: String = (0..rows).map(row).collect();
            fs::write(folder.path().join(format!("{set}.jsonl")), text).expect("room");
        }
        folder
    }

    fn options(folder: &tempfile::TempDir) -> DatasetOptions {
        DatasetOptions {
            dataset: (0..3).map(|set| format!("{set}.jsonl")).collect(),
            eval_dataset: Vec::new(),
            dataset_dir: folder.path().to_owned(),
            hub: crate::hub::HubOptions::default(),
            stage: Stage::Sft,
            max_samples: None,
            val_size: None,
            mix: Mix::default(),
            eval_on_each_dataset: false,
            streaming: Some(4),
            seed: 42,
            problem_limit: ProblemLimit::Rows(0),
        }
    }

    fn pass(stream: &Stream, epoch: u64) -> Vec<(usize, usize)> {
        let place = |row: StreamedRow| {
            let row = row.expect("a good file").expect("a good row");
            let (set, row) = row.messages[0].content.split_once(' ').expect("two numbers");
            (set.parse().expect("a number"), row.parse().expect("a number"))
        };
        stream.epoch(epoch).into_iter().map(place).collect()
    }

    #[test]
    fn streams_mix_as_those_of_hugging_face() {
        let (goldens, folder): (Value, _) = (serde_json::from_str(GOLDENS).expect("a file"), folder());
        let mut cases = 0;
        for case in goldens["mixes"].as_array().expect("cases").iter().filter(|c| c["streaming"] == true) {
            let seed = case["seed"].as_u64().expect("a seed");
            let options = DatasetOptions { mix: mix_of(case), seed, ..options(&folder) };
            let stream = Stream::open(&options, false).expect("good data");
            assert_eq!(pass(&stream, 0), pairs(&case["order"]), "{case}");
            cases += 1;
        }
        assert_eq!(cases, 18);
    }

    #[test]
    fn drawn_rows_of_later_passes_are_those_of_hugging_face_too() {
        let (goldens, folder): (Value, _) = (serde_json::from_str(GOLDENS).expect("a file"), folder());
        let cases = goldens["passes"].as_array().expect("cases");
        assert_eq!(cases.len(), 3);
        for case in cases {
            let options = DatasetOptions { mix: mix_of(case), ..options(&folder) };
            let stream = Stream::open(&options, true).expect("good data");
            for (epoch, order) in case["orders"].as_array().expect("orders").iter().enumerate() {
                assert_eq!(pass(&stream, epoch as u64), pairs(order), "{case}");
            }
        }
    }

    #[test]
    fn a_pass_is_every_row_once_in_an_order_of_its_own() {
        let folder = folder();
        let stream = Stream::open(&options(&folder), true).expect("good data");
        let (first, second) = (pass(&stream, 0), pass(&stream, 1));
        assert_ne!(first, second);
        assert_eq!(first, pass(&stream, 0));
        for mut rows in [first, second] {
            rows.sort_unstable();
            let all = [3, 4, 7].into_iter().enumerate();
            assert!(rows.into_iter().eq(all.flat_map(|(set, rows)| (0..rows).map(move |row| (set, row)))));
        }
    }

    #[test]
    fn held_out_rows_are_never_trained_on() {
        let folder = folder();
        let options = DatasetOptions { val_size: Some(ValSize::Rows(5)), ..options(&folder) };
        let eval = held_out(&options).expect("good data");
        let eval: Vec<&str> = eval.iter().map(|row| row.messages[0].content.as_str()).collect();
        assert_eq!(eval, ["0 0", "0 1", "0 2", "1 0", "1 1"]);
        let stream = Stream::open(&options, true).expect("good data");
        for epoch in 0..3 {
            let rows = pass(&stream, epoch);
            assert_eq!(rows.len(), 9);
            assert!(rows.iter().all(|row| *row >= (1, 2)), "{rows:?}");
        }
    }

    #[test]
    fn malformed_rows_come_where_they_stand_and_once() {
        let folder = folder();
        let bad = "{\"instruction\": \"0 0\", \"output\": \"a\"}\n{}\n{\"instruction\": \"0 1\", \"output\": \"a\"}\n";
        fs::write(folder.path().join("0.jsonl"), bad).expect("room");
        for strategy in [MixStrategy::Concat, MixStrategy::InterleaveOver] {
            let mix = Mix { strategy, probabilities: Vec::new() };
            let stream = Stream::open(&DatasetOptions { mix, ..options(&folder) }, true).expect("good data");
            let rows: Vec<_> = stream.epoch(0).into_iter().map(|row| row.expect("a good file")).collect();
            let lines: Vec<u64> =
                rows.iter().filter_map(|row| row.as_ref().err()).map(|p| p.origin.line).collect();
            assert_eq!(lines, [2], "{strategy:?}");
        }
    }

    #[test]
    fn what_a_stream_cannot_do_is_refused() {
        let folder = folder();
        let error = |options: DatasetOptions| Stream::open(&options, true).expect_err("refused").to_string();
        let options = || options(&folder);
        assert!(error(DatasetOptions { max_samples: Some(3), ..options() }).contains("`max_samples`"));
        let part = Some(ValSize::Fraction(0.1));
        assert!(error(DatasetOptions { val_size: part, ..options() }).contains("give a number of rows"));
        let info = r#"{"0.jsonl": {"file_name": "0.jsonl", "num_samples": 2}}"#;
        fs::write(folder.path().join("dataset_info.json"), info).expect("room");
        assert!(error(options()).contains("`num_samples` is not supported"));
    }
}
