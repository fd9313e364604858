//! Backward on a CPU. A task has some heads of a key head in a row, in turn; each goes through the row's chunks once
//! forward, for the states between them, and once back.
//!
//! In a chunk, with dS the gradient of S₁ and k̂ = e^(G_n − G)·k:
//!
//! ```text
//! dV = Pᵀ·dout + k̂·dS        dP = L(dout·Vᵀ)        dk̂ = V·dSᵀ
//! dq = e^G·dout·S₀ᵀ + (dP·e^(G_i − G_j))·k        dk = e^(G_n − G)·dk̂ + (dP·e^(G_i − G_j))ᵀ·q
//! dS₀ = e^(G_n)·dS + (e^G·q)ᵀ·dout
//! additive:  dv = β·dV        dβ = dV·v
//! delta:     (1 + Aᵀ)·dR = dV        dv = β·dR        dβ = dR·(v − e^G·k·S₀) + Σ_j dA·A/β
//!            dA = −(strict L)(dR·Vᵀ)        dM = β_i·dA·e^(G_i − G_j)        dk += (dM + dMᵀ)·k + dK·S₀ᵀ
//!            dK = −e^G·dv, the gradient of k·S₀        dS₀ += kᵀ·dK
//! ```
//!
//! and dv += skip·dout. G has a part of dP·P and dA·A with its row and less the same with its column, of dq·q, dK·k·S₀ and
//! dk̂·k̂; the decay's gradient is the sum of G's from its token to the chunk's end.

use std::ops::Range;

use rayon::prelude::*;

use super::chunk::{Chunk, Values, multiply, scale, scale_rows, widen};
use super::forward::skips;
use super::product::{Left, lower_product, padded, product, solve_lower_transposed, transpose};
use super::{CHUNK, Gradients, Inputs, LinearAttentionParams, Rule, Sizes, chunks};
use crate::isa::per_isa;
use crate::lanes::dot;
use crate::scratch::{Disjoint, take, with_tile};
use crate::{Device, Element, Isa, View, ViewMut};

/// Where tasks write.
struct Outputs<'a, T> {
    dv: Disjoint<'a, T>,
    dstep: Disjoint<'a, f32>,
    ddecay: Disjoint<'a, f32>,
    states: Disjoint<'a, f32>,
    /// dq in slots, then dk.
    slots: Disjoint<'a, f32>,
}

pub fn run<T: Element>(
    dev: &Device,
    params: LinearAttentionParams,
    cu_seqlens: &[u32],
    (inputs, sizes): (Inputs<'_>, Sizes),
    dout: View<'_>,
    gradients: Gradients<'_>,
    scratch: ViewMut<'_>,
) {
    let values = Values::<T>::of(&inputs);
    let Gradients { dq, dk, dv, dstep, ddecay, dskip } = gradients;
    let (keys, slots) = (sizes.tokens * sizes.key_heads * sizes.key_dim, sizes.slots());
    let states = sizes.states(CHUNK, padded(sizes.value_dim));
    let (states, of_slots) = scratch.as_mut_slice::<f32>().split_at_mut(states);
    let of_slots = &mut of_slots[..2 * slots * keys];
    let dout = dout.as_slice::<T>();
    let outputs = Outputs {
        dv: Disjoint::of(dv.as_mut_slice::<T>()),
        dstep: Disjoint::of(dstep.as_mut_slice::<f32>()),
        ddecay: Disjoint::of(ddecay.as_mut_slice::<f32>()),
        states: Disjoint::of(states),
        slots: Disjoint::of(of_slots),
    };
    let rows = cu_seqlens.len().saturating_sub(1);
    dev.for_each(rows * sizes.key_heads * slots, |task| {
        let (row, of_row) = (task / (sizes.key_heads * slots), task % (sizes.key_heads * slots));
        let (key_head, slot) = (of_row / slots, of_row % slots);
        let row = cu_seqlens[row] as usize..cu_seqlens[row + 1] as usize;
        for (i, head) in sizes.heads_of(key_head, slot).enumerate() {
            let place = Place { sizes, row: row.clone(), head, slot, adds: i > 0 };
            place.backward(dev.isa(), params, values, dout, skips(inputs.skip, head), &outputs);
        }
    });
    let (dq_slots, dk_slots) = of_slots.split_at(slots * keys);
    for (to, from) in [(dq, dq_slots), (dk, dk_slots)] {
        dev.for_each_chunk(to.as_mut_slice::<T>(), SUMMED, |task, to| {
            add_slots(dev.isa(), from, keys, task * SUMMED, to);
        });
    }
    if let Some(dskip) = dskip {
        let heads = dskip.as_mut_slice::<f32>().par_iter_mut().enumerate();
        dev.for_each_item(heads, |(head, dskip)| *dskip += products(dev.isa(), dout, values.v, sizes, head));
    }
}

/// Elements of dq or dk that one task sums.
const SUMMED: usize = 4096;

/// A head of a row, and where its dq and dk go.
struct Place {
    sizes: Sizes,
    row: Range<usize>,
    head: usize,
    slot: usize,
    adds: bool,
}

/// Workspace of the way back.
struct Back<'a> {
    dout: &'a mut [f32],
    dnew: &'a mut [f32],
    dks: &'a mut [f32],
    /// Vᵀ.
    newt: &'a mut [f32],
    dp: &'a mut [f32],
    da: &'a mut [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    /// dk̂, and e^G·q.
    t: &'a mut [f32],
    dg: &'a mut [f32],
    dstep: &'a mut [f32],
    state: &'a mut [f32],
    dstate: &'a mut [f32],
    /// S₀ᵀ or dSᵀ.
    turned: &'a mut [f32],
}

