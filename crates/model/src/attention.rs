//! The attention layer of a block (stages 9 and 11 of the walk).
//!
//! > q, k, v = projections of x; q, k normalised per head (some families) and rotated;
//! > y = o_proj(attention(q, k, v))
//!
//! Saved for backward: q and k as attention saw them, v, its output and lse; before their norms q and k too.

use sft_kernels::attention::{self, AttentionParams};
use sft_kernels::rms_norm::{self, RmsNormParams};
use sft_kernels::rope::{self, RopeStyle};
use sft_kernels::{DType, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::cache::LayerCache;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::AttentionSpec;

/// An attention layer.
#[derive(Debug)]
pub struct Attention {
    /// [H·D, C].
    pub q_proj: Linear,
    /// [K·D, C].
    pub k_proj: Linear,
    /// [K·D, C].
    pub v_proj: Linear,
    /// [C, H·D].
    pub o_proj: Linear,
    /// Norm of each query head, [D].
    pub q_norm: Option<Parameter>,
    /// Norm of each key head, [D].
    pub k_norm: Option<Parameter>,
    /// Its sizes.
    pub spec: AttentionSpec,
    /// Constants of the two norms.
    pub norm: RmsNormParams,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_normed: Option<Normed>,
    k_normed: Option<Normed>,
    q_proj: linear::Saved,
    k_proj: linear::Saved,
    v_proj: linear::Saved,
    o_proj: linear::Saved,
}

/// The input of a per-head norm, and what the norm saved.
#[derive(Debug)]
struct Normed {
    x: Tensor,
    rstd: Tensor,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena,
        dtype: DType,
        tokens: usize,
        spec: &AttentionSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        let AttentionSpec { heads: h, kv_heads: k, head_dim: d, .. } = *spec;
        let mut heads = |heads: usize| arena.tensor(dtype, &[tokens, heads, d]);
        let (q, key, v, out) = (heads(h), heads(k), heads(k), heads(h));
        let lse = arena.tensor(DType::F32, &[tokens, h]);
        let mut normed = |heads: usize| {
            spec.qk_norm.then(|| Normed {
                x: arena.tensor(dtype, &[tokens, heads, d]),
                rstd: arena.tensor(DType::F32, &[tokens, heads]),
            })
        };
        let (q_normed, k_normed) = (normed(h), normed(k));
        let mut linear = |name: &str| linear::Saved::new(arena, dtype, tokens, adapters.rank_of(name));
        Self {
            q,
            k: key,
            v,
            out,
            lse,
            q_normed,
            k_normed,
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            o_proj: linear("o_proj"),
        }
    }
}

