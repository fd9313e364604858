//! The attention layer of a block (stages 9 and 11 of the walk).
//!
//! > q, k, v = projections of x; q, k normalised (some families) and rotated, or the other way round; q scaled by its
//! > position, v normalised (few families); y = o_proj(attention(q, k, v)), few times a gate's sigmoid before o_proj
//!
//! Saved for backward: q and k as attention saw them, v, its output and lse; before their norms q and k too; a gate, which
//! backward overwrites by its gradient.
//!
//! Of rows that share what they begin with, attention reads copies of k and v in the order in which pieces see them.

use sft_kernels::attention::{self, AttentionParams};
use sft_kernels::gated::{self, Activation};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, columns, copies, rows};
use sft_kernels::{rope, sinks};

use crate::arena::Arena;
use crate::cache::{LayerCaches, SeenInCache};
use crate::inputs::{self, Inputs, in_rows, in_rows_mut};
use crate::latent::{self, Latent};
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::mixer::PartsMut;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::{Pass, Shared};
use crate::spec::{AttentionSpec, DecoderSpec, LayerSpec, NormSpec, QkScope};

/// An attention layer.
#[derive(Debug)]
pub struct Attention {
    /// To queries [H·D, C], keys and values [K·D, C]; none where `latent` makes them.
    pub qkv: Inputs,
    /// Queries, keys and values from narrow ones.
    pub latent: Option<Latent>,
    /// [C, H·D].
    pub o_proj: Linear,
    /// Norm of queries, see [`QkScope`].
    pub q_norm: Option<Norm>,
    /// Norm of keys.
    pub k_norm: Option<Norm>,
    /// Norm of the values of each head.
    pub v_norm: Option<Norm>,
    /// A column of each head's softmax without a value, f32 [H].
    pub sinks: Option<Parameter>,
    /// Its sizes.
    pub spec: AttentionSpec,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    /// Of the output, [N, H, D].
    gate: Option<Tensor>,
    q_normed: Option<Normed>,
    k_normed: Option<Normed>,
    v_normed: Option<Normed>,
    qkv: inputs::Saved,
    latent: Option<latent::Saved>,
    o_proj: linear::Saved,
}

/// The input of a norm of queries or keys, and what the norm saved.
#[derive(Debug)]
struct Normed {
    x: Tensor,
    /// f32 [N, rows of a token, statistics of a row].
    statistics: Tensor,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (spec, norm): (&AttentionSpec, NormSpec),
        adapters: &LayerAdapters,
    ) -> Self {
        let AttentionSpec { heads: h, kv_heads: k, head_dim: d, .. } = *spec;
        let mut heads = |heads: usize| arena.tensor(dtype, &[tokens, heads, d]);
        let (q, key, v, out) = (heads(h), heads(k), heads(k), heads(h));
        let lse = arena.tensor(DType::F32, &[tokens, h]);
        let gate = spec.output_gate.then(|| arena.tensor(dtype, &[tokens, h, d]));
        let mut normed = |rows: usize, heads: usize, values: usize| Normed {
            x: arena.tensor(dtype, &[tokens, heads, d]),
            statistics: arena.tensor(DType::F32, &[tokens, rows, values]),
        };
        let v_normed = spec.v_norm.then(|| normed(k, k, norm.kind.statistics()));
        let mut qk_normed = |heads: usize| {
            let qk_norm = spec.qk_norm?;
            let rows = if qk_norm.scope == QkScope::AllHeads { 1 } else { heads };
            Some(normed(rows, heads, qk_norm.norm.unwrap_or(norm).kind.statistics()))
        };
        let (q_normed, k_normed) = (qk_normed(h), qk_normed(k));
        let qkv = inputs::Saved::new(arena, dtype, tokens, spec.inputs, adapters);
        let latent = spec.latent.as_ref();
        let latent = latent.map(|spec| latent::Saved::new(arena, dtype, tokens, (spec, norm), adapters));
        let o_proj = linear::Saved::new(arena, dtype, tokens, adapters.carried_by(spec.output));
        Self { q, k: key, v, out, lse, gate, q_normed, k_normed, v_normed, qkv, latent, o_proj }
    }
}

