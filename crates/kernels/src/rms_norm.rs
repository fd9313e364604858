//! Root-mean-square normalisation of rows (stages 9 and 11 of the walk).
//!
//! Formula (Zhang & Sennrich, 2019), per row of width C:
//!
//! > rstd = 1 / √(mean(x²) + eps), y = x · rstd · (offset + w)
//!
//! `offset` is 0 in most families and 1 in Gemma's; without a weight the factor is 1. Derivative, with g = dy · (offset + w):
//!
//! > dx = rstd · (g − x · rstd² · mean(g · x)), dw = Σ_rows dy · x · rstd
//!
//! Storage f32 or bf16 for x, y, dy, dx (one type for all), w and dw f32 or bf16 (dw always f32); sums in f32, in
//! a fixed order. Saved for backward: x and `rstd`. Two passes over a row that stays in L1, or in a GPU's registers:
//! about 4·N·C FLOP forward, 8·N·C backward.

use std::ops::Range;

use crate::dtype::round;
use crate::isa::per_isa;
use crate::lanes::{dot, sum_of_products};
use crate::{DType, Device, Element, Isa, View, ViewMut, rows, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Columns that one task of the weight gradient sums.
const COLUMNS_PER_TASK: usize = 128;
/// Values of a row that go through the loops together.
const BLOCK: usize = 1024;
/// Rows that one task normalises.
const ROWS_PER_TASK: usize = 16;

/// Constants of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNormParams {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 0, or 1 where weights are stored as distance from 1.
    pub offset: f32,
}

/// y = norm(x)·(offset + w), and `rstd` for backward. x and y are [rows, C], w is [C] or missing, rstd is f32 [rows].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    params: RmsNormParams,
    x: View<'_>,
    w: Option<View<'_>>,
    y: ViewMut<'_>,
    rstd: ViewMut<'_>,
) {
    let _timed = dev.pass("rms_norm", 2 * x.byte_len());
    assert_eq!(x.shape(), y.shape(), "rms_norm: x and y");
    let c = columns(x, w);
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params, (x, None), w, (None, y), rstd);
    }
    with_dtype!(x.dtype(), X => with_dtype!(w.map_or(x.dtype(), |w| w.dtype()), W => {
        let (x, w) = (x.as_slice::<X>(), w.map(|w| w.as_slice::<W>()));
        let outputs = ((y.as_mut_slice::<X>(), c * ROWS_PER_TASK), (rstd.as_mut_slice::<f32>(), ROWS_PER_TASK));
        dev.for_each_chunk_pair(outputs.0, outputs.1, |task, y, rstd| {
            norm_rows(dev.isa(), params, (c, w), &x[task * ROWS_PER_TASK * c..], y, rstd);
        });
    }));
}

