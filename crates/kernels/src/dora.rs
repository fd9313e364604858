//! The magnitudes of a weight-decomposed adapter (stages 9 and 11 of the walk).
//!
//! Formula (Liu et al., 2024, with the norm taken as a constant of the step, as in §4.3 and in PEFT), for a weight W
//! [O, C] with an adapter A [R, C], B [O, R] of scale s, magnitudes m [O] and u = x·Wᵀ + s·(x·Aᵀ)·Bᵀ [N, O]:
//!
//! > g = m / ‖W + s·B·A‖ by rows, y = g ⊙ u + bias
//!
//! Derivative: du = g ⊙ dy, dm = Σₙ dy ⊙ u / ‖W + s·B·A‖.
//!
//! The norm is never that of a matrix that exists. With T = A·Wᵀ [R, O] and G = A·Aᵀ [R, R], both f32:
//!
//! > ‖W_j + s·B_j·A‖² = ‖W_j‖² + 2s·Σ_r B_jr·T_rj + s²·Σ_rq B_jr·G_rq·B_jq
//!
//! Activations f32 or bf16, one type for all; magnitudes, factors and their gradients f32; arithmetic f32. Saved for
//! backward: u and the factors. Memory-bound: 2 tensors forward, 3 backward.

use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Rows of a matrix of factors: m / norm, and 1 / norm.
pub const FACTORS: usize = 2;

/// Elements that one task handles, about.
const ELEMENTS_PER_TASK: usize = 16 * 1024;
/// Columns that one task of backward handles.
const COLUMNS_PER_TASK: usize = 64;

/// What the factors of a layer are made of.
#[derive(Debug, Clone, Copy)]
pub struct Norms<'a> {
    /// ‖W_j‖² of each row, f32 [O].
    pub squares: View<'a>,
    /// m: f32 [O].
    pub magnitude: View<'a>,
    /// T: A·Wᵀ, f32 [R, O].
    pub a_wt: View<'a>,
    /// G: A·Aᵀ, f32 [R, R].
    pub gram: View<'a>,
    /// B: [O, R].
    pub b: View<'a>,
    /// s.
    pub scale: f32,
}

impl Norms<'_> {
    fn check(&self, factors: View<'_>) {
        let (o, r) = (self.b.dim(0), self.b.dim(1));
        assert_eq!(
            (self.squares.elements(), self.magnitude.elements(), factors.elements()),
            (o, o, FACTORS * o),
            "dora: rows, magnitudes and factors"
        );
        assert_eq!((self.a_wt.elements(), self.gram.elements()), (r * o, r * r), "dora: A·Wᵀ and A·Aᵀ");
        let all = [self.squares, self.magnitude, self.a_wt, self.gram, factors];
        assert!(all.iter().all(|view| view.dtype() == DType::F32), "dora: norms are float32");
    }
}

/// The factors f32 [2, O] of a layer: m / norm, and 1 / norm.
///
/// # Panics
/// If shapes do not fit.
pub fn factors(dev: &Device, norms: Norms<'_>, factors: ViewMut<'_>) {
    let _timed = dev.pass("dora norms", norms.a_wt.byte_len());
    norms.check(factors.as_view());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::factors(cuda, norms, factors);
    }
    let (o, r) = (norms.b.dim(0), norms.b.dim(1));
    let [squares, magnitude] = [norms.squares, norms.magnitude].map(View::as_slice::<f32>);
    let [t, gram] = [norms.a_wt, norms.gram].map(View::as_slice::<f32>);
    let (g, inverse) = factors.as_mut_slice::<f32>().split_at_mut(o);
    with_dtype!(norms.b.dtype(), E => {
        let b = norms.b.as_slice::<E>();
        dev.for_each_chunk_pair((g, COLUMNS_PER_TASK), (inverse, COLUMNS_PER_TASK), |task, g, inverse| {
            for (i, (g, inverse)) in g.iter_mut().zip(inverse).enumerate() {
                let j = task * COLUMNS_PER_TASK + i;
                let b = &b[j * r..(j + 1) * r];
                *inverse = 1.0 / norm_of_row(squares[j], b, (&t[j..], o), gram, norms.scale);
                *g = magnitude[j] * *inverse;
            }
        });
    });
}

