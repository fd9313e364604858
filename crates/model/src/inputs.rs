//! The linear layers that read a layer's input (stages 9 and 11 of the walk): queries, keys and values of attention,
//! gate and up of a feed-forward layer.
//!
//! > y₀, y₁, … = linear₀(x), linear₁(x), …, or the parts of one linear(x)
//!
//! One for all lies side by side in groups (see [`InputNames::Fused`]): its output [N, G·Σ widths] is the matrix
//! [N·G, Σ widths], of which each part has its columns. Its weight stays one, as it is in files, and so does an
//! adapter on it. Adapters on several read x together.

use sft_kernels::{DType, Tensor, View, ViewMut, columns};

use crate::arena::Arena;
use crate::latent;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::pass::Pass;
use crate::spec::InputNames;

/// Linear layers of one input.
#[derive(Debug)]
pub struct Inputs {
    /// One for each output, or one for all.
    pub linears: Vec<Linear>,
    /// Their names.
    pub names: InputNames,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    linears: Vec<linear::Saved>,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        names: InputNames,
        adapters: &LayerAdapters,
    ) -> Self {
        let saved = |name: &&str| linear::Saved::new(arena, dtype, tokens, adapters.carried_by(name));
        Self { linears: names.names().iter().map(saved).collect() }
    }
}

/// Workspace that all linear layers share.
#[derive(Debug)]
pub struct Scratch {
    /// Of each alone.
    pub linears: linear::Scratch,
    /// The output of one for all, or its gradient, [N · widest].
    pub fused: Option<Tensor>,
    /// Of latent attention.
    pub latent: Option<latent::Scratch>,
}

impl Scratch {
    /// Room for `tokens` tokens and `widest` outputs of layers that make several at once, if there are such.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        widest: Option<usize>,
        (linears, latent): (linear::Scratch, Option<latent::Scratch>),
    ) -> Self {
        Self { linears, latent, fused: widest.map(|width| arena.tensor(dtype, &[tokens * width])) }
    }
}

/// [N, …] as so many rows.
pub(crate) fn in_rows(x: View<'_>, rows: usize) -> View<'_> {
    x.reshape(&[rows, x.elements() / rows.max(1)])
}

/// [N, …] as so many rows, to write.
pub(crate) fn in_rows_mut(x: ViewMut<'_>, rows: usize) -> ViewMut<'_> {
    let shape = [rows, x.elements() / rows.max(1)];
    x.reshape(&shape)
}

impl Inputs {
    /// The linear layers with their names inside the block.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        self.names.names().iter().copied().zip(&self.linears)
    }

    /// The linear layers with their names inside the block.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear)> {
        self.names.names().iter().copied().zip(&mut self.linears)
    }

    /// The outputs [N, …] from x [N, C].
    pub fn forward<const P: usize>(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        outputs: [ViewMut<'_>; P],
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let (n, dev) = (x.dim(0), pass.dev);
        if let (InputNames::Fused { groups, .. }, Some(fused)) = (self.names, &mut scratch.fused) {
            let (linear, saved) = (&self.linears[0], &mut saved.linears[0]);
            let size = n * linear.outputs();
            let to = in_rows_mut(fused.head_mut(size), n);
            linear.forward(dev, x, to, saved, &mut scratch.linears, pass.dropout);
            let rows = n * groups;
            return columns::split(
                dev,
                in_rows(fused.head(size), rows),
                outputs.map(|output| in_rows_mut(output, rows)),
            );
        }
        self.forward_each(pass, x, outputs, saved, &mut scratch.linears);
    }

    /// The outputs where each has a linear layer.
    pub fn forward_each<const P: usize>(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        outputs: [ViewMut<'_>; P],
        saved: &mut Saved,
        scratch: &mut linear::Scratch,
    ) {
        let (n, dev) = (x.dim(0), pass.dev);
        let layers = self.linears.iter().zip(&mut saved.linears);
        linear::down(dev, x, layers, scratch, pass.dropout);
        for ((linear, output), saved) in self.linears.iter().zip(outputs).zip(&mut saved.linears) {
            linear.output(dev, x, in_rows_mut(output, n), saved, scratch, pass.dropout);
        }
    }

    /// Writes to `dx`, if it is wanted, what the gradients of the outputs come to.
    pub fn backward<const P: usize>(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        gradients: [View<'_>; P],
        dx: Option<ViewMut<'_>>,
        saved: &Saved,
        scratch: &mut Scratch,
    ) {
        self.backward_to(pass, x, gradients, (dx, false), saved, scratch);
    }

    /// The same, added to what is in `dx` if it says so: other layers read x too.
    pub fn backward_to<const P: usize>(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        gradients: [View<'_>; P],
        (dx, accumulate): (Option<ViewMut<'_>>, bool),
        saved: &Saved,
        scratch: &mut Scratch,
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        if let (InputNames::Fused { groups, .. }, Some(fused)) = (self.names, &mut scratch.fused) {
            let (linear, saved) = (&mut self.linears[0], &saved.linears[0]);
            let (size, rows) = (n * linear.outputs(), n * groups);
            let parts = gradients.map(|gradient| in_rows(gradient, rows));
            columns::join(dev, parts, in_rows_mut(fused.head_mut(size), rows));
            let dy = in_rows(fused.head(size), n);
            return linear.backward(dev, x, dy, dx, accumulate, saved, &mut scratch.linears, dropout);
        }
        self.backward_each(pass, x, gradients, (dx, accumulate), saved, &mut scratch.linears);
    }

    /// [`Inputs::backward_to`] where each output has a linear layer.
    pub fn backward_each<const P: usize>(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        gradients: [View<'_>; P],
        (dx, accumulate): (Option<ViewMut<'_>>, bool),
        saved: &Saved,
        scratch: &mut linear::Scratch,
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let dy = gradients.map(|gradient| in_rows(gradient, n));
        linear::backward(dev, &mut self.linears, x, dy, dx, accumulate, &saved.linears, scratch, dropout);
    }
}
