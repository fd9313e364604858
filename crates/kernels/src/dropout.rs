//! Dropout without a stored mask (stages 9 and 11 of the walk).
//!
//! Formula (Srivastava et al., 2014): y = x · keep / (1 − p), with keep drawn for each element. The draw is a hash of
//! (key, index of the element), so backward draws the same mask again, and results do not depend on threads or device.
//! Derivative: dx = dy · keep / (1 − p), the same function.

use crate::isa::per_isa;
use crate::random::hash;
use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

const CHUNK: usize = 4096;

/// y = x · keep / (1 − p) (+ y if `accumulate`); `p` in [0, 1). The same call with the gradients is the backward pass.
///
/// # Panics
/// If shapes or types do not fit, or p is outside.
pub fn apply(dev: &Device, p: f32, key: u64, x: View<'_>, y: ViewMut<'_>, accumulate: bool) {
    let _timed = dev.pass("dropout", 2 * x.byte_len());
    assert!((0.0..1.0).contains(&p), "dropout: p = {p}");
    assert_eq!(x.elements(), y.elements(), "dropout: x and y");
    let scale = 1.0 / (1.0 - p);
    let threshold = (f64::from(p) * 2f64.powi(32)) as u64;
    if let Some(cuda) = dev.cuda() {
        return on_cuda::apply(cuda, (key, threshold), scale, x, y, accumulate);
    }
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            let first = i * CHUNK;
            drop_some(dev.isa(), (key, first as u64), threshold, scale, &x[first..], y, accumulate);
        });
    });
}

per_isa! {
    fn drop_some<E: Element>(
        draw: (u64, u64),
        threshold: u64,
        scale: f32,
        x: &[E],
        y: &mut [E],
        accumulate: bool,
    ) {
        let (key, first) = draw;
        for ((i, y), x) in (first..).zip(y).zip(x) {
            let keep = (hash(key, i) >> 32) >= threshold;
            let kept = if keep { x.to_f32() * scale } else { 0.0 };
            *y = E::from_f32(if accumulate { y.to_f32() + kept } else { kept });
        }
    }
}

mod on_cuda {
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("dropout", include_str!("dropout.cu"));

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Dropout {
        x: DevicePtr,
        y: DevicePtr,
        elements: u64,
        key: u64,
        threshold: u64,
        scale: f32,
        accumulate: u32,
    }
    // SAFETY: `Dropout` of dropout.cu.
    unsafe impl Params for Dropout {}

    pub fn apply(
        cuda: &Cuda,
        (key, threshold): (u64, u64),
        scale: f32,
        x: View<'_>,
        mut y: ViewMut<'_>,
        accumulate: bool,
    ) {
        assert_eq!(x.dtype(), y.dtype(), "dropout: one type");
        let params = Dropout {
            x: x.device(),
            y: y.device(),
            elements: x.elements() as u64,
            key,
            threshold,
            scale,
            accumulate: accumulate.into(),
        };
        cuda.launch(&SOURCE, "dropout", &[x.dtype()], Grid::element_wise(x.elements(), x.dtype()), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{key, uniform};
    use crate::testing::{Random, assert_close, devices, to_f64};
    use crate::{DType, Tensor};

    #[test]
    fn a_share_of_p_is_dropped_and_the_mean_stays() {
        for dev in devices() {
            let n = 100_000;
            let ones = Tensor::from_slice(&vec![1.0f32; n], &[n]).on(&dev);
            let mut y = dev.zeros(DType::F32, &[n]);
            apply(&dev, 0.3, key(42, &[1, 2]), ones.view(), y.view_mut(), false);
            let y = y.to_f32_vec();
            let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / n as f64;
            let mean = y.iter().map(|y| f64::from(*y)).sum::<f64>() / n as f64;
            assert!((dropped - 0.3).abs() < 0.01, "dropped {dropped}");
            assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for dtype in [DType::F32, DType::BF16] {
                let (n, key) = (1037, key(3, &[5]));
                let mut random = Random::new(6);
                let [x, mut y] = [0; 2].map(|_| random.tensor(dtype, &[n]).on(&dev));
                let kept = |i: usize, x: f64| if uniform(key, i as u64) >= 0.25 { x / 0.75 } else { 0.0 };
                let expected = to_f64(&x).into_iter().enumerate().map(|(i, x)| kept(i, x));
                let sum: Vec<f64> = expected.clone().zip(to_f64(&y)).map(|(kept, y)| kept + y).collect();
                let tolerance = if dtype == DType::F32 { 1e-6 } else { 8e-3 };
                apply(&dev, 0.25, key, x.view(), y.view_mut(), true);
                assert_close("y, added", &to_f64(&y), &sum, tolerance);
                apply(&dev, 0.25, key, x.view(), y.view_mut(), false);
                assert_close("y", &to_f64(&y), &expected.collect::<Vec<_>>(), tolerance);
            }
        }
    }

    #[test]
    fn the_mask_depends_on_the_key_alone() {
        let masked = |dev: &Device, key| {
            let x = Tensor::from_slice(&vec![1.0f32; 10_000], &[10_000]).on(dev);
            let mut y = dev.zeros(DType::F32, &[10_000]);
            apply(dev, 0.5, key, x.view(), y.view_mut(), false);
            y.to_f32_vec()
        };
        let devices = devices();
        let first = masked(&devices[0], key(1, &[0]));
        assert!(devices.iter().all(|dev| masked(dev, key(1, &[0])) == first));
        assert_ne!(masked(&devices[0], key(1, &[1])), first);
        assert_ne!(masked(&devices[0], key(2, &[0])), first);
    }
}
