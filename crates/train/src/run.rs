//! The loop (stage 13 of the walk), the only one: step → record → evaluate when due → checkpoint when due.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use sft_config::{IntervalStrategy, OnNonFinite, Reporter, Resume};
use sft_data::batches::Batches;
use sft_data::loader::StepBatch;
use sft_kernels::{DType, Device, OutOfMemory};
use sft_model::method::AdapterOptions;
use sft_model::{Decoder, ModelError, adapter, saving};
use sft_runs::checkpoint::{CheckpointWriter, rotate};
use sft_runs::folder::{self, ResumeFrom, RunFolder, Start};
use sft_runs::memory::peak_rss_bytes;
use sft_runs::recorder::Recorder;
use sft_runs::records::{self, EvalRecord, RecorderOptions, StepRecord, Summary};
use sft_runs::{RunError, atomic, results};

use crate::answers::Answers;
use crate::checkpoint::{self, Base, TrainingState};
use crate::data_files::DataFiles;
use crate::digest::{digest, digest_of_rows};
use crate::evaluate::{Evaluation, evaluate};
use crate::events::{Event, Observer, Progress};
use crate::health::{self, Health, MOST_SKIPPED_IN_A_ROW, NonFiniteStep};
use crate::job::Job;
use crate::model_card;
use crate::step::StepOutcome;
use crate::trainer::Trainer;
use crate::{TrainError, setup};

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Updates done.
    pub steps: u64,
    /// How many of them were done before this session: 0, or the step of the checkpoint that was resumed.
    pub resumed_at: u64,
    /// What was written to `all_results.json`.
    pub results: serde_json::Map<String, serde_json::Value>,
    /// Where the run can be taken up again; `None` if it is complete.
    pub interrupted_at: Option<PathBuf>,
    /// SHA-256 of the trained weights.
    pub digest: String,
    /// The model as training left it.
    pub decoder: Decoder,
}

/// Runs a job to its end, or until the observer interrupts it.
///
/// # Errors
/// As [`open_folder`] and [`run_in`].
pub fn run(job: Job, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    let folder = open_folder(&job)?;
    run_in(&folder, job, observer)
}

/// Makes or opens the folder of a job and locks it: what is in the way there is told before anything takes long.
///
/// # Errors
/// A job that does not fit into memory; a folder in use, or one that holds another run; too little room on its disk.
pub fn open_folder(job: &Job) -> Result<RunFolder, TrainError> {
    job.check_memory()?;
    let from = match &job.config.resume_from_checkpoint {
        Resume::Automatic => ResumeFrom::Automatic,
        Resume::No => ResumeFrom::Never,
        Resume::Newest => ResumeFrom::Last,
        Resume::From(path) => ResumeFrom::Path(path.clone()),
    };
    let (output_dir, overwrite) = (&job.config.output_dir, job.config.overwrite_output_dir);
    let folder = match job.config.do_train {
        true => RunFolder::open(output_dir, overwrite, &from)?,
        false => RunFolder::beside(output_dir)?,
    };
    if job.config.do_train {
        folder.require_room(job.written_bytes())?;
    }
    Ok(folder)
}

/// Runs a job in its folder, to its end or until the observer interrupts it.
///
/// # Errors
/// A model that cannot be read, memory that others took meanwhile, a loss that is not finite, a full disk.
pub fn run_in(folder: &RunFolder, job: Job, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    job.check_memory()?;
    let dev = setup::device(&job.config)?;
    OutOfMemory::caught(|| dev.install(|| Running::begin(&dev, job, folder)?.complete(observer)))?
}

/// A run between two steps.
struct Running<'a> {
    job: Job,
    folder: &'a RunFolder,
    trainer: Trainer<'a>,
    recorder: Recorder,
    step: u64,
    /// Where this session began.
    resumed_at: u64,
    /// Steps that changed nothing, and how many of them the last ones are.
    skipped: u64,
    skipped_in_a_row: u64,
    health: Health,
    data_files: DataFiles,
    /// The evaluation after the current step was broken off.
    owes_evaluation: bool,
    /// Digest of the training rows, where they are all kept.
    rows: Option<String>,
    /// What a resume says of keys that have other values than before.
    changed: Vec<String>,
    /// Fingerprint of the model, where frozen weights of it stay as they are.
    base: Option<String>,
    /// Checkpoint of the current step, if it is written already.
    saved_at: Option<PathBuf>,
    /// The evaluation after the current step, if it is made already.
    evaluated: Option<Vec<EvalRecord>>,
    /// The answers of the weights as they are, if they were asked for already.
    answers: Option<Answers>,
    /// Whether somebody heard of the rows that cannot be asked.
    told_of_answers: bool,
}

