//! xIELU, an activation with two trained numbers (stages 9 and 11 of the walk).
//!
//! Formula (Huang & Schlag, 2024), element by element, with α₊ = softplus(p) and α₋ = β + softplus(n):
//!
//! > y = α₊·x² + β·x for x > 0, else y = α₋·(e^min(x, ε) − 1 − x) + β·x
//!
//! β and ε are constants, ε just below 0. Derivative, with σ = softplus′:
//!
//! > dx = dy·(2·α₊·x + β) for x > 0, else dy·(α₋·([x < ε]·eˣ − 1) + β),
//! > dp = σ(p)·Σ_{x > 0} dy·x², dn = σ(n)·Σ_{x ≤ 0} dy·(e^min(x, ε) − 1 − x)
//!
//! Storage f32 or bf16 (one type for x, y and gradients), arithmetic f32; p and n are f32. Saved for backward: x.
//! Sums of dp and dn: over chunks of a fixed size, then over the chunks in order. 2 tensors forward, 3 backward.

use rayon::prelude::*;

use crate::exp::exp;
use crate::isa::per_isa;
use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles.
const CHUNK: usize = 4096;

/// Two trained numbers and two constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct XieluParams {
    /// p.
    pub alpha_p: f32,
    /// n.
    pub alpha_n: f32,
    /// β.
    pub beta: f32,
    /// ε.
    pub eps: f32,
}

/// α₊, α₋, β, ε.
#[derive(Clone, Copy)]
#[repr(C)]
struct Constants {
    positive: f32,
    negative: f32,
    beta: f32,
    eps: f32,
}

impl XieluParams {
    fn constants(self) -> Constants {
        let Self { alpha_p, alpha_n, beta, eps } = self;
        Constants { positive: softplus(alpha_p), negative: beta + softplus(alpha_n), beta, eps }
    }
}

/// ln(1 + eˣ).
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// softplus′.
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// eˣ − 1 for x ≤ 0 from x and eˣ: Taylor's polynomial where that cancels.
#[inline(always)]
fn expm1(x: f32, power: f32) -> f32 {
    let small = x * (1.0 + x * (1.0 / 2.0 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0)))));
    if x > -0.2 { small } else { power - 1.0 }
}

/// y = xielu(x).
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, params: XieluParams, x: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("xielu", 2 * x.byte_len());
    assert_eq!(x.shape(), y.shape(), "xielu: x and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params.constants(), x, y);
    }
    with_dtype!(x.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            values(dev.isa(), params.constants(), &x[i * CHUNK..], y);
        });
    });
}

/// f32 values of scratch that [`backward`] needs for so many elements.
pub fn scratch_len(elements: usize) -> usize {
    2 * elements.div_ceil(CHUNK)
}

/// Replaces x by dx and dy by y; returns dp and dn. `scratch` is f32, at least [`scratch_len`] of it.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    params: XieluParams,
    dy: ViewMut<'_>,
    x: ViewMut<'_>,
    scratch: ViewMut<'_>,
) -> [f32; 2] {
    let _timed = dev.pass("xielu backward", 4 * dy.byte_len());
    assert_eq!(x.shape(), dy.shape(), "xielu: x and dy");
    if let Some(cuda) = dev.cuda() {
        let [positive, negative] = on_cuda::backward(cuda, params.constants(), dy, x, scratch);
        return [positive * sigmoid(params.alpha_p), negative * sigmoid(params.alpha_n)];
    }
    let sums = &mut scratch.as_mut_slice::<f32>()[..scratch_len(x.elements())];
    with_dtype!(dy.dtype(), E => {
        let chunks = x.as_mut_slice::<E>().par_chunks_mut(CHUNK).zip(dy.as_mut_slice::<E>().par_chunks_mut(CHUNK));
        dev.for_each_item(chunks.zip(sums.par_chunks_mut(2)), |((x, dy), sums)| {
            gradients(dev.isa(), params.constants(), dy, x, sums);
        });
    });
    let sum = |which: usize| sums.iter().skip(which).step_by(2).sum::<f32>();
    [sum(0) * sigmoid(params.alpha_p), sum(1) * sigmoid(params.alpha_n)]
}

