//! Rows grouped by expert (stages 9 and 11 of the walk): products group by group, and what comes back to the tokens.
//!
//! A router sends each of N tokens to k experts: N·k slots, slot t·k + j being choice j of token t. [`Grouping`] puts
//! them in the order of their experts, those of one expert in the order of tokens (a counting sort), so that each
//! expert has neighbouring rows. With r(i) the row of slot i, x [N·k, in] and a weight [E, out, in]:
//!
//! > product: y = x·W[e]ᵀ of each group, combine: y[t] = Σⱼ w[t, j]·x[r(t·k + j)]
//!
//! Backward of `combine` needs no output of it: dx[r(i)] = w[i]·dy[t], and where x = a·W[e]ᵀ, the gradient of w[i] is
//! ⟨dy[t], x[r(i)]⟩ = ⟨a[r(i)], z[r(i)]⟩ with z = dy·W[e], the gradient of a but for the weight: [`weigh`] takes both.
//!
//! Sums over the choices of a token go from the first to the last; nothing is added atomically. Storage f32 or bf16,
//! weights f32, arithmetic f32. Each product is one of [`crate::matmul`], one expert after the other: the groups'
//! bounds are known on the host anyway (see [`crate::routing`]), and a product's threads have one group at a time.

mod on_cuda;
mod products;
#[cfg(test)]
mod tests;

pub(crate) use on_cuda::SOURCE;
pub use products::{ExpertAdapters, ExpertWeights};

use std::ops::Range;

use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, with_dtype};

/// Slots in the order of their experts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grouping {
    /// Where the rows of each expert begin, and N·k.
    starts: Vec<usize>,
    /// The slot of each row.
    slots: Vec<u32>,
    /// The row of each slot.
    rows: Vec<u32>,
    /// The token of each row.
    tokens: Vec<u32>,
    /// The expert of each row.
    experts: Vec<u32>,
}

impl Grouping {
    /// Of slots whose experts, of `experts` that there are, stand in `index`; `top_k` slots for each token.
    ///
    /// # Panics
    /// If an expert is outside.
    pub fn sort(&mut self, index: &[u32], experts: usize, top_k: usize) {
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        index.iter().for_each(|expert| self.starts[*expert as usize + 1] += 1);
        (0..experts).for_each(|expert| self.starts[expert + 1] += self.starts[expert]);
        let mut next = self.starts.clone();
        for vector in [&mut self.slots, &mut self.rows, &mut self.tokens, &mut self.experts] {
            vector.clear();
            vector.resize(index.len(), 0);
        }
        for (slot, expert) in index.iter().enumerate() {
            let row = next[*expert as usize];
            next[*expert as usize] += 1;
            self.experts[row] = *expert;
            (self.rows[slot], self.slots[row], self.tokens[row]) =
                (row as u32, slot as u32, (slot / top_k) as u32);
        }
    }

    /// The token of each row: what [`crate::rows::gather`] takes.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The row of each slot.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Experts that have rows, and which.
    pub fn groups(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let ranges = self.starts.windows(2).map(|bounds| bounds[0]..bounds[1]);
        ranges.enumerate().filter(|(_, rows)| !rows.is_empty())
    }

    /// Rows of an expert.
    pub fn count(&self, expert: usize) -> usize {
        self.starts[expert + 1] - self.starts[expert]
    }
}

/// y[t] = Σⱼ w[t, j]·x[r(t·k + j)], added to what is there if `accumulate`; without weights a plain sum. x is [N·k, C],
/// w f32 [N, k], y [N, C] of x's type.
///
/// # Panics
/// If shapes or types do not fit.
pub fn combine(
    dev: &Device,
    grouping: &Grouping,
    x: View<'_>,
    weights: Option<View<'_>>,
    y: ViewMut<'_>,
    accumulate: bool,
) {
    let _timed = dev.pass("combine experts", x.byte_len() + y.byte_len() * (1 + usize::from(accumulate)));
    let (slots, n, c) = (grouping.rows.len(), y.dim(0), y.dim(1));
    assert_eq!((x.shape(), x.dtype()), (&[slots, c][..], y.dtype()), "combine: x");
    assert!(n > 0 || slots == 0, "combine: {slots} rows for no token");
    assert!(weights.is_none_or(|w| w.elements() == slots && w.dtype() == DType::F32), "combine: weights");
    if n == 0 {
        return;
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::combine(cuda, &grouping.rows, x, weights, y, accumulate);
    }
    let (k, weights) = (slots / n, weights.map(View::as_slice::<f32>));
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), c, |token, y| {
            let slots = token * k..(token + 1) * k;
            let weights = weights.map(|weights| &weights[slots.clone()]);
            sum_rows(dev.isa(), x, &grouping.rows[slots], weights, accumulate, y);
        });
    });
}

