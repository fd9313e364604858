//! Causal depthwise convolution over the rows of a micro-batch (stages 9 and 11 of the walk).
//!
//! Formula, for token t of a row and channel c, with taps w[c] of which the last is the token's own:
//!
//! > z[t,c] = b[c] + s·Σ_j w[c,j]·x[t − W + 1 + j, c], y = z, or y = silu(z)
//!
//! Tokens before the row's first are 0: nothing is seen of the row that lies before it. Derivative, with dz = dy, or
//! dz = dy·silu′(z):
//!
//! > dx[t,c] = s·Σ_j w[c,j]·dz[t + W − 1 − j, c], dw[c,j] = s·Σ_t dz[t,c]·x[t − W + 1 + j, c], db = Σ_t dz[t]
//!
//! Storage f32 or bf16 (one type for x, y and gradients, one for w and b), arithmetic f32, dw and db f32. Saved for
//! backward: x; z is computed again. dx is overwritten, dw and db are added to, dz takes the place of dy. Sums over
//! tokens are in order. Memory-bound: 2 tensors forward, 8 backward, 2·W·N·C and 6·W·N·C FLOP.

use std::ops::Range;

use crate::exp::exp;
use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, rows, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Taps, at most.
pub const MOST_TAPS: usize = 8;
/// Channels that go through the loops together.
const CHANNELS: usize = 128;
/// Tokens that one task handles.
const TOKENS: usize = 64;

/// Constants of a convolution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv1dParams {
    /// s.
    pub scale: f32,
    /// Whether y = silu(z).
    pub silu: bool,
}

/// The weights of C channels.
#[derive(Debug, Clone, Copy)]
pub struct Taps<'a> {
    /// [C, …, W].
    pub w: View<'a>,
    /// [C], of w's type.
    pub b: Option<View<'a>>,
}

/// y [N, C] from x [N, C] in rows that begin at `cu_seqlens`. `history` has the W − 1 tokens before the first row.
///
/// # Panics
/// If shapes or types do not fit, or there are more than [`MOST_TAPS`].
pub fn forward(
    dev: &Device,
    params: Conv1dParams,
    cu_seqlens: &[u32],
    (x, history): (View<'_>, Option<View<'_>>),
    taps: Taps<'_>,
    y: ViewMut<'_>,
) {
    let _timed = dev.pass("conv1d", 2 * x.byte_len());
    let sizes = Sizes::of(x, taps, cu_seqlens);
    assert_eq!((x.shape(), x.dtype()), (y.shape(), y.dtype()), "conv1d: x and y");
    let before = [sizes.taps - 1, sizes.channels];
    assert!(
        history.is_none_or(|h| h.elements() == before[0] * before[1] && h.dtype() == x.dtype()),
        "conv1d: {history:?} and not {before:?} before the first row"
    );
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params, cu_seqlens, (x, history), (taps, sizes), y);
    }
    with_dtype!(x.dtype(), E => {
        let seen = Seen { x: x.as_slice::<E>(), history: history.map(View::as_slice::<E>), starts: cu_seqlens, sizes };
        dev.for_each_chunk(y.as_mut_slice::<E>(), sizes.channels * TOKENS, |task, y| {
            for channels in sizes.blocks() {
                let block = Block::read(taps, sizes, channels);
                outputs(dev.isa(), params, seen, &block, task * TOKENS, y);
            }
        });
    });
}

/// What [`backward`] reads and writes beside the weights.
pub struct Backward<'a> {
    /// The input of forward, [N, C].
    pub x: View<'a>,
    /// The gradient of y, [N, C]; dz afterwards.
    pub dy: ViewMut<'a>,
    /// [N, C].
    pub dx: ViewMut<'a>,
    /// f32 [C, …, W].
    pub dw: Option<ViewMut<'a>>,
    /// f32 [C].
    pub db: Option<ViewMut<'a>>,
}

