//! Soft capping of logits, in place (stages 10 and 11 of the walk).
//!
//! Formula (Gemma 2): y = cap · tanh(z / cap). Derivative, of the capped value alone: dz = dy · (1 − (y / cap)²).
//!
//! f32; one pass over the logits. Backward is part of [`crate::cross_entropy::backward`], where the logits are
//! replaced by their gradient. Attention caps its scores itself.

use crate::exp::exp;
use crate::isa::per_isa;
use crate::{Device, ViewMut};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles.
const CHUNK: usize = 4096;

/// z ← cap · tanh(z / cap); z is f32.
///
/// # Panics
/// If z is not f32.
pub fn forward(dev: &Device, cap: f32, z: ViewMut<'_>) {
    let _timed = dev.pass("softcap", 2 * z.byte_len());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, cap, z);
    }
    dev.for_each_chunk(z.as_mut_slice::<f32>(), CHUNK, |_, z| cap_all(dev.isa(), cap, z));
}

per_isa! {
    fn cap_all(cap: f32, z: &mut [f32]) {
        z.iter_mut().for_each(|z| *z = cap * tanh(*z / cap));
    }
}

/// The derivative of a capped value `y` by what it was.
#[inline(always)]
pub(crate) fn slope(y: f32, cap: f32) -> f32 {
    let t = y / cap;
    1.0 - t * t
}

/// tanh x: Taylor's polynomial for small x, where 1 − 2 / (e²ˣ + 1) cancels.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let s = x * x;
    let small = x + x * s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0))));
    let large = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if s < 0.0625 { small } else { large }
}

mod on_cuda {
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("softcap", include_str!("softcap.cu"));

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Softcap {
        z: DevicePtr,
        elements: u64,
        cap: f32,
    }
    // SAFETY: `Softcap` of softcap.cu.
    unsafe impl Params for Softcap {}

    pub fn forward(cuda: &Cuda, cap: f32, mut z: ViewMut<'_>) {
        assert_eq!(z.dtype(), DType::F32, "softcap: logits are float32");
        let params = Softcap { z: z.device(), elements: z.elements() as u64, cap };
        cuda.launch(&SOURCE, "softcap_forward", &[], Grid::element_wise(z.elements(), DType::F32), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross_entropy::{self, STATISTICS};
    use crate::testing::{Random, assert_close, devices, to_f64};
    use crate::{DType, Tensor};

    #[test]
    fn tanh_is_that_of_f64() {
        let worst = (-4000..4000).map(|i| i as f32 * 2.5e-3).map(|x| {
            let truth = f64::from(x).tanh();
            (f64::from(tanh(x)) - truth).abs() / truth.abs().max(1e-3)
        });
        assert!(worst.fold(0.0, f64::max) < 5e-7);
        assert_eq!((tanh(1e4), tanh(-1e4), tanh(0.0)), (1.0, -1.0, 0.0));
    }

    /// Σ nll of capped logits, in f64.
    fn loss(z: &[f64], v: usize, targets: &[u32], cap: f64) -> f64 {
        let rows = z.chunks(v).zip(targets);
        rows.map(|(z, target)| {
            let y: Vec<f64> = z.iter().map(|z| cap * (z / cap).tanh()).collect();
            y.iter().map(|y| y.exp()).sum::<f64>().ln() - y[*target as usize]
        })
        .sum()
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for n in [1, 7, CHUNK + 5] {
                let mut z = Random::new(2).tensor(DType::F32, &[1, n]).on(&dev);
                let expected: Vec<f64> = to_f64(&z).iter().map(|z| 0.3 * (z / 0.3).tanh()).collect();
                forward(&dev, 0.3, z.view_mut());
                assert_close("y", &to_f64(&z), &expected, 5e-7);
            }
        }
    }

    #[test]
    fn the_gradient_of_a_capped_loss_is_that_of_differences() {
        for dev in devices() {
            let (v, targets, cap) = (17, [3, 0, 16], 2.0);
            let mut z = Random::new(8).tensor(DType::F32, &[3, v]).on(&dev);
            let before = to_f64(&z);
            forward(&dev, cap, z.view_mut());
            let mut positions = dev.zeros(DType::F32, &[3, STATISTICS]);
            cross_entropy::forward(&dev, z.view(), &targets, positions.view_mut());
            let mut totals = cross_entropy::Totals::new(&dev);
            totals.add(&dev, positions.view());
            let found = totals.read(&dev).nll;
            assert_close("loss", &[found], &[loss(&before, v, &targets, 2.0)], 1e-6);
            cross_entropy::backward(&dev, z.view_mut(), &targets, positions.view(), 1.0, Some(cap));
            let expected = differences(&before, |z| loss(z, v, &targets, 2.0));
            assert_close("dz", &to_f64(&z), &expected, 1e-5);
        }
    }

    fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let shifted = |i: usize, by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            f(&x)
        };
        (0..x.len()).map(|i| (shifted(i, 1e-5) - shifted(i, -1e-5)) / 2e-5).collect()
    }

    #[test]
    fn edges_nothing_and_infinity() {
        for dev in devices() {
            let mut z = Tensor::from_slice(&[f32::INFINITY, f32::NEG_INFINITY], &[1, 2]).on(&dev);
            forward(&dev, 30.0, z.view_mut());
            assert_eq!(z.to_f32_vec(), [30.0, -30.0]);
            forward(&dev, 30.0, dev.zeros(DType::F32, &[0, 2]).view_mut());
        }
    }
}
