//! The projections of multi-head latent attention (stages 9 and 11 of the walk); see [`LatentSpec`].
//!
//! Saved for backward: what goes into the two norms, what comes out, and their statistics. Keys and values of all heads
//! are made whole and attention is the same as everywhere, values filled up with zeros to the width of keys.

use sft_kernels::latent;
use sft_kernels::{DType, Tensor, View, ViewMut, columns};

use crate::arena::Arena;
use crate::inputs::in_rows_mut;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::mixer::PartsMut;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{AttentionSpec, DecoderSpec, LatentQueries, LatentSpec, NormSpec};

/// What makes queries, keys and values.
#[derive(Debug)]
pub struct Latent {
    /// From C to narrow queries, and their norm.
    pub q_a: Option<(Linear, Norm)>,
    /// To the queries of all heads.
    pub q_b: Linear,
    /// From C to what keys and values are made from, and the rotated part of keys.
    pub kv_a: Linear,
    /// The norm of the first.
    pub kv_a_norm: Norm,
    /// To keys and values of all heads.
    pub kv_b: Linear,
    /// What it is.
    pub spec: LatentSpec,
}

/// A norm's input, output and statistics.
#[derive(Debug)]
struct Normed {
    x: Tensor,
    y: Tensor,
    statistics: Tensor,
}

impl Normed {
    fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, width: usize, norm: NormSpec) -> Self {
        Self {
            x: arena.tensor(dtype, &[tokens, width]),
            y: arena.tensor(dtype, &[tokens, width]),
            statistics: arena.tensor(DType::F32, &[tokens, norm.kind.statistics()]),
        }
    }

    fn forward(&mut self, pass: &Pass<'_>, norm: &Norm, n: usize) {
        norm.forward(pass.dev, self.x.head(n), self.y.head_mut(n), self.statistics.head_mut(n));
    }

    /// Replaces the gradient of y by that of x.
    fn backward(&self, pass: &Pass<'_>, norm: &mut Norm, dy: View<'_>, dx: ViewMut<'_>) {
        let n = dy.dim(0);
        norm.backward_over(pass.dev, (self.x.head(n), self.statistics.head(n)), dy, dx);
    }
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    q_a: Option<(Normed, linear::Saved)>,
    q_b: linear::Saved,
    kv_a: linear::Saved,
    compressed: Normed,
    kv_b: linear::Saved,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (spec, norm): (&LatentSpec, NormSpec),
        adapters: &LayerAdapters,
    ) -> Self {
        let saved =
            |arena: &mut Arena<'_>, name| linear::Saved::new(arena, dtype, tokens, adapters.carried_by(name));
        let (q_a, q_b) = match spec.queries {
            LatentQueries::Direct(name) => (None, name),
            LatentQueries::Narrow { rank, a, b, .. } => {
                (Some((Normed::new(arena, dtype, tokens, rank, norm), saved(arena, a))), b)
            }
        };
        Self {
            q_a,
            q_b: saved(arena, q_b),
            kv_a: saved(arena, spec.kv_a),
            compressed: Normed::new(arena, dtype, tokens, spec.kv_rank, norm),
            kv_b: saved(arena, spec.kv_b),
        }
    }
}

