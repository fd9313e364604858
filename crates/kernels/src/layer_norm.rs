//! Layer normalisation of rows (stages 9 and 11 of the walk).
//!
//! Formula (Ba et al., 2016), per row of width C:
//!
//! > mean = Σx / C, rstd = 1 / √(Σ(x − mean)² / C + eps), x̂ = (x − mean) · rstd, y = x̂ · (offset + w) + b
//!
//! w and b may be missing, and then the factor is 1 and the sum 0. w may be [G, C]: row r takes w[r mod G], which is a
//! weight of its own for each head. Derivative, with g = dy · (offset + w):
//!
//! > dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)), dw = Σ_rows dy · x̂, db = Σ_rows dy
//!
//! Storage f32 or bf16 for x, y, dy, dx (one type for all), w and b f32 or bf16 (dw always f32); sums in f32, in a
//! fixed order. Saved for backward: x, and rstd and mean of each row. db is [`crate::rows::sum_rows`].
//! Three passes over a row that stays in L1, or in a GPU's registers: about 7·N·C FLOP forward, 11·N·C backward.

use std::ops::Range;

use crate::isa::per_isa;
use crate::lanes::sum_of;
use crate::{DType, Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Columns that one task of the weight gradient sums, where there is one weight for all rows.
const COLUMNS_PER_TASK: usize = 128;
/// Rows that one task normalises.
const ROWS_PER_TASK: usize = 16;
/// Values saved for a row: rstd and mean.
pub const STATISTICS: usize = 2;

/// Constants of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormParams {
    /// Added to the variance.
    pub eps: f32,
    /// Added to the weight: 0, or 1 where weights are stored as distance from 1.
    pub offset: f32,
}

/// Weight [C] or [G, C], and bias [C].
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// w.
    pub weight: Option<View<'a>>,
    /// b, of the weight's type.
    pub bias: Option<View<'a>>,
}

/// y = norm(x)·(offset + w) + b, and `statistics` for backward. x and y are [rows, C], statistics f32 [rows, 2].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    params: LayerNormParams,
    x: View<'_>,
    affine: Affine<'_>,
    y: ViewMut<'_>,
    statistics: ViewMut<'_>,
) {
    let _timed = dev.pass("layer_norm", 2 * x.byte_len());
    assert_eq!(x.shape(), y.shape(), "layer_norm: x and y");
    let c = check(x, affine);
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params, x, affine, y, statistics);
    }
    let w_type = affine.weight.or(affine.bias).map_or(x.dtype(), |w| w.dtype());
    with_dtype!(x.dtype(), X => with_dtype!(w_type, W => {
        let (x, w, b) = (x.as_slice::<X>(), values::<W>(affine.weight), values::<W>(affine.bias));
        let outputs = (
            (y.as_mut_slice::<X>(), c * ROWS_PER_TASK),
            (statistics.as_mut_slice::<f32>(), STATISTICS * ROWS_PER_TASK),
        );
        dev.for_each_chunk_pair(outputs.0, outputs.1, |task, y, statistics| {
            let first = task * ROWS_PER_TASK;
            norm_rows(dev.isa(), params, (c, first), (w, b), &x[first * c..], y, statistics);
        });
    }));
}

/// What backward reads.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// The input of forward, [rows, C].
    pub x: View<'a>,
    /// f32 [rows, 2], from forward.
    pub statistics: View<'a>,
}

/// The gradient of the input, w being the weight; added to what is in `dx` if `accumulate`.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward_input(
    dev: &Device,
    params: LayerNormParams,
    w: Option<View<'_>>,
    dy: View<'_>,
    saved: Saved<'_>,
    dx: ViewMut<'_>,
    accumulate: bool,
) {
    let _timed = dev.pass("layer_norm backward", (3 + usize::from(accumulate)) * dy.byte_len());
    assert_eq!(dy.shape(), dx.shape(), "layer_norm: dy and dx");
    assert_eq!(dy.elements(), saved.x.elements(), "layer_norm: dy and x");
    let c = check(saved.x, Affine { weight: w, bias: None });
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward_input(cuda, params, w, dy, saved, dx, accumulate);
    }
    with_dtype!(dy.dtype(), X => with_dtype!(w.map_or(dy.dtype(), |w| w.dtype()), W => {
        let (x, w) = (saved.x.as_slice::<X>(), values::<W>(w));
        let (dy, statistics) = (dy.as_slice::<X>(), saved.statistics.as_slice::<f32>());
        dev.for_each_chunk(dx.as_mut_slice::<X>(), c * ROWS_PER_TASK, |task, dx| {
            let first = task * ROWS_PER_TASK;
            let (x, statistics) = (&x[first * c..], &statistics[first * STATISTICS..]);
            let rows = Rows { params, columns: c, first, accumulate };
            norm_rows_backward(dev.isa(), rows, w, (x, statistics), &dy[first * c..], dx);
        });
    }));
}

