//! The activation of a feed-forward layer without a gate (stages 9 and 11 of the walk).
//!
//! Formula: y = act(x), element by element, with the functions of [`crate::gated`]. Derivative: dx = dy · act′(x).
//!
//! Storage f32 or bf16 (one type for all), arithmetic f32. Saved for backward: x; y is computed again with its
//! gradient at hand. Memory-bound: 2 tensors forward, 4 backward.

use crate::dtype::round;
use crate::gated::{Activation, BLOCK, Gate, sigmoids, with_activation};
use crate::isa::per_isa;
use crate::{Device, Element, Isa, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles.
const CHUNK: usize = 8192;

/// y = act(x).
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, act: Activation, x: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("activation", 2 * x.byte_len());
    assert_eq!(x.shape(), y.shape(), "activation: x and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, act, x, y);
    }
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            with_activation!(act, act => values(dev.isa(), act, &x[i * CHUNK..], y));
        });
    });
}

/// Replaces x by dx, and dy by y.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, act: Activation, dy: ViewMut<'_>, x: ViewMut<'_>) {
    let _timed = dev.pass("activation backward", 4 * dy.byte_len());
    assert_eq!(x.shape(), dy.shape(), "activation: x and dy");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, act, dy, x);
    }
    with_dtype!(dy.dtype(), E => {
        let (dy, x) = (dy.as_mut_slice::<E>(), x.as_mut_slice::<E>());
        dev.for_each_chunk_pair((dy, CHUNK), (x, CHUNK), |_, dy, x| {
            with_activation!(act, act => gradients(dev.isa(), act, dy, x));
        });
    });
}

fn values<E: Element, G: Gate>(isa: Isa, act: G, x: &[E], y: &mut [E]) {
    let mut s = [0.0; BLOCK];
    for (y, x) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
        let s = &mut s[..y.len()];
        sigmoids(isa, act, x, s);
        block_values(isa, act, x, s);
        round(isa, s, y);
    }
}

fn gradients<E: Element, G: Gate>(isa: Isa, act: G, dy: &mut [E], x: &mut [E]) {
    let [mut s, mut y] = [[0.0; BLOCK]; 2];
    for (x, dy) in x.chunks_mut(BLOCK).zip(dy.chunks_mut(BLOCK)) {
        let (s, y) = (&mut s[..x.len()], &mut y[..x.len()]);
        sigmoids(isa, act, x, s);
        y.copy_from_slice(s);
        block_values(isa, act, x, y);
        block_gradients(isa, act, dy, x, s);
        round(isa, s, x);
        round(isa, y, dy);
    }
}

per_isa! {
    /// Replaces σ by y.
    fn block_values<E: Element, G: Gate>(act: G, x: &[E], s: &mut [f32]) {
        s.iter_mut().zip(x).for_each(|(s, x)| *s = act.value(x.to_f32(), *s));
    }

    /// Replaces σ by dx.
    fn block_gradients<E: Element, G: Gate>(act: G, dy: &[E], x: &[E], s: &mut [f32]) {
        let pairs = x.iter().zip(dy);
        s.iter_mut().zip(pairs).for_each(|(s, (x, dy))| *s = dy.to_f32() * act.slope(x.to_f32(), *s));
    }
}

mod on_cuda {
    use super::Activation;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new(
        "activation",
        concat!(
            include_str!("activation_functions.cuh"),
            "\n#line 1 \"activation.cu\"\n",
            include_str!("activation.cu")
        ),
    );

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct ActivationForward {
        x: DevicePtr,
        y: DevicePtr,
        elements: u64,
        activation: u32,
    }
    // SAFETY: `ActivationForward` of activation.cu.
    unsafe impl Params for ActivationForward {}

    pub fn forward(cuda: &Cuda, act: Activation, x: View<'_>, mut y: ViewMut<'_>) {
        assert_eq!(x.dtype(), y.dtype(), "activation: one type");
        let elements = x.elements();
        let params = ActivationForward {
            x: x.device(),
            y: y.device(),
            elements: elements as u64,
            activation: act as u32,
        };
        let grid = Grid::element_wise(elements, x.dtype());
        cuda.launch(&SOURCE, "activation_forward", &[x.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct ActivationBackward {
        dy: DevicePtr,
        x: DevicePtr,
        elements: u64,
        activation: u32,
    }
    // SAFETY: `ActivationBackward` of activation.cu.
    unsafe impl Params for ActivationBackward {}

    pub fn backward(cuda: &Cuda, act: Activation, mut dy: ViewMut<'_>, mut x: ViewMut<'_>) {
        assert_eq!(x.dtype(), dy.dtype(), "activation: one type");
        let elements = dy.elements();
        let params = ActivationBackward {
            dy: dy.device(),
            x: x.device(),
            elements: elements as u64,
            activation: act as u32,
        };
        let grid = Grid::element_wise(elements, dy.dtype());
        cuda.launch(&SOURCE, "activation_backward", &[dy.dtype()], grid, params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gated::reference;
    use crate::testing::{Random, assert_close, devices, to_f64};

    // The functions and their slopes are compared with torch and with differences where `gated` is tested.
    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
                for act in [Activation::Silu, Activation::Gelu, Activation::Relu, Activation::Relu2] {
                    let mut random = Random::new(5);
                    let shape = [CHUNK + 77, 1];
                    let [mut x, mut dy] = [0; 2].map(|_| random.tensor(dtype, &shape).on(&dev));
                    let (xs, dys) = (to_f64(&x), to_f64(&dy));
                    let mut y = dev.zeros(dtype, &shape);
                    forward(&dev, act, x.view(), y.view_mut());
                    let expected: Vec<f64> = xs.iter().map(|x| reference::activation(act, *x)).collect();
                    assert_close("y", &to_f64(&y), &expected, tolerance);
                    backward(&dev, act, dy.view_mut(), x.view_mut());
                    assert_eq!(to_f64(&dy), to_f64(&y), "y once more");
                    let slopes = xs.iter().zip(&dys).map(|(x, dy)| dy * reference::slope(act, *x));
                    assert_close("dx", &to_f64(&x), &slopes.collect::<Vec<_>>(), tolerance);
                }
            }
        }
    }
    #[test]
    fn tensors_may_begin_anywhere() {
        for dev in devices() {
            let mut random = Random::new(6);
            let [mut x, mut dy, mut y] = [0; 3].map(|_| random.tensor(DType::BF16, &[40, 1]).on(&dev));
            let (xs, dys, ys) = (to_f64(&x), to_f64(&dy), to_f64(&y));
            let values = |range: std::ops::Range<usize>, f: fn(f64, f64) -> f64| -> Vec<f64> {
                range.map(|i| f(xs[i], dys[i])).collect()
            };
            forward(&dev, Activation::Silu, x.view().rows(1..38), y.view_mut().into_rows(1..38));
            let mut expected = values(1..38, |x, _| reference::activation(Activation::Silu, x));
            expected.splice(0..0, [ys[0]]);
            expected.extend(&ys[38..]);
            assert_close("y", &to_f64(&y), &expected, 1e-2);
            let dout = dy.view_mut().into_rows(3..40);
            backward(&dev, Activation::Silu, dout, x.view_mut().into_rows(3..40));
            let mut expected = values(3..40, |x, dy| dy * reference::slope(Activation::Silu, x));
            expected.splice(0..0, xs[..3].iter().copied());
            assert_close("dx", &to_f64(&x), &expected, 1e-2);
        }
    }
}
