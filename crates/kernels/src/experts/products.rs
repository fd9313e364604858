//! Products of groups of rows with their experts' weights.

use super::Grouping;
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

impl ExpertWeights<'_> {
    /// y [N·k, out] = x·W[e]ᵀ + b[e] of each group, x being [N·k, in].
    pub fn forward(&self, dev: &Device, grouping: &Grouping, x: View<'_>, mut y: ViewMut<'_>) {
        for (expert, range) in grouping.groups() {
            let (x, w, y) =
                (x.rows(range.clone()), of_expert(self.weight, expert), y.reborrow().into_rows(range));
            let product = if self.transposed { Matmul::new(x, w, y) } else { Matmul::x_wt(x, w, y) };
            product.bias(self.bias.map(|bias| of_expert(bias, expert))).run(dev);
        }
    }

    /// dx [N·k, in] = dy·W[e] of each group.
    pub fn backward_input(&self, dev: &Device, grouping: &Grouping, dy: View<'_>, mut dx: ViewMut<'_>) {
        for (expert, range) in grouping.groups() {
            let (dy, w, dx) =
                (dy.rows(range.clone()), of_expert(self.weight, expert), dx.reborrow().into_rows(range));
            // W[e] stored [in, out] is what the product of a forward pass takes.
            let product = if self.transposed { Matmul::x_wt(dy, w, dx) } else { Matmul::dy_w(dy, w, dx) };
            product.run(dev);
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
