//! Rotations of an input, block by block: orthogonal fine-tuning (stages 9 and 11 of the walk).
//!
//! Formula (Qiu et al., 2025; as PEFT 0.18 has it), for an input x [N, C] in `K` blocks of `b` neighbours and numbers
//! q [K, b·(b−1)/2], with Q_k the skew-symmetric matrix whose strictly upper triangle is q_k, row by row:
//!
//! > R_k = I + 2·(Q_k + Q_k² + Q_k³) + Q_k⁴, y_nk = x_nk·R_k
//!
//! R_k is what is left of the Cayley transform (I + Q)·(I − Q)⁻¹ = I + 2·ΣQⁿ when its series ends after five terms: it
//! is orthogonal up to Q's fifth power. It is computed from the inside, H₃ = 2I + Q, H_p = c_p·I + Q·H_{p+1}, R = H₀.
//!
//! Derivative: dx_nk = dy_nk·R_kᵀ, dR_k = Σₙ x_nkᵀ·dy_nk; from G₀ = dR on G_{p+1} = Qᵀ·G_p, and
//!
//! > dQ = Σ_p G_p·H_{p+1}ᵀ + G₃, dq_ij = dQ_ij − dQ_ji
//!
//! Activations f32 or bf16, one type for all; q, matrices [K, b, b] and their gradients f32; arithmetic f32. Nothing is
//! saved for backward but x. 2·N·C·b FLOPs forward, twice as many backward; 6·C·b² and 14·C·b² for the matrices.

use crate::isa::per_isa;
use crate::scratch::with_tile;
use crate::{DType, Device, Element, View, ViewMut, random, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Rows of activations that one task rotates.
const ROWS_PER_TASK: usize = 64;

/// The rotations of a layer's input.
#[derive(Debug, Clone, Copy)]
pub struct Rotations<'a> {
    /// q: f32 [K, b·(b−1)/2].
    pub skew: View<'a>,
    /// b.
    pub size: usize,
    /// Blocks that stay as they are in this pass.
    pub dropped: Option<Dropped>,
}

/// A choice of blocks: those whose numbers of a key are the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    key: u64,
    /// The largest number of a chosen block.
    most: u64,
}

impl Dropped {
    /// `share` of `blocks` blocks, rounded down; none of a single one (PEFT's `MultiplicativeDropoutLayer`).
    pub fn choose(key: u64, share: f32, blocks: usize) -> Option<Self> {
        let count = (f64::from(share) * blocks as f64) as usize;
        if blocks < 2 || count == 0 {
            return None;
        }
        let mut numbers: Vec<u64> = (0..blocks as u64).map(|block| random::hash(key, block)).collect();
        numbers.sort_unstable();
        Some(Self { key, most: numbers[count.min(blocks) - 1] })
    }

    fn has(self, block: usize) -> bool {
        random::hash(self.key, block as u64) <= self.most
    }
}

impl Rotations<'_> {
    /// K.
    fn blocks(&self) -> usize {
        self.skew.dim(0)
    }

    fn check(&self, matrices: View<'_>) {
        let b = self.size;
        assert_eq!(self.skew.shape(), [self.blocks(), skew_elements(b)], "oft: numbers of blocks of {b}");
        assert_eq!(matrices.elements(), self.blocks() * b * b, "oft: matrices of {b} by {b}");
        assert!(
            self.skew.dtype() == DType::F32 && matrices.dtype() == DType::F32,
            "oft: rotations are float32"
        );
    }
}

/// Numbers that make a skew-symmetric matrix of `size` rows.
pub const fn skew_elements(size: usize) -> usize {
    size * size.saturating_sub(1) / 2
}

/// R: f32 [K, b, b], overwritten. `work` is workspace of R's size.
///
/// # Panics
/// If shapes or types do not fit.
pub fn matrices(dev: &Device, rotations: Rotations<'_>, work: [ViewMut<'_>; 2], mut r: ViewMut<'_>) {
    let _timed = dev.pass("oft matrices", 4 * r.byte_len());
    rotations.check(r.as_view());
    let [mut q, mut h] = work;
    skew(dev, rotations, 0.0, q.reborrow());
    skew(dev, rotations, 2.0, h.reborrow());
    let b = rotations.size;
    let q = q.as_view();
    let step = |from: View<'_>, to: ViewMut<'_>, diagonal: f32| {
        product(dev, Factor::matrices(q, b), Matrices::plain(from), (to, Add::Diagonal(diagonal)));
    };
    step(h.as_view(), r.reborrow(), 2.0);
    step(r.as_view(), h.reborrow(), 2.0);
    step(h.as_view(), r, 1.0);
}