impl<'a> Back<'a> {
    fn len(sizes: Sizes) -> usize {
        let (d, e) = (sizes.key_dim, sizes.value_dim);
        let (keys, values) = (CHUNK * padded(d), CHUNK * padded(e));
        let states = 2 * d * padded(e) + e * padded(d);
        3 * values + e * CHUNK + 3 * keys + 2 * CHUNK * CHUNK + 2 * CHUNK + states
    }

    fn take(rest: &mut &'a mut [f32], sizes: Sizes) -> Self {
        let (d, e) = (sizes.key_dim, sizes.value_dim);
        let (keys, values) = (CHUNK * padded(d), CHUNK * padded(e));
        let mut next = |len: usize| take(rest, len);
        Self {
            dout: next(values),
            dnew: next(values),
            dks: next(values),
            newt: next(e * CHUNK),
            dp: next(CHUNK * CHUNK),
            da: next(CHUNK * CHUNK),
            dq: next(keys),
            dk: next(keys),
            t: next(keys),
            dg: next(CHUNK),
            dstep: next(CHUNK),
            state: next(d * padded(e)),
            dstate: next(d * padded(e)),
            turned: next(e * padded(d)),
        }
    }
}

impl Place {
    fn backward<T: Element>(
        &self,
        isa: Isa,
        params: LinearAttentionParams,
        values: Values<'_, T>,
        dout: &[T],
        skip: f32,
        outputs: &Outputs<'_, T>,
    ) {
        let (sizes, head) = (self.sizes, self.head);
        let matrix = sizes.key_dim * padded(sizes.value_dim);
        with_tile(Chunk::len(sizes) + Back::len(sizes), |mut tile| {
            let mut c = Chunk::take(&mut tile, sizes);
            let mut b = Back::take(&mut tile, sizes);
            // SAFETY: the states of a head before chunks inside its row are no one else's.
            let state_at =
                |t: usize| unsafe { outputs.states.part((t / CHUNK * sizes.heads + head) * matrix, matrix) };
            b.state.fill(0.0);
            for (i, tokens) in chunks(self.row.clone()).enumerate() {
                if i > 0 {
                    state_at(tokens.start).copy_from_slice(b.state);
                }
                if tokens.end < self.row.end {
                    c.read(isa, params, values, sizes, (tokens, head));
                    c.mix(isa, params.rule, (i > 0).then_some(&*b.state));
                    c.move_state(isa, b.state);
                }
            }
            b.dstate.fill(0.0);
            for tokens in chunks(self.row.clone()).rev() {
                let before = (tokens.start > self.row.start).then(|| &*state_at(tokens.start));
                c.read(isa, params, values, sizes, (tokens.clone(), head));
                c.weigh(isa);
                c.mix(isa, params.rule, before);
                let (e, first) = (sizes.value_dim, (tokens.start * sizes.heads + head) * sizes.value_dim);
                let to = &mut b.dout[..c.n * padded(e)];
                widen(isa, &dout[first..], sizes.heads * e, e, 1.0, to);
                b.chunk(isa, params.rule, &mut c, before, tokens.end < self.row.end);
                self.write(isa, params, &c, &mut b, skip, (tokens, outputs));
            }
        });
    }

