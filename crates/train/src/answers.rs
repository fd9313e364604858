//! The model's answers to the rows to evaluate on: how like the expected ones they are, and a file of all.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use sft_infer::{Answered, Questions, similarity};
use sft_runs::records::{PredictRecord, Scores};
use sft_runs::results::PREDICTIONS;
use sft_runs::{RunError, atomic};

use crate::TrainError;
use crate::events::{Event, Observer};
use crate::job::Job;
use crate::trainer::Trainer;

/// Answers to all rows.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    rows: Vec<Answered>,
    pub record: PredictRecord,
}

impl Answers {
    /// Asks the model; `None` if the observer interrupts.
    pub fn ask(
        questions: &Questions,
        trainer: &mut Trainer<'_>,
        job: &Job,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, TrainError> {
        let (started, at_a_time) = (Instant::now(), job.config.per_device_eval_batch_size);
        let (dev, decoder, work) = (trainer.dev, &trainer.decoder, &mut trainer.work);
        let (mut done, of) = (0, questions.len());
        let observer = std::cell::RefCell::new(observer);
        let stop = || observer.borrow().interrupted();
        let on_answer = |_: &Answered| {
            done += 1;
            observer.borrow_mut().on(&Event::Answered { done, of });
        };
        let rows = questions.answer(dev, decoder, (work, at_a_time), stop, on_answer)?;
        let Some(rows) = rows else { return Ok(None) };
        let asked = rows.iter().filter(|row| row.answer.is_ok()).count();
        let record = PredictRecord {
            scores: similarity(&rows).map(|mean| Scores {
                bleu_4: mean.bleu_4,
                rouge_1: mean.rouge_1,
                rouge_2: mean.rouge_2,
                rouge_l: mean.rouge_l,
            }),
            runtime_s: started.elapsed().as_secs_f64(),
            samples: asked as u64,
            batches: asked.div_ceil(at_a_time) as u64,
        };
        Ok(Some(Self { rows, record }))
    }

    /// Writes [`PREDICTIONS`], without the rows that could not be asked.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, RunError> {
        let line = |row: &Answered| {
            let answer = row.answer.as_ref().ok()?;
            Some(format!("{}\n", json!({"prompt": row.prompt, "predict": answer, "label": row.expected})))
        };
        let lines: String = self.rows.iter().filter_map(line).collect();
        let path = folder.join(PREDICTIONS);
        atomic::write(&path, lines.as_bytes())?;
        Ok(path)
    }

    /// What to say of rows without an answer, or without one to compare with.
    pub fn notes(&self) -> Vec<String> {
        let (mut notes, of) = (Vec::new(), self.rows.len());
        let mut reasons = self.rows.iter().filter_map(|row| row.answer.as_ref().err());
        if let Some(first) = reasons.next() {
            let count = 1 + reasons.count();
            notes.push(format!("{count} of {of} rows have no answer, the first because {first}"));
        }
        let blank = self.rows.iter().filter(|row| row.answer.is_ok() && row.similarity.is_none()).count();
        if blank > 0 {
            notes.push(format!("{blank} of {of} rows have nothing to compare their answers with"));
        }
        notes
    }
}