/// The gradients of a forward without history.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, params: Conv1dParams, cu_seqlens: &[u32], taps: Taps<'_>, io: Backward<'_>) {
    let _timed = dev.pass("conv1d backward", 8 * io.x.byte_len());
    let (x, sizes) = (io.x, Sizes::of(io.x, taps, cu_seqlens));
    assert_eq!((io.dy.shape(), io.dx.shape()), (x.shape(), x.shape()), "conv1d: dy and dx");
    assert_eq!((io.dy.dtype(), io.dx.dtype()), (x.dtype(), x.dtype()), "conv1d: one type");
    let is_f32 = |d: &Option<ViewMut<'_>>, len| {
        d.as_ref().is_none_or(|d| d.dtype() == DType::F32 && d.elements() == len)
    };
    assert!(
        is_f32(&io.dw, sizes.channels * sizes.taps) && is_f32(&io.db, sizes.channels),
        "conv1d: dw and db"
    );
    let Backward { mut dy, dx, dw, db, .. } = io;
    if let Some(cuda) = dev.cuda() {
        on_cuda::backward(cuda, params, cu_seqlens, (taps, sizes), (x, dy.reborrow()), (dx, dw));
    } else {
        on_cpu_backward(dev, params, cu_seqlens, (taps, sizes), (x, dy.reborrow()), (dx, dw));
    }
    if let Some(db) = db {
        rows::sum_rows(dev, dy.as_view(), db);
    }
}

fn on_cpu_backward(
    dev: &Device,
    params: Conv1dParams,
    cu_seqlens: &[u32],
    (taps, sizes): (Taps<'_>, Sizes),
    (x, mut dy): (View<'_>, ViewMut<'_>),
    (dx, dw): (ViewMut<'_>, Option<ViewMut<'_>>),
) {
    with_dtype!(x.dtype(), E => {
        let seen = Seen { x: x.as_slice::<E>(), history: None, starts: cu_seqlens, sizes };
        if params.silu {
            dev.for_each_chunk(dy.reborrow().as_mut_slice::<E>(), sizes.channels * TOKENS, |task, dy| {
                for channels in sizes.blocks() {
                    let block = Block::read(taps, sizes, channels);
                    through_silu(dev.isa(), params, seen, &block, task * TOKENS, dy);
                }
            });
        }
        let dz = Seen { x: dy.as_view().as_slice::<E>(), ..seen };
        dev.for_each_chunk(dx.as_mut_slice::<E>(), sizes.channels * TOKENS, |task, dx| {
            for channels in sizes.blocks() {
                let block = Block::read(taps, sizes, channels);
                inputs(dev.isa(), params, dz, &block, task * TOKENS, dx);
            }
        });
        if let Some(dw) = dw {
            dev.for_each_chunk(dw.as_mut_slice::<f32>(), CHANNELS * sizes.taps, |task, dw| {
                let first = task * CHANNELS;
                weights(dev.isa(), params, seen, dz.x, first..first + dw.len() / sizes.taps, dw);
            });
        }
    });
}

/// N, C and W.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    channels: usize,
    taps: usize,
}

impl Sizes {
    fn of(x: View<'_>, taps: Taps<'_>, cu_seqlens: &[u32]) -> Self {
        let (tokens, channels) = (x.dim(0), x.dim(1));
        let sizes = Self { tokens, channels, taps: taps.w.elements() / channels.max(1) };
        assert_eq!(taps.w.elements(), channels * sizes.taps, "conv1d: {channels} channels and w");
        assert!((1..=MOST_TAPS).contains(&sizes.taps), "conv1d: {} taps", sizes.taps);
        let fits = |b: View<'_>| b.elements() == channels && b.dtype() == taps.w.dtype();
        assert!(taps.b.is_none_or(fits), "conv1d: the bias");
        assert_eq!(cu_seqlens.last().copied().unwrap_or(0) as usize, tokens, "conv1d: rows of x");
        sizes
    }

    /// Channels in blocks.
    fn blocks(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.channels).step_by(CHANNELS).map(move |first| first..(first + CHANNELS).min(self.channels))
    }
}