/// Workspace that all attention layers share: gradients of q, k and v, before and after their norms.
#[derive(Debug)]
pub struct Scratch {
    dout: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dq_before_norm: Option<Tensor>,
    dk_before_norm: Option<Tensor>,
    delta: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer.
    pub fn new(arena: &mut Arena, dtype: DType, tokens: usize, spec: &AttentionSpec) -> Self {
        let AttentionSpec { heads: h, kv_heads: k, head_dim: d, qk_norm, .. } = *spec;
        let mut heads = |heads: usize| arena.tensor(dtype, &[tokens, heads, d]);
        Self {
            dout: heads(h),
            dq: heads(h),
            dk: heads(k),
            dv: heads(k),
            dq_before_norm: qk_norm.then(|| heads(h)),
            dk_before_norm: qk_norm.then(|| heads(k)),
            delta: arena.tensor(DType::F32, &[tokens, h]),
        }
    }
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

/// [N, heads, D] as rows of heads, [N·heads, D].
fn per_head(x: View<'_>) -> View<'_> {
    x.reshape(&[x.dim(0) * x.dim(1), x.dim(2)])
}

/// [N, heads, D] as rows of heads, to write.
fn per_head_mut(x: ViewMut<'_>) -> ViewMut<'_> {
    let shape = [x.dim(0) * x.dim(1), x.dim(2)];
    x.reshape(&shape)
}

impl Attention {
    fn params(&self) -> AttentionParams {
        AttentionParams {
            window: self.spec.window,
            ..AttentionParams::scaled(1.0 / (self.spec.head_dim as f32).sqrt())
        }
    }

    /// y [N, C] from x [N, C]. With a cache, keys and values are appended to it, and queries see all that it holds.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut linear::Scratch,
        cache: Option<&mut LayerCache>,
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let s = saved;
        let project =
            |linear: &Linear, to: ViewMut<'_>, saved: &mut linear::Saved, scratch: &mut linear::Scratch| {
                linear.forward(dev, x, flat_mut(to), saved, scratch, dropout);
            };
        project(&self.v_proj, s.v.head_mut(n), &mut s.v_proj, scratch);
        let queries = (&self.q_proj, &self.q_norm, &mut s.q, &mut s.q_normed, &mut s.q_proj);
        let keys = (&self.k_proj, &self.k_norm, &mut s.k, &mut s.k_normed, &mut s.k_proj);
        for (linear, norm, out, normed, saved) in [queries, keys] {
            match (norm, normed) {
                (Some(weight), Some(normed)) => {
                    project(linear, normed.x.head_mut(n), saved, scratch);
                    let heads = out.shape()[1];
                    let rstd = normed.rstd.head_mut(n).reshape(&[n * heads]);
                    let input = per_head(normed.x.head(n));
                    rms_norm::forward(
                        dev,
                        self.norm,
                        input,
                        weight.value(),
                        per_head_mut(out.head_mut(n)),
                        rstd,
                    );
                }
                _ => project(linear, out.head_mut(n), saved, scratch),
            }
            rope::forward(dev, out.head_mut(n), pass.cos, pass.sin, RopeStyle::Half);
        }
        let (k, v) = match cache {
            None => (s.k.head(n), s.v.head(n)),
            Some(cache) => cache.append(s.k.head(n), s.v.head(n)),
        };
        let io =
            attention::Forward { q: s.q.head(n), k, v, out: s.out.head_mut(n), lse: Some(s.lse.head_mut(n)) };
        attention::forward(dev, &self.params(), pass.rows, io);
        self.o_proj.forward(dev, flat(s.out.head(n)), y, &mut s.o_proj, scratch, dropout);
    }

    /// The gradient of x (if wanted) from that of y.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        mut dx: Option<ViewMut<'_>>,
        saved: &Saved,
        (scratch, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, dev, dropout) = (x.dim(0), pass.dev, pass.dropout);
        let (s, params) = (saved, self.params());
        let dout = flat_mut(scratch.dout.head_mut(n));
        self.o_proj.backward(dev, flat(s.out.head(n)), dy, Some(dout), false, &s.o_proj, linears, dropout);
        let io = attention::Backward {
            q: s.q.head(n),
            k: s.k.head(n),
            v: s.v.head(n),
            out: s.out.head(n),
            dout: scratch.dout.head(n),
            lse: s.lse.head(n),
            delta: scratch.delta.head_mut(n),
            dq: scratch.dq.head_mut(n),
            dk: scratch.dk.head_mut(n),
            dv: scratch.dv.head_mut(n),
        };
        attention::backward(dev, &params, pass.rows, io);
        let dv = flat(scratch.dv.head(n));
        self.v_proj.backward(
            dev,
            x,
            dv,
            dx.as_mut().map(ViewMut::reborrow),
            false,
            &s.v_proj,
            linears,
            dropout,
        );
        let queries = (&mut self.q_proj, &mut self.q_norm, &s.q_normed, &s.q_proj);
        let keys = (&mut self.k_proj, &mut self.k_norm, &s.k_normed, &s.k_proj);
        let gradients =
            [(&mut scratch.dq, &mut scratch.dq_before_norm), (&mut scratch.dk, &mut scratch.dk_before_norm)];
        for ((linear, norm, normed, saved), (d, before)) in [queries, keys].into_iter().zip(gradients) {
            rope::backward(dev, d.head_mut(n), pass.cos, pass.sin, RopeStyle::Half);
            let d = match (norm, normed, before) {
                (Some(weight), Some(normed), Some(before)) => {
                    let (x, dy) = (per_head(normed.x.head(n)), per_head(d.head(n)));
                    let saved = rms_norm::Saved { x, rstd: normed.rstd.head(n).reshape(&[x.dim(0)]) };
                    let to = per_head_mut(before.head_mut(n));
                    rms_norm::backward_input(dev, self.norm, weight.value(), dy, saved, to, false);
                    weight.accumulate(|_, dw| rms_norm::backward_weight(dev, dy, saved, dw));
                    before.head(n)
                }
                _ => d.head(n),
            };
            let dx = dx.as_mut().map(ViewMut::reborrow);
            linear.backward(dev, x, flat(d), dx, true, saved, linears, dropout);
        }
    }
}