/// y = x·R by blocks; x and y are [N, C], R is f32 [K, b, b].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, x: View<'_>, (r, size): (View<'_>, usize), y: ViewMut<'_>) {
    let _timed = dev.op("oft", [0; 2], || [2 * x.elements() * size, 2 * x.byte_len()]);
    check(x, (r, size), y.as_view());
    product(dev, Factor::rows(x, size), Matrices::plain(r), (y, Add::Nothing));
}

/// dx = dy·Rᵀ by blocks, or dx += with `accumulate`.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward_input(
    dev: &Device,
    dy: View<'_>,
    (r, size): (View<'_>, usize),
    dx: ViewMut<'_>,
    accumulate: bool,
) {
    let _timed = dev.op("oft", [0; 2], || [2 * dy.elements() * size, 2 * dy.byte_len()]);
    check(dy, (r, size), dx.as_view());
    let add = if accumulate { Add::Before } else { Add::Nothing };
    product(dev, Factor::rows(dy, size), Matrices::transposed(r), (dx, add));
}

/// dR = Σₙ xᵀ·dy by blocks: f32 [K, b, b], overwritten.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward_matrices(dev: &Device, x: View<'_>, dy: View<'_>, (dr, size): (ViewMut<'_>, usize)) {
    let _timed = dev.op("oft", [0; 2], || [2 * x.elements() * size, 2 * x.byte_len()]);
    check(x, (dr.as_view(), size), dy);
    inner(dev, Factor::rows(x, size), Factor::rows(dy, size), dr);
}

/// dq += what comes of dR, which is used up. `work` is workspace of R's size.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward_skew(
    dev: &Device,
    rotations: Rotations<'_>,
    dr: ViewMut<'_>,
    work: [ViewMut<'_>; 6],
    dq: ViewMut<'_>,
) {
    let _timed = dev.pass("oft matrices", 14 * dr.byte_len());
    rotations.check(dr.as_view());
    assert_eq!((dq.shape(), dq.dtype()), (rotations.skew.shape(), DType::F32), "oft: dq");
    let b = rotations.size;
    let [mut q, mut h1, mut h2, mut h3, mut g, mut sum] = work;
    skew(dev, rotations, 0.0, q.reborrow());
    skew(dev, rotations, 2.0, h3.reborrow());
    let q = Factor::matrices(q.as_view(), b);
    product(dev, q, Matrices::plain(h3.as_view()), (h2.reborrow(), Add::Diagonal(2.0)));
    product(dev, q, Matrices::plain(h2.as_view()), (h1.reborrow(), Add::Diagonal(2.0)));
    let mut now = dr;
    for (h, add) in [(h1.as_view(), Add::Nothing), (h2.as_view(), Add::Before), (h3.as_view(), Add::Before)] {
        let factor = Factor::matrices(now.as_view(), b);
        product(dev, factor, Matrices::transposed(h), (sum.reborrow(), add));
        inner(dev, q, factor, g.reborrow());
        std::mem::swap(&mut now, &mut g);
    }
    add_skew_gradient(dev, rotations, [sum.as_view(), now.as_view()], dq);
}

fn check(x: View<'_>, (r, size): (View<'_>, usize), y: View<'_>) {
    assert_eq!((x.shape(), x.dtype()), (y.shape(), y.dtype()), "oft: x and y");
    assert!(size > 0 && x.dim(1).is_multiple_of(size), "oft: {} in blocks of {size}", x.dim(1));
    assert_eq!((r.elements(), r.dtype()), (x.dim(1) * size, DType::F32), "oft: matrices of {size}");
}

/// Rows of blocks: element (n, k, i) is `n·row + k·block + i`.
#[derive(Clone, Copy)]
struct Factor<'a> {
    values: View<'a>,
    rows: usize,
    blocks: usize,
    size: usize,
    row: usize,
    block: usize,
}