/// The weights of a block of channels, tap by tap.
struct Block {
    channels: Range<usize>,
    w: [[f32; CHANNELS]; MOST_TAPS],
    b: [f32; CHANNELS],
}

impl Block {
    fn read(taps: Taps<'_>, sizes: Sizes, channels: Range<usize>) -> Self {
        let mut block = Self { channels, w: [[0.0; CHANNELS]; MOST_TAPS], b: [0.0; CHANNELS] };
        with_dtype!(taps.w.dtype(), W => {
            let (w, b) = (taps.w.as_slice::<W>(), taps.b.map(View::as_slice::<W>));
            for (i, c) in block.channels.clone().enumerate() {
                for j in 0..sizes.taps {
                    block.w[j][i] = w[c * sizes.taps + j].to_f32();
                }
                block.b[i] = b.map_or(0.0, |b| b[c].to_f32());
            }
        });
        block
    }
}

/// What lies around a token.
#[derive(Clone, Copy)]
struct Seen<'a, E> {
    x: &'a [E],
    history: Option<&'a [E]>,
    starts: &'a [u32],
    sizes: Sizes,
}

impl<'a, E: Element> Seen<'a, E> {
    /// The row that token t is in, and where it begins and ends.
    #[inline(always)]
    fn row_of(&self, t: usize) -> (usize, Range<usize>) {
        let row = self.starts.partition_point(|start| *start as usize <= t) - 1;
        (row, self.starts[row] as usize..self.starts[row + 1] as usize)
    }

    /// The channels of the token `back` before t, if the row has it, or the history before the first row.
    #[inline(always)]
    fn before(&self, t: usize, back: usize, row: &Range<usize>, channels: &Range<usize>) -> Option<&'a [E]> {
        let c = self.sizes.channels;
        if t >= row.start + back {
            return Some(&self.x[(t - back) * c..][channels.clone()]);
        }
        let history = self.history.filter(|_| row.start == 0)?;
        let i = self.sizes.taps - 1 + t - back;
        Some(&history[i * c..][channels.clone()])
    }

    /// z of a token in a block of channels.
    #[inline(always)]
    fn sum(&self, t: usize, row: &Range<usize>, block: &Block, scale: f32, z: &mut [f32; CHANNELS]) {
        let taps = self.sizes.taps;
        *z = sum_products(taps, |j| self.before(t, taps - 1 - j, row, &block.channels), &block.w);
        for (z, b) in z.iter_mut().zip(&block.b) {
            *z = scale * *z + b;
        }
    }
}

/// Adds w·x, channel by channel. A whole block has a constant length, and its loop no counting.
#[inline(always)]
fn add_products<E: Element>(sum: &mut [f32; CHANNELS], x: &[E], w: &[f32; CHANNELS]) {
    if let Ok(x) = <&[E; CHANNELS]>::try_from(x) {
        for i in 0..CHANNELS {
            sum[i] += w[i] * x[i].to_f32();
        }
    } else {
        for ((sum, x), w) in sum.iter_mut().zip(x).zip(w) {
            *sum += w * x.to_f32();
        }
    }
}

/// Σ w·x over the taps that have an x, in their order, channel by channel.
#[inline(always)]
fn sum_products<'a, E: Element>(
    taps: usize,
    x: impl Fn(usize) -> Option<&'a [E]>,
    w: &[[f32; CHANNELS]; MOST_TAPS],
) -> [f32; CHANNELS] {
    let mut sum = [0.0; CHANNELS];
    let whole = |j: usize| x(j).and_then(|x| <&[E; CHANNELS]>::try_from(x).ok());
    // The four taps that most models have at once: sums stay in registers.
    if taps == 4
        && let (Some(a), Some(b), Some(c), Some(d)) = (whole(0), whole(1), whole(2), whole(3))
    {
        for i in 0..CHANNELS {
            let x = [a[i], b[i], c[i], d[i]].map(E::to_f32);
            sum[i] = w[0][i] * x[0] + w[1][i] * x[1] + w[2][i] * x[2] + w[3][i] * x[3];
        }
    } else {
        (0..taps).for_each(|j| x(j).into_iter().for_each(|x| add_products(&mut sum, x, &w[j])));
    }
    sum
}