/// m = x + r·t as [`crate::rows::sum`] has it, and [`forward`] of m: a residual branch, and the norm that follows.
///
/// # Panics
/// If shapes or types do not fit.
pub fn add_forward(
    dev: &Device,
    params: RmsNormParams,
    x: View<'_>,
    (r, t): (f32, View<'_>),
    w: Option<View<'_>>,
    (mut m, y, rstd): (ViewMut<'_>, ViewMut<'_>, ViewMut<'_>),
) {
    let Some(cuda) = dev.cuda() else {
        rows::sum(dev, x, (r, t), m.reborrow());
        return forward(dev, params, m.as_view(), w, y, rstd);
    };
    let _timed = dev.pass("sum, rms_norm", 4 * x.byte_len());
    assert_eq!((x.shape(), m.shape()), (y.shape(), y.shape()), "rms_norm: x, m and y");
    assert_eq!(t.elements(), x.elements(), "rms_norm: x and t");
    columns(x, w);
    on_cuda::forward(cuda, params, (x, Some((r, t))), w, (Some(m), y), rstd);
}

/// C, which the weight has too.
fn columns(x: View<'_>, w: Option<View<'_>>) -> usize {
    let c = x.shape().last().copied().unwrap_or(1);
    assert!(w.is_none_or(|w| w.elements() == c), "rms_norm: x and w");
    c
}

/// What [`backward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// The input of forward, [rows, C].
    pub x: View<'a>,
    /// f32 [rows], from forward.
    pub rstd: View<'a>,
}

/// Where [`backward`] leaves gradients.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// That of the input [rows, C]; added to what is there with `true`, as a residual branch wants it.
    pub dx: Option<(ViewMut<'a>, bool)>,
    /// That of the weight, f32 [C]; added to what is there.
    pub dw: Option<ViewMut<'a>>,
}

/// The gradients of the input and of the weight, w being the weight [C].
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    params: RmsNormParams,
    w: Option<View<'_>>,
    dy: View<'_>,
    saved: Saved<'_>,
    Gradients { dx, dw }: Gradients<'_>,
) {
    let of_dx = dx.as_ref().map_or(0, |(_, accumulate)| 1 + usize::from(*accumulate));
    let _timed = dev.pass("rms_norm backward", (2 + of_dx) * dy.byte_len());
    assert!(dx.as_ref().is_none_or(|(dx, _)| dx.shape() == dy.shape()), "rms_norm: dy and dx");
    assert_eq!(dy.elements(), saved.x.elements(), "rms_norm: dy and x");
    let c = columns(saved.x, w);
    assert!(
        dw.as_ref().is_none_or(|dw| dw.dtype() == DType::F32 && dw.elements() == c),
        "rms_norm: the weight's gradient is float32 and as wide as rows"
    );
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, params, w, dy, saved, Gradients { dx, dw });
    }
    with_dtype!(dy.dtype(), X => with_dtype!(w.map_or(dy.dtype(), |w| w.dtype()), W => {
        let (x, w) = (saved.x.as_slice::<X>(), w.map(|w| w.as_slice::<W>()));
        let (dy, rstd) = (dy.as_slice::<X>(), saved.rstd.as_slice::<f32>());
        if let Some((dx, accumulate)) = dx {
            dev.for_each_chunk(dx.as_mut_slice::<X>(), c * ROWS_PER_TASK, |task, dx| {
                let first = task * ROWS_PER_TASK;
                let (x, dy, rstd) = (&x[first * c..], &dy[first * c..], &rstd[first..]);
                norm_rows_backward(dev.isa(), params, (c, w), x, rstd, dy, dx, accumulate);
            });
        }
        if let Some(dw) = dw {
            dev.for_each_chunk(dw.as_mut_slice::<f32>(), COLUMNS_PER_TASK, |task, dw| {
                let columns = task * COLUMNS_PER_TASK..task * COLUMNS_PER_TASK + dw.len();
                weight_columns(dev.isa(), (c, columns), x, rstd, dy, dw);
            });
        }
    }));
}

fn norm_rows<X: Element, W: Element>(
    isa: Isa,
    params: RmsNormParams,
    (c, w): (usize, Option<&[W]>),
    x: &[X],
    y: &mut [X],
    rstd: &mut [f32],
) {
    let mut block = [0.0; BLOCK];
    for ((x, y), rstd) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
        *rstd = 1.0 / (sum_of_squares(isa, x) / c as f32 + params.eps).sqrt();
        for (i, (x, y)) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)).enumerate() {
            let block = &mut block[..y.len()];
            let w = w.map(|w| &w[i * BLOCK..][..x.len()]);
            normed(isa, params.offset, w, x, *rstd, block);
            round(isa, block, y);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the formula's own")]
fn norm_rows_backward<X: Element, W: Element>(
    isa: Isa,
    params: RmsNormParams,
    (c, w): (usize, Option<&[W]>),
    x: &[X],
    rstd: &[f32],
    dy: &[X],
    dx: &mut [X],
    accumulate: bool,
) {
    let mut block = [0.0; BLOCK];
    let rows = x.chunks_exact(c).zip(dy.chunks_exact(c));
    for ((dx, (x, dy)), rstd) in dx.chunks_exact_mut(c).zip(rows).zip(rstd) {
        let gx = sum_of_gx(isa, dy, x, w, params.offset);
        let scale = gx * rstd * rstd / c as f32;
        let blocks = x.chunks(BLOCK).zip(dy.chunks(BLOCK));
        for (i, (dx, (x, dy))) in dx.chunks_mut(BLOCK).zip(blocks).enumerate() {
            let block = &mut block[..dx.len()];
            if accumulate {
                widened(isa, dx, block);
            } else {
                block.fill(0.0);
            }
            let w = w.map(|w| &w[i * BLOCK..][..x.len()]);
            gradients(isa, (params.offset, *rstd, scale), w, x, dy, block);
            round(isa, block, dx);
        }
    }
}

per_isa! {
    fn sum_of_squares<X: Element>(x: &[X]) -> f32 {
        dot(x, x)
    }

    fn normed<X: Element, W: Element>(offset: f32, w: Option<&[W]>, x: &[X], rstd: f32, y: &mut [f32]) {
        match w {
            Some(w) => {
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x.to_f32() * rstd * (offset + w.to_f32());
                }
            }
            None => {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x.to_f32() * rstd;
                }
            }
        }
    }

    fn sum_of_gx<X: Element, W: Element>(dy: &[X], x: &[X], w: Option<&[W]>, offset: f32) -> f32 {
        match w {
            Some(w) => sum_of_products(dy, x, w, offset),
            None => dot(dy, x),
        }
    }

    fn widened<X: Element>(x: &[X], wide: &mut [f32]) {
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.to_f32();
        }
    }

    /// Adds dx of a row or a part of it.
    fn gradients<X: Element, W: Element>(
        constants: (f32, f32, f32),
        w: Option<&[W]>,
        x: &[X],
        dy: &[X],
        dx: &mut [f32],
    ) {
        let (offset, rstd, scale) = constants;
        match w {
            Some(w) => {
                for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
                    let g = dy.to_f32() * (offset + w.to_f32());
                    *dx += rstd * (g - x.to_f32() * scale);
                }
            }
            None => {
                for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx += rstd * (dy.to_f32() - x.to_f32() * scale);
                }
            }
        }
    }

    fn weight_columns<X: Element>(
        part: (usize, Range<usize>),
        x: &[X],
        rstd: &[f32],
        dy: &[X],
        dw: &mut [f32],
    ) {
        let (c, columns) = part;
        for ((dy, x), rstd) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(rstd) {
            let pairs = dy[columns.clone()].iter().zip(&x[columns.clone()]);
            for (dw, (dy, x)) in dw.iter_mut().zip(pairs) {
                *dw += dy.to_f32() * x.to_f32() * rstd;
            }
        }
    }
}