/// Workspace that all latent projections share.
#[derive(Debug)]
pub struct Scratch {
    /// What `kv_a` puts out, [N · (rank + R)], or its gradient.
    kv_a: Tensor,
    /// The rotated part of keys, [N · R], or its gradient.
    shared: Tensor,
    /// Queries of all heads, [N · H·D], or their gradient.
    queries: Tensor,
    /// Keys and values of all heads, [N · H·(P + V)], or their gradient.
    key_values: Tensor,
    /// Gradients of a norm's output and input, [N · widest].
    narrow: [Tensor; 2],
    /// Values as wide as they are, [N · H·V].
    values: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer; nothing where there is none.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, spec: &DecoderSpec) -> Option<Self> {
        let widest = |width: fn(&AttentionSpec, &LatentSpec) -> usize| {
            let latent = |a: &AttentionSpec| a.latent.as_ref().map(|latent| width(a, latent));
            spec.layers.iter().filter_map(|layer| latent(&layer.attention)).max()
        };
        let narrow = widest(|_, l| l.widest_input())?;
        let mut buffer = |width: Option<usize>| arena.tensor(dtype, &[tokens * width.unwrap_or(0)]);
        Some(Self {
            kv_a: buffer(widest(|_, l| l.kv_rank + l.columns.rotated)),
            shared: buffer(widest(|_, l| l.columns.rotated)),
            queries: buffer(widest(|a, l| a.heads * l.columns.width())),
            key_values: buffer(widest(|a, l| a.heads * (l.columns.passed + l.columns.value))),
            narrow: [buffer(Some(narrow)), buffer(Some(narrow))],
            values: buffer(widest(|a, l| a.heads * l.columns.value)),
        })
    }
}

/// The first elements of a flat buffer as a matrix of n rows.
fn matrix(buffer: &Tensor, n: usize, columns: usize) -> View<'_> {
    buffer.head(n * columns).reshape(&[n, columns])
}

/// The same, to write.
fn matrix_mut(buffer: &mut Tensor, n: usize, columns: usize) -> ViewMut<'_> {
    buffer.head_mut(n * columns).reshape(&[n, columns])
}

impl Latent {
    /// q, k and v [N, H, D] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        heads: [ViewMut<'_>; 3],
        s: &mut Saved,
        (w, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let (rank, columns) = (self.spec.kv_rank, self.spec.columns);
        let input = match (&self.q_a, &mut s.q_a) {
            (Some((linear, norm)), Some((normed, saved))) => {
                linear.forward(dev, x, normed.x.head_mut(n), saved, linears, dropout);
                normed.forward(pass, norm, n);
                normed.y.head(n)
            }
            _ => x,
        };
        let queries = matrix_mut(&mut w.queries, n, self.q_b.outputs());
        self.q_b.forward(dev, input, queries, &mut s.q_b, linears, dropout);
        let kv_a = matrix_mut(&mut w.kv_a, n, rank + columns.rotated);
        self.kv_a.forward(dev, x, kv_a, &mut s.kv_a, linears, dropout);
        let parts = [s.compressed.x.head_mut(n), matrix_mut(&mut w.shared, n, columns.rotated)];
        columns::split(dev, matrix(&w.kv_a, n, rank + columns.rotated), parts);
        s.compressed.forward(pass, &self.kv_a_norm, n);
        let key_values = matrix_mut(&mut w.key_values, n, self.kv_b.outputs());
        self.kv_b.forward(dev, s.compressed.y.head(n), key_values, &mut s.kv_b, linears, dropout);
        let from = (
            matrix(&w.queries, n, self.q_b.outputs()),
            matrix(&w.key_values, n, self.kv_b.outputs()),
            matrix(&w.shared, n, columns.rotated),
        );
        latent::forward(dev, columns, from, heads);
    }