/// Writes scale·x, rounded; as [`add_products`].
#[inline(always)]
fn store<E: Element>(to: &mut [E], x: &[f32; CHANNELS], scale: f32) {
    if let Ok(to) = <&mut [E; CHANNELS]>::try_from(&mut *to) {
        for i in 0..CHANNELS {
            to[i] = E::from_f32(scale * x[i]);
        }
    } else {
        for (to, x) in to.iter_mut().zip(x) {
            *to = E::from_f32(scale * x);
        }
    }
}

/// The values of a block as f32; zeros beyond its channels.
#[inline(always)]
fn widened<E: Element>(x: &[E]) -> [f32; CHANNELS] {
    let mut values = [0.0; CHANNELS];
    add_products(&mut values, x, &[1.0; CHANNELS]);
    values
}

/// Calls `f(i, t, row)` for each of `count` tokens from `first` on.
#[inline(always)]
fn for_tokens<E: Element>(
    seen: Seen<'_, E>,
    first: usize,
    count: usize,
    mut f: impl FnMut(usize, usize, &Range<usize>),
) {
    let mut row = 0..0;
    for i in 0..count {
        let t = first + i;
        if !row.contains(&t) {
            (_, row) = seen.row_of(t);
        }
        f(i, t, &row);
    }
}

per_isa! {
    /// y of the tokens from `first` on, in the block's channels.
    fn outputs<E: Element>(params: Conv1dParams, seen: Seen<'_, E>, block: &Block, first: usize, y: &mut [E]) {
        let c = seen.sizes.channels;
        let mut z = [0.0; CHANNELS];
        for_tokens(seen, first, y.len() / c, |i, t, row| {
            seen.sum(t, row, block, params.scale, &mut z);
            if params.silu {
                for z in &mut z {
                    *z /= 1.0 + exp(-*z);
                }
            }
            store(&mut y[i * c..][block.channels.clone()], &z, 1.0);
        });
    }

    /// Replaces dy of the tokens from `first` on by dz.
    fn through_silu<E: Element>(params: Conv1dParams, seen: Seen<'_, E>, block: &Block, first: usize, dy: &mut [E]) {
        let c = seen.sizes.channels;
        let mut z = [0.0; CHANNELS];
        for_tokens(seen, first, dy.len() / c, |i, t, row| {
            seen.sum(t, row, block, params.scale, &mut z);
            let dy = &mut dy[i * c..][block.channels.clone()];
            let gradient = widened(dy);
            for (z, gradient) in z.iter_mut().zip(&gradient) {
                let s = 1.0 / (1.0 + exp(-*z));
                *z = gradient * (s * (1.0 + *z * (1.0 - s)));
            }
            store(dy, &z, 1.0);
        });
    }

    /// dx of the tokens from `first` on.
    fn inputs<E: Element>(params: Conv1dParams, dz: Seen<'_, E>, block: &Block, first: usize, dx: &mut [E]) {
        let (c, taps) = (dz.sizes.channels, dz.sizes.taps);
        for_tokens(dz, first, dx.len() / c, |i, t, row| {
            let at = |j: usize| {
                let later = t + taps - 1 - j;
                (later < row.end).then(|| &dz.x[later * c..][block.channels.clone()])
            };
            let sum = sum_products(taps, at, &block.w);
            store(&mut dx[i * c..][block.channels.clone()], &sum, params.scale);
        });
    }

    /// Adds dw of a block of channels.
    fn weights<E: Element>(params: Conv1dParams, seen: Seen<'_, E>, dz: &[E], channels: Range<usize>, dw: &mut [f32]) {
        let (c, taps) = (seen.sizes.channels, seen.sizes.taps);
        let mut sums = [[0.0; CHANNELS]; MOST_TAPS];
        for_tokens(seen, 0, seen.sizes.tokens, |_, t, row| {
            let dz = widened(&dz[t * c..][channels.clone()]);
            for (j, sums) in sums[..taps].iter_mut().enumerate() {
                if let Some(x) = seen.before(t, taps - 1 - j, row, &channels) {
                    add_products(sums, x, &dz);
                }
            }
        });
        for (i, dw) in dw.chunks_exact_mut(taps).enumerate() {
            dw.iter_mut().zip(&sums).for_each(|(dw, sums)| *dw += params.scale * sums[i]);
        }
    }
}

