//! Optimizers (stage 12 of the walk): a trait, and one file for each.

mod adamw;

use sft_kernels::{Device, Tensor};
use sft_model::parameter::Parameter;
use sft_model::weights::WeightFiles;

pub use adamw::{AdamW, AdamWOptions};

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

    /// Its tensors with their names, for a checkpoint.
    fn state(&self) -> Vec<(String, &Tensor)>;

    /// Takes its tensors back; `updates` is the number of updates done.
    ///
    /// # Errors
    /// Names what is missing or has another shape.
    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String>;
}
