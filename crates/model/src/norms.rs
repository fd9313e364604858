//! The norms around a layer of a block, and the sum that its output goes into (stages 9 and 11 of the walk).
//!
//! > y = of_sum(x + r·after(layer(before(x))))
//!
//! Any of the three may be missing. Saved for backward: the inputs of `after` and of `of_sum`, and statistics; the output
//! of `before` is kept by whoever has room for it, or computed again from x.

use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::spec::{NormNames, NormSpec};

/// The norms around a layer, [C] each.
#[derive(Debug)]
pub struct Norms {
    /// Of its input.
    pub before: Option<Norm>,
    /// Of its output.
    pub after: Option<Norm>,
    /// Of the sum of the two.
    pub of_sum: Option<Norm>,
}

/// What the norms around a layer leave for backward.
#[derive(Debug)]
pub struct SavedNorms {
    /// Statistics of the norm before the layer.
    before: Option<Tensor>,
    /// The layer's output, and statistics of the norm after it.
    after: Option<(Tensor, Tensor)>,
    /// The sum, and statistics of its norm.
    of_sum: Option<(Tensor, Tensor)>,
}

impl SavedNorms {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, hidden): (usize, usize),
        names: NormNames,
        norm: NormSpec,
    ) -> Self {
        let statistics = [tokens, norm.kind.statistics()];
        let before = names.before.map(|_| arena.tensor(DType::F32, &statistics));
        let mut with_input =
            |_| (arena.tensor(dtype, &[tokens, hidden]), arena.tensor(DType::F32, &statistics));
        Self { before, after: names.after.map(&mut with_input), of_sum: names.of_sum.map(&mut with_input) }
    }
}

impl Norms {
    /// The layer's input: before(x) in `h`, or x itself.
    pub fn input<'a>(
        &self,
        dev: &Device,
        x: View<'a>,
        h: &'a mut Tensor,
        saved: &mut SavedNorms,
    ) -> View<'a> {
        let n = x.dim(0);
        match (&self.before, &mut saved.before) {
            (Some(norm), Some(statistics)) => {
                norm.forward(dev, x, h.head_mut(n), statistics.head_mut(n));
                h.head(n)
            }
            _ => x,
        }
    }

    /// Runs `layer`, which writes its output; leaves after(output) in `t`.
    pub fn output(
        &self,
        dev: &Device,
        t: &mut Tensor,
        n: usize,
        saved: &mut SavedNorms,
        layer: impl FnOnce(ViewMut<'_>),
    ) {
        match (&self.after, &mut saved.after) {
            (Some(norm), Some((output, statistics))) => {
                layer(output.head_mut(n));
                norm.forward(dev, output.head(n), t.head_mut(n), statistics.head_mut(n));
            }
            _ => layer(t.head_mut(n)),
        }
    }

    /// y = of_sum(x + r·t).
    pub fn sum(
        &self,
        dev: &Device,
        x: View<'_>,
        (r, t): (f32, View<'_>),
        y: ViewMut<'_>,
        saved: &mut SavedNorms,
    ) {
        let n = x.dim(0);
        match (&self.of_sum, &mut saved.of_sum) {
            (Some(norm), Some((sum, statistics))) => {
                rows::sum(dev, x, (r, t), sum.head_mut(n));
                norm.forward(dev, sum.head(n), y, statistics.head_mut(n));
            }
            _ => rows::sum(dev, x, (r, t), y),
        }
    }

    /// y of [`Norms::sum`], and what the layer between `next` norms reads of it: before(y) in `h`, or y itself.
    pub fn sum_and_input<'a>(
        &self,
        dev: &Device,
        x: View<'_>,
        t: (f32, View<'_>),
        y: &'a mut Tensor,
        saved: &mut SavedNorms,
        (next, next_saved, h): (&Self, &mut SavedNorms, &'a mut Tensor),
    ) -> (View<'a>, View<'a>) {
        let n = x.dim(0);
        if let (None, Some(norm), Some(statistics)) = (&self.of_sum, &next.before, &mut next_saved.before) {
            norm.forward_of_sum(dev, x, t, y.head_mut(n), h.head_mut(n), statistics.head_mut(n));
            return (y.head(n), h.head(n));
        }
        self.sum(dev, x, t, y.head_mut(n), saved);
        let y = y.head(n);
        (y, next.input(dev, y, h, next_saved))
    }

    /// The layer's input in backward: `kept`, or as [`Norms::input`] has it.
    pub fn input_again<'a>(
        &self,
        dev: &Device,
        x: View<'a>,
        kept: Option<&'a Tensor>,
        h: &'a mut Tensor,
        saved: &mut SavedNorms,
    ) -> View<'a> {
        kept.map_or_else(|| self.input(dev, x, h, saved), |kept| kept.head(x.dim(0)))
    }

    /// Turns the gradient of of_sum(sum) in `d` into that of the sum.
    pub fn sum_gradient(&mut self, dev: &Device, mut d: ViewMut<'_>, t: &mut Tensor, saved: &SavedNorms) {
        let n = d.dim(0);
        if let (Some(norm), Some((sum, statistics))) = (&mut self.of_sum, &saved.of_sum) {
            norm.backward_over(dev, (sum.head(n), statistics.head(n)), d.as_view(), t.head_mut(n));
            d.reborrow().copy_from(t.head(n));
        }
    }

    /// The gradient of the layer's output from that of the sum, `dy`: in `dout`, or `dy` itself.
    pub fn output_gradient<'a>(
        &mut self,
        dev: &Device,
        dy: View<'a>,
        residual_multiplier: f32,
        dout: &'a mut Option<Tensor>,
        saved: &SavedNorms,
    ) -> View<'a> {
        let n = dy.dim(0);
        match (&mut self.after, &saved.after, dout) {
            (Some(norm), Some((output, statistics)), Some(dout)) => {
                norm.backward_over(dev, (output.head(n), statistics.head(n)), dy, dout.head_mut(n));
                dout.head(n)
            }
            (_, _, Some(dout)) if residual_multiplier != 1.0 => {
                rows::scale(dev, dy, residual_multiplier, dout.head_mut(n));
                dout.head(n)
            }
            _ => dy,
        }
    }

    /// Adds to the gradient `d` of the sum's other part that of x through the layer, whose input has gradient `dh`.
    pub fn input_gradient(
        &mut self,
        dev: &Device,
        x: View<'_>,
        dh: View<'_>,
        d: Option<ViewMut<'_>>,
        saved: &SavedNorms,
    ) {
        match (&mut self.before, &saved.before, d) {
            (Some(norm), Some(statistics), d) => norm.backward(dev, (x, statistics.head(x.dim(0))), dh, d),
            (_, _, Some(d)) => rows::add(dev, dh, d),
            _ => {}
        }
    }

    /// Their weights.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norms = self.before.iter().chain(&self.after).chain(&self.of_sum);
        norms.flat_map(Norm::parameters)
    }

    /// Their weights.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let norms = self.before.iter_mut().chain(&mut self.after).chain(&mut self.of_sum);
        norms.flat_map(Norm::parameters_mut)
    }
}