mod on_cuda {
    //! The same on a GPU: `conv1d.cu`.

    use super::{Conv1dParams, Sizes, Taps};
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut, rows};

    pub(crate) static SOURCE: Source = Source::new("conv1d", include_str!("conv1d.cu"));

    /// Threads of a block, one a channel.
    const THREADS: usize = 128;
    /// Tokens of a block.
    const TOKENS: usize = 32;
    /// Tokens of a part of the sums of dw, and such parts at most.
    const TOKENS_OF_PART: usize = 256;
    const MOST_PARTS: usize = 64;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Conv1d {
        x: DevicePtr,
        history: DevicePtr,
        w: DevicePtr,
        b: DevicePtr,
        /// y, or dy and dz, or dx.
        y: DevicePtr,
        starts: DevicePtr,
        rows: u32,
        tokens: u32,
        channels: u32,
        taps: u32,
        tokens_of_block: u32,
        silu: u32,
        scale: f32,
    }
    // SAFETY: `Conv1d` of conv1d.cu.
    unsafe impl Params for Conv1d {}

    fn params(cuda: &Cuda, p: Conv1dParams, cu_seqlens: &[u32], (taps, sizes): (Taps<'_>, Sizes)) -> Conv1d {
        Conv1d {
            x: DevicePtr::NULL,
            history: DevicePtr::NULL,
            w: taps.w.device(),
            b: taps.b.map_or(DevicePtr::NULL, |b| b.device()),
            y: DevicePtr::NULL,
            starts: cuda.indices(cu_seqlens),
            rows: cu_seqlens.len().saturating_sub(1) as u32,
            tokens: sizes.tokens as u32,
            channels: sizes.channels as u32,
            taps: sizes.taps as u32,
            tokens_of_block: TOKENS as u32,
            silu: p.silu.into(),
            scale: p.scale,
        }
    }

    fn grid(sizes: Sizes, tokens: usize) -> Grid {
        let mut grid = Grid::new(sizes.tokens.div_ceil(tokens), THREADS);
        grid.blocks[1] = sizes.channels.div_ceil(THREADS) as u32;
        grid
    }

    pub fn forward(
        cuda: &Cuda,
        p: Conv1dParams,
        cu_seqlens: &[u32],
        (x, history): (View<'_>, Option<View<'_>>),
        weights: (Taps<'_>, Sizes),
        mut y: ViewMut<'_>,
    ) {
        let history = history.map_or(DevicePtr::NULL, |history| history.device());
        let params = Conv1d { x: x.device(), history, y: y.device(), ..params(cuda, p, cu_seqlens, weights) };
        let types = [x.dtype(), weights.0.w.dtype()];
        cuda.launch(&SOURCE, "conv1d_forward", &types, grid(weights.1, TOKENS), params);
    }

    pub fn backward(
        cuda: &Cuda,
        p: Conv1dParams,
        cu_seqlens: &[u32],
        weights: (Taps<'_>, Sizes),
        (x, mut dy): (View<'_>, ViewMut<'_>),
        (mut dx, dw): (ViewMut<'_>, Option<ViewMut<'_>>),
    ) {
        let (sizes, types) = (weights.1, [x.dtype(), weights.0.w.dtype()]);
        let params = params(cuda, p, cu_seqlens, weights);
        let (x, dz) = (x.device(), dy.device());
        if p.silu {
            let through = Conv1d { x, y: dz, ..params };
            cuda.launch(&SOURCE, "conv1d_through_silu", &types, grid(sizes, TOKENS), through);
        }
        let inputs = Conv1d { x: dz, y: dx.device(), ..params };
        cuda.launch(&SOURCE, "conv1d_inputs", &types, grid(sizes, TOKENS), inputs);
        if let Some(dw) = dw {
            let tokens = TOKENS_OF_PART.max(sizes.tokens.div_ceil(MOST_PARTS));
            let (count, elements) = (sizes.tokens.div_ceil(tokens), dw.elements());
            let parts = cuda.scratch(count * elements * size_of::<f32>());
            // In the place of the weights are the sums.
            let sums = Conv1d { x, y: dz, w: parts.start(), tokens_of_block: tokens as u32, ..params };
            cuda.launch(&SOURCE, "conv1d_weight_parts", &types[..1], grid(sizes, tokens), sums);
            rows::add_parts(cuda, parts.start(), count, dw);
        }
    }
}

#[cfg(test)]
mod reference {
    use super::Conv1dParams;

    /// A convolution in f64; rows begin at `starts`, tokens before the first are in `history`.
    pub struct Conv<'a> {
        pub params: Conv1dParams,
        pub channels: usize,
        pub w: &'a [f64],
        pub b: &'a [f64],
        pub starts: &'a [u32],
        pub history: &'a [f64],
    }

    impl Conv<'_> {
        fn taps(&self) -> usize {
            self.w.len() / self.channels
        }

        /// Calls f(token, channel, tap, index of x, or of the history as a negative number from its end).
        fn for_terms(&self, mut f: impl FnMut(usize, usize, usize, isize)) {
            let (c, taps) = (self.channels, self.taps());
            for row in self.starts.windows(2) {
                for t in row[0] as usize..row[1] as usize {
                    for j in 0..taps {
                        let at = (t + 1 + j) as isize - taps as isize;
                        let is_history = row[0] == 0 && at < 0 && !self.history.is_empty();
                        if at >= row[0] as isize || is_history {
                            (0..c).for_each(|channel| f(t, channel, j, at * c as isize + channel as isize));
                        }
                    }
                }
            }
        }

        fn z(&self, x: &[f64]) -> Vec<f64> {
            let c = self.channels;
            let mut z: Vec<f64> = (0..x.len()).map(|i| self.b.get(i % c).copied().unwrap_or(0.0)).collect();
            self.for_terms(|t, channel, j, at| {
                let from = if at < 0 {
                    self.history[(self.history.len() as isize + at) as usize]
                } else {
                    x[at as usize]
                };
                z[t * c + channel] += f64::from(self.params.scale) * self.w[channel * self.taps() + j] * from;
            });
            z
        }

        pub fn forward(&self, x: &[f64]) -> Vec<f64> {
            let act = |z: f64| if self.params.silu { z / (1.0 + (-z).exp()) } else { z };
            self.z(x).into_iter().map(act).collect()
        }

        /// (dx, dw, db), without history.
        pub fn backward(&self, x: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
            let (c, scale) = (self.channels, f64::from(self.params.scale));
            let slope = |z: f64| {
                let s = 1.0 / (1.0 + (-z).exp());
                if self.params.silu { s * (1.0 + z * (1.0 - s)) } else { 1.0 }
            };
            let dz: Vec<f64> = self.z(x).into_iter().zip(dy).map(|(z, dy)| dy * slope(z)).collect();
            let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; self.w.len()], vec![0.0; c]);
            self.for_terms(|t, channel, j, at| {
                let (w, dz) = (channel * self.taps() + j, dz[t * c + channel]);
                dx[at as usize] += scale * self.w[w] * dz;
                dw[w] += scale * dz * x[at as usize];
            });
            dz.iter().enumerate().for_each(|(i, dz)| db[i % c] += dz);
            [dx, dw, db]
        }
    }
}

#[cfg(test)]
mod tests;
