//! A model with all that a step needs (stages 9 to 12 of the walk): weights, optimizer, workspace.

use std::path::Path;

use sft_data::loader::StepBatch;
use sft_kernels::{Device, give_back_freed, random};
use sft_model::adapter::{self, Last};
use sft_model::loading::{self, Source};
use sft_model::method::{AdapterOptions, Method};
use sft_model::reference::Reference;
use sft_model::weights::WeightFiles;
use sft_model::workspace::Workspace;
use sft_model::{Decoder, ModelError};

use crate::TrainError;
use crate::checkpoint::{self, TrainingState};
use crate::job::Job;
use crate::optim::Optimizer;
use crate::setup;
use crate::step::{StepOutcome, UpdateOptions, by_parts, gradients, update};

/// Takes the steps of a job.
pub struct Trainer<'a> {
    /// Where it computes.
    pub dev: &'a Device,
    /// The model.
    pub decoder: Decoder,
    /// Settings of the adapter that the model carries, if it does.
    pub adapter: Option<AdapterOptions>,
    /// What turns gradients into updates.
    pub optimizer: Box<dyn Optimizer>,
    /// Activations and buffers, of the largest micro-batch.
    pub work: Workspace,
    /// How many weights are trained.
    pub trained_elements: u64,
    /// What to say of the files of the model.
    pub note: Option<String>,
}

impl<'a> Trainer<'a> {
    /// Loads the model of a job and makes room for its steps.
    ///
    /// # Errors
    /// Weights that are missing or do not fit.
    pub fn new(dev: &'a Device, job: &Job) -> Result<Self, ModelError> {
        let Loaded { mut decoder, adapter, note } = load_decoder(dev, job)?;
        if job.plan.pack {
            decoder.pack_frozen(dev);
        }
        let mut trained = decoder.trained_mut();
        let trained_elements = trained.iter().map(|p| p.elements() as u64).sum();
        let mut optimizer = job.optimizer.make(&mut trained);
        if optimizer.by_parts().is_some() {
            trained.iter_mut().for_each(|parameter| parameter.set_rest(true));
        }
        optimizer.choose(&mut trained);
        drop(trained);
        // What gradients took that are not made at first.
        give_back_freed();
        let mut work = Workspace::new(
            dev,
            &job.spec,
            decoder.adapters(),
            job.precision.compute,
            job.plan.capacity(),
            job.plan.purpose(),
        );
        // Evaluations report plain cross-entropy.
        if job.config.do_train {
            let loss = setup::loss(&job.config);
            let reference = loss.needs_reference().then(|| load_reference(dev, job)).transpose()?;
            work.set_loss(loss, reference);
        }
        decoder.entry.noise = job.config.neftune_noise_alpha.map(|alpha| alpha as f32);
        Ok(Self { dev, decoder, adapter, optimizer, work, trained_elements, note })
    }

    /// Takes weights and optimizer state from a checkpoint; where the run goes on. `expected` is the state of the run
    /// that wants to.
    ///
    /// # Errors
    /// A checkpoint of another run, or one that cannot be read.
    pub fn restore(
        &mut self,
        from: &Path,
        method: &Method,
        expected: &TrainingState,
    ) -> Result<TrainingState, TrainError> {
        let state = checkpoint::read_state(from, expected)?;
        checkpoint::read_weights(from, &mut self.decoder, method)?;
        checkpoint::read_optimizer(from, &state, self.optimizer.as_mut())?;
        if self.optimizer.evaluates_elsewhere() {
            checkpoint::read_trained(from, &mut self.decoder)?;
        }
        Ok(state)
    }

    /// Puts the weights to evaluate and to write in the place of those that training goes on from.
    pub fn begin_evaluation(&mut self) {
        self.optimizer.begin_evaluation(self.dev, &mut self.decoder.trained_mut());
    }

    /// Puts those that training goes on from back.
    pub fn end_evaluation(&mut self) {
        self.optimizer.end_evaluation(self.dev, &mut self.decoder.trained_mut());
    }

    /// Step number `step` (from 0) of `job`, on `batch`.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn step(&mut self, job: &Job, step: u64, batch: &StepBatch) -> Result<StepOutcome, ModelError> {
        let key = random::key(job.config.seed, &[random::name_part("dropout"), step]);
        let rate = job.schedule.rate(step);
        if let Some(optimizer) = self.optimizer.by_parts() {
            return by_parts(self.dev, &mut self.decoder, batch, key, &mut self.work, optimizer, rate);
        }
        self.optimizer.choose(&mut self.decoder.trained_mut());
        let sums = gradients(self.dev, &mut self.decoder, batch, key, &mut self.work)?;
        let options = UpdateOptions { learning_rate: rate, max_grad_norm: job.config.max_grad_norm };
        Ok(update(self.dev, &mut self.decoder, self.optimizer.as_mut(), options, sums))
    }
}

/// The model of a job.
pub struct Loaded {
    /// With its adapters.
    pub decoder: Decoder,
    /// The settings of the adapter that it carries, if it does.
    pub adapter: Option<AdapterOptions>,
    /// What to say of its files.
    pub note: Option<String>,
}

/// Loads the model of a job with its adapters.
///
/// # Errors
/// Weights that are missing or do not fit.
pub fn load_decoder(dev: &Device, job: &Job) -> Result<Loaded, ModelError> {
    let folders = job.config.adapter_folders();
    let continued = setup::continued_adapter(&job.config).is_some();
    // A continued adapter is attached to a model without any; everything else begins with its own.
    let method = if continued { &Method::Inference } else { &job.method };
    let (mut decoder, note) = load_base(dev, job, method)?;
    let last = if continued { Last::Continued } else { Last::Merged };
    let carried = adapter::apply(dev, &mut decoder, &folders, last)?;
    let fresh = job.method.adapter_options();
    if let (None, Some(options)) = (&carried, &fresh) {
        adapter::begin(dev, &mut decoder, options)?;
    }
    Ok(Loaded { decoder, adapter: carried.or(fresh), note })
}

/// The model of a job without the adapters of `adapter_name_or_path`, and what to say of its files.
fn load_base(dev: &Device, job: &Job, method: &Method) -> Result<(Decoder, Option<String>), ModelError> {
    let seed = job.config.seed;
    let load = |source: &Source<'_>| loading::load(dev, &job.spec, source, method, job.precision, seed);
    if job.config.train_from_scratch || job.random_weights {
        return Ok((load(&Source::Random { seed })?, None));
    }
    let files = WeightFiles::open_model(&job.base)?;
    Ok((load(&Source::Files(&files))?, files.note_of_unread(&job.spec)))
}

/// The model that training begins with, frozen, for a loss that compares with it.
fn load_reference(dev: &Device, job: &Job) -> Result<Reference, ModelError> {
    let (mut decoder, _) = load_base(dev, job, &Method::Inference)?;
    adapter::apply(dev, &mut decoder, &job.config.adapter_folders(), Last::Merged)?;
    Ok(Reference::new(dev, decoder, job.plan.capacity()))
}
