//! A norm with its weight, forward and backward (stages 9 to 11 of the walk).
//!
//! Saved for backward by whoever calls: its input, and `rstd` [rows].

use sft_kernels::rms_norm::{self, RmsNormParams};
use sft_kernels::{Device, View, ViewMut};

use crate::parameter::Parameter;

/// A norm of rows.
#[derive(Debug)]
pub struct Norm {
    /// As wide as the rows.
    pub weight: Parameter,
    /// Its constants.
    pub params: RmsNormParams,
}

impl Norm {
    /// y = norm(x), and `rstd` for backward; x and y are [rows, C].
    pub fn forward(&self, dev: &Device, x: View<'_>, y: ViewMut<'_>, rstd: ViewMut<'_>) {
        rms_norm::forward(dev, self.params, x, self.weight.value(), y, rstd);
    }

    /// The way of the gradient `dy` back to the input (x, rstd), added to `dx` if there is one.
    pub fn backward(
        &mut self,
        dev: &Device,
        (x, rstd): (View<'_>, View<'_>),
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
    ) {
        self.gradients(dev, rms_norm::Saved { x, rstd }, dy, dx, true);
    }

    /// As [`Norm::backward`], but `dx` is overwritten.
    pub fn backward_over(
        &mut self,
        dev: &Device,
        (x, rstd): (View<'_>, View<'_>),
        dy: View<'_>,
        dx: ViewMut<'_>,
    ) {
        self.gradients(dev, rms_norm::Saved { x, rstd }, dy, Some(dx), false);
    }

    fn gradients(
        &mut self,
        dev: &Device,
        saved: rms_norm::Saved<'_>,
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
        accumulate: bool,
    ) {
        if let Some(dx) = dx {
            rms_norm::backward_input(dev, self.params, self.weight.value(), dy, saved, dx, accumulate);
        }
        self.weight.accumulate(|_, dw| rms_norm::backward_weight(dev, dy, saved, dw));
    }
}
