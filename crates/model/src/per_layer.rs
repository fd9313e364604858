//! Inputs of their own for every block, and the layer that takes them in (stages 9 and 11 of the walk).
//!
//! > p = (norm(project(h₀) / √C) + √P · embedding[ids]) / √2, once for all blocks: [N, L·P]
//! > y = x + norm(output(act(gate(x)) · p_l)), at the end of block l
//!
//! Saved for backward: p; in a block x, the outputs of gate and `output`, and p_l, of which backward makes gradients.

use sft_kernels::gated::{self, Activation};
use sft_kernels::{DType, Tensor, View, ViewMut, columns, rows};

use crate::arena::Arena;
use crate::inputs::{in_rows, in_rows_mut};
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, PerLayerSpec};

/// What makes the inputs of all blocks.
#[derive(Debug)]
pub struct PerLayerInputs {
    /// [vocabulary, L·P].
    pub embedding: Parameter,
    /// [L·P, C].
    pub projection: Linear,
    /// Of P numbers.
    pub norm: Norm,
    /// Its sizes.
    pub spec: PerLayerSpec,
}

/// The inputs of a micro-batch and their gradients, and the workspace of what makes them.
#[derive(Debug)]
pub struct Inputs {
    /// p, [N, L·P].
    p: Tensor,
    /// Its gradient.
    dp: Tensor,
    /// The projection's output and its gradient, [N, L·P].
    projected: Tensor,
    t: Tensor,
    statistics: Tensor,
    saved: linear::Saved,
    scratch: linear::Scratch,
    /// P.
    width: usize,
}

impl Inputs {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Option<Self> {
        let (layers, c) = (spec.layers.len(), spec.hidden_size);
        let PerLayerSpec { width, projection, .. } = spec.per_layer?;
        let carried = adapters.outside.carried_by(projection);
        let mut all = || arena.tensor(dtype, &[tokens, layers * width]);
        Some(Self {
            p: all(),
            dp: all(),
            projected: all(),
            t: all(),
            statistics: arena.tensor(DType::F32, &[tokens, layers * spec.norm.kind.statistics()]),
            saved: linear::Saved::new(arena, dtype, tokens, carried),
            scratch: linear::Scratch::new(arena, dtype, (tokens, tokens), c, carried, adapters.has_dropout()),
            width,
        })
    }
}

impl PerLayerInputs {
    /// The inputs of all blocks from token ids and h₀ [N, C].
    pub fn forward(&self, pass: &Pass<'_>, ids: &[u32], h: View<'_>, inputs: &mut Inputs) {
        let (n, dev, i) = (ids.len(), pass.dev, inputs);
        let rows = n * i.p.shape()[1] / self.spec.width;
        let (embedding, width) = (self.embedding.value(), self.spec.width as f32);
        let y = i.t.head_mut(n);
        self.projection.forward(dev, h, y, &mut i.saved, &mut i.scratch, pass.dropout);
        rows::scale(dev, i.t.head(n), (h.dim(1) as f32).sqrt().recip(), i.projected.head_mut(n));
        let (x, to) = (in_rows(i.projected.head(n), rows), in_rows_mut(i.t.head_mut(n), rows));
        self.norm.forward(dev, x, to, in_rows_mut(i.statistics.head_mut(n), rows));
        let half = std::f32::consts::FRAC_1_SQRT_2;
        rows::gather(dev, embedding, ids, width.sqrt() * half, i.dp.head_mut(n));
        rows::sum(dev, i.dp.head(n), (half, i.t.head(n)), i.p.head_mut(n));
    }

    /// Adds to the gradients of what is trained, and to that of h₀ in `d`, h being h₀.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        ids: &[u32],
        h: View<'_>,
        d: ViewMut<'_>,
        inputs: &mut Inputs,
    ) {
        let (n, dev, i) = (ids.len(), pass.dev, inputs);
        let rows = n * i.p.shape()[1] / self.spec.width;
        let (half, width) = (std::f32::consts::FRAC_1_SQRT_2, self.spec.width as f32);
        let dp = i.dp.head(n);
        self.embedding.accumulate(|dw| rows::scatter_add(dev, dp, ids, width.sqrt() * half, dw));
        rows::scale(dev, dp, half, i.t.head_mut(n));
        let saved = (in_rows(i.projected.head(n), rows), in_rows(i.statistics.head(n), rows));
        let (dy, to) = (in_rows(i.t.head(n), rows), in_rows_mut(i.dp.head_mut(n), rows));
        self.norm.backward_over(dev, saved, dy, to);
        rows::scale(dev, i.dp.head(n), (h.dim(1) as f32).sqrt().recip(), i.t.head_mut(n));
        let dy = i.t.head(n);
        self.projection.backward(dev, h, dy, Some(d), true, &i.saved, &mut i.scratch, pass.dropout);
    }

    /// Its weights but the adapter's, in the order of [`PerLayerInputs::parameters_mut`].
    pub fn base_parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.embedding].into_iter().chain(self.projection.base_parameters()).chain(self.norm.parameters())
    }

    /// Its weights, the adapter's included.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Self { embedding, projection, norm, .. } = self;
        [embedding].into_iter().chain(projection.parameters_mut()).chain(norm.parameters_mut())
    }
}