/// The gradient of the weight, added to `dw` (f32 [C] or [G, C]).
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward_weight(dev: &Device, dy: View<'_>, saved: Saved<'_>, dw: ViewMut<'_>) {
    let _timed = dev.pass("layer_norm backward, weight", 2 * dy.byte_len());
    assert_eq!(dy.elements(), saved.x.elements(), "layer_norm: dy and x");
    assert_eq!(dw.dtype(), DType::F32, "layer_norm: gradients of weights are float32");
    let c = check(saved.x, Affine { weight: Some(dw.as_view()), bias: None });
    let groups = dw.elements() / c;
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward_weight(cuda, dy, saved, (dw, groups));
    }
    let chunk = if groups == 1 { COLUMNS_PER_TASK } else { c };
    with_dtype!(dy.dtype(), X => {
        let (dy, x) = (dy.as_slice::<X>(), saved.x.as_slice::<X>());
        let statistics = saved.statistics.as_slice::<f32>();
        dev.for_each_chunk(dw.as_mut_slice::<f32>(), chunk, |task, dw| {
            let (group, first) = (task * chunk / c, task * chunk % c);
            let part = Columns { columns: c, taken: first..first + dw.len(), group, groups };
            weight_columns(dev.isa(), part, x, statistics, dy, dw);
        });
    });
}

/// C, with the weight's and the bias's shapes compared to it.
fn check(x: View<'_>, affine: Affine<'_>) -> usize {
    let c = x.shape().last().copied().unwrap_or(1);
    for view in affine.weight.into_iter().chain(affine.bias) {
        assert_eq!(view.shape().last(), Some(&c), "layer_norm: x and w or b");
    }
    c
}

fn values<W: Element>(view: Option<View<'_>>) -> Option<&[W]> {
    view.map(View::as_slice)
}

/// The weight of row `row`, where rows take theirs in turn.
#[inline(always)]
fn weight_of<W>(w: &[W], columns: usize, row: usize) -> &[W] {
    let first = row * columns % w.len();
    &w[first..first + columns]
}

/// Which rows a task of the input's gradient has.
#[derive(Clone, Copy)]
struct Rows {
    params: LayerNormParams,
    columns: usize,
    first: usize,
    accumulate: bool,
}

/// Which columns a task of the weight's gradient has, and which rows count.
struct Columns {
    columns: usize,
    taken: Range<usize>,
    group: usize,
    groups: usize,
}

per_isa! {
    fn norm_rows<X: Element, W: Element>(
        params: LayerNormParams,
        rows: (usize, usize),
        affine: (Option<&[W]>, Option<&[W]>),
        x: &[X],
        y: &mut [X],
        statistics: &mut [f32],
    ) {
        let (c, first) = rows;
        let rows = x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(statistics.chunks_exact_mut(STATISTICS));
        for (i, ((x, y), statistics)) in rows.enumerate() {
            let mean = sum_of(c, |i| x[i].to_f32()) / c as f32;
            let variance = sum_of(c, |i| (x[i].to_f32() - mean) * (x[i].to_f32() - mean)) / c as f32;
            let rstd = 1.0 / (variance + params.eps).sqrt();
            statistics.copy_from_slice(&[rstd, mean]);
            let normed = |x: &X| (x.to_f32() - mean) * rstd;
            let (w, b) = affine;
            let pairs = y.iter_mut().zip(x);
            match (w.map(|w| weight_of(w, c, first + i)), b) {
                (Some(w), Some(b)) => pairs.zip(w.iter().zip(b)).for_each(|((y, x), (w, b))| {
                    *y = X::from_f32(normed(x) * (params.offset + w.to_f32()) + b.to_f32());
                }),
                (Some(w), None) => pairs.zip(w).for_each(|((y, x), w)| {
                    *y = X::from_f32(normed(x) * (params.offset + w.to_f32()));
                }),
                (None, Some(b)) => pairs.zip(b).for_each(|((y, x), b)| {
                    *y = X::from_f32(normed(x) + b.to_f32());
                }),
                (None, None) => pairs.for_each(|(y, x)| *y = X::from_f32(normed(x))),
            }
        }
    }

    fn norm_rows_backward<X: Element, W: Element>(
        rows: Rows,
        w: Option<&[W]>,
        saved: (&[X], &[f32]),
        dy: &[X],
        dx: &mut [X],
    ) {
        let Rows { params, columns: c, first, accumulate } = rows;
        let inputs = saved.0.chunks_exact(c).zip(saved.1.chunks_exact(STATISTICS)).zip(dy.chunks_exact(c));
        for (i, (dx, ((x, statistics), dy))) in dx.chunks_exact_mut(c).zip(inputs).enumerate() {
            let w = w.map(|w| weight_of(w, c, first + i));
            match w {
                Some(w) => row_backward(statistics, accumulate, x, dx, |i| {
                    dy[i].to_f32() * (params.offset + w[i].to_f32())
                }),
                None => row_backward(statistics, accumulate, x, dx, |i| dy[i].to_f32()),
            }
        }
    }

    fn weight_columns<X: Element>(part: Columns, x: &[X], statistics: &[f32], dy: &[X], dw: &mut [f32]) {
        let Columns { columns: c, taken, group, groups } = part;
        let rows = x.chunks_exact(c).zip(statistics.chunks_exact(STATISTICS)).zip(dy.chunks_exact(c));
        for ((x, statistics), dy) in rows.skip(group).step_by(groups) {
            let (rstd, mean) = (statistics[0], statistics[1]);
            let pairs = dy[taken.clone()].iter().zip(&x[taken.clone()]);
            for (dw, (dy, x)) in dw.iter_mut().zip(pairs) {
                *dw += dy.to_f32() * ((x.to_f32() - mean) * rstd);
            }
        }
    }
}