per_isa! {
    fn values<E: Element>(c: Constants, x: &[E], y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.to_f32();
            let positive = c.positive * x * x;
            let limited = x.min(c.eps);
            let negative = c.negative * (expm1(limited, exp(limited)) - x);
            *y = E::from_f32(if x > 0.0 { positive } else { negative } + c.beta * x);
        }
    }

    fn gradients<E: Element>(c: Constants, dy: &mut [E], x: &mut [E], sums: &mut [f32]) {
        let (mut positive, mut negative) = ([0.0; LANES], [0.0; LANES]);
        // Blocks of a constant length, which vectorise.
        let ((blocks, rest), (dy_blocks, dy_rest)) = (x.as_chunks_mut::<LANES>(), dy.as_chunks_mut::<LANES>());
        for (x, dy) in blocks.iter_mut().zip(dy_blocks) {
            for i in 0..LANES {
                gradient(c, &mut x[i], &mut dy[i], (&mut positive[i], &mut negative[i]));
            }
        }
        for (i, (x, dy)) in rest.iter_mut().zip(dy_rest).enumerate() {
            gradient(c, x, dy, (&mut positive[i], &mut negative[i]));
        }
        sums[0] = positive.iter().sum();
        sums[1] = negative.iter().sum();
    }
}

/// Sums of dp and dn that run beside each other.
const LANES: usize = 16;

/// Replaces x by dx and dy by y; adds to the sums of dp and dn.
#[inline(always)]
fn gradient<E: Element>(c: Constants, x: &mut E, dy: &mut E, (positive, negative): (&mut f32, &mut f32)) {
    let (value, gradient) = (x.to_f32(), dy.to_f32());
    let limited = value.min(c.eps);
    let power = exp(limited);
    let (above, below) = (value * value, expm1(limited, power) - value);
    let is_positive = value > 0.0;
    *positive += if is_positive { gradient * above } else { 0.0 };
    *negative += if is_positive { 0.0 } else { gradient * below };
    let inside = if value < c.eps { power } else { 0.0 };
    let slope = if is_positive { 2.0 * c.positive * value } else { c.negative * (inside - 1.0) };
    *x = E::from_f32(gradient * (slope + c.beta));
    let curved = if is_positive { c.positive * above } else { c.negative * below };
    *dy = E::from_f32(curved + c.beta * value);
}

mod on_cuda {
    use super::{CHUNK, Constants, scratch_len};
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("xielu", include_str!("xielu.cu"));

    /// Threads of a block of the backward pass, and of the one that adds its sums.
    const THREADS: usize = 256;
    const SUM_THREADS: usize = 1024;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct XieluForward {
        x: DevicePtr,
        y: DevicePtr,
        elements: u64,
        constants: Constants,
    }
    // SAFETY: `XieluForward` of xielu.cu.
    unsafe impl Params for XieluForward {}

