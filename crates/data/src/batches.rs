//! The steps of a run (stage 8 of the walk): of rows that are kept in memory, or of a stream.
//!
//! A stream is read, tokenised, proved and packed a chunk of rows at a time, so memory does not grow with the data. Its
//! [`Cursor`] is as exact as a loader's: going to it reads the epoch again from its beginning.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use crate::conversation::{Conversation, Origin};
use crate::dataset::stream::{Stream, StreamedRow};
use crate::dataset::{DatasetReport, ProblemLimit};
use crate::encoder::Encoder;
use crate::error::DataError;
use crate::labels::Example;
use crate::loader::{Cursor, Loader, LoaderOptions, StepBatch};
use crate::pack::{self, Joining};
use crate::pipeline::EncodeReport;
use crate::rows::RowProblem;

/// Rows that are tokenised and packed together.
const CHUNK_ROWS: usize = 4096;
/// Shares of rows mean something from so many on.
const ROWS_OF_A_SHARE: u64 = 1000;
/// How many places a report of a stream lists; all are counted.
const LISTED: usize = 100;

/// The steps of a run.
#[derive(Debug)]
pub enum Batches {
    /// Of rows that are kept.
    Kept(Loader),
    /// Of rows that are read as they are needed.
    Streamed(Box<StreamLoader>),
}

impl Batches {
    /// The step at the cursor; the cursor moves on.
    ///
    /// # Errors
    /// Of a stream: a file that cannot be read, rows that break a rule, more malformed ones than allowed.
    pub fn next_step(&mut self) -> Result<StepBatch, DataError> {
        match self {
            Self::Kept(loader) => Ok(loader.next_step()),
            Self::Streamed(stream) => stream.next_step(),
        }
    }

    /// The same, and the cursor stays; `None` of a stream, or without rows.
    pub fn peek(&self) -> Option<StepBatch> {
        match self {
            Self::Kept(loader) => (!loader.examples().is_empty()).then(|| loader.clone().next_step()),
            Self::Streamed(_) => None,
        }
    }

    /// Goes to a saved place.
    ///
    /// # Errors
    /// As [`Batches::next_step`].
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DataError> {
        match self {
            Self::Kept(loader) => loader.seek(cursor),
            Self::Streamed(stream) => stream.seek(cursor)?,
        }
        Ok(())
    }

    /// The next step to come.
    pub fn cursor(&self) -> Cursor {
        match self {
            Self::Kept(loader) => loader.cursor(),
            Self::Streamed(stream) => stream.cursor,
        }
    }

    /// Optimizer steps of an epoch; `None` where that is not known before its end.
    pub fn steps_per_epoch(&self) -> Option<u64> {
        match self {
            Self::Kept(loader) => Some(loader.steps_per_epoch()),
            Self::Streamed(_) => None,
        }
    }

    /// As [`Loader::epochs_after`]; `None` of a stream.
    pub fn epochs_after(&self, steps: u64) -> Option<f64> {
        match self {
            Self::Kept(loader) => Some(loader.epochs_after(steps)),
            Self::Streamed(_) => None,
        }
    }

    /// As [`Loader::set_joining`].
    pub fn set_joining(&mut self, joining: Joining) {
        match self {
            Self::Kept(loader) => loader.set_joining(joining),
            Self::Streamed(stream) => stream.joining = joining,
        }
    }

    /// Part of the packed bins that holds tokens, 0 to 1; of a stream, so far. `None` without packing.
    pub fn fill(&self) -> Option<f64> {
        match self {
            Self::Kept(loader) => loader.fill(),
            Self::Streamed(stream) => stream.fill(),
        }
    }

    /// Where the rows of the step that was given last were read.
    pub fn origins(&self, step: &StepBatch) -> Vec<Origin> {
        let rows = step.micro_batches.iter().flat_map(|batch| &batch.rows);
        match self {
            Self::Kept(loader) => rows.map(|row| loader.examples()[*row].origin.clone()).collect(),
            Self::Streamed(stream) => rows.filter_map(|row| stream.given.get(*row).cloned()).collect(),
        }
    }
}

