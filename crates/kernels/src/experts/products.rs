//! Products of groups of rows with their experts' weights, and with low-rank adapters beside them.

use super::Grouping;
use crate::lora::{self, BackwardInput, BackwardOutput, Down};
use crate::matmul::Matmul;
use crate::{Device, View, ViewMut, rows};

/// The weights of a linear layer of all experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertWeights<'a> {
    /// [E, out, in], or [E, in, out] if `transposed`.
    pub weight: View<'a>,
    /// How it lies.
    pub transposed: bool,
    /// [E, out].
    pub bias: Option<View<'a>>,
}

/// Matrix e of [E, …, …].
fn of_expert(weights: View<'_>, expert: usize) -> View<'_> {
    weights.rows(expert..expert + 1).reshape(&weights.shape()[1..])
}

fn of_expert_mut(weights: ViewMut<'_>, expert: usize) -> ViewMut<'_> {
    let whole = weights.as_view().shape().to_vec();
    weights.into_rows(expert..expert + 1).reshape(&whole[1..])
}

/// Low-rank adapters of a linear layer of all experts: those of expert e add s·B[e]·A[e] to its weight.
#[derive(Debug, Clone, Copy)]
pub struct ExpertAdapters<'a> {
    /// A: [E, R, in].
    pub a: View<'a>,
    /// B: [E, out, R].
    pub b: View<'a>,
    /// s.
    pub scale: f32,
}

impl ExpertWeights<'_> {
    /// y [N·k, out] = x·W[e]ᵀ + b[e] of each group, x being [N·k, in]; with xa [N·k, R] of [`ExpertAdapters::down`] and
    /// B [E, out, R] also + xa·B[e]ᵀ.
    pub fn forward(
        &self,
        dev: &Device,
        grouping: &Grouping,
        x: View<'_>,
        mut y: ViewMut<'_>,
        adapters: Option<(View<'_>, View<'_>)>,
    ) {
        for (expert, range) in grouping.groups() {
            let plus = adapters.map(|(xa, b)| (xa.rows(range.clone()), of_expert(b, expert)));
            let (x, w) = (x.rows(range.clone()), of_expert(self.weight, expert));
            let mut y = y.reborrow().into_rows(range);
            let bias = self.bias.map(|bias| of_expert(bias, expert));
            match plus {
                None if self.transposed => Matmul::new(x, w, y).bias(bias).run(dev),
                None => Matmul::x_wt(x, w, y).bias(bias).run(dev),
                Some((xa, b)) if self.transposed => {
                    Matmul::new(x, w, y.reborrow()).bias(bias).run(dev);
                    Matmul::x_wt(xa, b, y).accumulate().run(dev);
                }
                Some((xa, b)) => Matmul::x_wt(x, w, y).plus(xa, b).bias(bias).run(dev),
            }
        }
    }

    /// dx [N·k, in] = dy·W[e] of each group; with dxa [N·k, R] of [`ExpertAdapters::backward_output`] and A [E, R, in] also
    /// + dxa·A[e].
    pub fn backward_input(
        &self,
        dev: &Device,
        grouping: &Grouping,
        dy: View<'_>,
        mut dx: ViewMut<'_>,
        adapters: Option<(View<'_>, View<'_>)>,
    ) {
        for (expert, range) in grouping.groups() {
            let plus = adapters.map(|(dxa, a)| (dxa.rows(range.clone()), of_expert(a, expert)));
            let (dy, w) = (dy.rows(range.clone()), of_expert(self.weight, expert));
            let mut dx = dx.reborrow().into_rows(range);
            // W[e] stored [in, out] is what the product of a forward pass takes.
            match plus {
                None if self.transposed => Matmul::x_wt(dy, w, dx).run(dev),
                None => Matmul::dy_w(dy, w, dx).run(dev),
                Some((dxa, a)) if self.transposed => {
                    Matmul::x_wt(dy, w, dx.reborrow()).run(dev);
                    Matmul::dy_w(dxa, a, dx).accumulate().run(dev);
                }
                Some((dxa, a)) => Matmul::dy_w(dy, w, dx).plus(dxa, a).run(dev),
            }
        }
    }

    /// dW[e] += dyᵀ·x of each group, in the form that the weight has.
    pub fn backward_weight(
        &self,
        dev: &Device,
        grouping: &Grouping,
        (x, dy): (View<'_>, View<'_>),
        mut dw: ViewMut<'_>,
    ) {
        for (expert, range) in grouping.groups() {
            let (x, dy) = (x.rows(range.clone()), dy.rows(range));
            let dw = of_expert_mut(dw.reborrow(), expert);
            let product = if self.transposed { Matmul::dyt_x(x, dy, dw) } else { Matmul::dyt_x(dy, x, dw) };
            product.accumulate().run(dev);
        }
    }

    /// db[e] += Σ dy of each group; db is f32 [E, out].
    pub fn backward_bias(dev: &Device, grouping: &Grouping, dy: View<'_>, mut db: ViewMut<'_>) {
        for (expert, range) in grouping.groups() {
            rows::sum_rows(dev, dy.rows(range), of_expert_mut(db.reborrow(), expert));
        }
    }
}

impl ExpertAdapters<'_> {
    /// xa [N·k, R] = s·x·A[e]ᵀ of each group, x being [N·k, in].
    pub fn down(&self, dev: &Device, grouping: &Grouping, x: View<'_>, mut xa: ViewMut<'_>) {
        for (expert, range) in grouping.groups() {
            let (a, xa) = (of_expert(self.a, expert), xa.reborrow().into_rows(range.clone()));
            lora::down(dev, x.rows(range), [Down { a, scale: self.scale, xa }]);
        }
    }

    /// dxa [N·k, R] = s·dy·B[e] of each group, and dB[e] += dyᵀ·xa in f32.
    pub fn backward_output(
        &self,
        dev: &Device,
        grouping: &Grouping,
        (dy, xa): (View<'_>, View<'_>),
        mut dxa: ViewMut<'_>,
        mut db: Option<ViewMut<'_>>,
    ) {
        for (expert, range) in grouping.groups() {
            let io = BackwardOutput {
                dy: dy.rows(range.clone()),
                b: of_expert(self.b, expert),
                xa: xa.rows(range.clone()),
                scale: self.scale,
                dxa: dxa.reborrow().into_rows(range),
                db: db.as_mut().map(|db| of_expert_mut(db.reborrow(), expert)),
            };
            lora::backward_output(dev, io);
        }
    }

    /// dA[e] += dxaᵀ·x of each group; dA is f32 [E, R, in].
    pub fn backward_input(
        dev: &Device,
        grouping: &Grouping,
        (x, dxa): (View<'_>, View<'_>),
        mut da: ViewMut<'_>,
    ) {
        for (expert, range) in grouping.groups() {
            let (dxa, da) = (dxa.rows(range.clone()), of_expert_mut(da.reborrow(), expert));
            lora::backward_input(dev, x.rows(range), [BackwardInput { dxa, da }]);
        }
    }
}