    pub fn forward(cuda: &Cuda, constants: Constants, x: View<'_>, mut y: ViewMut<'_>) {
        assert_eq!(x.dtype(), y.dtype(), "xielu: one type");
        let elements = x.elements();
        let params = XieluForward { x: x.device(), y: y.device(), elements: elements as u64, constants };
        cuda.launch(&SOURCE, "xielu_forward", &[x.dtype()], Grid::element_wise(elements, x.dtype()), params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct XieluBackward {
        dy: DevicePtr,
        x: DevicePtr,
        sums: DevicePtr,
        elements: u64,
        constants: Constants,
        chunk: u32,
    }
    // SAFETY: `XieluBackward` of xielu.cu.
    unsafe impl Params for XieluBackward {}

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct XieluSums {
        sums: DevicePtr,
        count: u32,
    }
    // SAFETY: `XieluSums` of xielu.cu.
    unsafe impl Params for XieluSums {}

    /// The two sums, which the host waits for.
    pub fn backward(
        cuda: &Cuda,
        constants: Constants,
        mut dy: ViewMut<'_>,
        mut x: ViewMut<'_>,
        mut scratch: ViewMut<'_>,
    ) -> [f32; 2] {
        let elements = dy.elements();
        assert_eq!(x.dtype(), dy.dtype(), "xielu: one type");
        assert!(
            scratch.dtype() == DType::F32 && scratch.elements() >= scratch_len(elements),
            "xielu: scratch"
        );
        if elements == 0 {
            return [0.0; 2];
        }
        let (sums, blocks) = (scratch.device(), elements.div_ceil(CHUNK));
        let params = XieluBackward {
            dy: dy.device(),
            x: x.device(),
            sums,
            elements: elements as u64,
            constants,
            chunk: CHUNK as u32,
        };
        cuda.launch(&SOURCE, "xielu_backward", &[dy.dtype()], Grid::new(blocks, THREADS), params);
        let params = XieluSums { sums, count: blocks as u32 };
        cuda.launch(&SOURCE, "xielu_sums", &[], Grid::new(1, SUM_THREADS), params);
        let sums = cuda.read_f32(sums, 2);
        [sums[0], sums[1]]
    }
}

#[cfg(test)]
mod reference {
    use super::XieluParams;

    fn softplus(x: f64) -> f64 {
        x.exp().ln_1p()
    }

    /// By p and n.
    pub fn forward(params: XieluParams, [p, n]: [f64; 2], x: &[f64]) -> Vec<f64> {
        let (beta, eps) = (f64::from(params.beta), f64::from(params.eps));
        let value = |x: f64| {
            if x > 0.0 {
                softplus(p) * x * x + beta * x
            } else {
                (beta + softplus(n)) * (x.min(eps).exp_m1() - x) + beta * x
            }
        };
        x.iter().map(|x| value(*x)).collect()
    }

    /// dx, and dp and dn.
    pub fn backward(params: XieluParams, [p, n]: [f64; 2], x: &[f64], dy: &[f64]) -> (Vec<f64>, [f64; 2]) {
        let (beta, eps) = (f64::from(params.beta), f64::from(params.eps));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut sums = [0.0; 2];
        let gradient = |(x, dy): (&f64, &f64)| {
            if *x > 0.0 {
                sums[0] += dy * x * x * sigmoid(p);
                return dy * (2.0 * softplus(p) * x + beta);
            }
            sums[1] += dy * (x.min(eps).exp_m1() - x) * sigmoid(n);
            let inside = if *x < eps { x.exp() } else { 0.0 };
            dy * ((beta + softplus(n)) * (inside - 1.0) + beta)
        };
        let dx = x.iter().zip(dy).map(gradient).collect();
        (dx, sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};
    use crate::{DType, Tensor};

    const PARAMS: XieluParams = XieluParams { alpha_p: 0.3, alpha_n: -0.9, beta: 0.5, eps: -1e-6 };
    const ALPHAS: [f64; 2] = [0.3, -0.9];

    #[test]
    fn gradcheck_of_the_reference() {
        let mut random = Random::new(3);
        let (x, dy) = (random.f64s(9), random.f64s(9));
        let (dx, dalphas) = reference::backward(PARAMS, ALPHAS, &x, &dy);
        let loss = |x: &[f64], alphas: [f64; 2]| -> f64 {
            reference::forward(PARAMS, alphas, x).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        gradcheck(|x| loss(x, ALPHAS), &x, &dx);
        gradcheck(|alphas| loss(&x, [alphas[0], alphas[1]]), &ALPHAS, &dalphas);
    }

    #[test]
    fn matches_torch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/xielu.json")).unwrap();
        let values = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
        let (x, dy) = (values("x"), [1.0, -1.0, 2.0, 0.5, 0.25, 3.0, -2.0, 1.0]);
        // The constants of the op are f32.
        assert_close("y", &reference::forward(PARAMS, ALPHAS, &x), &values("y"), 1e-12);
        let (dx, [dp, dn]) = reference::backward(PARAMS, ALPHAS, &x, &dy);
        assert_close("dx", &dx, &values("dx"), 1e-12);
        assert_close("dp, dn", &[dp, dn], &[values("dalpha_p")[0], values("dalpha_n")[0]], 1e-12);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
                for n in [1, 5, 2 * CHUNK + 77] {
                    let mut random = Random::new(5);
                    let [mut x, mut dy] = [0; 2].map(|_| random.tensor(dtype, &[n, 1]).on(&dev));
                    let (xs, dys) = (to_f64(&x), to_f64(&dy));
                    let mut y = dev.zeros(dtype, &[n, 1]);
                    forward(&dev, PARAMS, x.view(), y.view_mut());
                    let expected = reference::forward(PARAMS, ALPHAS, &xs);
                    assert_close("y", &to_f64(&y), &expected, tolerance);
                    let mut scratch = dev.zeros(DType::F32, &[scratch_len(n)]);
                    let found = backward(&dev, PARAMS, dy.view_mut(), x.view_mut(), scratch.view_mut());
                    assert_close("y once more", &to_f64(&dy), &expected, tolerance);
                    let (dx, dalphas) = reference::backward(PARAMS, ALPHAS, &xs, &dys);
                    assert_close("dx", &to_f64(&x), &dx, tolerance);
                    assert_close("dp, dn", &found.map(f64::from), &dalphas, 1e-5);
                }
            }
        }
    }

    #[test]
    fn edges_nothing_and_large_magnitudes() {
        for dev in devices() {
            let mut none = dev.zeros(DType::F32, &[0, 1]);
            let mut dy = dev.zeros(DType::F32, &[0, 1]);
            let mut scratch = dev.zeros(DType::F32, &[2]);
            assert_eq!(backward(&dev, PARAMS, dy.view_mut(), none.view_mut(), scratch.view_mut()), [0.0; 2]);
            let x = Tensor::from_slice(&[-1e30f32, 1e10], &[2, 1]).on(&dev);
            let mut y = dev.zeros(DType::F32, &[2, 1]);
            forward(&dev, PARAMS, x.view(), y.view_mut());
            assert!(y.to_f32_vec().iter().all(|y| y.is_finite()));
        }
    }
}
