//! A chunk of tokens of one head, as both directions have it.

use std::ops::Range;

use super::product::{Left, product, solve_lower, transpose};
use super::{CHUNK, Inputs, LinearAttentionParams, Rule, Sizes};
use crate::exp::exp;
use crate::isa::per_isa;
use crate::scratch::take;
use crate::{Element, Isa};

/// The inputs of all heads as values.
#[derive(Clone, Copy)]
pub struct Values<'a, T> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
    pub step: &'a [f32],
    pub decay: &'a [f32],
}

impl<'a, T: Element> Values<'a, T> {
    pub fn of(inputs: &Inputs<'a>) -> Self {
        Self {
            q: inputs.q.as_slice(),
            k: inputs.k.as_slice(),
            v: inputs.v.as_slice(),
            step: inputs.step.as_slice(),
            decay: inputs.decay.as_slice(),
        }
    }
}

/// What is computed of a chunk on the way forward.
pub struct Chunk<'a> {
    /// Tokens in it.
    pub n: usize,
    pub d: usize,
    pub e: usize,
    /// Scaled, [n, D].
    pub q: &'a mut [f32],
    pub k: &'a mut [f32],
    /// [n, E].
    pub v: &'a mut [f32],
    pub step: &'a mut [f32],
    /// G, and its powers of e.
    pub g: &'a mut [f32],
    pub exp_g: &'a mut [f32],
    /// e^(G_n − G).
    pub exp_rest: &'a mut [f32],
    /// e^(G_i − G_j), [n, n], the lower triangle.
    pub decays: &'a mut [f32],
    /// P, [n, n].
    pub p: &'a mut [f32],
    /// (strict L)(k·kᵀ)·e^(G_i − G_j), and A, with the delta rule.
    pub m: &'a mut [f32],
    pub a: &'a mut [f32],
    /// k·S₀, and v − e^G·k·S₀, with the delta rule.
    pub ks: &'a mut [f32],
    pub y: &'a mut [f32],
    /// V.
    pub new: &'a mut [f32],
    /// kᵀ, then e^(G_n − G)·k.
    pub kt: &'a mut [f32],
}

impl<'a> Chunk<'a> {
    /// Values that [`Chunk::take`] takes.
    pub fn len(sizes: Sizes) -> usize {
        let line = |len: usize| len.next_multiple_of(16);
        let (d, e) = (line(CHUNK * sizes.key_dim), line(CHUNK * sizes.value_dim));
        3 * d + 4 * e + 4 * CHUNK + 4 * CHUNK * CHUNK
    }

    /// A chunk of the largest size in memory of any content.
    pub fn take(rest: &mut &'a mut [f32], sizes: Sizes) -> Self {
        let (d, e) = (CHUNK * sizes.key_dim, CHUNK * sizes.value_dim);
        let mut next = |len: usize| take(rest, len);
        Self {
            n: 0,
            d: sizes.key_dim,
            e: sizes.value_dim,
            q: next(d),
            k: next(d),
            kt: next(d),
            v: next(e),
            ks: next(e),
            y: next(e),
            new: next(e),
            step: next(CHUNK),
            g: next(CHUNK),
            exp_g: next(CHUNK),
            exp_rest: next(CHUNK),
            decays: next(CHUNK * CHUNK),
            p: next(CHUNK * CHUNK),
            m: next(CHUNK * CHUNK),
            a: next(CHUNK * CHUNK),
        }
    }

    /// Reads the tokens of a head.
    pub fn read<T: Element>(
        &mut self,
        isa: Isa,
        params: LinearAttentionParams,
        values: Values<'_, T>,
        sizes: Sizes,
        (tokens, head): (Range<usize>, usize),
    ) {
        let (d, e, key_head) = (self.d, self.e, head / sizes.group());
        self.n = tokens.len();
        let mut sum = 0.0;
        for (i, t) in tokens.enumerate() {
            let key = (t * sizes.key_heads + key_head) * d..(t * sizes.key_heads + key_head + 1) * d;
            let (value, gate) = (t * sizes.heads + head, t * sizes.heads + head);
            widen(isa, &values.q[key.clone()], params.q_scale, &mut self.q[i * d..][..d]);
            widen(isa, &values.k[key], params.k_scale, &mut self.k[i * d..][..d]);
            widen(isa, &values.v[value * e..][..e], 1.0, &mut self.v[i * e..][..e]);
            self.step[i] = values.step[gate];
            sum += values.decay[gate];
            self.g[i] = sum;
        }
        let n = self.n;
        powers(isa, &self.g[..n], self.exp_g, self.exp_rest, self.decays);
    }

