//! Optimizers (stage 12 of the walk): a trait, a file for each, and [`Recipe`], which says which one a run has.
//!
//! What an optimizer keeps for a weight is laid out by one function of its file, from the weight's [`Outline`]: the plan
//! of memory counts it, `new` allocates it, checkpoints name it.

mod adafactor;
mod adam_mini;
mod adamw;
mod ademamix;
mod apollo;
mod badam;
mod elementwise;
mod galore;
mod groups;
mod host;
mod lion;
mod muon;
mod parts;
mod projection;
mod recipe;
mod schedule_free;
mod sgd;
mod singular;
mod state;
mod torch_random;

use sft_kernels::{Device, Tensor, adamw as adamw_kernel};
use sft_model::parameter::Parameter;
use sft_model::weights::WeightFiles;

pub use adafactor::Adafactor;
pub use adam_mini::{AdamMini, AdamMiniOptions, Heads};
pub use adamw::{AdamW, AdamWOptions};
pub use ademamix::AdEMAMixOptions;
pub use apollo::{Apollo, ApolloOptions, ScaleOf};
pub use badam::{BAdam, BAdamLayers, BAdamRatio, BAdamShares, BlockOrder, MaskMode};
pub use elementwise::Bits;
pub use galore::{GaLore, GaLoreOptions, Inner};
pub use groups::{Decays, Groups, LoraPlus};
pub use lion::LionOptions;
pub use muon::{Muon, MuonOptions};
pub use parts::ByParts;
pub use projection::{Projection, ProjectionType, Subspace};
pub use recipe::{Recipe, Rule};
pub use schedule_free::{ScheduleFree, ScheduleFreeOptions};
pub use sft_model::parameter::Outline;
pub use sgd::SgdOptions;

/// Changes the trained weights by their gradients.
pub trait Optimizer: Send {
    /// One update. `parameters` are the trained ones in the model's order, the same in every call; gradients are
    /// multiplied by `grad_scale` first.
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    );

    /// Lets the weights rest that the next update leaves alone ([`Parameter::set_rest`]), and wakes the others.
    fn choose(&mut self, _parameters: &mut [&mut Parameter]) {}

    /// The same optimizer, if it takes its steps part by part.
    fn by_parts(&mut self) -> Option<&mut dyn ByParts> {
        None
    }

    /// Its tensors with their names, for a checkpoint.
    fn state(&self) -> Vec<(String, &Tensor)>;

    /// Takes its tensors back; `updates` is the number of updates done.
    ///
    /// # Errors
    /// Names what is missing or has another shape.
    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String>;

    /// Σ g² of all gradients that the next update reads, in f64: what clipping goes by.
    fn sum_of_squares(&self, dev: &Device, parameters: &[&mut Parameter]) -> f64 {
        adamw_kernel::sum_of_squares_all(dev, parameters.iter().filter_map(|p| p.gradient()))
    }

    /// Whether training goes on from other weights than those that are evaluated and written: a checkpoint needs both.
    fn evaluates_elsewhere(&self) -> bool {
        false
    }

    /// Puts the weights to evaluate and to write in the place of those that training goes on from.
    fn begin_evaluation(&mut self, _dev: &Device, _parameters: &mut [&mut Parameter]) {}

    /// Undoes [`Optimizer::begin_evaluation`], to the bit.
    fn end_evaluation(&mut self, _dev: &Device, _parameters: &mut [&mut Parameter]) {}
}