/// Steps of a stream.
#[derive(Debug)]
pub struct StreamLoader {
    stream: Stream,
    encoder: Encoder,
    options: LoaderOptions,
    limit: ProblemLimit,
    cursor: Cursor,
    /// The rows of the cursor's epoch that are not read yet; `None` at its end.
    rows: Option<Mutex<Receiver<StreamedRow>>>,
    /// Rows, or bins of rows, that are ready.
    items: VecDeque<Vec<Example>>,
    /// Origins of the rows of the last step.
    given: Vec<Origin>,
    /// What became of the rows of the first epoch so far.
    report: EncodeReport,
    problems: Vec<RowProblem>,
    rows_read: u64,
    bins: u64,
    joining: Joining,
}

impl StreamLoader {
    /// A loader at the beginning of the first epoch, with the first chunk of rows tokenised and proved.
    ///
    /// # Errors
    /// As [`Batches::next_step`]; a stream without a row to train.
    pub fn new(
        stream: Stream,
        encoder: Encoder,
        options: LoaderOptions,
        limit: ProblemLimit,
    ) -> Result<Self, DataError> {
        let rows = Some(Mutex::new(stream.epoch(0)));
        let mut loader = Self {
            stream,
            encoder,
            options,
            limit,
            cursor: Cursor::default(),
            rows,
            items: VecDeque::new(),
            given: Vec::new(),
            report: EncodeReport::default(),
            problems: Vec::new(),
            rows_read: 0,
            bins: 0,
            joining: Joining::default(),
        };
        loader.fill_to(1)?;
        match loader.items.is_empty() {
            true => Err(DataError::NothingToTrain {
                reason: match loader.stream.held_out() {
                    0 => "no row of the stream is left after encoding".into(),
                    rows => format!(
                        "no row of the stream is left behind the {rows} that `val_size` holds out, or after encoding"
                    ),
                },
            }),
            false => Ok(loader),
        }
    }

    /// What became of the rows so far (of the first epoch); of its lists the first places.
    pub fn report(&self) -> &EncodeReport {
        &self.report
    }

    /// How each data set is read; numbers of rows are not known.
    pub fn reports(&self) -> Vec<DatasetReport> {
        self.stream.reports()
    }

    /// Malformed rows so far.
    pub fn problems(&self) -> &[RowProblem] {
        &self.problems
    }

    fn fill(&self) -> Option<f64> {
        let capacity = self.options.pack_to?;
        Some(self.report.tokens as f64 / (capacity as u64 * self.bins.max(1)) as f64)
    }

    fn next_step(&mut self) -> Result<StepBatch, DataError> {
        let items = self.take_items()?;
        let at = self.cursor;
        let mut first = 0;
        let rows: Vec<Vec<usize>> = items
            .iter()
            .map(|item| {
                first += item.len();
                (first - item.len()..first).collect()
            })
            .collect();
        let rows: Vec<&[usize]> = rows.iter().map(|rows| &rows[..]).collect();
        let examples: Vec<Example> = items.into_iter().flatten().collect();
        let micro_batches = pack::micro_batches(&examples, &rows, self.options.batch_size, self.joining);
        self.given = examples.into_iter().map(|example| example.origin).collect();
        self.advance()?;
        Ok(StepBatch { at, micro_batches })
    }

    /// The items of the step at the cursor; fewer than a whole step's at the end of an epoch.
    fn take_items(&mut self) -> Result<Vec<Vec<Example>>, DataError> {
        let wanted = self.options.batch_size * self.options.accumulation;
        self.fill_to(wanted)?;
        let items: Vec<Vec<Example>> = self.items.drain(..wanted.min(self.items.len())).collect();
        match items.is_empty() {
            true => {
                Err(DataError::NothingToTrain { reason: "an epoch of the stream has no row to train".into() })
            }
            false => Ok(items),
        }
    }