/// The layer at the end of a block.
#[derive(Debug)]
pub struct PerLayer {
    /// [P, C].
    pub gate: Linear,
    /// [C, P].
    pub output: Linear,
    /// Of the output.
    pub norm: Norm,
    /// On the gate.
    pub activation: Activation,
    /// Its names and sizes.
    pub spec: PerLayerSpec,
    /// The number of its block.
    pub layer: usize,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    x: Tensor,
    g: Tensor,
    p: Tensor,
    y: Tensor,
    statistics: Tensor,
    gate: linear::Saved,
    output: linear::Saved,
    /// What goes into `output`, and its gradient.
    inner: Tensor,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (model, spec): (&DecoderSpec, PerLayerSpec),
        adapters: &LayerAdapters,
    ) -> Self {
        let (p, c) = ([tokens, spec.width], [tokens, model.hidden_size]);
        let mut linear = |name: &str| linear::Saved::new(arena, dtype, tokens, adapters.carried_by(name));
        let (gate, output) = (linear(spec.gate), linear(spec.output));
        Self {
            x: arena.tensor(dtype, &c),
            g: arena.tensor(dtype, &p),
            p: arena.tensor(dtype, &p),
            y: arena.tensor(dtype, &c),
            statistics: arena.tensor(DType::F32, &[tokens, model.norm.kind.statistics()]),
            gate,
            output,
            inner: arena.tensor(dtype, &p),
        }
    }
}

impl PerLayer {
    /// Turns x in `h` [N, C] into y; `t` is scratch of the same shape.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        mut h: ViewMut<'_>,
        t: &mut Tensor,
        saved: &mut Saved,
        (inputs, linears): (&Inputs, &mut linear::Scratch),
    ) {
        let (n, dev, s, dropout) = (h.dim(0), pass.dev, saved, pass.dropout);
        s.x.head_mut(n).copy_from(h.as_view());
        columns::take(dev, inputs.p.head(n), self.layer * inputs.width, s.p.head_mut(n));
        self.gate.forward(dev, s.x.head(n), s.g.head_mut(n), &mut s.gate, linears, dropout);
        gated::forward(dev, self.activation, s.g.head(n), s.p.head(n), s.inner.head_mut(n));
        let inner = s.inner.head(n);
        self.output.forward(dev, inner, s.y.head_mut(n), &mut s.output, linears, dropout);
        self.norm.forward(dev, s.y.head(n), t.head_mut(n), s.statistics.head_mut(n));
        rows::add(dev, t.head(n), h.reborrow());
    }

    /// Turns the gradient of y in `d` into that of x; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        d: ViewMut<'_>,
        t: &mut Tensor,
        saved: &mut Saved,
        (inputs, linears): (&mut Inputs, &mut linear::Scratch),
    ) {
        let (n, dev, s, dropout) = (d.dim(0), pass.dev, saved, pass.dropout);
        self.norm.backward_over(dev, (s.y.head(n), s.statistics.head(n)), d.as_view(), t.head_mut(n));
        self.output.backward_to_input(dev, t.head(n), s.inner.head_mut(n), &s.output, linears, dropout);
        let (g, p) = (s.g.head_mut(n), s.p.head_mut(n));
        gated::backward(dev, self.activation, s.inner.head_mut(n), g, p, true);
        self.output.backward_of_input(dev, s.inner.head(n), t.head(n), linears, dropout);
        columns::put(dev, s.p.head(n), inputs.dp.head_mut(n), self.layer * inputs.width);
        let dg = s.g.head(n);
        self.gate.backward(dev, s.x.head(n), dg, Some(d), true, &s.gate, linears, dropout);
    }

    /// Its linear layers with their names inside the block.
    pub fn linears(&self) -> [(&'static str, &Linear); 2] {
        [(self.spec.gate, &self.gate), (self.spec.output, &self.output)]
    }

    /// Its linear layers with their names inside the block.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 2] {
        [(self.spec.gate, &mut self.gate), (self.spec.output, &mut self.output)]
    }
}
