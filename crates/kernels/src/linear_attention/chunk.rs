//! A chunk of tokens of one head, as both directions have it.

use std::ops::Range;

use super::product::{Left, lower_product, padded, product, solve_lower, transpose};
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

/// What is computed of a chunk on the way forward. Rows of a matrix lie [`padded`] apart.
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
    /// (strict L)(k·kᵀ)·e^(G_i − G_j), and −A, with the delta rule.
    pub m: &'a mut [f32],
    pub system: &'a mut [f32],
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
        let (d, e) = (CHUNK * padded(sizes.key_dim), CHUNK * padded(sizes.value_dim));
        3 * d + 4 * e + 4 * CHUNK + 4 * CHUNK * CHUNK
    }

    /// A chunk of the largest size in memory of any content.
    pub fn take(rest: &mut &'a mut [f32], sizes: Sizes) -> Self {
        let (d, e) = (CHUNK * padded(sizes.key_dim), CHUNK * padded(sizes.value_dim));
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
            system: next(CHUNK * CHUNK),
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
        let (d, e, n) = (self.d, self.e, tokens.len());
        let (first_key, keys) =
            ((tokens.start * sizes.key_heads + head / sizes.group()) * d, sizes.key_heads * d);
        let (first_value, all_values) = ((tokens.start * sizes.heads + head) * e, sizes.heads * e);
        self.n = n;
        widen(isa, &values.q[first_key..], keys, d, params.q_scale, &mut self.q[..n * padded(d)]);
        widen(isa, &values.k[first_key..], keys, d, params.k_scale, &mut self.k[..n * padded(d)]);
        widen(isa, &values.v[first_value..], all_values, e, 1.0, &mut self.v[..n * padded(e)]);
        let mut sum = 0.0;
        for (i, t) in tokens.enumerate() {
            let gate = t * sizes.heads + head;
            self.step[i] = values.step[gate];
            sum += values.decay[gate];
            self.g[i] = sum;
        }
        powers(isa, &self.g[..n], self.exp_g, self.exp_rest, &mut self.decays[..n * padded(n)]);
        transpose(isa, self.k, [n, d], self.kt);
    }

    /// P, from kᵀ.
    pub fn weigh(&mut self, isa: Isa) {
        let (n, d) = (self.n, self.d);
        lower_product(isa, self.p, Left::straight(self.q, d), self.kt, [n, d]);
        multiply(isa, &mut self.p[..n * padded(n)], self.decays);
    }

    /// V from S₀, if there is one, and from kᵀ.
    pub fn mix(&mut self, isa: Isa, rule: Rule, state: Option<&[f32]>) {
        let (n, d, e) = (self.n, self.d, self.e);
        let values = n * padded(e);
        if rule == Rule::Additive {
            return scale_rows(isa, &self.v[..values], &self.step[..n], self.new);
        }
        let square = n * padded(n);
        lower_product(isa, self.m, Left::straight(self.k, d), self.kt, [n, d]);
        multiply(isa, &mut self.m[..square], self.decays);
        (0..n).for_each(|i| self.m[i * padded(n) + i] = 0.0);
        scale_rows_down(isa, &self.m[..square], &self.step[..n], self.system);
        match state {
            Some(state) => product(isa, self.ks, Left::straight(self.k, d), state, [n, e, d], false),
            None => self.ks[..values].fill(0.0),
        }
        difference(isa, &self.v[..values], &self.exp_g[..n], self.ks, self.y);
        scale_rows(isa, &self.y[..values], &self.step[..n], self.new);
        solve_lower(isa, self.system, n, &mut self.new[..values], e);
    }

    /// Turns S₀ into S₁; leaves e^(G_n − G)·k in `kt`.
    pub fn move_state(&mut self, isa: Isa, state: &mut [f32]) {
        let (n, d, e) = (self.n, self.d, self.e);
        scale(isa, state, self.exp_g[n - 1]);
        scale_rows(isa, &self.k[..n * padded(d)], &self.exp_rest[..n], self.kt);
        product(isa, state, Left::transposed(self.kt, d), self.new, [d, e, n], true);
    }
}

per_isa! {
    /// Rows of so many values, which lie `apart`.
    pub fn widen<T: Element>(from: &[T], apart: usize, width: usize, scale: f32, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(padded(width)).enumerate() {
            let (to, rest) = to.split_at_mut(width);
            to.iter_mut().zip(&from[i * apart..]).for_each(|(to, from)| *to = from.to_f32() * scale);
            rest.fill(0.0);
        }
    }

    /// e^G, e^(G_n − G), and e^(G_i − G_j) below the diagonal and on it, 0 above.
    fn powers(g: &[f32], exp_g: &mut [f32], exp_rest: &mut [f32], decays: &mut [f32]) {
        let (n, last) = (g.len(), g.last().copied().unwrap_or(0.0));
        exp_g.iter_mut().zip(g).for_each(|(to, g)| *to = exp(*g));
        exp_rest.iter_mut().zip(g).for_each(|(to, g)| *to = exp(last - g));
        for (i, row) in decays.chunks_exact_mut(padded(n)).enumerate() {
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

    /// Row i times its factor, and −1.
    fn scale_rows_down(x: &[f32], by: &[f32], to: &mut [f32]) {
        let width = x.len() / by.len().max(1);
        for ((to, x), by) in to.chunks_exact_mut(width.max(1)).zip(x.chunks_exact(width.max(1))).zip(by) {
            to.iter_mut().zip(x).for_each(|(to, x)| *to = -x * by);
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
