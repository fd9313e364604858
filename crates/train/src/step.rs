//! One optimizer step (stages 9 to 12 of the walk): gradients of all its micro-batches, clipping, the update.
//!
//! The loss is normalised here and nowhere else: every micro-batch adds the gradient of
//!
//! > Σ w·loss / Σ w of the whole step
//!
//! over its supervised tokens, whose weights w are 1 where rows do not say otherwise: so the step's loss is a mean over its
//! tokens, never a mean of means.

use sft_data::loader::StepBatch;
use sft_data::pack::PackedBatch;
use sft_kernels::copies::Places;
use sft_kernels::{Device, adamw, random};
use sft_model::head::LossSums;
use sft_model::parameter::Parameter;
use sft_model::workspace::Workspace;
use sft_model::{Batch, Decoder, ModelError, Shared};

use crate::optim::{ByParts, Optimizer};

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Σ w·loss / Σ w.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Sums of the step.
    pub sums: LossSums,
}

/// How the update is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateOptions {
    /// Of this step.
    pub learning_rate: f64,
    /// Gradients of a larger norm are scaled down to it; 0 for no limit.
    pub max_grad_norm: f64,
}

/// A packed batch as the model sees it.
pub fn as_batch(packed: &PackedBatch) -> Batch<'_> {
    Batch {
        input_ids: &packed.input_ids,
        position_ids: &packed.position_ids,
        cu_seqlens: &packed.cu_seqlens,
        shared: packed.shared.as_ref().map(|shared| {
            let (starts, places) = shared.copies();
            Shared { starts: shared.starts(), seen: shared.seen(), places: Places { starts, places } }
        }),
        targets: &packed.targets,
        weights: &packed.weights,
    }
}

/// Sets gradients and sums to 0.
pub(crate) fn clear(dev: &Device, decoder: &mut Decoder, work: &mut Workspace) {
    let trained = decoder.trained_mut();
    adamw::zero_all(dev, trained.into_iter().filter_map(Parameter::begin_gradient));
    work.clear_loss();
}

/// Sets the gradients to those of the step's mean loss. `dropout` is the key of the step's masks.
///
/// # Errors
/// A token id outside of the vocabulary.
pub fn gradients(
    dev: &Device,
    decoder: &mut Decoder,
    step: &StepBatch,
    dropout: u64,
    work: &mut Workspace,
) -> Result<LossSums, ModelError> {
    clear(dev, decoder, work);
    let scale = scale_of(step);
    for (i, packed) in step.micro_batches.iter().enumerate() {
        let key = random::key(dropout, &[i as u64]);
        work.set_share(packed.row_tokens() as f32 / step.tokens().max(1) as f32);
        decoder.loss_and_gradients(dev, as_batch(packed), scale, Some(key), work)?;
    }
    let trained = decoder.trained_mut();
    adamw::zero_all(dev, trained.into_iter().filter_map(Parameter::end_gradient));
    Ok(work.loss_sums(dev))
}

/// A step whose parts of the model are updated while backward passes them, of one micro-batch. No part knows the norm of all
/// gradients, so that none is clipped. From the first part on whose gradients are not finite nothing is changed, and the outcome
/// says so.
///
/// # Errors
/// A token id outside of the vocabulary.
///
/// # Panics
/// If the step has several micro-batches: gradients of parts are gone before the next one.
pub fn by_parts(
    dev: &Device,
    decoder: &mut Decoder,
    step: &StepBatch,
    dropout: u64,
    work: &mut Workspace,
    optimizer: &mut dyn ByParts,
    learning_rate: f64,
) -> Result<StepOutcome, ModelError> {
    let [packed] = &step.micro_batches[..] else {
        panic!("a step by parts has one micro-batch, and not {}", step.micro_batches.len())
    };
    work.clear_loss();
    work.set_share(1.0);
    optimizer.begin_step();
    let (scale, key) = (scale_of(step), random::key(dropout, &[0]));
    let mut squares = 0.0;
    decoder.loss_and_updates(dev, as_batch(packed), scale, Some(key), work, &mut |part| {
        squares += adamw::sum_of_squares_all(dev, part.iter().filter_map(|p| p.gradient()));
        if squares.is_finite() {
            optimizer.update_part(dev, part, learning_rate);
        }
    })?;
    let sums = work.loss_sums(dev);
    Ok(StepOutcome { loss: sums.mean_loss(), grad_norm: squares.sqrt(), sums })
}

/// What losses of tokens are multiplied by: one over their weights.
pub(crate) fn scale_of(step: &StepBatch) -> f32 {
    let weight = step.weight();
    if weight > 0.0 { 1.0 / weight as f32 } else { 1.0 }
}

/// Clips and updates, unless loss or gradient is not finite: then nothing is changed and the outcome says so.
pub fn update(
    dev: &Device,
    decoder: &mut Decoder,
    optimizer: &mut dyn Optimizer,
    options: UpdateOptions,
    sums: LossSums,
) -> StepOutcome {
    let mut trained = decoder.trained_mut();
    let grad_norm = optimizer.sum_of_squares(dev, &trained).sqrt();
    let outcome = StepOutcome { loss: sums.mean_loss(), grad_norm, sums };
    if outcome.loss.is_finite() && grad_norm.is_finite() {
        // torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
        let clip = if options.max_grad_norm > 0.0 { options.max_grad_norm / (grad_norm + 1e-6) } else { 1.0 };
        optimizer.update(dev, &mut trained, options.learning_rate, clip.min(1.0) as f32);
    }
    outcome
}