    /// P, A and V from S₀, if there is one.
    pub fn mix(&mut self, isa: Isa, rule: Rule, state: Option<&[f32]>) {
        let (n, d, e) = (self.n, self.d, self.e);
        transpose(isa, &self.k[..n * d], d, self.kt);
        product(isa, self.p, Left::straight(self.q, d), self.kt, [n, n, d], false);
        multiply(isa, &mut self.p[..n * n], &self.decays[..n * n]);
        if rule == Rule::Additive {
            return scale_rows(isa, &self.v[..n * e], &self.step[..n], self.new);
        }
        product(isa, self.m, Left::straight(self.k, d), self.kt, [n, n, d], false);
        multiply(isa, &mut self.m[..n * n], &self.decays[..n * n]);
        (0..n).for_each(|i| self.m[i * n + i] = 0.0);
        scale_rows(isa, &self.m[..n * n], &self.step[..n], self.a);
        match state {
            Some(state) => product(isa, self.ks, Left::straight(self.k, d), state, [n, e, d], false),
            None => self.ks[..n * e].fill(0.0),
        }
        difference(isa, &self.v[..n * e], &self.exp_g[..n], self.ks, self.y);
        scale_rows(isa, &self.y[..n * e], &self.step[..n], self.new);
        solve_lower(isa, self.a, n, &mut self.new[..n * e], e);
    }

    /// Turns S₀ into S₁; leaves e^(G_n − G)·k in `kt`.
    pub fn move_state(&mut self, isa: Isa, state: &mut [f32]) {
        let (n, d, e) = (self.n, self.d, self.e);
        scale(isa, state, self.exp_g[n - 1]);
        scale_rows(isa, &self.k[..n * d], &self.exp_rest[..n], self.kt);
        product(isa, state, Left::transposed(self.kt, d), self.new, [d, e, n], true);
    }
}

per_isa! {
    fn widen<T: Element>(from: &[T], scale: f32, to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32() * scale);
    }

    /// e^G, e^(G_n − G), and e^(G_i − G_j) below the diagonal and on it, 0 above.
    fn powers(g: &[f32], exp_g: &mut [f32], exp_rest: &mut [f32], decays: &mut [f32]) {
        let (n, last) = (g.len(), g.last().copied().unwrap_or(0.0));
        exp_g.iter_mut().zip(g).for_each(|(to, g)| *to = exp(*g));
        exp_rest.iter_mut().zip(g).for_each(|(to, g)| *to = exp(last - g));
        for (i, row) in decays[..n * n].chunks_exact_mut(n.max(1)).enumerate() {
            row[..=i].iter_mut().zip(g).for_each(|(to, gj)| *to = exp(g[i] - gj));
            row[i + 1..].fill(0.0);
        }
    }

    pub fn multiply(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }

    pub fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }

    /// Row i times its factor.
    pub fn scale_rows(x: &[f32], by: &[f32], to: &mut [f32]) {
        let width = x.len() / by.len().max(1);
        for ((to, x), by) in to.chunks_exact_mut(width.max(1)).zip(x.chunks_exact(width.max(1))).zip(by) {
            to.iter_mut().zip(x).for_each(|(to, x)| *to = x * by);
        }
    }

    /// v − e^G·k·S₀.
    fn difference(v: &[f32], exp_g: &[f32], ks: &[f32], to: &mut [f32]) {
        let width = v.len() / exp_g.len().max(1);
        let rows = v.chunks_exact(width).zip(ks.chunks_exact(width)).zip(exp_g);
        for (to, ((v, ks), by)) in to.chunks_exact_mut(width).zip(rows) {
            to.iter_mut().zip(v.iter().zip(ks)).for_each(|(to, (v, ks))| *to = v - by * ks);
        }
    }
}