    /// The chunk's gradients to where they belong.
    fn write<T: Element>(
        &self,
        isa: Isa,
        params: LinearAttentionParams,
        c: &Chunk<'_>,
        b: &mut Back<'_>,
        skip: f32,
        (tokens, outputs): (Range<usize>, &Outputs<'_, T>),
    ) {
        let Sizes { key_heads, heads, .. } = self.sizes;
        let (d, e, key_head) = (c.d, c.e, self.head / self.sizes.group());
        let slots = self.sizes.slots();
        // Σ of G's gradients to the end.
        let mut sum = 0.0;
        b.dg[..c.n].iter_mut().rev().for_each(|dg| {
            sum += *dg;
            *dg = sum;
        });
        for (i, t) in tokens.enumerate() {
            let gate = t * heads + self.head;
            // SAFETY: heads and slots are this task's alone.
            unsafe {
                outputs.dstep.part(gate, 1)[0] = b.dstep[i];
                outputs.ddecay.part(gate, 1)[0] = b.dg[i];
                let dv = outputs.dv.part(gate * e, e);
                values_gradient(isa, &b.dnew[i * padded(e)..][..e], &b.dout[i * padded(e)..][..e], skip, dv);
                for (which, from, by) in [(0, &b.dq, params.q_scale), (1, &b.dk, params.k_scale)] {
                    let slot = (which * slots + self.slot) * self.sizes.tokens + t;
                    let to = outputs.slots.part((slot * key_heads + key_head) * d, d);
                    add_scaled(isa, &from[i * padded(d)..][..d], by, to, self.adds);
                }
            }
        }
    }
}

impl Back<'_> {
    /// The gradients of a chunk from `dout` and `dstate`: dq, dk (scaled), dstep and dg; dv is left in `dnew`, and dS₀ in
    /// `dstate`.
    fn chunk(&mut self, isa: Isa, rule: Rule, c: &mut Chunk<'_>, before: Option<&[f32]>, has_later: bool) {
        let (n, d, e) = (c.n, c.d, c.e);
        let [keys, values, square] = [d, e, n].map(|width| n * padded(width));
        self.dg[..n].fill(0.0);
        transpose(isa, c.new, [n, e], self.newt);
        lower_product(isa, self.dp, Left::straight(self.dout, e), self.newt, [n, e]);
        product(isa, self.dnew, Left::transposed(c.p, n).upper(), self.dout, [n, e, n], false);
        if has_later {
            scale_rows(isa, &c.k[..keys], &c.exp_rest[..n], c.kt);
            product(isa, self.dnew, Left::straight(c.kt, d), self.dstate, [n, e, d], true);
            transpose(isa, self.dstate, [d, e], self.turned);
            product(isa, self.t, Left::straight(c.new, e), self.turned, [n, d, e], false);
            // The last token's decay is in all of e^(G_n − G).
            add_dots(isa, &self.t[..keys], &c.kt[..keys], -1.0, &mut self.dg[..n]);
            self.dg[n - 1] += dots(isa, &self.t[..keys], &c.kt[..keys]);
            if let Some(before) = before {
                self.dg[n - 1] += c.exp_g[n - 1] * dots(isa, before, self.dstate);
            }
            scale_rows(isa, &self.t[..keys], &c.exp_rest[..n], self.dk);
        } else {
            self.dk[..keys].fill(0.0);
        }
        pair_gradients(isa, self.dp, c.p, &mut self.dg[..n]);
        multiply(isa, &mut self.dp[..square], c.decays);
        product(isa, self.dq, Left::straight(self.dp, n).lower(), c.k, [n, d, n], false);
        product(isa, self.dk, Left::transposed(self.dp, n).upper(), c.q, [n, d, n], true);
        scale(isa, self.dstate, c.exp_g[n - 1]);
        if let Some(before) = before {
            transpose(isa, before, [d, e], self.turned);
            product(isa, c.kt, Left::straight(self.dout, e), self.turned, [n, d, e], false);
            scale_rows(isa, &c.kt[..keys], &c.exp_g[..n], self.t);
            add_dots(isa, &self.t[..keys], &c.q[..keys], 1.0, &mut self.dg[..n]);
            add_scaled(isa, &self.t[..keys], 1.0, &mut self.dq[..keys], true);
            scale_rows(isa, &c.q[..keys], &c.exp_g[..n], self.t);
            product(isa, self.dstate, Left::transposed(self.t, d), self.dout, [d, e, n], true);
        }
        match rule {
            Rule::Additive => {
                self.dstep[..n].fill(0.0);
                add_dots(isa, &self.dnew[..values], &c.v[..values], 1.0, &mut self.dstep[..n]);
                multiply_rows(isa, &mut self.dnew[..values], &c.step[..n], 1.0);
            }
            Rule::Delta => self.through_system(isa, c, before),
        }
    }