/// dx of one row from g.
#[inline(always)]
fn row_backward<X: Element>(
    statistics: &[f32],
    accumulate: bool,
    x: &[X],
    dx: &mut [X],
    g: impl Fn(usize) -> f32,
) {
    let (c, rstd, mean) = (x.len(), statistics[0], statistics[1]);
    let normed = |i: usize| (x[i].to_f32() - mean) * rstd;
    let g_mean = sum_of(c, &g) / c as f32;
    let gx_mean = sum_of(c, |i| g(i) * normed(i)) / c as f32;
    for (i, dx) in dx.iter_mut().enumerate() {
        let before = if accumulate { dx.to_f32() } else { 0.0 };
        *dx = X::from_f32(before + rstd * (g(i) - g_mean - normed(i) * gx_mean));
    }
}

mod on_cuda {
    use super::{Affine, LayerNormParams, STATISTICS, Saved};
    use crate::cuda::{Cuda, DevicePtr, Params, Source};
    use crate::norm_rows::{self, teams};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new(
        "layer_norm",
        concat!(
            include_str!("norm_rows.cuh"),
            "\n#line 1 \"layer_norm.cu\"\n",
            include_str!("layer_norm.cu")
        ),
    );

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LayerNormForward {
        x: DevicePtr,
        w: DevicePtr,
        b: DevicePtr,
        y: DevicePtr,
        statistics: DevicePtr,
        rows: u64,
        columns: u32,
        groups: u32,
        lanes: u32,
        eps: f32,
        offset: f32,
    }
    // SAFETY: `LayerNormForward` of layer_norm.cu.
    unsafe impl Params for LayerNormForward {}

    /// Address, type and groups of a weight that may be missing.
    fn weight(w: Option<View<'_>>, columns: usize, dtype: DType) -> (DevicePtr, DType, u32) {
        w.map_or((DevicePtr::NULL, dtype, 1), |w| (w.device(), w.dtype(), (w.elements() / columns) as u32))
    }