mod on_cuda {
    use super::{Gradients, RmsNormParams, Saved};
    use crate::cuda::{Cuda, DevicePtr, Params, Source};
    use crate::norm_rows::{self, keeps, teams};
    use crate::{View, ViewMut, rows};

    pub(crate) static SOURCE: Source = Source::new(
        "rms_norm",
        concat!(include_str!("norm_rows.cuh"), "\n#line 1 \"rms_norm.cu\"\n", include_str!("rms_norm.cu")),
    );

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RmsNormForward {
        x: DevicePtr,
        t: DevicePtr,
        w: DevicePtr,
        m: DevicePtr,
        y: DevicePtr,
        rstd: DevicePtr,
        rows: u64,
        columns: u32,
        lanes: u32,
        eps: f32,
        offset: f32,
        r: f32,
    }
    // SAFETY: `RmsNormForward` of rms_norm.cu.
    unsafe impl Params for RmsNormForward {}

    /// The norm of x, or of m = x + r·t.
    pub fn forward(
        cuda: &Cuda,
        params: RmsNormParams,
        (x, added): (View<'_>, Option<(f32, View<'_>)>),
        w: Option<View<'_>>,
        (m, mut y): (Option<ViewMut<'_>>, ViewMut<'_>),
        mut rstd: ViewMut<'_>,
    ) {
        let (dtype, columns) = (x.dtype(), x.shape().last().copied().unwrap_or(1));
        let rows = x.elements() / columns.max(1);
        assert!(y.dtype() == dtype && m.as_ref().is_none_or(|m| m.dtype() == dtype), "rms_norm: one type");
        assert!(added.is_none_or(|(_, t)| t.dtype() == dtype), "rms_norm: one type");
        assert!(rstd.dtype() == crate::DType::F32 && rstd.elements() >= rows, "rms_norm: rstd");
        let (lanes, grid) = teams(rows, columns, dtype);
        let params = RmsNormForward {
            x: x.device(),
            t: added.map_or(DevicePtr::NULL, |(_, t)| t.device()),
            w: w.map_or(DevicePtr::NULL, |w| w.device()),
            m: m.map_or(DevicePtr::NULL, |mut m| m.device()),
            y: y.device(),
            rstd: rstd.device(),
            rows: rows as u64,
            columns: columns as u32,
            lanes,
            eps: params.eps,
            offset: params.offset,
            r: added.map_or(0.0, |(r, _)| r),
        };
        let name = if added.is_some() { "rms_norm_add_forward" } else { "rms_norm_forward" };
        cuda.launch(&SOURCE, name, &[dtype, w.map_or(dtype, |w| w.dtype())], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RmsNormBackward {
        dy: DevicePtr,
        x: DevicePtr,
        w: DevicePtr,
        rstd: DevicePtr,
        dx: DevicePtr,
        parts: DevicePtr,
        rows: u64,
        columns: u32,
        lanes: u32,
        offset: f32,
        accumulate: u32,
    }
    // SAFETY: `RmsNormBackward` of rms_norm.cu.
    unsafe impl Params for RmsNormBackward {}

    /// Threads of a block of `rms_norm_backward_both`, at most.
    const BOTH_THREADS: usize = 512;
    /// Threads of all its blocks, about: as many as the largest card runs at once with 64 registers each, whatever the
    /// card, so that sums have one order.
    const ALL_BOTH_THREADS: usize = 112 << 10;

    pub fn backward(
        cuda: &Cuda,
        params: RmsNormParams,
        w: Option<View<'_>>,
        dy: View<'_>,
        saved: Saved<'_>,
        Gradients { dx, dw }: Gradients<'_>,
    ) {
        let dtype = dy.dtype();
        assert_eq!(saved.x.dtype(), dtype, "rms_norm: one type");
        let columns = saved.x.shape().last().copied().unwrap_or(1);
        let rows = dy.elements() / columns.max(1);
        assert!(saved.rstd.elements() >= rows, "rms_norm: rstd");
        let weight = |dw| {
            let kernel = (&SOURCE, "rms_norm_weight_parts");
            norm_rows::backward_weight(cuda, kernel, dy, (saved.x, saved.rstd), (dw, 1));
        };
        let Some((mut dx, accumulate)) = dx else {
            return dw.into_iter().for_each(weight);
        };
        assert_eq!(dx.dtype(), dtype, "rms_norm: one type");
        let (lanes, mut grid) = teams(rows, columns, dtype);
        let types = [dtype, w.map_or(dtype, |w| w.dtype())];
        let params = RmsNormBackward {
            dy: dy.device(),
            x: saved.x.device(),
            w: w.map_or(DevicePtr::NULL, |w| w.device()),
            rstd: saved.rstd.device(),
            dx: dx.device(),
            parts: DevicePtr::NULL,
            rows: rows as u64,
            columns: columns as u32,
            lanes,
            offset: params.offset,
            accumulate: accumulate.into(),
        };
        let addresses = [params.dy, params.x, params.w, params.dx];
        let fits = keeps(columns, lanes, dtype, &addresses) && grid.threads as usize <= BOTH_THREADS;
        let (both, alone) = if fits && rows > 0 { (dw, None) } else { (None, dw) };
        let Some(dw) = both else {
            cuda.launch(&SOURCE, "rms_norm_backward", &types, grid, params);
            return alone.into_iter().for_each(weight);
        };
        let blocks = (ALL_BOTH_THREADS / grid.threads as usize).clamp(1, grid.blocks[0] as usize);
        grid.blocks[0] = blocks as u32;
        let parts = cuda.scratch(blocks * columns * size_of::<f32>());
        let params = RmsNormBackward { parts: parts.start(), ..params };
        cuda.launch(&SOURCE, "rms_norm_backward_both", &types, grid, params);
        rows::add_parts(cuda, parts.start(), blocks, dw);
    }
}

#[cfg(test)]
mod reference {
    /// y by the formula, in f64.
    pub fn forward(x: &[f64], w: &[f64], eps: f64, offset: f64) -> Vec<f64> {
        let c = w.len();
        let norm = |row: &[f64]| 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / c as f64 + eps).sqrt();
        x.chunks(c)
            .flat_map(|row| {
                let rstd = norm(row);
                row.iter().zip(w).map(move |(x, w)| x * rstd * (offset + w)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// (dx, dw) by the formula, in f64.
    pub fn backward(x: &[f64], w: &[f64], dy: &[f64], eps: f64, offset: f64) -> (Vec<f64>, Vec<f64>) {
        let c = w.len();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; c]);
        for r in 0..x.len() / c {
            let row = r * c..(r + 1) * c;
            let (x, dy) = (&x[row.clone()], &dy[row.clone()]);
            let rstd = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / c as f64 + eps).sqrt();
            let g: Vec<f64> = dy.iter().zip(w).map(|(dy, w)| dy * (offset + w)).collect();
            let mean = g.iter().zip(x).map(|(g, x)| g * x).sum::<f64>() / c as f64;
            for i in 0..c {
                dx[row.start + i] = rstd * (g[i] - x[i] * rstd * rstd * mean);
                dw[i] += dy[i] * x[i] * rstd;
            }
        }
        (dx, dw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    const EPS: f32 = 1e-5;

    #[test]
    fn gradcheck_of_the_reference() {
        let mut random = Random::new(1);
        let (x, w, dy) = (random.f64s(3 * 7), random.f64s(7), random.f64s(3 * 7));
        let (dx, dw) = reference::backward(&x, &w, &dy, 1e-5, 1.0);
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            reference::forward(x, w, 1e-5, 1.0).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        gradcheck(|x| loss(x, &w), &x, &dx);
        gradcheck(|w| loss(&x, w), &w, &dw);
    }

    #[test]
    fn matches_torch() {
        // torch.nn.functional.rms_norm(x, (4,), w, 1e-5) and its gradients for dy = [[1, -1, 2, 0.5], [0.25, 3, -2, 1]].
        let x = [[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -0.5, 3.0]].concat();
        let w = [1.1, 0.9, -0.5, 2.0];
        let dy = [[1.0, -1.0, 2.0, 0.5], [0.25, 3.0, -2.0, 1.0]].concat();
        let y = reference::forward(&x, &w, 1e-5, 0.0);
        let (dx, dw) = reference::backward(&x, &w, &dy, 1e-5, 0.0);
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/rms_norm.json")).unwrap();
        for (name, values) in [("y", y), ("dx", dx), ("dw", dw)] {
            let expected: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
            assert_close(name, &values, &expected, 1e-12);
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
                let few = [(1, 1), (5, 33), (40, 64), (17, 257), (3, BLOCK + 9), (600, 24), (2, 9000)];
                // More than a GPU's blocks take at once.
                for (rows, c) in few.into_iter().chain([(2000, 520), (60_000, 24)]) {
                    let mut random = Random::new(7);
                    let mut tensor = |n: &[usize]| random.tensor(dtype, n);
                    let [x, w, dy] = [&[rows, c][..], &[c], &[rows, c]].map(|n| tensor(n).on(&dev));
                    let params = RmsNormParams { eps: EPS, offset: 1.0 };
                    let mut y = dev.zeros(dtype, &[rows, c]);
                    let mut rstd = dev.zeros(DType::F32, &[rows]);
                    forward(&dev, params, x.view(), Some(w.view()), y.view_mut(), rstd.view_mut());
                    let (xs, ws, dys) = (to_f64(&x), to_f64(&w), to_f64(&dy));
                    let expected = reference::forward(&xs, &ws, EPS.into(), 1.0);
                    assert_close("y", &to_f64(&y), &expected, tolerance);

                    let saved = Saved { x: x.view(), rstd: rstd.view() };
                    let (mut dx, mut dw) = (dy.to_dtype(dtype), dev.zeros(DType::F32, &[c]));
                    let into = Gradients { dx: Some((dx.view_mut(), true)), dw: Some(dw.view_mut()) };
                    backward(&dev, params, Some(w.view()), dy.view(), saved, into);
                    let (mut dx_ref, dw_ref) = reference::backward(&xs, &ws, &dys, EPS.into(), 1.0);
                    dx_ref.iter_mut().zip(&dys).for_each(|(dx, residual)| *dx += residual);
                    assert_close("dx", &to_f64(&dx), &dx_ref, tolerance);
                    assert_close("dw", &to_f64(&dw), &dw_ref, tolerance);
                }
            }
        }
    }

    #[test]
    fn weights_may_have_another_type_than_activations() {
        for dev in devices() {
            for (dtype, w_dtype) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16)] {
                for c in [24, 128] {
                    let mut random = Random::new(8);
                    let [x, dy] = [0; 2].map(|_| random.tensor(dtype, &[9, c]).on(&dev));
                    let w = random.tensor(w_dtype, &[c]).on(&dev);
                    let params = RmsNormParams { eps: EPS, offset: 0.0 };
                    let (mut y, mut dx) = (dev.zeros(dtype, &[9, c]), dev.zeros(dtype, &[9, c]));
                    let mut rstd = dev.zeros(DType::F32, &[9]);
                    forward(&dev, params, x.view(), Some(w.view()), y.view_mut(), rstd.view_mut());
                    let saved = Saved { x: x.view(), rstd: rstd.view() };
                    let into = Gradients { dx: Some((dx.view_mut(), false)), dw: None };
                    backward(&dev, params, Some(w.view()), dy.view(), saved, into);
                    let (xs, ws) = (to_f64(&x), to_f64(&w));
                    assert_close("y", &to_f64(&y), &reference::forward(&xs, &ws, EPS.into(), 0.0), 2e-2);
                    let (expected, _) = reference::backward(&xs, &ws, &to_f64(&dy), EPS.into(), 0.0);
                    assert_close("dx", &to_f64(&dx), &expected, 2e-2);
                }
            }
        }
    }

    #[test]
    fn add_forward_is_the_sum_and_its_norm() {
        for dev in devices() {
            for (dtype, c) in [(DType::F32, 33), (DType::F32, 64), (DType::BF16, 24), (DType::BF16, 1032)] {
                let mut random = Random::new(4);
                let [x, t] = [0; 2].map(|_| random.tensor(dtype, &[5, c]).on(&dev));
                let w = random.tensor(DType::F32, &[c]).on(&dev);
                let params = RmsNormParams { eps: EPS, offset: 1.0 };
                let [mut m, mut y, mut sum, mut normed] = [0; 4].map(|_| dev.zeros(dtype, &[5, c]));
                let [mut rstd, mut alone] = [0; 2].map(|_| dev.zeros(DType::F32, &[5]));
                let w = Some(w.view());
                let outputs = (m.view_mut(), y.view_mut(), rstd.view_mut());
                add_forward(&dev, params, x.view(), (0.3, t.view()), w, outputs);
                let (xs, ts) = (to_f64(&x), to_f64(&t));
                let expected: Vec<f64> = xs.iter().zip(&ts).map(|(x, t)| x + f64::from(0.3f32) * t).collect();
                assert_close("m", &to_f64(&m), &expected, if dtype == DType::F32 { 1e-6 } else { 8e-3 });
                sum.view_mut().copy_from(m.view());
                forward(&dev, params, sum.view(), w, normed.view_mut(), alone.view_mut());
                assert_eq!(to_f64(&y), to_f64(&normed));
                assert_eq!(to_f64(&rstd), to_f64(&alone));
            }
        }
    }

    #[test]
    fn a_norm_without_a_weight_is_one_of_ones() {
        for dev in devices() {
            let mut random = Random::new(9);
            let [x, dy] = [0; 2].map(|_| random.tensor(DType::F32, &[3, 21]).on(&dev));
            let ones = Tensor::from_slice(&[1f32; 21], &[21]).on(&dev);
            let params = RmsNormParams { eps: EPS, offset: 0.0 };
            let [with, without] = [Some(ones.view()), None].map(|w| {
                let (mut y, mut dx) = (dev.zeros(DType::F32, &[3, 21]), dy.to_dtype(DType::F32));
                let mut rstd = dev.zeros(DType::F32, &[3]);
                forward(&dev, params, x.view(), w, y.view_mut(), rstd.view_mut());
                let saved = Saved { x: x.view(), rstd: rstd.view() };
                let into = Gradients { dx: Some((dx.view_mut(), false)), dw: None };
                backward(&dev, params, w, dy.view(), saved, into);
                [to_f64(&y), to_f64(&dx)]
            });
            for (with, without) in with.iter().zip(&without) {
                assert_close("without a weight", without, with, 1e-6);
            }
        }
    }

    #[test]
    fn edges_no_row_and_large_magnitudes() {
        for dev in devices() {
            let params = RmsNormParams { eps: EPS, offset: 0.0 };
            let w = Tensor::from_slice(&[1.0f32, 1.0], &[2]).on(&dev);
            let (mut y, mut rstd) = (dev.zeros(DType::F32, &[0, 2]), dev.zeros(DType::F32, &[0]));
            let none = dev.zeros(DType::F32, &[0, 2]);
            forward(&dev, params, none.view(), Some(w.view()), y.view_mut(), rstd.view_mut());

            let x = Tensor::from_slice(&[1e15f32, -1e15], &[1, 2]).on(&dev);
            let (mut y, mut rstd) = (dev.zeros(DType::F32, &[1, 2]), dev.zeros(DType::F32, &[1]));
            forward(&dev, params, x.view(), Some(w.view()), y.view_mut(), rstd.view_mut());
            assert_close("large", &to_f64(&y), &[1.0, -1.0], 1e-6);
        }
    }
}