/// dw[slot of m] = ⟨a[m], z[m]⟩, then z[m] ← w[slot of m]·z[m]. a and z are [N·k, F] of one type, w and dw f32 [N, k].
///
/// # Panics
/// If shapes or types do not fit.
pub fn weigh(
    dev: &Device,
    grouping: &Grouping,
    a: View<'_>,
    z: ViewMut<'_>,
    weights: View<'_>,
    dweights: ViewMut<'_>,
) {
    let _timed = dev.pass("weigh experts", 3 * a.byte_len());
    let (slots, f) = (grouping.rows.len(), z.dim(1));
    assert_eq!((a.shape(), a.dtype()), (z.shape(), z.dtype()), "weigh: a and z");
    assert_eq!(
        [z.dim(0), weights.elements(), dweights.elements()],
        [slots; 3],
        "weigh: z, weights, dweights"
    );
    if let Some(cuda) = dev.cuda() {
        return on_cuda::weigh(cuda, &grouping.slots, a, z, weights, dweights);
    }
    let (weights, dweights) = (weights.as_slice::<f32>(), dweights.as_mut_slice::<f32>());
    let mut dots = vec![0.0; slots];
    with_dtype!(z.dtype(), E => {
        let a = a.as_slice::<E>();
        dev.for_each_chunk_pair((z.as_mut_slice::<E>(), f), (&mut dots, 1), |row, z, dot| {
            let weight = weights[grouping.slots[row] as usize];
            dot[0] = dot_and_scale(dev.isa(), &a[row * f..(row + 1) * f], z, weight);
        });
    });
    grouping.slots.iter().zip(dots).for_each(|(slot, dot)| dweights[*slot as usize] = dot);
}

/// dw[slot of m] += ⟨bias[expert of m], dy[m]⟩: the part of it that is due to biases. dy is [N·k, C], bias [E, C] of its
/// type or f32, dw f32 [N, k].
///
/// # Panics
/// If shapes or types do not fit.
pub fn weigh_bias(dev: &Device, grouping: &Grouping, bias: View<'_>, dy: View<'_>, dweights: ViewMut<'_>) {
    let _timed = dev.pass("weigh experts' biases", dy.byte_len());
    let (slots, c) = (grouping.rows.len(), dy.dim(1));
    assert_eq!([dy.dim(0), dweights.elements(), bias.dim(1)], [slots, slots, c], "weigh_bias");
    let inside = grouping.experts.iter().all(|expert| (*expert as usize) < bias.dim(0));
    assert!(inside, "weigh_bias: experts outside of {bias:?}");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::weigh_bias(cuda, [&grouping.slots, &grouping.experts], bias, dy, dweights);
    }
    let (dweights, mut dots) = (dweights.as_mut_slice::<f32>(), vec![0.0; slots]);
    with_dtype!(bias.dtype(), B => with_dtype!(dy.dtype(), E => {
        let (bias, dy) = (bias.as_slice::<B>(), dy.as_slice::<E>());
        dev.for_each_chunk(&mut dots, 1, |row, dot_of_row| {
            let bias = &bias[grouping.experts[row] as usize * c..][..c];
            dot_of_row[0] = dot(dev.isa(), bias, &dy[row * c..][..c]);
        });
    }));
    grouping.slots.iter().zip(dots).for_each(|(slot, dot)| dweights[*slot as usize] += dot);
}

/// x[m] ← w[slot of m]·x[m]; x is [N·k, C], w f32 [N, k].
///
/// # Panics
/// If shapes do not fit.
pub fn scale(dev: &Device, grouping: &Grouping, weights: View<'_>, x: ViewMut<'_>) {
    let _timed = dev.pass("scale experts' rows", 2 * x.byte_len());
    assert_eq!([x.dim(0), weights.elements()], [grouping.rows.len(); 2], "scale: x, weights");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::scale(cuda, &grouping.slots, weights, x);
    }
    let (weights, c) = (weights.as_slice::<f32>(), x.dim(1));
    with_dtype!(x.dtype(), E => {
        dev.for_each_chunk(x.as_mut_slice::<E>(), c, |row, x| {
            scaled(dev.isa(), x, weights[grouping.slots[row] as usize]);
        });
    });
}

/// Columns whose sum stays in the first-level cache.
const BLOCK: usize = 1024;

per_isa! {
    fn sum_rows<E: Element>(x: &[E], rows: &[u32], weights: Option<&[f32]>, accumulate: bool, y: &mut [E]) {
        let c = y.len();
        let mut sum = [0.0f32; BLOCK];
        for (block, y) in y.chunks_mut(BLOCK).enumerate() {
            let sum = &mut sum[..y.len()];
            sum.iter_mut().zip(y.iter()).for_each(|(sum, y)| *sum = if accumulate { y.to_f32() } else { 0.0 });
            for (j, row) in rows.iter().enumerate() {
                let weight = weights.map_or(1.0, |weights| weights[j]);
                let x = &x[*row as usize * c + block * BLOCK..][..sum.len()];
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x.to_f32());
            }
            y.iter_mut().zip(sum).for_each(|(y, sum)| *y = E::from_f32(*sum));
        }
    }

    fn dot_and_scale<E: Element>(a: &[E], z: &mut [E], weight: f32) -> f32 {
        // Sixteen sums at a time: one for each lane of a vector.
        let mut sums = [0.0f32; 16];
        for (a, z) in a.chunks(16).zip(z.chunks_mut(16)) {
            for ((sum, a), z) in sums.iter_mut().zip(a).zip(z) {
                *sum += a.to_f32() * z.to_f32();
                *z = E::from_f32(z.to_f32() * weight);
            }
        }
        sums.iter().sum()
    }

    fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f32 {
        let mut sums = [0.0f32; 16];
        for (a, b) in a.chunks(16).zip(b.chunks(16)) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a.to_f32() * b.to_f32());
        }
        sums.iter().sum()
    }

    fn scaled<E: Element>(x: &mut [E], weight: f32) {
        x.iter_mut().for_each(|x| *x = E::from_f32(x.to_f32() * weight));
    }
}