impl<'a> Factor<'a> {
    /// Activations [N, C].
    fn rows(values: View<'a>, size: usize) -> Self {
        let (rows, row) = (values.dim(0), values.dim(1));
        Self { values, rows, blocks: row / size, size, row, block: size }
    }

    /// Matrices [K, b, b].
    fn matrices(values: View<'a>, size: usize) -> Self {
        let blocks = values.elements() / (size * size);
        Self { values, rows: size, blocks, size, row: size, block: size * size }
    }
}

/// Matrices [K, b, b], or what is so when each is transposed.
#[derive(Clone, Copy)]
struct Matrices<'a> {
    values: View<'a>,
    is_transposed: bool,
}

impl<'a> Matrices<'a> {
    fn plain(values: View<'a>) -> Self {
        Self { values, is_transposed: false }
    }

    fn transposed(values: View<'a>) -> Self {
        Self { values, is_transposed: true }
    }
}

/// What a product is added to.
#[derive(Clone, Copy, PartialEq)]
enum Add {
    Nothing,
    /// What is there.
    Before,
    /// This number times the unit matrix.
    Diagonal(f32),
}

/// out_nk = a_nk·M_k; `out` lies as `a` does and has its type.
fn product(dev: &Device, a: Factor<'_>, m: Matrices<'_>, (out, add): (ViewMut<'_>, Add)) {
    if let Some(cuda) = dev.cuda() {
        return on_cuda::product(cuda, a, m, (out, add));
    }
    let (b, values) = (a.size, m.values.as_slice::<f32>());
    let is_matrix = a.block != a.size;
    let chunk = if is_matrix { a.block } else { ROWS_PER_TASK * a.row };
    with_dtype!(out.dtype(), E => {
        let from = a.values.as_slice::<E>();
        dev.for_each_chunk(out.as_mut_slice::<E>(), chunk, |task, out| {
            let from = &from[task * chunk..];
            let rows = out.len() / a.row.max(1);
            let blocks = if is_matrix { task..task + 1 } else { 0..a.blocks };
            for (at, k) in blocks.enumerate() {
                let block = at * b;
                let (from, out) = (&from[block..], &mut out[block..]);
                let matrix = &values[k * b * b..][..b * b];
                let shape = Tiles { rows, columns: b, terms: b, a: (a.row, 1), m: b, out: a.row };
                if m.is_transposed {
                    with_tile(b * b, |tile| {
                        transpose(matrix, b, tile);
                        multiply(dev.isa(), from, tile, out, shape, add);
                    });
                } else {
                    multiply(dev.isa(), from, matrix, out, shape, add);
                }
            }
        });
    });
}

/// out_k = Σₙ a_nkᵀ·d_nk: f32 [K, b, b].
fn inner(dev: &Device, a: Factor<'_>, d: Factor<'_>, out: ViewMut<'_>) {
    if let Some(cuda) = dev.cuda() {
        return on_cuda::inner(cuda, a, d, out);
    }
    let b = a.size;
    with_dtype!(a.values.dtype(), E => {
        let (from, by) = (a.values.as_slice::<E>(), d.values.as_slice::<E>());
        dev.for_each_chunk(out.as_mut_slice::<f32>(), b * b, |k, out| {
            if a.rows == 0 {
                return out.fill(0.0);
            }
            let (from, by) = (&from[k * a.block..], &by[k * d.block..]);
            let shape = Tiles { rows: b, columns: b, terms: a.rows, a: (1, a.row), m: d.row, out: b };
            multiply(dev.isa(), from, by, out, shape, Add::Nothing);
        });
    });
}

fn transpose(matrix: &[f32], b: usize, to: &mut [f32]) {
    for (j, to) in to.chunks_exact_mut(b).enumerate() {
        to.iter_mut().enumerate().for_each(|(i, to)| *to = matrix[i * b + j]);
    }
}

/// out[r, w] = Σ_t a[r, t]·m[t, w] in memory: steps of a's rows and terms, of m's terms, and of out's rows.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    terms: usize,
    a: (usize, usize),
    m: usize,
    out: usize,
}

