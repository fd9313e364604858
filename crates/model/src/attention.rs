//! The attention layer of a block (stages 9 and 11 of the walk).
//!
//! > q, k, v = projections of x; q, k normalised (some families) and rotated, or the other way round;
//! > y = o_proj(attention(q, k, v))
//!
//! Saved for backward: q and k as attention saw them, v, its output and lse; before their norms q and k too.

use sft_kernels::attention::{self, AttentionParams};
use sft_kernels::rope;
use sft_kernels::{DType, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::cache::LayerCache;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::norm::Norm;
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
    /// Norm of queries, [D] or [H·D].
    pub q_norm: Option<Norm>,
    /// Norm of keys, [D] or [K·D].
    pub k_norm: Option<Norm>,
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
    q_normed: Option<Normed>,
    k_normed: Option<Normed>,
    q_proj: linear::Saved,
    k_proj: linear::Saved,
    v_proj: linear::Saved,
    o_proj: linear::Saved,
}

/// The input of a norm of queries or keys, and what the norm saved.
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
            spec.qk_norm.map(|norm| Normed {
                x: arena.tensor(dtype, &[tokens, heads, d]),
                rstd: arena.tensor(DType::F32, &[tokens, if norm.all_heads { 1 } else { heads }]),
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
            dq_before_norm: qk_norm.map(|_| heads(h)),
            dk_before_norm: qk_norm.map(|_| heads(k)),
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

impl Normed {
    /// The norm's input for `n` tokens, and its `rstd`: rows as wide as the weight.
    fn saved(&self, n: usize) -> (View<'_>, View<'_>) {
        let (x, rstd) = (self.x.head(n), self.rstd.head(n));
        let rows = rstd.elements();
        (in_rows(x, rows), rstd.reshape(&[rows]))
    }
}

/// [N, heads, D] as so many rows.
fn in_rows(x: View<'_>, rows: usize) -> View<'_> {
    x.reshape(&[rows, x.elements() / rows.max(1)])
}

/// [N, heads, D] as so many rows, to write.
fn in_rows_mut(x: ViewMut<'_>, rows: usize) -> ViewMut<'_> {
    let shape = [rows, x.elements() / rows.max(1)];
    x.reshape(&shape)
}

impl Attention {
    fn params(&self) -> AttentionParams {
        let AttentionSpec { scale, window, softcap, .. } = self.spec;
        AttentionParams { scale, window, softcap }
    }

    /// Rotates queries or keys, if this layer does.
    fn rotate(&self, pass: &Pass<'_>, x: ViewMut<'_>) {
        if let Some(angles) = pass.angles(self.spec.rope) {
            rope::forward(pass.dev, x, angles.cos, angles.sin, angles.style);
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
        let after_rope = self.spec.qk_norm.is_some_and(|norm| norm.after_rope);
        for (linear, norm, out, normed, saved) in [queries, keys] {
            match (norm, normed) {
                (Some(norm), Some(normed)) => {
                    project(linear, normed.x.head_mut(n), saved, scratch);
                    if after_rope {
                        self.rotate(pass, normed.x.head_mut(n));
                    }
                    let rows = normed.rstd.head(n).elements();
                    let rstd = normed.rstd.head_mut(n).reshape(&[rows]);
                    norm.forward(
                        dev,
                        in_rows(normed.x.head(n), rows),
                        in_rows_mut(out.head_mut(n), rows),
                        rstd,
                    );
                    if !after_rope {
                        self.rotate(pass, out.head_mut(n));
                    }
                }
                _ => {
                    project(linear, out.head_mut(n), saved, scratch);
                    self.rotate(pass, out.head_mut(n));
                }
            }
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
        let angles = pass.angles(self.spec.rope);
        let rotate_back = |d: ViewMut<'_>| {
            if let Some(angles) = angles {
                rope::backward(dev, d, angles.cos, angles.sin, angles.style);
            }
        };
        let after_rope = self.spec.qk_norm.is_some_and(|norm| norm.after_rope);
        for ((linear, norm, normed, saved), (d, before)) in [queries, keys].into_iter().zip(gradients) {
            let d = match (norm, normed, before) {
                (Some(norm), Some(normed), Some(before)) => {
                    if !after_rope {
                        rotate_back(d.head_mut(n));
                    }
                    let (x, rstd) = normed.saved(n);
                    let rows = rstd.elements();
                    let (dy, to) = (in_rows(d.head(n), rows), in_rows_mut(before.head_mut(n), rows));
                    norm.backward_over(dev, (x, rstd), dy, to);
                    if after_rope {
                        rotate_back(before.head_mut(n));
                    }
                    before.head(n)
                }
                _ => {
                    rotate_back(d.head_mut(n));
                    d.head(n)
                }
            };
            let dx = dx.as_mut().map(ViewMut::reborrow);
            linear.backward(dev, x, flat(d), dx, true, saved, linears, dropout);
        }
    }
}