/// ‖W_j + s·B_j·A‖; `t` begins with T_0j and has T_rj after r steps.
fn norm_of_row<E: Element>(
    square: f32,
    b: &[E],
    (t, step): (&[f32], usize),
    gram: &[f32],
    scale: f32,
) -> f32 {
    let r = b.len();
    let (mut with_w, mut with_itself) = (0.0, 0.0);
    for (i, b_i) in b.iter().enumerate() {
        let gram = &gram[i * r..(i + 1) * r];
        let inner: f32 = gram.iter().zip(b).map(|(g, b)| g * b.to_f32()).sum();
        with_w += b_i.to_f32() * t[i * step];
        with_itself += b_i.to_f32() * inner;
    }
    // A sum of squares, but for rounding.
    (square + scale * (2.0 * with_w + scale * with_itself)).max(f32::MIN_POSITIVE).sqrt()
}

/// y = g ⊙ u + bias, or y += g ⊙ u with `accumulate`; u and y are [N, O].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    factors: View<'_>,
    u: View<'_>,
    bias: Option<View<'_>>,
    y: ViewMut<'_>,
    accumulate: bool,
) {
    let _timed = dev.pass("dora", 2 * u.byte_len());
    check(factors, u, y.as_view());
    assert!(bias.is_none_or(|bias| bias.elements() == u.dim(1)), "dora: bias");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, factors, u, bias, y, accumulate);
    }
    let (o, factors) = (u.dim(1), factors.as_slice::<f32>());
    let bias = bias.map(|bias| bias.to_f32_vec());
    let rows = (ELEMENTS_PER_TASK / o.max(1)).max(1);
    with_dtype!(y.dtype(), E => {
        let u = u.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), rows * o, |task, y| {
            let u = &u[task * rows * o..][..y.len()];
            for (u, y) in u.chunks_exact(o).zip(y.chunks_exact_mut(o)) {
                match (&bias, accumulate) {
                    (_, true) => scaled_and_added(dev.isa(), &factors[..o], u, y),
                    (Some(bias), false) => scaled_with_bias(dev.isa(), &factors[..o], u, bias, y),
                    (None, false) => less_scaled(dev.isa(), &factors[..o], 0.0, u, y),
                }
            }
        });
    });
}

/// du = g ⊙ dy, dm += Σₙ dy ⊙ u / norm; dy, u and du are [N, O], dm is f32 [O] and left out where m is frozen.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    factors: View<'_>,
    (dy, u): (View<'_>, View<'_>),
    mut du: ViewMut<'_>,
    dm: Option<ViewMut<'_>>,
) {
    let _timed = dev.pass("dora backward", 3 * u.byte_len());
    check(factors, u, dy);
    less(dev, factors, 0.0, dy, du.reborrow());
    let Some(dm) = dm else { return };
    assert_eq!((dm.elements(), dm.dtype()), (u.dim(1), DType::F32), "dora: dm");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::magnitudes(cuda, factors, (dy, u), dm);
    }
    let o = u.dim(1);
    let inverse = &factors.as_slice::<f32>()[o..];
    with_dtype!(u.dtype(), E => {
        let (dy, u) = (dy.as_slice::<E>(), u.as_slice::<E>());
        dev.for_each_chunk(dm.as_mut_slice::<f32>(), COLUMNS_PER_TASK, |task, dm| {
            let columns = task * COLUMNS_PER_TASK..task * COLUMNS_PER_TASK + dm.len();
            let mut sums = [0.0; COLUMNS_PER_TASK];
            for (dy, u) in dy.chunks_exact(o).zip(u.chunks_exact(o)) {
                products_added(dev.isa(), &dy[columns.clone()], &u[columns.clone()], &mut sums[..dm.len()]);
            }
            dm.iter_mut().zip(&sums).zip(&inverse[columns]).for_each(|((dm, sum), by)| *dm += sum * by);
        });
    });
}