/// Workspace that all attention layers share, each taking what it needs: gradients of q, k and v, before and after
/// their norms, and what pieces see.
#[derive(Debug)]
pub struct Scratch {
    /// Copies of k and v.
    seen: [Tensor; 2],
    /// Their gradients.
    dseen: [Tensor; 2],
    dout: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dq_before_norm: Option<Tensor>,
    dk_before_norm: Option<Tensor>,
    dv_before_norm: Option<Tensor>,
    delta: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer in backward, 0 where none follows, and for `seen` keys of pieces.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, seen): (usize, usize),
        spec: &DecoderSpec,
    ) -> Self {
        let width = |width: fn(&AttentionSpec) -> usize| {
            spec.layers.iter().filter_map(LayerSpec::attends).map(width).max().unwrap_or(0)
        };
        let widest = |of: fn(&AttentionSpec) -> usize| tokens * width(of);
        let any =
            |has: fn(&AttentionSpec) -> bool| spec.layers.iter().filter_map(LayerSpec::attends).any(has);
        let (q, k) = (widest(|a| a.heads * a.head_dim), widest(|a| a.kv_heads * a.head_dim));
        let qk_norm = any(|a| a.qk_norm.is_some());
        let delta = arena.tensor(DType::F32, &[widest(|a| a.heads)]);
        let mut buffer = |len: usize| arena.tensor(dtype, &[len]);
        let seen = seen * width(|a| a.kv_heads * a.head_dim);
        Self {
            seen: [buffer(seen), buffer(seen)],
            dseen: [(); 2].map(|()| buffer(if tokens > 0 { seen } else { 0 })),
            dout: buffer(q),
            dq: buffer(q),
            dk: buffer(k),
            dv: buffer(k),
            dq_before_norm: qk_norm.then(|| buffer(q)),
            dk_before_norm: qk_norm.then(|| buffer(k)),
            dv_before_norm: any(|a| a.v_norm).then(|| buffer(k)),
            delta,
        }
    }
}

/// The first elements of a flat buffer in this shape.
fn shaped(buffer: &Tensor, shape: [usize; 3]) -> View<'_> {
    buffer.head(shape.iter().product()).reshape(&shape)
}

/// The same, to write.
fn shaped_mut(buffer: &mut Tensor, shape: [usize; 3]) -> ViewMut<'_> {
    buffer.head_mut(shape.iter().product()).reshape(&shape)
}

/// [N, heads, D] as [N, heads·D].
fn flat(x: View<'_>) -> View<'_> {
    x.reshape(&[x.dim(0), x.dim(1) * x.dim(2)])
}

/// [N, heads, D] as [N, heads·D], to write.
fn flat_mut(x: ViewMut<'_>) -> ViewMut<'_> {
    let shape = [x.dim(0), x.dim(1) * x.dim(2)];
    x.reshape(&shape)
}

/// Copies of k and v [N, K, D] as pieces see them, [M, K, D] each.
fn spread<'a>(
    dev: &Device,
    shared: Shared<'_>,
    kv: [View<'_>; 2],
    buffers: &'a mut [Tensor; 2],
) -> [View<'a>; 2] {
    let [k, v] = buffers;
    let [k_from, v_from] = kv;
    [(k_from, k), (v_from, v)].map(|(from, to)| {
        let shape = [shared.seen.len(), from.dim(1), from.dim(2)];
        copies::spread(dev, flat(from), shared.seen, flat_mut(shaped_mut(to, shape)));
        shaped(to, shape)
    })
}

/// out·σ(gate) [N, H·D] in `buffer`.
fn gated_output<'a>(dev: &Device, gate: View<'_>, out: View<'_>, buffer: &'a mut Tensor) -> View<'a> {
    let shape = [out.dim(0), out.dim(1), out.dim(2)];
    gated::forward(dev, Activation::Sigmoid, gate, out, shaped_mut(buffer, shape));
    flat(shaped(buffer, shape))
}

impl Normed {
    /// Normalises its input into `out` [N, heads, D].
    fn forward(&mut self, dev: &Device, norm: &Norm, out: ViewMut<'_>) {
        let n = out.dim(0);
        let rows = n * self.statistics.shape()[1];
        let statistics = in_rows_mut(self.statistics.head_mut(n), rows);
        norm.forward(dev, in_rows(self.x.head(n), rows), in_rows_mut(out, rows), statistics);
    }

    /// The gradient of its input in `to` from that of its output, both [N, heads, D].
    fn backward(&self, dev: &Device, norm: &mut Norm, d: View<'_>, to: ViewMut<'_>) {
        let (x, statistics) = self.saved(d.dim(0));
        let rows = x.dim(0);
        norm.backward_over(dev, (x, statistics), in_rows(d, rows), in_rows_mut(to, rows));
    }

    /// The norm's input for `n` tokens, and its statistics: rows as wide as a weight.
    fn saved(&self, n: usize) -> (View<'_>, View<'_>) {
        let statistics = self.statistics.head(n);
        let rows = n * statistics.dim(1);
        (in_rows(self.x.head(n), rows), in_rows(statistics, rows))
    }
}

