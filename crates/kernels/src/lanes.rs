//! Sums over a slice in sixteen lanes.
//!
//! A float sum in plain order cannot be vectorised, since its order is its meaning. These sum in sixteen
//! interleaved lanes that are added up at the end: an order that depends on the length alone, the same on
//! every instruction set that does not contract products.

use crate::Element;

const LANES: usize = 16;

#[inline(always)]
fn add_up(lanes: [f32; LANES], tail: f32) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + tail
}

/// Σ f(x[i]).
#[inline(always)]
pub(crate) fn sum_by<E: Element>(x: &[E], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut tail = 0.0;
    for x in chunks.remainder() {
        tail += f(x.to_f32());
    }
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += f(x[i].to_f32());
        }
    }
    add_up(lanes, tail)
}

/// Σ f(i) for i below n.
#[inline(always)]
pub(crate) fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + i);
        }
    }
    add_up(lanes, (whole..n).map(f).sum())
}

/// Σ a[i]·b[i].
#[inline(always)]
pub(crate) fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
    let b = &b[..a.len()];
    let mut lanes = [0.0; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut tail = 0.0;
    for (a, b) in chunks_a.remainder().iter().zip(chunks_b.remainder()) {
        tail += a.to_f32() * b.to_f32();
    }
    for (a, b) in chunks_a.zip(chunks_b) {
        for i in 0..LANES {
            lanes[i] += a[i].to_f32() * b[i].to_f32();
        }
    }
    add_up(lanes, tail)
}

/// Σ a[i]·b[i]·(offset + w[i]).
#[inline(always)]
pub(crate) fn sum_of_products<A: Element, W: Element>(a: &[A], b: &[A], w: &[W], offset: f32) -> f32 {
    let (b, w) = (&b[..a.len()], &w[..a.len()]);
    let term = |a: A, b: A, w: W| a.to_f32() * b.to_f32() * (offset + w.to_f32());
    let mut lanes = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (w, w_rest) = w.as_chunks::<LANES>();
    for ((a, b), w) in a.iter().zip(b).zip(w) {
        for i in 0..LANES {
            lanes[i] += term(a[i], b[i], w[i]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).zip(w_rest);
    add_up(lanes, rest.map(|((a, b), w)| term(*a, *b, *w)).sum())
}

/// The largest element; −∞ for none. NaN is ignored, as `f32::max` does.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    // As one instruction has it; `f32::max` takes three. Four registers, so that none waits for the one before.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 4 * LANES];
    let chunks = x.chunks_exact(4 * LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for x in chunks {
        for i in 0..4 * LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    lanes.into_iter().fold(tail, larger)
}