/// d = (g − shift) ⊙ dy: what comes to the input beside dy itself, where u is of another input than the base's output
/// (PEFT drops elements of the one and not of the other).
///
/// # Panics
/// If shapes or types do not fit.
pub fn less(dev: &Device, factors: View<'_>, shift: f32, dy: View<'_>, d: ViewMut<'_>) {
    check(factors, dy, d.as_view());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::less(cuda, factors, shift, dy, d);
    }
    let (o, factors) = (dy.dim(1), factors.as_slice::<f32>());
    let rows = (ELEMENTS_PER_TASK / o.max(1)).max(1);
    with_dtype!(d.dtype(), E => {
        let dy = dy.as_slice::<E>();
        dev.for_each_chunk(d.as_mut_slice::<E>(), rows * o, |task, d| {
            let dy = &dy[task * rows * o..][..d.len()];
            for (dy, d) in dy.chunks_exact(o).zip(d.chunks_exact_mut(o)) {
                less_scaled(dev.isa(), &factors[..o], shift, dy, d);
            }
        });
    });
}

/// `part` ← x − part.
///
/// # Panics
/// If shapes or types do not fit.
pub fn rest(dev: &Device, x: View<'_>, part: ViewMut<'_>) {
    let _timed = dev.pass("rest", 3 * x.byte_len());
    assert_eq!((x.elements(), x.dtype()), (part.elements(), part.dtype()), "dora: x and a part of it");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::rest(cuda, x, part);
    }
    with_dtype!(part.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(part.as_mut_slice::<E>(), ELEMENTS_PER_TASK, |task, part| {
            subtracted(dev.isa(), &x[task * ELEMENTS_PER_TASK..][..part.len()], part);
        });
    });
}

fn check(factors: View<'_>, u: View<'_>, y: View<'_>) {
    assert_eq!((u.shape(), u.dtype()), (y.shape(), y.dtype()), "dora: u and y");
    assert_eq!(
        (factors.elements(), factors.dtype()),
        (FACTORS * u.dim(1), DType::F32),
        "dora: factors of {} columns",
        u.dim(1)
    );
}

per_isa! {
    fn scaled_with_bias<E: Element>(g: &[f32], u: &[E], bias: &[f32], y: &mut [E]) {
        let terms = g.iter().zip(u).zip(bias);
        y.iter_mut().zip(terms).for_each(|(y, ((g, u), bias))| *y = E::from_f32(g * u.to_f32() + bias));
    }

    fn scaled_and_added<E: Element>(g: &[f32], u: &[E], y: &mut [E]) {
        y.iter_mut().zip(g.iter().zip(u)).for_each(|(y, (g, u))| *y = E::from_f32(y.to_f32() + g * u.to_f32()));
    }

    fn less_scaled<E: Element>(g: &[f32], shift: f32, dy: &[E], d: &mut [E]) {
        d.iter_mut().zip(g.iter().zip(dy)).for_each(|(d, (g, dy))| *d = E::from_f32((g - shift) * dy.to_f32()));
    }

    fn products_added<E: Element>(a: &[E], b: &[E], sums: &mut [f32]) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a.to_f32() * b.to_f32());
    }

    fn subtracted<E: Element>(x: &[E], part: &mut [E]) {
        part.iter_mut().zip(x).for_each(|(part, x)| *part = E::from_f32(x.to_f32() - part.to_f32()));
    }
}

mod on_cuda {
    //! The same on a GPU: `dora.cu`. The order of sums over rows depends on shapes alone.

    use super::Norms;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("dora", include_str!("dora.cu"));