impl AttentionSpec {
    fn params(&self) -> AttentionParams<'_> {
        let Self { scale, window, softcap, ref alibi, .. } = *self;
        AttentionParams { scale, window, softcap, slopes: alibi.as_deref() }
    }
}

impl Attention {
    /// Rotates queries or keys, if this layer does.
    fn rotate(&self, pass: &Pass<'_>, x: ViewMut<'_>) {
        if let Some(angles) = pass.angles(self.spec.rope) {
            rope::forward(pass.dev, x, angles.cos, angles.sin, angles.style);
        }
    }

    /// y [N, C] from x [N, C]. With caches, keys and values of each row are appended to
    /// its own, and its queries see what that holds.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        (of_attention, scratch): (&mut Scratch, &mut inputs::Scratch),
        caches: Option<LayerCaches<'_>>,
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let s = saved;
        self.project(pass, x, s, scratch);
        let after_rope = self.spec.qk_norm.is_some_and(|norm| norm.after_rope);
        let queries = (&self.q_norm, &mut s.q, &mut s.q_normed);
        let keys = (&self.k_norm, &mut s.k, &mut s.k_normed);
        for (norm, out, normed) in [queries, keys] {
            let (Some(norm), Some(normed)) = (norm, normed) else {
                self.rotate(pass, out.head_mut(n));
                continue;
            };
            if after_rope {
                self.rotate(pass, normed.x.head_mut(n));
            }
            normed.forward(dev, norm, out.head_mut(n));
            if !after_rope {
                self.rotate(pass, out.head_mut(n));
            }
        }
        if let (Some(norm), Some(normed)) = (&self.v_norm, &mut s.v_normed) {
            normed.forward(dev, norm, s.v.head_mut(n));
        }
        if let Some(scale) = pass.query_scale.filter(|_| self.spec.grows) {
            rows::scale_each(dev, scale, s.q.head_mut(n));
        }
        for (op, values) in [("queries", &s.q), ("keys", &s.k), ("values", &s.v)] {
            pass.see(op, values.head(n));
        }
        LayerCaches::each(caches, pass.rows, |tokens, _, cache| {
            let (k, v) = (s.k.view().rows(tokens.clone()), s.v.view().rows(tokens.clone()));
            let mut io = attention::Forward {
                q: s.q.view().rows(tokens.clone()),
                k,
                v,
                out: s.out.view_mut().into_rows(tokens.clone()),
                lse: Some(s.lse.view_mut().into_rows(tokens.clone())),
            };
            let Some(cache) = cache else {
                if let Some(shared) = pass.shared {
                    [io.k, io.v] = spread(dev, shared, [k, v], &mut of_attention.seen);
                }
                return attention::forward(dev, &self.spec.params(), pass.rows_of(self.spec.chunk), io);
            };
            let (k, v) = cache.append(k, v);
            let keys = k.dim(0);
            let seen = SeenInCache::new(self.spec.chunk, keys - tokens.len()..keys);
            (io.k, io.v) = (k.rows(seen.first_key..keys), v.rows(seen.first_key..keys));
            attention::forward(dev, &self.spec.params(), seen.offsets(), io);
        });
        if let Some(numbers) = &self.sinks {
            sinks::forward(dev, numbers.value(), s.out.head_mut(n), s.lse.head_mut(n));
        }
        pass.see("attention", s.out.head(n));
        let out = match (&self.latent, &mut scratch.latent, &s.gate, &mut scratch.fused) {
            (Some(latent), Some(w), ..) => latent.narrowed(pass, s.out.head(n), w).0,
            (_, _, Some(gate), Some(fused)) => gated_output(dev, gate.head(n), s.out.head(n), fused),
            _ => flat(s.out.head(n)),
        };
        self.o_proj.forward(dev, out, y.reborrow(), &mut s.o_proj, &mut scratch.linears, dropout);
        pass.see("attention's output projection", y.as_view());
    }

    /// The gradient of x (if wanted) from that of y.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev, s) = (x.dim(0), pass.dev, saved);
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let (of_q, of_k) = ([n, heads, head_dim], [n, kv_heads, head_dim]);
        self.backward_output(pass, dy, s, (scratch, inputs));
        let mut io = attention::Backward {
            q: s.q.head(n),
            k: s.k.head(n),
            v: s.v.head(n),
            out: s.out.head(n),
            dout: shaped(&scratch.dout, of_q),
            lse: s.lse.head(n),
            delta: scratch.delta.head_mut(n * heads).reshape(&[n, heads]),
            dq: shaped_mut(&mut scratch.dq, of_q),
            dk: shaped_mut(&mut scratch.dk, of_k),
            dv: shaped_mut(&mut scratch.dv, of_k),
        };
        let rows = pass.rows_of(self.spec.chunk);
        let of_seen = |shared: Shared<'_>| [shared.seen.len(), kv_heads, head_dim];
        if let Some(shared) = pass.shared {
            [io.k, io.v] = spread(dev, shared, [io.k, io.v], &mut scratch.seen);
            [io.dk, io.dv] = scratch.dseen.each_mut().map(|d| shaped_mut(d, of_seen(shared)));
        }
        attention::backward(dev, &self.spec.params(), rows, io);
        if let Some(shared) = pass.shared {
            for (from, to) in scratch.dseen.iter().zip([&mut scratch.dk, &mut scratch.dv]) {
                let (from, to) = (flat(shaped(from, of_seen(shared))), flat_mut(shaped_mut(to, of_k)));
                copies::collect(dev, from, shared.places, to);
            }
        }
        if let Some(numbers) = &mut self.sinks {
            let delta = scratch.delta.head(n * heads).reshape(&[n, heads]);
            if let (numbers, Some(d)) = numbers.value_and_gradient() {
                sinks::backward(dev, numbers, s.lse.head(n), delta, d);
            }
        }
        let gradients = self.before_norms(pass, n, s, scratch);
        self.project_backward(pass, x, gradients, dx, s, inputs);
    }

    /// The gradient of what attention puts out, in `scratch.dout`, from that of y.
    fn backward_output(
        &mut self,
        pass: &Pass<'_>,
        dy: View<'_>,
        s: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev, dropout) = (dy.dim(0), pass.dev, pass.dropout);
        let AttentionSpec { heads, head_dim, .. } = self.spec;
        let shape = [n, heads, head_dim];
        let (out, dout) = (s.out.head(n), shaped_mut(&mut scratch.dout, shape));
        let inputs::Scratch { linears, fused, latent } = inputs;
        if let (Some(latent), Some(w)) = (&self.latent, latent) {
            let (out, narrow) = latent.narrowed(pass, out, w);
            self.o_proj.backward(dev, out, dy, Some(narrow), false, &s.o_proj, linears, dropout);
            return latent.widen(pass, w, dout);
        }
        let (Some(gate), Some(fused)) = (&mut s.gate, fused) else {
            let (out, dout) = (flat(out), Some(flat_mut(dout)));
            return self.o_proj.backward(dev, out, dy, dout, false, &s.o_proj, linears, dropout);
        };
        let gated_out = gated_output(dev, gate.head(n), out, fused);
        self.o_proj.backward(dev, gated_out, dy, Some(flat_mut(dout)), false, &s.o_proj, linears, dropout);
        // Its gradient takes the place of the output, which is needed once more.
        let mut dout = shaped_mut(fused, shape);
        dout.reborrow().copy_from(out);
        let dy = shaped_mut(&mut scratch.dout, shape);
        gated::backward(dev, Activation::Sigmoid, dy, gate.head_mut(n), dout, false);
        shaped_mut(&mut scratch.dout, shape).copy_from(shaped(fused, shape));
    }

    /// Queries, keys and values before their norms, and a gate, from x.
    fn project(&self, pass: &Pass<'_>, x: View<'_>, s: &mut Saved, scratch: &mut inputs::Scratch) {
        let (n, dev) = (x.dim(0), pass.dev);
        let q = s.q_normed.as_mut().map_or(&mut s.q, |normed| &mut normed.x).head_mut(n);
        let k = s.k_normed.as_mut().map_or(&mut s.k, |normed| &mut normed.x).head_mut(n);
        let v = s.v_normed.as_mut().map_or(&mut s.v, |normed| &mut normed.x).head_mut(n);
        if let (Some(latent), Some(saved), Some(w)) = (&self.latent, &mut s.latent, &mut scratch.latent) {
            return latent.forward(pass, x, [q, k, v], saved, (w, &mut scratch.linears));
        }
        let (Some(gate), Some(fused)) = (&mut s.gate, &mut scratch.fused) else {
            return self.qkv.forward(pass, x, [q, k, v], &mut s.qkv, scratch);
        };
        let (rows, size) = (n * self.spec.heads, 2 * q.elements());
        let outputs = [fused.head_mut(size), k, v];
        self.qkv.forward_each(pass, x, outputs, &mut s.qkv, &mut scratch.linears);
        let parts = [in_rows_mut(q, rows), in_rows_mut(gate.head_mut(n), rows)];
        columns::split(dev, in_rows(fused.head(size), rows), parts);
    }

    /// The gradient of x from those of what [`Attention::project`] makes.
    fn project_backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        [dq, dk, dv]: [View<'_>; 3],
        dx: Option<ViewMut<'_>>,
        s: &Saved,
        scratch: &mut inputs::Scratch,
    ) {
        let (n, dev) = (x.dim(0), pass.dev);
        if let (Some(latent), Some(saved), Some(w)) = (&mut self.latent, &s.latent, &mut scratch.latent) {
            return latent.backward(pass, x, [dq, dk, dv], dx, saved, (w, &mut scratch.linears));
        }
        let (Some(gate), Some(fused)) = (&s.gate, &mut scratch.fused) else {
            return self.qkv.backward(pass, x, [dq, dk, dv], dx, &s.qkv, scratch);
        };
        let (rows, size) = (n * self.spec.heads, 2 * dq.elements());
        let parts = [in_rows(dq, rows), in_rows(gate.head(n), rows)];
        columns::join(dev, parts, in_rows_mut(fused.head_mut(size), rows));
        let gradients = [fused.head(size), dk, dv];
        self.qkv.backward_each(pass, x, gradients, (dx, false), &s.qkv, &mut scratch.linears);
    }

    /// From the gradients of what attention saw to those of the projections' outputs.
    fn before_norms<'a>(
        &mut self,
        pass: &Pass<'_>,
        n: usize,
        s: &Saved,
        scratch: &'a mut Scratch,
    ) -> [View<'a>; 3] {
        let (dev, rope) = (pass.dev, self.spec.rope);
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let (of_q, of_k) = ([n, heads, head_dim], [n, kv_heads, head_dim]);
        if let Some(scale) = pass.query_scale.filter(|_| self.spec.grows) {
            rows::scale_each(dev, scale, shaped_mut(&mut scratch.dq, of_q));
        }
        let before = [&mut scratch.dq_before_norm, &mut scratch.dk_before_norm];
        let [dq_before, dk_before] = before.map(Option::as_mut);
        let queries = (of_q, &mut self.q_norm, &s.q_normed, &mut scratch.dq, dq_before);
        let keys = (of_k, &mut self.k_norm, &s.k_normed, &mut scratch.dk, dk_before);
        let rotate_back = |d: ViewMut<'_>| {
            if let Some(angles) = pass.angles(rope) {
                rope::backward(dev, d, angles.cos, angles.sin, angles.style);
            }
        };
        let after_rope = self.spec.qk_norm.is_some_and(|norm| norm.after_rope);
        let [dq, dk] = [queries, keys].map(|(shape, norm, normed, d, before)| {
            let (Some(norm), Some(normed), Some(before)) = (norm, normed, before) else {
                rotate_back(shaped_mut(d, shape));
                return shaped(d, shape);
            };
            if !after_rope {
                rotate_back(shaped_mut(d, shape));
            }
            normed.backward(dev, norm, shaped(d, shape), shaped_mut(before, shape));
            if after_rope {
                rotate_back(shaped_mut(before, shape));
            }
            shaped(before, shape)
        });
        let dv = shaped(&scratch.dv, of_k);
        match (&mut self.v_norm, &s.v_normed, &mut scratch.dv_before_norm) {
            (Some(norm), Some(normed), Some(before)) => {
                normed.backward(dev, norm, dv, shaped_mut(before, of_k));
                [dq, dk, shaped(before, of_k)]
            }
            _ => [dq, dk, dv],
        }
    }

    /// Its linear layers with their names inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let latent = self.latent.iter().flat_map(Latent::linears);
        self.qkv.iter().chain(latent).chain([(self.spec.output, &self.o_proj)])
    }

    /// Its weights beside those of linear layers, in the order of [`Attention::parts_mut`].
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norms = [&self.q_norm, &self.k_norm].into_iter().flatten().flat_map(Norm::parameters);
        norms.chain(self.latent.iter().flat_map(Latent::norm_parameters)).chain(&self.sinks)
    }

    /// Its weights beside those of linear layers, and its linear layers.
    pub fn parts_mut(&mut self) -> PartsMut<'_> {
        let Self { qkv, latent, o_proj, q_norm, k_norm, sinks, spec, .. } = self;
        let norms = [q_norm, k_norm].into_iter().flatten().flat_map(Norm::parameters_mut);
        let (of_latent, linears) = latent.as_mut().map(Latent::parts_mut).unwrap_or_default();
        let linears = qkv.iter_mut().chain(linears).chain([(spec.output, o_proj)]);
        (norms.chain(of_latent).chain(sinks).collect(), linears.collect())
    }
}
