//! Random numbers from counters: the n-th number of a key is a hash of both, so nothing depends on order or threads.

use crate::{Device, Element, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Numbers that one task draws.
const CHUNK: usize = 4096;

/// The finaliser of SplitMix64 (Steele, Lea & Flood, 2014) over key and index.
#[inline(always)]
pub fn hash(key: u64, index: u64) -> u64 {
    let mut z = key ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A key for one use, from the seed of the run and what tells this use from others (step, layer, …).
pub fn key(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(hash(seed, 1), |key, part| hash(key, part.wrapping_add(1)))
}

/// A key part from a name.
pub fn name_part(name: &str) -> u64 {
    name.bytes().fold(0, |key, byte| hash(key, u64::from(byte) + 1))
}

/// The `index`-th number of `key`, uniform in [0, 1).
pub fn uniform(key: u64, index: u64) -> f64 {
    (hash(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `index`-th number of `key`, normally distributed (Box & Muller, 1958).
pub fn normal(key: u64, index: u64) -> f64 {
    let (u, v) = (uniform(key, 2 * index), uniform(key, 2 * index + 1));
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Fills a tensor with the numbers of `key` from the first on, multiplied by `scale`. A GPU's differ in the last bits.
pub fn fill_normal(dev: &Device, key: u64, scale: f64, out: ViewMut<'_>) {
    if let Some(cuda) = dev.cuda() {
        return on_cuda::fill_normal(cuda, key, scale, out);
    }
    with_dtype!(out.dtype(), E => {
        dev.for_each_chunk(out.as_mut_slice::<E>(), CHUNK, |chunk, values| {
            let first = (chunk * CHUNK) as u64;
            values.iter_mut().zip(first..).for_each(|(x, i)| *x = E::from_f32((normal(key, i) * scale) as f32));
        });
    });
}

/// Adds numbers of `key` from the `first` on, uniform in ±`scale`.
pub fn add_uniform(dev: &Device, (key, first): (u64, u64), scale: f32, out: ViewMut<'_>) {
    if let Some(cuda) = dev.cuda() {
        return on_cuda::add_uniform(cuda, (key, first), scale, out);
    }
    with_dtype!(out.dtype(), E => {
        dev.for_each_chunk(out.as_mut_slice::<E>(), CHUNK, |chunk, values| {
            for (x, i) in values.iter_mut().zip(first + (chunk * CHUNK) as u64..) {
                *x = E::from_f32(x.to_f32() + scale * (2.0 * uniform(key, i) - 1.0) as f32);
            }
        });
    });
}

mod on_cuda {
    use crate::ViewMut;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};

    pub(crate) static SOURCE: Source = Source::new("random", include_str!("random.cu"));

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct FillNormal {
        out: DevicePtr,
        elements: u64,
        key: u64,
        scale: f64,
    }

    // SAFETY: the struct of random.cu; `out` holds `elements` of its type.
    unsafe impl Params for FillNormal {}

    pub fn fill_normal(cuda: &Cuda, key: u64, scale: f64, mut out: ViewMut<'_>) {
        let (dtype, elements) = (out.dtype(), out.elements());
        let params = FillNormal { out: out.device(), elements: elements as u64, key, scale };
        cuda.launch(&SOURCE, "fill_normal", &[dtype], Grid::element_wise(elements, dtype), params);
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct AddUniform {
        out: DevicePtr,
        elements: u64,
        key: u64,
        first: u64,
        scale: f32,
    }

    // SAFETY: the struct of random.cu; `out` holds `elements` of its type.
    unsafe impl Params for AddUniform {}

    pub fn add_uniform(cuda: &Cuda, (key, first): (u64, u64), scale: f32, mut out: ViewMut<'_>) {
        let (dtype, elements) = (out.dtype(), out.elements());
        let params = AddUniform { out: out.device(), elements: elements as u64, key, first, scale };
        cuda.launch(&SOURCE, "add_uniform", &[dtype], Grid::element_wise(elements, dtype), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::{assert_close, devices, to_f64};

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1.0 / 128.0)] {
                let mut found = dev.zeros(dtype, &[5003]);
                fill_normal(&dev, 9, 0.5, found.view_mut());
                let expected: Vec<f64> = (0..5003).map(|i| 0.5 * normal(9, i)).collect();
                assert_close("numbers", &to_f64(&found), &expected, tolerance);
            }
        }
    }

    #[test]
    fn added_numbers_are_those_of_the_key_whatever_part_is_asked_for() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1.0 / 128.0)] {
                let mut found = dev.zeros(dtype, &[4100]);
                add_uniform(&dev, (9, 77), 0.5, found.view_mut());
                let mut expected: Vec<f64> = (0..4100).map(|i| uniform(9, 77 + i) - 0.5).collect();
                assert_close("numbers", &to_f64(&found), &expected, tolerance);
                add_uniform(&dev, (9, 80), 0.5, found.view_mut().into_rows(3..7));
                expected[3..7].iter_mut().for_each(|x| *x *= 2.0);
                assert_close("twice", &to_f64(&found), &expected, 2.0 * tolerance);
            }
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let numbers: Vec<f64> = (0..n).map(|i| normal(key(7, &[1]), i)).collect();
        let mean = numbers.iter().sum::<f64>() / n as f64;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