    /// From the gradient of V in `dnew` to that of v.
    fn through_system(&mut self, isa: Isa, c: &Chunk<'_>, before: Option<&[f32]>) {
        let (n, d, e) = (c.n, c.d, c.e);
        let [values, square] = [e, n].map(|width| n * padded(width));
        solve_lower_transposed(isa, c.system, n, &mut self.dnew[..values], e);
        // −dA, as `system` is −A.
        lower_product(isa, self.da, Left::straight(self.dnew, e), self.newt, [n, e]);
        pair_gradients(isa, self.da, c.system, &mut self.dg[..n]);
        self.dstep[..n].fill(0.0);
        add_dots(isa, &self.dnew[..values], &c.y[..values], 1.0, &mut self.dstep[..n]);
        for i in 0..n {
            let row = i * padded(n)..i * padded(n) + i;
            self.dstep[i] -= dots(isa, &self.da[row.clone()], &c.m[row]);
            self.da[i * padded(n) + i] = 0.0;
        }
        multiply_rows(isa, &mut self.da[..square], &c.step[..n], -1.0);
        multiply(isa, &mut self.da[..square], c.decays);
        multiply_rows(isa, &mut self.dnew[..values], &c.step[..n], 1.0);
        product(isa, self.dk, Left::straight(self.da, n).lower(), c.k, [n, d, n], true);
        product(isa, self.dk, Left::transposed(self.da, n).upper(), c.k, [n, d, n], true);
        if before.is_some() {
            scale_rows(isa, &self.dnew[..values], &c.exp_g[..n], self.dks);
            scale(isa, &mut self.dks[..values], -1.0);
            add_dots(isa, &self.dks[..values], &c.ks[..values], 1.0, &mut self.dg[..n]);
            // `turned` is S₀ᵀ here.
            product(isa, self.dk, Left::straight(self.dks, e), self.turned, [n, d, e], true);
            product(isa, self.dstate, Left::transposed(c.k, d), self.dks, [d, e, n], true);
        }
    }
}

per_isa! {
    fn dots(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }

    /// To each sum, those of a row's products times `by`.
    fn add_dots(a: &[f32], b: &[f32], by: f32, sums: &mut [f32]) {
        let width = a.len() / sums.len().max(1);
        for (sum, (a, b)) in sums.iter_mut().zip(a.chunks_exact(width).zip(b.chunks_exact(width))) {
            *sum += by * dot(a, b);
        }
    }

    /// Row i times its factor and another one.
    fn multiply_rows(x: &mut [f32], by: &[f32], all: f32) {
        let width = x.len() / by.len().max(1);
        for (x, by) in x.chunks_exact_mut(width).zip(by) {
            x.iter_mut().for_each(|x| *x *= by * all);
        }
    }

    /// What dx·x of x_ij = …·e^(G_i − G_j) comes to for G, over the lower triangle.
    fn pair_gradients(dx: &[f32], x: &[f32], dg: &mut [f32]) {
        let (n, row) = (dg.len(), padded(dg.len()));
        for (i, (dx, x)) in dx.chunks_exact(row).zip(x.chunks_exact(row)).take(n).enumerate() {
            let (dx, x) = (&dx[..i], &x[..i]);
            dg[i] += dot(dx, x);
            dg.iter_mut().zip(dx.iter().zip(x)).for_each(|(dg, (dx, x))| *dg -= dx * x);
        }
    }

    fn values_gradient<T: Element>(dv: &[f32], dout: &[f32], skip: f32, to: &mut [T]) {
        for (to, (dv, dout)) in to.iter_mut().zip(dv.iter().zip(dout)) {
            *to = T::from_f32(dv + skip * dout);
        }
    }

    fn add_scaled(from: &[f32], by: f32, to: &mut [f32], add: bool) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = if add { *to + by * from } else { by * from };
        }
    }

    /// The sum of all slots, each of so many values, from `first` on.
    fn add_slots<T: Element>(slots: &[f32], len: usize, first: usize, to: &mut [T]) {
        for (i, to) in to.iter_mut().enumerate() {
            *to = T::from_f32(slots.iter().skip(first + i).step_by(len.max(1)).sum());
        }
    }

    /// Σ dout·v of a head.
    fn products<T: Element>(dout: &[T], v: &[T], sizes: Sizes, head: usize) -> f32 {
        let rows = dout.chunks_exact(sizes.value_dim).zip(v.chunks_exact(sizes.value_dim));
        rows.skip(head).step_by(sizes.heads).map(|(dout, v)| dot(dout, v)).sum()
    }
}