    const THREADS: usize = 256;
    /// Columns of a block that sums over rows: a warp's.
    const COLUMNS: usize = 32;
    /// Ranges of rows with a sum of their own, at most, and their rows, at least.
    const MOST_PARTS: usize = 32;
    const ROWS_PER_PART: usize = 64;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DoraFactors {
        squares: DevicePtr,
        magnitude: DevicePtr,
        a_wt: DevicePtr,
        gram: DevicePtr,
        b: DevicePtr,
        factors: DevicePtr,
        outputs: u64,
        rank: u32,
        scale: f32,
    }
    // SAFETY: `DoraFactors` of dora.cu; shapes were checked.
    unsafe impl Params for DoraFactors {}

    pub fn factors(cuda: &Cuda, norms: Norms<'_>, mut factors: ViewMut<'_>) {
        let outputs = norms.b.dim(0);
        let params = DoraFactors {
            squares: norms.squares.device(),
            magnitude: norms.magnitude.device(),
            a_wt: norms.a_wt.device(),
            gram: norms.gram.device(),
            b: norms.b.device(),
            factors: factors.device(),
            outputs: outputs as u64,
            rank: norms.b.dim(1) as u32,
            scale: norms.scale,
        };
        let grid = Grid::new(outputs.div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, "dora_factors", &[norms.b.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DoraScale {
        factors: DevicePtr,
        x: DevicePtr,
        bias: DevicePtr,
        y: DevicePtr,
        elements: u64,
        columns: u64,
        shift: f32,
        accumulate: u32,
    }
    // SAFETY: `DoraScale` of dora.cu; shapes were checked.
    unsafe impl Params for DoraScale {}

    fn scale(cuda: &Cuda, name: &'static str, params: DoraScale, x: View<'_>, bias: Option<View<'_>>) {
        let bias_type = bias.map_or(x.dtype(), |bias| bias.dtype());
        let grid = Grid::new((params.elements as usize).div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, name, &[x.dtype(), bias_type], grid, params);
    }

    pub fn forward(
        cuda: &Cuda,
        factors: View<'_>,
        u: View<'_>,
        bias: Option<View<'_>>,
        mut y: ViewMut<'_>,
        accumulate: bool,
    ) {
        let params = DoraScale {
            factors: factors.device(),
            x: u.device(),
            bias: bias.map_or(DevicePtr::NULL, |bias| bias.device()),
            y: y.device(),
            elements: u.elements() as u64,
            columns: u.dim(1) as u64,
            shift: 0.0,
            accumulate: accumulate.into(),
        };
        scale(cuda, "dora_scale", params, u, bias);
    }

    pub fn less(cuda: &Cuda, factors: View<'_>, shift: f32, dy: View<'_>, mut d: ViewMut<'_>) {
        let params = DoraScale {
            factors: factors.device(),
            x: dy.device(),
            bias: DevicePtr::NULL,
            y: d.device(),
            elements: dy.elements() as u64,
            columns: dy.dim(1) as u64,
            shift,
            accumulate: 0,
        };
        scale(cuda, "dora_scale", params, dy, None);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DoraRest {
        x: DevicePtr,
        part: DevicePtr,
        elements: u64,
    }
    // SAFETY: `DoraRest` of dora.cu; shapes were checked.
    unsafe impl Params for DoraRest {}

    pub fn rest(cuda: &Cuda, x: View<'_>, mut part: ViewMut<'_>) {
        let params = DoraRest { x: x.device(), part: part.device(), elements: x.elements() as u64 };
        let grid = Grid::new(x.elements().div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, "dora_rest", &[x.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DoraMagnitudes {
        factors: DevicePtr,
        dy: DevicePtr,
        u: DevicePtr,
        partial: DevicePtr,
        dm: DevicePtr,
        rows: u64,
        columns: u64,
        rows_per_part: u64,
        parts: u64,
    }
    // SAFETY: `DoraMagnitudes` of dora.cu; shapes were checked, and there is scratch for all parts.
    unsafe impl Params for DoraMagnitudes {}

    pub fn magnitudes(cuda: &Cuda, factors: View<'_>, (dy, u): (View<'_>, View<'_>), mut dm: ViewMut<'_>) {
        let (rows, columns) = (u.dim(0), u.dim(1));
        if rows == 0 {
            return;
        }
        let rows_per_part = rows.div_ceil(MOST_PARTS).max(ROWS_PER_PART);
        let parts = rows.div_ceil(rows_per_part);
        let scratch = cuda.scratch(parts * columns * size_of::<f32>());
        let params = DoraMagnitudes {
            factors: factors.device(),
            dy: dy.device(),
            u: u.device(),
            partial: scratch.start(),
            dm: dm.device(),
            rows: rows as u64,
            columns: columns as u64,
            rows_per_part: rows_per_part as u64,
            parts: parts as u64,
        };
        let mut grid = Grid::new(columns.div_ceil(COLUMNS), THREADS);
        grid.blocks[1] = parts as u32;
        cuda.launch(&SOURCE, "dora_sum_rows", &[u.dtype()], grid, params);
        let grid = Grid::new(columns.div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, "dora_add_parts", &[], grid, params);
    }
}

#[cfg(test)]
mod reference {
    //! The definition: plain loops over the matrix W + s·B·A itself.

    /// Norms of the rows of W + s·B·A.
    pub fn norms(w: &[f64], a: &[f64], b: &[f64], scale: f64, [o, c, r]: [usize; 3]) -> Vec<f64> {
        let element = |j: usize, i: usize| {
            w[j * c + i] + scale * (0..r).map(|k| b[j * r + k] * a[k * c + i]).sum::<f64>()
        };
        (0..o).map(|j| (0..c).map(|i| element(j, i).powi(2)).sum::<f64>().sqrt()).collect()
    }

    /// y = m / norm ⊙ u + bias.
    pub fn forward(m: &[f64], norms: &[f64], u: &[f64], bias: &[f64]) -> Vec<f64> {
        u.iter()
            .enumerate()
            .map(|(i, u)| (i % m.len(), u))
            .map(|(j, u)| m[j] / norms[j] * u + bias[j])
            .collect()
    }

    /// du, and what comes to dm.
    pub fn backward(m: &[f64], norms: &[f64], u: &[f64], dy: &[f64]) -> [Vec<f64>; 2] {
        let o = m.len();
        let du = dy.iter().enumerate().map(|(i, dy)| m[i % o] / norms[i % o] * dy).collect();
        let mut dm = vec![0.0; o];
        dy.iter().zip(u).enumerate().for_each(|(i, (dy, u))| dm[i % o] += dy * u / norms[i % o]);
        [du, dm]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::Matmul;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    #[test]
    fn gradcheck_of_u_and_the_magnitudes() {
        let (n, o) = (3, 4);
        let mut random = Random::new(1);
        let [u, dy] = [0; 2].map(|_| random.f64s(n * o));
        let [m, bias] = [0; 2].map(|_| random.f64s(o));
        let norms: Vec<f64> = random.f64s(o).iter().map(|x| 1.5 + x).collect();
        let [du, dm] = reference::backward(&m, &norms, &u, &dy);
        let inner = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        gradcheck(|u| inner(reference::forward(&m, &norms, u, &bias)), &u, &du);
        gradcheck(|m| inner(reference::forward(m, &norms, &u, &bias)), &m, &dm);
    }

    fn matches_reference(dev: &Device, dtype: DType, [n, o, c, r]: [usize; 4]) {
        let mut random = Random::new((n + o + c + r) as u64);
        let (scale, tolerance) = (0.75, if dtype == DType::F32 { 2e-5 } else { 1e-2 });
        let mut tensor = |dtype, shape: &[usize]| random.tensor(dtype, shape).on(dev);
        let [w, a] = [[o, c], [r, c]].map(|shape| tensor(DType::F32, &shape));
        let [b, u, dy] = [[o, r], [n, o], [n, o]].map(|shape| tensor(dtype, &shape));
        let [m, bias] = [0; 2].map(|_| tensor(DType::F32, &[o]));
        let squares: Vec<f32> =
            w.to_f32_vec().chunks(c).map(|row| row.iter().map(|x| x * x).sum::<f32>()).collect();
        let squares = crate::Tensor::from_slice(&squares, &[o]).on(dev);
        let (mut a_wt, mut gram) = (dev.zeros(DType::F32, &[r, o]), dev.zeros(DType::F32, &[r, r]));
        Matmul::x_wt(a.view(), w.view(), a_wt.view_mut()).run(dev);
        Matmul::x_wt(a.view(), a.view(), gram.view_mut()).run(dev);
        let mut found = dev.zeros(DType::F32, &[FACTORS, o]);
        let norms = Norms {
            squares: squares.view(),
            magnitude: m.view(),
            a_wt: a_wt.view(),
            gram: gram.view(),
            b: b.view(),
            scale,
        };
        factors(dev, norms, found.view_mut());

        let [w, a, b64, m64, bias64] = [&w, &a, &b, &m, &bias].map(to_f64);
        let expected = reference::norms(&w, &a, &b64, f64::from(scale), [o, c, r]);
        let inverse: Vec<f64> = expected.iter().map(|norm| 1.0 / norm).collect();
        let g: Vec<f64> = m64.iter().zip(&inverse).map(|(m, by)| m * by).collect();
        let name = format!("{dtype:?} [{n}, {o}, {c}, {r}]");
        assert_close(&format!("factors of {name}"), &to_f64(&found), &[g.clone(), inverse].concat(), 1e-5);

        let (u64s, dy64) = (to_f64(&u), to_f64(&dy));
        let mut y = dev.zeros(dtype, &[n, o]);
        forward(dev, found.view(), u.view(), Some(bias.view()), y.view_mut(), false);
        let of_y = reference::forward(&m64, &expected, &u64s, &bias64);
        assert_close(&format!("y of {name}"), &to_f64(&y), &of_y, tolerance);
        forward(dev, found.view(), u.view(), None, y.view_mut(), true);
        let scaled = reference::forward(&m64, &expected, &u64s, &vec![0.0; o]);
        let twice: Vec<f64> = of_y.iter().zip(&scaled).map(|(y, s)| y + s).collect();
        assert_close(&format!("y added to of {name}"), &to_f64(&y), &twice, 2.0 * tolerance);

        let mut du = dev.zeros(dtype, &[n, o]);
        let mut dm = tensor(DType::F32, &[o]);
        let before = to_f64(&dm);
        backward(dev, found.view(), (dy.view(), u.view()), du.view_mut(), Some(dm.view_mut()));
        let [of_du, of_dm] = reference::backward(&m64, &expected, &u64s, &dy64);
        assert_close(&format!("du of {name}"), &to_f64(&du), &of_du, tolerance);
        let of_dm: Vec<f64> = of_dm.iter().zip(&before).map(|(dm, before)| dm + before).collect();
        assert_close(&format!("dm of {name}"), &to_f64(&dm), &of_dm, 1e-4);
        less(dev, found.view(), 1.0, dy.view(), du.view_mut());
        let shifted: Vec<f64> = dy64.iter().enumerate().map(|(i, dy)| (g[i % o] - 1.0) * dy).collect();
        assert_close(&format!("du − dy of {name}"), &to_f64(&du), &shifted, tolerance);
        rest(dev, dy.view(), du.view_mut());
        let others: Vec<f64> = dy64.iter().zip(&shifted).map(|(dy, part)| dy - part).collect();
        assert_close(&format!("dy − part of {name}"), &to_f64(&du), &others, 2.0 * tolerance);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for dtype in [DType::F32, DType::BF16] {
                for shape in [[5, 7, 9, 2], [1, 1, 3, 1], [300, 72, 40, 8], [70, 200, 24, 16]] {
                    matches_reference(&dev, dtype, shape);
                }
            }
        }
    }

    #[test]
    fn edges_no_row() {
        for dev in devices() {
            matches_reference(&dev, DType::F32, [0, 8, 8, 4]);
        }
    }
}