/// The rows from `at.0` and the columns from `at.1` on, R and W of them: one sum for each element, in the terms' order.
#[inline(always)]
fn tile<A: Element, M: Element, O: Element, const R: usize, const W: usize>(
    (a, m): (&[A], &[M]),
    out: &mut [O],
    at: (usize, usize),
    shape: Tiles,
    add: Add,
) {
    let mut sums = [[0.0f32; W]; R];
    for t in 0..shape.terms {
        let m = &m[t * shape.m + at.1..][..W];
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = a[(at.0 + r) * shape.a.0 + t * shape.a.1].to_f32();
            for w in 0..W {
                sums[w] += a * m[w].to_f32();
            }
        }
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        let out = &mut out[(at.0 + r) * shape.out + at.1..][..W];
        match add {
            Add::Nothing => {}
            Add::Before => sums.iter_mut().zip(&*out).for_each(|(sum, before)| *sum += before.to_f32()),
            Add::Diagonal(diagonal) => {
                let on_it = (at.0 + r).checked_sub(at.1).filter(|w| *w < W);
                on_it.into_iter().for_each(|w| sums[w] += diagonal);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = O::from_f32(*sum));
    }
}

#[inline(always)]
fn rows_of<A: Element, M: Element, O: Element, const R: usize>(
    from: (&[A], &[M]),
    out: &mut [O],
    row: usize,
    shape: Tiles,
    add: Add,
) {
    let mut column = 0;
    while shape.columns - column >= 16 {
        tile::<A, M, O, R, 16>(from, out, (row, column), shape, add);
        column += 16;
    }
    while shape.columns - column >= 4 {
        tile::<A, M, O, R, 4>(from, out, (row, column), shape, add);
        column += 4;
    }
    for column in column..shape.columns {
        tile::<A, M, O, R, 1>(from, out, (row, column), shape, add);
    }
}

per_isa! {
    fn multiply<A: Element, M: Element, O: Element>(a: &[A], m: &[M], out: &mut [O], shape: Tiles, add: Add) {
        let whole = shape.rows / 4 * 4;
        for row in (0..whole).step_by(4) {
            rows_of::<A, M, O, 4>((a, m), out, row, shape, add);
        }
        for row in whole..shape.rows {
            rows_of::<A, M, O, 1>((a, m), out, row, shape, add);
        }
    }
}

/// Where the number of (i, j), i < j, is among those of a block.
fn place(i: usize, j: usize, b: usize) -> usize {
    i * (2 * b - i - 1) / 2 + (j - i - 1)
}

/// Q + diagonal·I: [K, b, b].
fn skew(dev: &Device, rotations: Rotations<'_>, diagonal: f32, out: ViewMut<'_>) {
    let b = rotations.size;
    if let Some(cuda) = dev.cuda() {
        return on_cuda::skew(cuda, rotations, diagonal, out);
    }
    let (numbers, each) = (rotations.skew.as_slice::<f32>(), skew_elements(b));
    dev.for_each_chunk(out.as_mut_slice::<f32>(), b * b, |k, out| {
        out.fill(0.0);
        if !rotations.dropped.is_some_and(|dropped| dropped.has(k)) {
            let mut numbers = numbers[k * each..][..each].iter();
            for i in 0..b {
                for (j, number) in (i + 1..b).zip(&mut numbers) {
                    (out[i * b + j], out[j * b + i]) = (*number, -number);
                }
            }
        }
        out.iter_mut().step_by(b + 1).for_each(|on_diagonal| *on_diagonal = diagonal);
    });
}

/// dq_ij += dQ_ij − dQ_ji of a sum of two, but for blocks that are dropped.
fn add_skew_gradient(dev: &Device, rotations: Rotations<'_>, terms: [View<'_>; 2], dq: ViewMut<'_>) {
    let b = rotations.size;
    if let Some(cuda) = dev.cuda() {
        return on_cuda::add_skew_gradient(cuda, rotations, terms, dq);
    }
    let terms = terms.map(View::as_slice::<f32>);
    dev.for_each_chunk(dq.as_mut_slice::<f32>(), skew_elements(b), |k, dq| {
        if rotations.dropped.is_some_and(|dropped| dropped.has(k)) {
            return;
        }
        let [sum, rest] = terms.map(|term| &term[k * b * b..][..b * b]);
        let of = |i: usize, j: usize| sum[i * b + j] + rest[i * b + j];
        for i in 0..b {
            for j in i + 1..b {
                dq[place(i, j, b)] += of(i, j) - of(j, i);
            }
        }
    });
}

mod on_cuda {
    //! The same on a GPU: `oft.cu`. A thread has one element of a result, and sums its terms in their order.