    /// Moves the cursor on, into the next epoch after the last step of one.
    fn advance(&mut self) -> Result<(), DataError> {
        self.cursor.step_in_epoch += 1;
        self.fill_to(1)?;
        if self.items.is_empty() {
            self.begin(self.cursor.epoch + 1);
        }
        Ok(())
    }

    fn begin(&mut self, epoch: u64) {
        self.cursor = Cursor { epoch, step_in_epoch: 0 };
        self.items.clear();
        if self.is_counted() {
            (self.report, self.rows_read, self.bins) = (EncodeReport::default(), 0, 0);
            self.problems.clear();
        }
        self.rows = Some(Mutex::new(self.stream.epoch(epoch)));
    }

    fn seek(&mut self, cursor: Cursor) -> Result<(), DataError> {
        if cursor != self.cursor {
            self.begin(cursor.epoch);
            while self.cursor < cursor {
                self.take_items()?;
                self.advance()?;
            }
        }
        if self.cursor != cursor {
            return Err(DataError::Option {
                key: "streaming",
                reason: "the stream ends before the place where the run was: its data has changed since".into(),
                help: "resume with the data that the run began with, or begin anew with `overwrite_output_dir: true`"
                    .into(),
            });
        }
        Ok(())
    }

    /// Tokenises chunks until so many items are ready or the epoch ends.
    fn fill_to(&mut self, wanted: usize) -> Result<(), DataError> {
        while self.items.len() < wanted {
            let Some(rows) = self.read_chunk()? else { return Ok(()) };
            let (examples, report) = self.encoder.encode(&rows);
            report.proof.require()?;
            self.count(report)?;
            match self.options.pack_to {
                None => self.items.extend(examples.into_iter().map(|example| vec![example])),
                Some(capacity) => {
                    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
                    let mut examples: Vec<Option<Example>> = examples.into_iter().map(Some).collect();
                    for bin in pack::bins(&lengths, capacity) {
                        self.bins += u64::from(self.is_counted());
                        self.items
                            .push_back(bin.into_iter().filter_map(|row| examples[row].take()).collect());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether what becomes of rows is counted: later epochs are the same rows.
    fn is_counted(&self) -> bool {
        self.cursor.epoch == 0
    }

    /// The next rows; `None` at the end of the epoch.
    fn read_chunk(&mut self) -> Result<Option<Vec<Conversation>>, DataError> {
        let is_counted = self.is_counted();
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let rows = rows.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (mut chunk, mut has_ended) = (Vec::new(), false);
        while chunk.len() < CHUNK_ROWS {
            let Ok(row) = rows.recv() else {
                has_ended = true;
                break;
            };
            self.rows_read += u64::from(is_counted);
            match row? {
                Ok(row) => chunk.push(row),
                Err(problem) if is_counted => self.problems.push(problem),
                Err(_) => {}
            }
        }
        self.rows = self.rows.take().filter(|_| !has_ended);
        self.check(&self.problems, self.rows_read, "malformed")?;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn check(&self, problems: &[RowProblem], rows: u64, are: &str) -> Result<(), DataError> {
        let is_settled = rows >= ROWS_OF_A_SHARE || self.rows.is_none();
        match self.limit {
            ProblemLimit::Fraction(_) if !is_settled => Ok(()),
            limit => limit.check(problems, rows, are),
        }
    }

    /// Adds what became of a chunk.
    fn count(&mut self, report: EncodeReport) -> Result<(), DataError> {
        if !self.is_counted() {
            return Ok(());
        }
        self.report.merge(report);
        self.report.cut.truncate(LISTED);
        self.report.parted.truncate(LISTED);
        self.check(&self.report.refused, self.report.rows as u64, "refused by the template")
    }
}
