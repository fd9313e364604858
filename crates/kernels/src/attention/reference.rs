//! Attention by its definition: plain loops, generic over `f32` and `f64`. Everything fast must match it.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::{AttentionParams, Heads, RowOffsets};

/// `f32` or `f64`.
pub(crate) trait Real:
    Copy
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    fn from_f32(x: f32) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
}

macro_rules! real {
    ($($float:ty),*) => {$(
        impl Real for $float {
            fn from_f32(x: f32) -> Self {
                Self::from(x)
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
        }
    )*};
}
real!(f32, f64);

/// Queries [Nq, H, D], keys and values [Nk, K, D].
pub(crate) struct Inputs<'a, T> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
}

/// For each query and head: its index in [Nq, H], and of the keys that it sees the indices in [Nk, K] and what their
/// places add to the scores.
fn for_each_query<T: Real>(
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    heads: Heads,
    mut f: impl FnMut(usize, &mut dyn Iterator<Item = (usize, T)>),
) {
    let group = heads.query / heads.key;
    for (q, k) in rows.q.windows(2).zip(rows.k.windows(2)) {
        let (q_start, q_end) = (q[0] as usize, q[1] as usize);
        let (k_start, k_end) = (k[0] as usize, k[1] as usize);
        for i in q_start..q_end {
            let position = k_end - (q_end - i);
            let window = params.window.unwrap_or(usize::MAX);
            let first = k_start.max((position + 1).saturating_sub(window));
            for h in 0..heads.query {
                let slope = T::from_f32(params.slopes.map_or(0.0, |slopes| slopes[h]));
                let bias = |j: usize| -(slope * T::from_f32((position - j) as f32));
                let mut keys = (first..=position).map(|j| (j * heads.key + h / group, bias(j)));
                f(i * heads.query + h, &mut keys);
            }
        }
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::default(), |sum, (a, b)| sum + *a * *b)
}

/// The score after scale and cap, and its derivative by the product q·k.
fn score<T: Real>(params: &AttentionParams<'_>, product: T) -> (T, T) {
    let scale = T::from_f32(params.scale);
    match params.softcap {
        None => (product * scale, scale),
        Some(cap) => {
            let cap = T::from_f32(cap);
            let t = (product * scale / cap).tanh();
            (t * cap, (T::from_f32(1.0) - t * t) * scale)
        }
    }
}

/// `(out [Nq, H, D], lse [Nq, H])`.
pub(crate) fn forward<T: Real>(
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    heads: Heads,
    x: &Inputs<'_, T>,
) -> (Vec<T>, Vec<T>) {
    let d = heads.width;
    let at = |i: usize| i * d..(i + 1) * d;
    let mut out = vec![T::default(); x.q.len()];
    let mut lse = vec![T::default(); x.q.len() / d.max(1)];
    for_each_query(params, rows, heads, |i, keys| {
        let scores: Vec<(usize, T)> =
            keys.map(|(j, bias)| (j, score(params, dot(&x.q[at(i)], &x.k[at(j)])).0 + bias)).collect();
        let max = scores.iter().fold(scores[0].1, |max, (_, s)| if *s > max { *s } else { max });
        let sum = scores.iter().fold(T::default(), |sum, (_, s)| sum + (*s - max).exp());
        lse[i] = max + sum.ln();
        for (j, s) in scores {
            let p = (s - max).exp() / sum;
            for (out, v) in out[at(i)].iter_mut().zip(&x.v[at(j)]) {
                *out += p * *v;
            }
        }
    });
    (out, lse)
}

/// `(dq, dk, dv)`.
pub(crate) fn backward<T: Real>(
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    heads: Heads,
    x: &Inputs<'_, T>,
    dout: &[T],
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let d = heads.width;
    let at = |i: usize| i * d..(i + 1) * d;
    let (out, lse) = forward(params, rows, heads, x);
    let mut dq = vec![T::default(); x.q.len()];
    let mut dk = vec![T::default(); x.k.len()];
    let mut dv = vec![T::default(); x.v.len()];
    for_each_query(params, rows, heads, |i, keys| {
        let delta = dot(&dout[at(i)], &out[at(i)]);
        for (j, bias) in keys {
            let (s, ds_by_product) = score(params, dot(&x.q[at(i)], &x.k[at(j)]));
            let p = (s + bias - lse[i]).exp();
            let dp = dot(&dout[at(i)], &x.v[at(j)]);
            let ds = p * (dp - delta) * ds_by_product;
            for e in 0..d {
                dv[j * d + e] += p * dout[i * d + e];
                dk[j * d + e] += ds * x.q[i * d + e];
                dq[i * d + e] += ds * x.k[j * d + e];
            }
        }
    });
    (dq, dk, dv)
}
