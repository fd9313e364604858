//! A norm with its weight and bias, forward and backward (stages 9 to 11 of the walk).
//!
//! Saved for backward by whoever calls: its input, and statistics, [rows, [`NormKind::statistics`]] f32.

use sft_kernels::layer_norm::{self, Affine, LayerNormParams};
use sft_kernels::rms_norm::{self, RmsNormParams};
use sft_kernels::{Device, View, ViewMut, rows};

use crate::parameter::Parameter;
use crate::spec::{NormKind, NormSpec};

/// A norm of rows.
#[derive(Debug)]
pub struct Norm {
    /// As wide as the rows, or [G, C]: row r takes weight r mod G.
    pub weight: Option<Parameter>,
    /// As wide as the rows.
    pub bias: Option<Parameter>,
    /// What it is.
    pub spec: NormSpec,
}

impl NormKind {
    /// Values that forward saves for a row.
    pub fn statistics(self) -> usize {
        match self {
            NormKind::Rms => 1,
            NormKind::Layer => layer_norm::STATISTICS,
        }
    }
}

impl NormSpec {
    fn rms_params(self) -> RmsNormParams {
        RmsNormParams { eps: self.eps, offset: self.offset }
    }

    fn layer_params(self) -> LayerNormParams {
        LayerNormParams { eps: self.eps, offset: self.offset }
    }
}

impl Norm {
    /// Its weights.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.weight.iter().chain(&self.bias)
    }

    /// Its weights.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.weight.iter_mut().chain(&mut self.bias)
    }

    /// Whether training changes it.
    pub fn takes_gradient(&self) -> bool {
        self.parameters().any(Parameter::takes_gradient)
    }

    /// y = norm(x), and statistics for backward; x and y are [rows, C].
    pub fn forward(&self, dev: &Device, x: View<'_>, y: ViewMut<'_>, statistics: ViewMut<'_>) {
        let [weight, bias] = [&self.weight, &self.bias].map(|p| p.as_ref().map(Parameter::value));
        match self.spec.kind {
            NormKind::Rms => rms_norm::forward(dev, self.spec.rms_params(), x, weight, y, statistics),
            NormKind::Layer => {
                let affine = Affine { weight, bias };
                layer_norm::forward(dev, self.spec.layer_params(), x, affine, y, statistics);
            }
        }
    }

    /// m = x + r·t, and [`Norm::forward`] of m.
    pub fn forward_of_sum(
        &self,
        dev: &Device,
        x: View<'_>,
        (r, t): (f32, View<'_>),
        mut m: ViewMut<'_>,
        y: ViewMut<'_>,
        statistics: ViewMut<'_>,
    ) {
        if self.spec.kind == NormKind::Rms {
            let (params, weight) = (self.spec.rms_params(), self.weight.as_ref().map(Parameter::value));
            return rms_norm::add_forward(dev, params, x, (r, t), weight, (m, y, statistics));
        }
        rows::sum(dev, x, (r, t), m.reborrow());
        self.forward(dev, m.as_view(), y, statistics);
    }

    /// The way of the gradient `dy` back to the input (x, statistics), added to `dx` if there is one.
    pub fn backward(
        &mut self,
        dev: &Device,
        saved: (View<'_>, View<'_>),
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
    ) {
        self.gradients(dev, saved, dy, dx, true);
    }

    /// As [`Norm::backward`], but `dx` is overwritten.
    pub fn backward_over(
        &mut self,
        dev: &Device,
        saved: (View<'_>, View<'_>),
        dy: View<'_>,
        dx: ViewMut<'_>,
    ) {
        self.gradients(dev, saved, dy, Some(dx), false);
    }

    fn gradients(
        &mut self,
        dev: &Device,
        (x, statistics): (View<'_>, View<'_>),
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
        accumulate: bool,
    ) {
        match self.spec.kind {
            NormKind::Rms => {
                let saved = rms_norm::Saved { x, rstd: statistics };
                let (w, dw) = self.weight.as_mut().map(Parameter::value_and_gradient).unzip();
                let into = rms_norm::Gradients { dx: dx.map(|dx| (dx, accumulate)), dw: dw.flatten() };
                rms_norm::backward(dev, self.spec.rms_params(), w, dy, saved, into);
            }
            NormKind::Layer => {
                let w = self.weight.as_ref().map(Parameter::value);
                let saved = layer_norm::Saved { x, statistics };
                if let Some(dx) = dx {
                    layer_norm::backward_input(dev, self.spec.layer_params(), w, dy, saved, dx, accumulate);
                }
                if let Some(weight) = &mut self.weight {
                    weight.accumulate(|dw| layer_norm::backward_weight(dev, dy, saved, dw));
                }
            }
        }
        if let Some(bias) = &mut self.bias {
            bias.accumulate(|db| rows::sum_rows(dev, dy, db));
        }
    }
}