    /// The gradient of x (if wanted) from those of q, k and v.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        gradients: [View<'_>; 3],
        mut dx: Option<ViewMut<'_>>,
        s: &Saved,
        (w, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let (rank, columns) = (self.spec.kv_rank, self.spec.columns);
        let (q_width, kv_width) = (self.q_b.outputs(), self.kv_b.outputs());
        let to = (
            matrix_mut(&mut w.queries, n, q_width),
            matrix_mut(&mut w.key_values, n, kv_width),
            matrix_mut(&mut w.shared, n, columns.rotated),
        );
        latent::backward(dev, columns, gradients, to);
        let [dy, dnarrow] = &mut w.narrow;
        let dqueries = matrix(&w.queries, n, q_width);
        match (&mut self.q_a, &s.q_a) {
            (Some((linear, norm)), Some((normed, saved))) => {
                let width = linear.outputs();
                let (input, d) = (normed.y.head(n), Some(matrix_mut(dy, n, width)));
                self.q_b.backward(dev, input, dqueries, d, false, &s.q_b, linears, dropout);
                normed.backward(pass, norm, matrix(dy, n, width), matrix_mut(dnarrow, n, width));
                let dx = dx.as_mut().map(ViewMut::reborrow);
                linear.backward(dev, x, matrix(dnarrow, n, width), dx, false, saved, linears, dropout);
            }
            _ => {
                let dx = dx.as_mut().map(ViewMut::reborrow);
                self.q_b.backward(dev, x, dqueries, dx, false, &s.q_b, linears, dropout);
            }
        }
        let (input, d) = (s.compressed.y.head(n), Some(matrix_mut(dy, n, rank)));
        let dkey_values = matrix(&w.key_values, n, kv_width);
        self.kv_b.backward(dev, input, dkey_values, d, false, &s.kv_b, linears, dropout);
        s.compressed.backward(pass, &mut self.kv_a_norm, matrix(dy, n, rank), matrix_mut(dnarrow, n, rank));
        let parts = [matrix(dnarrow, n, rank), matrix(&w.shared, n, columns.rotated)];
        columns::join(dev, parts, matrix_mut(&mut w.kv_a, n, rank + columns.rotated));
        let dkv_a = matrix(&w.kv_a, n, rank + columns.rotated);
        self.kv_a.backward(dev, x, dkv_a, dx, true, &s.kv_a, linears, dropout);
    }

    /// What attention puts out [N, H, D] without what values were filled up with, [N, H·V], and room for its gradient.
    pub fn narrowed<'a>(
        &self,
        pass: &Pass<'_>,
        out: View<'_>,
        w: &'a mut Scratch,
    ) -> (View<'a>, ViewMut<'a>) {
        let (n, heads, value) = (out.dim(0), out.dim(1), self.spec.columns.value);
        let wide = out.reshape(&[n * heads, out.dim(2)]);
        columns::take(pass.dev, wide, 0, matrix_mut(&mut w.values, n * heads, value));
        // Queries are not looked at before attention's backward is through.
        (matrix(&w.values, n, heads * value), matrix_mut(&mut w.queries, n, heads * value))
    }

    /// The gradient of what attention puts out, from the one that stands in the room of [`Latent::narrowed`].
    pub fn widen(&self, pass: &Pass<'_>, w: &Scratch, mut dout: ViewMut<'_>) {
        let (n, heads, value) = (dout.dim(0), dout.dim(1), self.spec.columns.value);
        dout.reborrow().zero();
        let narrow = matrix(&w.queries, n, heads * value).reshape(&[n * heads, value]);
        columns::put(pass.dev, narrow, in_rows_mut(dout, n * heads), 0);
    }

    /// The linear layers with their names inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let queries = self.q_a.iter().map(|(linear, _)| linear).chain([&self.q_b]);
        self.spec.linear_names().zip(queries.chain([&self.kv_a, &self.kv_b]))
    }

    /// The norms' weights.
    pub fn norm_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let queries = self.q_a.iter().map(|(_, norm)| norm);
        queries.chain([&self.kv_a_norm]).flat_map(Norm::parameters)
    }

    /// The norms' weights, and the linear layers with their names inside the block.
    pub fn parts_mut(&mut self) -> PartsMut<'_> {
        let Self { q_a, q_b, kv_a, kv_a_norm, kv_b, spec } = self;
        let (q_a, q_norm) = q_a.as_mut().map(|(linear, norm)| (linear, norm)).unzip();
        let norms = q_norm.into_iter().chain([kv_a_norm]).flat_map(Norm::parameters_mut);
        let linears = q_a.into_iter().chain([q_b, kv_a, kv_b]);
        (norms.collect(), spec.linear_names().zip(linears).collect())
    }
}