impl<'a> Running<'a> {
    fn begin(dev: &'a Device, mut job: Job, folder: &'a RunFolder) -> Result<Self, TrainError> {
        let otherwise = match folder.start() {
            Start::Resume(from) => job.join_as(checkpoint::joining_of(&from.path)?)?,
            Start::Fresh | Start::Beside => Vec::new(),
        };
        let mut trainer = Trainer::new(dev, &job)?;
        let data_files = DataFiles::new(job.datasets.iter().flat_map(|set| &set.files));
        let rows = match &job.train {
            Batches::Kept(loader) if job.config.do_train => Some(digest_of_rows(loader.examples())),
            _ => None,
        };
        let base = checkpoint::base_fingerprint(&job)?;
        let resumed = match folder.start() {
            Start::Resume(from) => {
                let expected = TrainingState::beginning(&job, trainer.trained_elements, &rows, &base);
                Some((
                    trainer.restore(&from.path, &job.method, &expected)?,
                    checkpoint::changed_keys(&from.path, &job.config),
                ))
            }
            Start::Fresh | Start::Beside => None,
        };
        // Only now: it may remove what an earlier run has left in the folder.
        let recorder = Recorder::open(folder, recorder_options(&job))?;
        let mut running = Self {
            folder,
            trainer,
            recorder,
            step: 0,
            resumed_at: 0,
            saved_at: None,
            evaluated: None,
            answers: None,
            told_of_answers: false,
            job,
            skipped: 0,
            skipped_in_a_row: 0,
            health: Health::default(),
            data_files,
            rows,
            base,
            changed: Vec::new(),
            owes_evaluation: false,
        };
        if let Some((state, changed)) = resumed {
            running.job.train.seek(state.cursor)?;
            running.owes_evaluation = state.owes_evaluation;
            (running.step, running.skipped, running.health) = (state.step, state.skipped, state.health);
            running.resumed_at = state.step;
            running.changed = changed.into_iter().chain(otherwise).collect();
        }
        if running.job.config.do_train {
            let yaml = running.job.config.resolved_yaml();
            atomic::write(&folder.path().join("training_args.yaml"), yaml.as_bytes())?;
            running.write_proof()?;
        }
        Ok(running)
    }

    /// What was found to hold for the rows; of a stream, so far.
    fn write_proof(&self) -> Result<(), TrainError> {
        let job = &self.job;
        let train = match &job.train {
            Batches::Kept(_) => &job.encoded.proof,
            Batches::Streamed(stream) => &stream.report().proof,
        };
        let proof = json!({"train": train, "eval": job.eval_encoded.as_ref().map(|e| &e.proof)});
        atomic::write(&self.folder.path().join("data_proof.json"), format!("{proof:#}\n").as_bytes())?;
        Ok(())
    }

    fn state(&self) -> TrainingState {
        TrainingState {
            step: self.step,
            skipped: self.skipped,
            owes_evaluation: self.owes_evaluation,
            health: self.health.clone(),
            ..TrainingState::beginning(&self.job, self.trainer.trained_elements, &self.rows, &self.base)
        }
    }

    fn epoch(&self) -> f64 {
        self.job.epochs_after(self.step)
    }