    pub fn forward(
        cuda: &Cuda,
        params: LayerNormParams,
        x: View<'_>,
        affine: Affine<'_>,
        mut y: ViewMut<'_>,
        mut statistics: ViewMut<'_>,
    ) {
        let (dtype, columns) = (x.dtype(), x.shape().last().copied().unwrap_or(1));
        let rows = x.elements() / columns.max(1);
        let w_dtype = affine.weight.or(affine.bias).map_or(dtype, |w| w.dtype());
        assert_eq!(y.dtype(), dtype, "layer_norm: x and y");
        assert!(
            affine.bias.is_none_or(|b| (b.dtype(), b.elements()) == (w_dtype, columns)),
            "layer_norm: bias"
        );
        assert!(statistics.dtype() == DType::F32 && statistics.elements() >= STATISTICS * rows);
        let (w, _, groups) = weight(affine.weight, columns, dtype);
        let (lanes, grid) = teams(rows, columns, dtype);
        let params = LayerNormForward {
            x: x.device(),
            w,
            b: affine.bias.map_or(DevicePtr::NULL, |b| b.device()),
            y: y.device(),
            statistics: statistics.device(),
            rows: rows as u64,
            columns: columns as u32,
            groups,
            lanes,
            eps: params.eps,
            offset: params.offset,
        };
        cuda.launch(&SOURCE, "layer_norm_forward", &[dtype, w_dtype], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LayerNormBackward {
        dy: DevicePtr,
        x: DevicePtr,
        w: DevicePtr,
        statistics: DevicePtr,
        dx: DevicePtr,
        rows: u64,
        columns: u32,
        groups: u32,
        lanes: u32,
        offset: f32,
        accumulate: u32,
    }
    // SAFETY: `LayerNormBackward` of layer_norm.cu.
    unsafe impl Params for LayerNormBackward {}

    pub fn backward_input(
        cuda: &Cuda,
        params: LayerNormParams,
        w: Option<View<'_>>,
        dy: View<'_>,
        saved: Saved<'_>,
        mut dx: ViewMut<'_>,
        accumulate: bool,
    ) {
        let (dtype, columns) = (dy.dtype(), saved.x.shape().last().copied().unwrap_or(1));
        let rows = dy.elements() / columns.max(1);
        assert!(saved.x.dtype() == dtype && dx.dtype() == dtype, "layer_norm: one type");
        assert!(saved.statistics.elements() >= STATISTICS * rows, "layer_norm: statistics");
        let (w, w_dtype, groups) = weight(w, columns, dtype);
        let (lanes, grid) = teams(rows, columns, dtype);
        let params = LayerNormBackward {
            dy: dy.device(),
            x: saved.x.device(),
            w,
            statistics: saved.statistics.device(),
            dx: dx.device(),
            rows: rows as u64,
            columns: columns as u32,
            groups,
            lanes,
            offset: params.offset,
            accumulate: accumulate.into(),
        };
        cuda.launch(&SOURCE, "layer_norm_backward", &[dtype, w_dtype], grid, params);
    }

    pub fn backward_weight(cuda: &Cuda, dy: View<'_>, saved: Saved<'_>, dw: (ViewMut<'_>, usize)) {
        assert_eq!(saved.x.dtype(), dy.dtype(), "layer_norm: one type");
        let kernel = (&SOURCE, "layer_norm_weight_parts");
        norm_rows::backward_weight(cuda, kernel, dy, (saved.x, saved.statistics), dw);
    }
}

#[cfg(test)]
mod reference {
    //! The definition in f64; w is [G, C], with an offset added already.

    pub struct Row {
        pub normed: Vec<f64>,
        pub rstd: f64,
    }

    pub fn rows(x: &[f64], c: usize, eps: f64) -> Vec<Row> {
        let row = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / c as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            let rstd = 1.0 / (variance + eps).sqrt();
            Row { normed: x.iter().map(|x| (x - mean) * rstd).collect(), rstd }
        };
        x.chunks(c).map(row).collect()
    }

    pub fn forward(x: &[f64], (w, b): (&[f64], &[f64]), eps: f64) -> Vec<f64> {
        let c = b.len();
        let rows = rows(x, c, eps).into_iter().enumerate();
        let y = |(r, i, x): (usize, usize, f64)| x * w[(r * c + i) % w.len()] + b[i];
        rows.flat_map(|(r, row)| row.normed.into_iter().enumerate().map(move |(i, x)| (r, i, x)))
            .map(y)
            .collect()
    }

    /// (dx, dw).
    pub fn backward(x: &[f64], (w, c): (&[f64], usize), dy: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
        let (mut dx, mut dw) = (Vec::new(), vec![0.0; w.len()]);
        for (r, row) in rows(x, c, eps).into_iter().enumerate() {
            let at = |i: usize| (r * c + i) % w.len();
            let g: Vec<f64> = (0..c).map(|i| dy[r * c + i] * w[at(i)]).collect();
            let mean = g.iter().sum::<f64>() / c as f64;
            let product = g.iter().zip(&row.normed).map(|(g, x)| g * x).sum::<f64>() / c as f64;
            for i in 0..c {
                dx.push(row.rstd * (g[i] - mean - row.normed[i] * product));
                dw[at(i)] += dy[r * c + i] * row.normed[i];
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
        for groups in [1, 2] {
            let mut random = Random::new(1);
            let (x, w, dy) = (random.f64s(4 * 7), random.f64s(groups * 7), random.f64s(4 * 7));
            let b = random.f64s(7);
            let (dx, dw) = reference::backward(&x, (&w, 7), &dy, 1e-5);
            let loss = |x: &[f64], w: &[f64]| -> f64 {
                reference::forward(x, (w, &b), 1e-5).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            gradcheck(|x| loss(x, &w), &x, &dx);
            gradcheck(|w| loss(&x, w), &w, &dw);
        }
    }

    #[test]
    fn matches_torch() {
        // torch.nn.functional.layer_norm(x, (4,), w, b, 1e-5) and its gradients.
        let x = [[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -0.5, 3.0]].concat();
        let (w, b) = ([1.1, 0.9, -0.5, 2.0], [0.1, -0.2, 0.3, 0.4]);
        let dy = [[1.0, -1.0, 2.0, 0.5], [0.25, 3.0, -2.0, 1.0]].concat();
        let y = reference::forward(&x, (&w, &b), 1e-5);
        let (dx, dw) = reference::backward(&x, (&w, 4), &dy, 1e-5);
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/layer_norm.json")).unwrap();
        for (name, values) in [("y", y), ("dx", dx), ("dw", dw)] {
            let expected: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
            assert_close(name, &values, &expected, 1e-12);
        }
    }

    #[test]
    fn device_matches_reference() {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
            for (rows, c, groups, parts) in [
                (1, 2, 1, 3),
                (5, 33, 1, 2),
                (40, 64, 4, 1),
                (17, 257, 1, 3),
                (6, 8, 3, 3),
                (9, 16, 1, 0),
                (700, 24, 2, 3),
                (3, 9000, 1, 3),
            ] {
                for dev in devices() {
                    compare(&dev, dtype, tolerance, (rows, c, groups), [parts & 1 == 1, parts & 2 == 2]);
                }
            }
        }
    }

    /// A norm with a weight, a bias, both or neither.
    fn compare(
        dev: &Device,
        dtype: DType,
        tolerance: f64,
        (rows, c, groups): (usize, usize, usize),
        [has_w, has_b]: [bool; 2],
    ) {
        let mut random = Random::new(7);
        let mut tensor = |n: &[usize]| random.tensor(dtype, n).on(dev);
        let (x, w, b, dy) = (tensor(&[rows, c]), tensor(&[groups, c]), tensor(&[c]), tensor(&[rows, c]));
        let params = LayerNormParams { eps: EPS, offset: 1.0 };
        let affine = Affine { weight: has_w.then(|| w.view()), bias: has_b.then(|| b.view()) };
        let mut y = dev.zeros(dtype, &[rows, c]);
        let mut statistics = dev.zeros(DType::F32, &[rows, STATISTICS]);
        forward(dev, params, x.view(), affine, y.view_mut(), statistics.view_mut());
        let (xs, dys) = (to_f64(&x), to_f64(&dy));
        let ws: Vec<f64> = if has_w { to_f64(&w).iter().map(|w| w + 1.0).collect() } else { vec![1.0; c] };
        let bs = if has_b { to_f64(&b) } else { vec![0.0; c] };
        assert_close("y", &to_f64(&y), &reference::forward(&xs, (&ws, &bs), EPS.into()), tolerance);

        let saved = Saved { x: x.view(), statistics: statistics.view() };
        let (mut dx, mut dw) = (dy.to_dtype(dtype), dev.zeros(DType::F32, &[groups, c]));
        backward_input(dev, params, affine.weight, dy.view(), saved, dx.view_mut(), true);
        let (mut dx_ref, dw_ref) = reference::backward(&xs, (&ws, c), &dys, EPS.into());
        dx_ref.iter_mut().zip(&dys).for_each(|(dx, residual)| *dx += residual);
        assert_close("dx", &to_f64(&dx), &dx_ref, tolerance);
        if has_w {
            backward_weight(dev, dy.view(), saved, dw.view_mut());
            assert_close("dw", &to_f64(&dw), &dw_ref, tolerance);
        }
    }

    #[test]
    fn edges_no_row_equal_values_and_large_magnitudes() {
        for dev in devices() {
            let params = LayerNormParams { eps: EPS, offset: 0.0 };
            let affine = Affine { weight: None, bias: None };
            let normed = |values: &[f32], rows: usize| {
                let x = Tensor::from_slice(values, &[rows, 2]).on(&dev);
                let mut y = dev.zeros(DType::F32, &[rows, 2]);
                let mut statistics = dev.zeros(DType::F32, &[rows, STATISTICS]);
                forward(&dev, params, x.view(), affine, y.view_mut(), statistics.view_mut());
                to_f64(&y)
            };
            assert!(normed(&[], 0).is_empty());
            assert_eq!(normed(&[3.0, 3.0], 1), [0.0, 0.0]);
            assert_close("large", &normed(&[1e15, -1e15], 1), &[1.0, -1.0], 1e-6);
        }
    }
}