    use super::{Add, Factor, Matrices, Rotations, skew_elements};
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("oft", include_str!("oft.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct OftProduct {
        a: DevicePtr,
        m: DevicePtr,
        out: DevicePtr,
        /// Elements of the result, of a row of it, and of a block.
        elements: u64,
        columns: u64,
        size: u64,
        terms: u64,
        /// Steps of a: rows, terms, blocks.
        a_steps: [u64; 3],
        /// Steps of m: terms, columns, blocks.
        m_steps: [u64; 3],
        /// Steps of the result: rows, blocks.
        out_steps: [u64; 2],
        diagonal: f32,
        accumulate: u32,
    }
    // SAFETY: `OftProduct` of oft.cu; shapes were checked.
    unsafe impl Params for OftProduct {}

    fn launch(cuda: &Cuda, name: &'static str, types: &[DType], params: OftProduct) {
        let grid = Grid::new((params.elements as usize).div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, name, types, grid, params);
    }

    pub fn product(cuda: &Cuda, a: Factor<'_>, m: Matrices<'_>, (mut out, add): (ViewMut<'_>, Add)) {
        let b = a.size as u64;
        let params = OftProduct {
            a: a.values.device(),
            m: m.values.device(),
            out: out.device(),
            elements: out.elements() as u64,
            columns: (a.blocks * a.size) as u64,
            size: b,
            terms: b,
            a_steps: [a.row as u64, 1, a.block as u64],
            m_steps: if m.is_transposed { [1, b, b * b] } else { [b, 1, b * b] },
            out_steps: [a.row as u64, a.block as u64],
            diagonal: if let Add::Diagonal(diagonal) = add { diagonal } else { 0.0 },
            accumulate: (add == Add::Before).into(),
        };
        launch(cuda, "oft_product", &[a.values.dtype()], params);
    }

    pub fn inner(cuda: &Cuda, a: Factor<'_>, d: Factor<'_>, mut out: ViewMut<'_>) {
        let b = a.size as u64;
        let params = OftProduct {
            a: a.values.device(),
            m: d.values.device(),
            out: out.device(),
            elements: out.elements() as u64,
            columns: (a.blocks * a.size) as u64,
            size: b,
            terms: a.rows as u64,
            a_steps: [1, a.row as u64, a.block as u64],
            m_steps: [d.row as u64, 1, d.block as u64],
            out_steps: [b, b * b],
            diagonal: 0.0,
            accumulate: 0,
        };
        launch(cuda, "oft_inner", &[a.values.dtype()], params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct OftSkew {
        numbers: DevicePtr,
        /// Q, or the two terms of its gradient.
        matrices: [DevicePtr; 2],
        blocks: u64,
        size: u64,
        key: u64,
        most: u64,
        drops: u32,
        diagonal: f32,
    }
    // SAFETY: `OftSkew` of oft.cu; shapes were checked.
    unsafe impl Params for OftSkew {}

    fn params(rotations: Rotations<'_>, numbers: DevicePtr, matrices: [DevicePtr; 2]) -> OftSkew {
        let dropped = rotations.dropped;
        OftSkew {
            numbers,
            matrices,
            blocks: rotations.blocks() as u64,
            size: rotations.size as u64,
            key: dropped.map_or(0, |dropped| dropped.key),
            most: dropped.map_or(0, |dropped| dropped.most),
            drops: dropped.is_some().into(),
            diagonal: 0.0,
        }
    }

    pub fn skew(cuda: &Cuda, rotations: Rotations<'_>, diagonal: f32, mut out: ViewMut<'_>) {
        let params = params(rotations, rotations.skew.device(), [out.device(), DevicePtr::NULL]);
        let grid = Grid::new(out.elements().div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, "oft_skew", &[], grid, OftSkew { diagonal, ..params });
    }

    pub fn add_skew_gradient(
        cuda: &Cuda,
        rotations: Rotations<'_>,
        terms: [View<'_>; 2],
        mut dq: ViewMut<'_>,
    ) {
        let params = params(rotations, dq.device(), terms.map(|term| term.device()));
        let elements = rotations.blocks() * skew_elements(rotations.size);
        cuda.launch(&SOURCE, "oft_add_skew", &[], Grid::new(elements.div_ceil(THREADS), THREADS), params);
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