    fn complete(mut self, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        let mut notes = self.folder.notes().to_vec();
        notes.extend(self.trainer.note.take());
        notes.append(&mut self.changed);
        observer.on(&Event::Ready { resumed_at: self.step, notes: &notes });
        let mut interrupted = false;
        if self.job.config.do_train {
            let (steps, rate) = (self.job.total_steps, self.job.config.learning_rate);
            match health::idle_steps(&self.job.schedule, steps, rate) {
                Some(text) if self.step == 0 => self.warn(&text, observer)?,
                // The log that is continued says so already.
                Some(text) => observer.on(&Event::Warned { step: self.step, text: &text }),
                None => {}
            }
            // A run that was to stop early and was killed before its end.
            let mut stop_early = self.is_out_of_patience(self.recorder.evals_since_best());
            if self.owes_evaluation || (self.step == 0 && self.job.config.eval_on_start) {
                // Of the session before, which was interrupted in the middle of it, or before the first step.
                let owed = self.step > 0;
                stop_early = self.evaluate(observer)?;
                if owed && self.is_due(self.job.config.save_strategy, self.job.config.save_steps) {
                    self.save(observer)?;
                }
                interrupted = self.owes_evaluation && self.job.total_steps > 0;
            }
            while self.step < self.job.total_steps && !interrupted && !stop_early {
                self.take_step(observer)?;
                if self.is_due(self.job.config.eval_strategy, self.job.config.eval_steps) {
                    stop_early = self.evaluate(observer)?;
                }
                if self.is_due(self.job.config.save_strategy, self.job.config.save_steps) {
                    self.save(observer)?;
                }
                let is_last = self.step == self.job.total_steps && !self.owes_evaluation;
                interrupted = observer.interrupted() && !is_last && !stop_early;
            }
        }
        if interrupted {
            let at = self.save_complete(observer)?;
            let digest = digest(&mut self.trainer.decoder);
            return Ok(Outcome {
                steps: self.step,
                resumed_at: self.resumed_at,
                results: serde_json::Map::new(),
                interrupted_at: Some(at),
                digest,
                decoder: self.trainer.decoder,
            });
        }
        self.finish(observer)
    }

    /// Whether something that happens by this strategy is due after the current step; after the last one it always is, as
    /// transformers' Trainer has it.
    fn is_due(&self, strategy: IntervalStrategy, every: sft_config::Amount) -> bool {
        match strategy {
            IntervalStrategy::No => false,
            _ if self.step == self.job.total_steps => true,
            IntervalStrategy::Steps => self.step.is_multiple_of(self.job.every(every)),
            IntervalStrategy::Epoch => self.step.is_multiple_of(self.job.steps_per_epoch()),
        }
    }

    fn take_step(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let started = Instant::now();
        let batch = self.job.train.next_step()?;
        let outcome = self.trainer.step(&self.job, self.step, &batch)?;
        let learning_rate = self.job.schedule.rate(self.step);
        self.step += 1;
        self.saved_at = None;
        (self.evaluated, self.answers) = (None, None);
        let skipped = !(outcome.loss.is_finite() && outcome.grad_norm.is_finite());
        if skipped {
            self.skip(&batch, &outcome, observer)?;
        } else {
            self.skipped_in_a_row = 0;
        }
        let samples: usize = batch.micro_batches.iter().map(|b| b.rows.len()).sum();
        let record = StepRecord {
            step: self.step,
            epoch: self.epoch(),
            loss: outcome.loss,
            learning_rate,
            grad_norm: Some(outcome.grad_norm),
            tokens: batch.tokens() as u64,
            supervised_tokens: outcome.sums.supervised as u64,
            samples: samples as u64,
            flops: self.job.flops_per_token() * batch.tokens() as f64,
            device_peak_bytes: self.trainer.dev.peak_bytes(),
            skipped,
        };
        let line = self.recorder.record_step(&record)?;
        observer.on(&Event::Step(&Progress {
            step: self.step,
            total_steps: self.job.total_steps,
            epoch: record.epoch,
            loss: outcome.loss,
            learning_rate,
            grad_norm: outcome.grad_norm,
            tokens: batch.tokens(),
            sums: outcome.sums,
            seconds: started.elapsed().as_secs_f64(),
        }));
        if let Some(line) = &line {
            observer.on(&Event::Logged(line));
        }
        if !skipped {
            for text in self.health.after(&outcome, self.job.config.max_grad_norm) {
                self.warn(&text, observer)?;
            }
        }
        Ok(())
    }

    /// Says what seems wrong, to who watches and in the log.
    fn warn(&mut self, text: &str, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.recorder.record_warning(text)?;
        observer.on(&Event::Warned { step: self.step, text });
        Ok(())
    }

    /// Finds where the step went wrong, and passes over it if that is what is to be done.
    fn skip(
        &mut self,
        batch: &StepBatch,
        outcome: &StepOutcome,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let found = NonFiniteStep::find(&mut self.trainer, &self.job, self.step - 1, batch, outcome)?;
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        let goes_on = self.job.config.on_non_finite == OnNonFinite::SkipStep
            && found.what != "weights"
            && self.skipped_in_a_row <= MOST_SKIPPED_IN_A_ROW;
        if goes_on {
            let (rows, NonFiniteStep { what, place, .. }) = (found.rows_in_words(), &found);
            let text = format!("skipped: the {what} is not finite, first in {place}; rows: {rows}");
            return self.warn(&text, observer);
        }
        let last = sft_runs::checkpoint::last_good(self.folder.path()).ok().and_then(|(last, _)| last);
        Err(TrainError::NonFinite {
            step: self.step,
            what: found.what,
            rows: found.rows_in_words(),
            place: found.place,
            last_good: last.map_or("there is no checkpoint yet".to_owned(), |last| {
                format!("the last good checkpoint is {}", last.path.display())
            }),
        })
    }

    /// Evaluates and records; whether training should stop because it does not get better. One that is interrupted is
    /// owed: whoever resumes the run begins with it.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        self.trainer.begin_evaluation();
        let records = self.eval_records(observer);
        self.trainer.end_evaluation();
        let records = records?;
        self.owes_evaluation = records.is_none() && !self.job.eval.is_empty();
        let Some(records) = records else { return Ok(false) };
        let mut evals_since_best = 0;
        for record in &records {
            let outcome = self.recorder.record_eval(record)?;
            observer.on(&Event::Evaluated { line: &outcome.line, is_best: outcome.is_best });
            evals_since_best = outcome.evals_since_best;
        }
        self.evaluated = Some(records);
        let stop = self.is_out_of_patience(evals_since_best);
        if stop {
            observer.on(&Event::StoppedEarly { evaluations: evals_since_best });
        }
        Ok(stop)
    }

    fn is_out_of_patience(&self, evals_since_best: u64) -> bool {
        self.job.config.early_stopping_steps.is_some_and(|patience| evals_since_best >= patience)
    }

    /// The current evaluation: of each data set where they stand for themselves, and last of all rows. `None` without
    /// evaluation rows, or when it was interrupted.
    fn eval_records(&mut self, observer: &mut dyn Observer) -> Result<Option<Vec<EvalRecord>>, TrainError> {
        let (step, epoch) = (self.step, self.epoch());
        let record =
            |dataset: Option<String>, evaluation: &Evaluation, seconds: f64, samples: u64| EvalRecord {
                step,
                epoch,
                dataset,
                loss: evaluation.loss(),
                accuracy: Some(evaluation.accuracy()),
                scores: None,
                runtime_s: seconds,
                samples,
                batches: evaluation.batches,
            };
        let (mut records, mut all, mut all_seconds, mut all_samples) =
            (Vec::new(), Evaluation::default(), 0.0, 0);
        for set in &self.job.eval {
            let started = Instant::now();
            let (dev, decoder, work) = (self.trainer.dev, &self.trainer.decoder, &mut self.trainer.work);
            let evaluation = evaluate(dev, decoder, &set.rows, work, || observer.interrupted())?;
            if evaluation.stopped {
                return Ok(None);
            }
            let (seconds, samples) = (started.elapsed().as_secs_f64(), set.rows.examples().len() as u64);
            all += evaluation;
            (all_seconds, all_samples) = (all_seconds + seconds, all_samples + samples);
            if set.dataset.is_some() {
                records.push(record(set.dataset.clone(), &evaluation, seconds, samples));
            }
        }
        if self.job.eval.is_empty() {
            return Ok(None);
        }
        let mut of_all = record(None, &all, all_seconds, all_samples);
        if self.job.config.predict_with_generate {
            if !self.ask(observer)? {
                return Ok(None);
            }
            if let Some(Answers { record, .. }) = &self.answers {
                (of_all.scores, of_all.runtime_s) = (record.scores, of_all.runtime_s + record.runtime_s);
            }
        }
        records.push(of_all);
        Ok(Some(records))
    }

    /// Has the model answer the rows to evaluate on, unless it has; whether it was not interrupted.
    fn ask(&mut self, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        if self.answers.is_none()
            && let Some(questions) = &self.job.questions
        {
            self.answers = Answers::ask(questions, &mut self.trainer, &self.job, observer)?;
            let Some(answers) = &self.answers else { return Ok(false) };
            // They are the same ones each time.
            if !std::mem::replace(&mut self.told_of_answers, true) {
                for text in answers.notes() {
                    observer.on(&Event::Warned { step: self.step, text: &text });
                }
            }
        }
        Ok(true)
    }

    /// Writes the answers to all rows and how like the expected ones they are. `None` if it was interrupted.
    fn predict(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<Option<serde_json::Map<String, Value>>, TrainError> {
        results::forget_predictions(self.folder.path())?;
        if !self.ask(observer)? {
            return Ok(None);
        }
        let Some(answers) = self.answers.take() else { return Ok(Some(serde_json::Map::new())) };
        let path = answers.write(self.folder.path())?;
        results::save_predictions(self.folder.path(), &answers.record)?;
        observer.on(&Event::Predicted { path: &path });
        Ok(Some(answers.record.metrics()))
    }

    /// Says which data files have changed since they were read.
    fn check_data_files(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let meaning = match &self.job.train {
            Batches::Kept(_) => {
                "this run goes on with the rows that it read before; a resume of it will be refused if they differ"
            }
            Batches::Streamed(_) => {
                "rows that are read from now on are other ones, and no resume repeats this run"
            }
        };
        for path in self.data_files.changed() {
            self.warn(
                &format!("{}: the file changed while the run went on: {meaning}", path.display()),
                observer,
            )?;
        }
        Ok(())
    }

    /// Writes a checkpoint of the current step, unless it is there already.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf, TrainError> {
        match &self.saved_at {
            Some(path) => Ok(path.clone()),
            None => self.write_checkpoint(self.job.config.save_only_model, observer),
        }
    }

    /// Writes one that the run can be taken up from, whatever `save_only_model` says.
    fn save_complete(&mut self, observer: &mut dyn Observer) -> Result<PathBuf, TrainError> {
        match &self.saved_at {
            Some(path) if !self.job.config.save_only_model => Ok(path.clone()),
            _ => self.write_checkpoint(false, observer),
        }
    }

    fn write_checkpoint(
        &mut self,
        model_only: bool,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, TrainError> {
        self.check_data_files(observer)?;
        let mut writer = CheckpointWriter::begin(self.folder, self.step)?;
        self.trainer.begin_evaluation();
        let written = self.write_weights(writer.folder(), None);
        self.trainer.end_evaluation();
        written?;
        if model_only {
            writer.set_model_only();
        } else {
            let (state, optimizer) = (self.state(), self.trainer.optimizer.as_ref());
            let trained = self.trainer.decoder.trained_mut();
            checkpoint::write_state(writer.folder(), &state, optimizer, &trained).map_err(on_disk)?;
        }
        self.recorder.save(&writer)?;
        let path = writer.finish()?.path;
        let limit = self.job.config.save_total_limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        rotate(self.folder, limit, self.recorder.best_checkpoint_step())?;
        observer.on(&Event::Saved { folder: &path });
        self.saved_at = Some(path.clone());
        Ok(path)
    }

    /// The adapter as one of the model's own weights, where LLaMA-Factory puts it.
    fn write_converted(&self) -> Result<(), TrainError> {
        let Some(AdapterOptions::Lora(options)) = &self.trainer.adapter else { return Ok(()) };
        let folder = self.folder.path().join(folder::CONVERTED);
        sft_runs::disk::create_dir_all(&folder)
            .map_err(|source| on_disk(ModelError::File { path: folder.clone(), source }))?;
        let base = self.job.base.to_string_lossy();
        adapter::write_converted(&self.trainer.decoder, options, &base, &folder).map_err(on_disk)
    }

    fn write_weights(&self, to: &Path, dtype: Option<DType>) -> Result<(), TrainError> {
        checkpoint::write_weights(
            to,
            &self.trainer.decoder,
            Base { folder: &self.job.base, name: &self.job.config.model_name_or_path },
            self.trainer.adapter.as_ref(),
            dtype,
        )
        .map_err(on_disk)?;
        let Some(told) = &self.job.told else { return Ok(()) };
        saving::copy_model_files(told.tokenizer_folder(), to).map_err(on_disk)?;
        for (name, text) in told.files(to)? {
            atomic::write(&to.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    fn finish(mut self, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        self.trainer.begin_evaluation();
        let best_step = self.take_best(observer)?;
        let mut results = serde_json::Map::new();
        self.check_data_files(observer)?;
        if self.job.config.do_train {
            self.write_proof()?;
            self.write_weights(self.folder.path(), Some(self.job.precision.compute))?;
            if self.job.config.pissa_convert {
                self.write_converted()?;
            }
            let peak_bytes = self.trainer.dev.peak_bytes().or_else(peak_rss_bytes);
            let mut extra = serde_json::Map::new();
            extra.insert("trained_parameters".into(), json!(self.trainer.trained_elements));
            extra.extend(self.health.counts().map(|(warning, steps)| (warning.key().into(), json!(steps))));
            results = self.recorder.finish(&Summary { peak_bytes, extra })?;
        }
        let mut interrupted_at = None;
        if self.job.config.do_eval {
            // The weights are those of the last step, and its evaluation is this one.
            let made = self.evaluated.take().filter(|_| best_step.is_none());
            match made.map_or_else(|| self.eval_records(observer), |made| Ok(Some(made)))? {
                Some(records) => {
                    results::save_eval(self.folder.path(), &records)?;
                    results.extend(records.iter().flat_map(EvalRecord::metrics));
                }
                None if self.job.eval.is_empty() => {}
                None => interrupted_at = Some(self.before_the_end(best_step.is_some(), observer)?),
            }
        }
        if self.job.config.do_predict && interrupted_at.is_none() {
            match self.predict(observer)? {
                Some(metrics) => results.extend(metrics),
                None => interrupted_at = Some(self.before_the_end(best_step.is_some(), observer)?),
            }
        }
        if self.job.config.do_train {
            model_card::write(
                &self.job,
                self.trainer.adapter.as_ref(),
                self.folder.path(),
                (self.recorder.state(), best_step),
            )?;
        }
        let digest = digest(&mut self.trainer.decoder);
        Ok(Outcome {
            steps: self.step,
            resumed_at: self.resumed_at,
            results,
            interrupted_at,
            digest,
            decoder: self.trainer.decoder,
        })
    }

    /// Puts the weights of the best evaluation back, where that is asked for; their step, if it is not the last one.
    fn take_best(&mut self, observer: &mut dyn Observer) -> Result<Option<u64>, TrainError> {
        let asked = self.job.config.load_best_model_at_end;
        let best = self.recorder.best_checkpoint_step().filter(|best| asked && *best != self.step);
        let Some(step) = best else { return Ok(None) };
        let Some(folder) = self.best_checkpoint(step) else {
            let text = format!(
                "the checkpoint of step {step}, the best one, is not there any more: the weights of the last step stay"
            );
            self.warn(&text, observer)?;
            return Ok(None);
        };
        checkpoint::read_weights(&folder, &mut self.trainer.decoder, &self.job.method)?;
        self.answers = None;
        observer.on(&Event::BestLoaded { step });
        Ok(Some(step))
    }

    /// The folder of the checkpoint of step `step`, the best one, if it is there: here, or where the run was that this one
    /// goes on from.
    fn best_checkpoint(&self, step: u64) -> Option<PathBuf> {
        let before = self.recorder.state().best_model_checkpoint.as_ref().map(PathBuf::from);
        let here = self.folder.path().join(format!("checkpoint-{step}"));
        [Some(here), before].into_iter().flatten().find(|folder| folder.is_dir())
    }

    /// A checkpoint from which the evaluation at the end, which was broken off, is made again: of the last step, or where the
    /// weights of the best one have taken the place of its own, the last that there is.
    fn before_the_end(&mut self, has_best: bool, observer: &mut dyn Observer) -> Result<PathBuf, TrainError> {
        if self.job.config.do_train && !has_best {
            self.trainer.end_evaluation();
            return self.save_complete(observer);
        }
        let last = sft_runs::checkpoint::last_good(self.folder.path()).ok().and_then(|(last, _)| last);
        Ok(last.map_or_else(|| self.folder.path().to_owned(), |last| last.path))
    }
}

fn recorder_options(job: &Job) -> RecorderOptions {
    let c = &job.config;
    RecorderOptions {
        total_steps: job.total_steps,
        num_train_epochs: job.epochs,
        logging_steps: job.every(c.logging_steps),
        logging_first_step: c.logging_first_step,
        save_steps: job.every(c.save_steps),
        eval_steps: (c.eval_strategy == IntervalStrategy::Steps).then(|| job.every(c.eval_steps)),
        train_batch_size: c.per_device_train_batch_size as u64,
        best_metric: (c.load_best_model_at_end || c.early_stopping_steps.is_some()).then(|| {
            records::BestMetric {
                name: c.metric_for_best_model.to_string(),
                greater_is_better: c.greater_is_better,
            }
        }),
        plot_loss: c.plot_loss,
        tensorboard: c.do_train && c.report_to.contains(&Reporter::Tensorboard),
        model_files: &saving::MODEL_FILES,
        run_name: c.run_name.clone(),
    }
}

/// A failed write with what the file system is about (full disk, read-only folder).
fn on_disk(error: ModelError) -> TrainError {
    match error {
        ModelError::File { path, source } => RunError::at(&path, "write")(source).into(),
        other => other.into(),
    }
}
