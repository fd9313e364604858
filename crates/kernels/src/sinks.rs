//! Attention sinks (stages 9 and 11 of the walk): a column of the softmax without a value, one number for each head.
//!
//! gpt-oss adds e^sink[h] to the denominator of every softmax of a head (Xiao et al., 2023; Miller, 2023). From what
//! [`crate::attention`] gives without it, out and lse = ln Σ e^score, for query i and head h:
//!
//! > lse' = ln(e^lse + e^sink), out' = out · e^(lse − lse') = out · σ(lse − sink)
//!
//! With out' and lse' in place of out and lse, attention's backward is the derivative as it stands: p comes from lse',
//! and the sink adds nothing to Σ p·dp = dout·out' = delta. What is left is the sink's own,
//!
//! > dsink[h] = −Σ_i e^(sink − lse'[i, h]) · delta[i, h]
//!
//! out is f32 or bf16 [N, H, D], the rest f32; the sum goes over queries in order of fixed parts. One pass over out.

use crate::{DType, Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Queries whose sum of a sink's gradient is one part.
const QUERIES_PER_PART: usize = 256;

/// out and lse with the sinks, in place: out [N, H, D], lse f32 [N, H], sinks f32 [H].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, sinks: View<'_>, out: ViewMut<'_>, lse: ViewMut<'_>) {
    let _timed = dev.pass("sinks", 2 * out.byte_len());
    let (heads, width) = (out.dim(1), out.dim(2));
    assert_eq!(lse.shape(), &out.shape()[..2], "sinks: lse");
    assert_eq!((sinks.shape(), sinks.dtype()), (&[heads][..], DType::F32), "sinks");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, sinks, out, lse);
    }
    let (sinks, lse) = (sinks.as_slice::<f32>(), lse.as_mut_slice::<f32>());
    with_dtype!(out.dtype(), E => {
        dev.for_each_chunk_pair((out.as_mut_slice::<E>(), heads * width), (lse, heads), |_, out, lse| {
            for ((out, lse), sink) in out.chunks_exact_mut(width).zip(lse).zip(sinks) {
                let kept = 1.0 / (1.0 + (sink - *lse).exp());
                out.iter_mut().for_each(|x| *x = E::from_f32(x.to_f32() * kept));
                *lse = lse.max(*sink) + (-(*lse - sink).abs()).exp().ln_1p();
            }
        });
    });
}

/// Adds to dsinks f32 [H], with lse of [`forward`] and delta of attention's backward, both f32 [N, H].
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, sinks: View<'_>, lse: View<'_>, delta: View<'_>, dsinks: ViewMut<'_>) {
    let _timed = dev.pass("sinks backward", 2 * lse.byte_len());
    let (n, heads) = (lse.dim(0), lse.dim(1));
    assert_eq!((delta.shape(), dsinks.elements(), sinks.elements()), (lse.shape(), heads, heads), "sinks");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, sinks, lse, delta, dsinks);
    }
    let (sinks, lse, delta) = (sinks.as_slice::<f32>(), lse.as_slice::<f32>(), delta.as_slice::<f32>());
    let mut parts = vec![0.0f32; n.div_ceil(QUERIES_PER_PART) * heads];
    dev.for_each_chunk(&mut parts, heads, |part, sums| {
        let queries = part * QUERIES_PER_PART..((part + 1) * QUERIES_PER_PART).min(n);
        for at in queries.map(|query| query * heads) {
            for (h, sum) in sums.iter_mut().enumerate() {
                *sum -= (sinks[h] - lse[at + h]).exp() * delta[at + h];
            }
        }
    });
    let dsinks = dsinks.as_mut_slice::<f32>();
    for sums in parts.chunks_exact(heads) {
        dsinks.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
    }
}

mod on_cuda {
    //! The same on a GPU: a warp has one query and head forward, a block one head backward.

    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("sinks", include_str!("sinks.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Sinks {
        sinks: DevicePtr,
        out: DevicePtr,
        lse: DevicePtr,
        delta: DevicePtr,
        dsinks: DevicePtr,
        queries: u32,
        heads: u32,
        width: u32,
    }
    // SAFETY: `Sinks` of sinks.cu; shapes were checked.
    unsafe impl Params for Sinks {}

    pub fn forward(cuda: &Cuda, sinks: View<'_>, mut out: ViewMut<'_>, mut lse: ViewMut<'_>) {
        let (queries, heads, width) = (out.dim(0), out.dim(1), out.dim(2));
        let params = Sinks {
            sinks: sinks.device(),
            out: out.device(),
            lse: lse.device(),
            delta: DevicePtr::NULL,
            dsinks: DevicePtr::NULL,
            queries: queries as u32,
            heads: heads as u32,
            width: width as u32,
        };
        let grid = Grid::new((queries * heads).div_ceil(THREADS / 32), THREADS);
        cuda.launch(&SOURCE, "sinks_forward", &[out.dtype()], grid, params);
    }

    pub fn backward(cuda: &Cuda, sinks: View<'_>, lse: View<'_>, delta: View<'_>, mut dsinks: ViewMut<'_>) {
        let (queries, heads) = (lse.dim(0), lse.dim(1));
        let params = Sinks {
            sinks: sinks.device(),
            out: DevicePtr::NULL,
            lse: lse.device(),
            delta: delta.device(),
            dsinks: dsinks.device(),
            queries: queries as u32,
            heads: heads as u32,
            width: 0,
        };
        cuda.launch(&SOURCE, "sinks_backward", &[], Grid::new(heads, THREADS), params);
    }
}

#[cfg(test)]
mod reference {
    /// Scores and values [keys, D] of one query, by the definition: (out, lse).
    pub fn forward(scores: &[f64], values: &[f64], sink: Option<f64>) -> (Vec<f64>, f64) {
        let width = values.len() / scores.len();
        let sum: f64 = scores.iter().chain(&sink).map(|s| s.exp()).sum();
        let of_column =
            |i| scores.iter().enumerate().map(|(j, s)| s.exp() / sum * values[j * width + i]).sum();
        ((0..width).map(of_column).collect(), sum.ln())
    }

    /// (dscores, dsink) of one query.
    pub fn backward(scores: &[f64], values: &[f64], sink: f64, dout: &[f64]) -> (Vec<f64>, f64) {
        let (out, lse) = forward(scores, values, Some(sink));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let delta = dot(&out, dout);
        let dscore = |(s, v): (&f64, &[f64])| (s - lse).exp() * (dot(dout, v) - delta);
        let dscores = scores.iter().zip(values.chunks(dout.len())).map(dscore).collect();
        (dscores, -(sink - lse).exp() * delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    #[test]
    fn gradcheck_of_the_reference() {
        let mut random = Random::new(1);
        let (scores, values, dout) = (random.f64s(5), random.f64s(15), random.f64s(3));
        let (dscores, dsink) = reference::backward(&scores, &values, 0.3, &dout);
        let loss = |scores: &[f64], sink: f64| -> f64 {
            reference::forward(scores, &values, Some(sink)).0.iter().zip(&dout).map(|(o, d)| o * d).sum()
        };
        gradcheck(|scores| loss(scores, 0.3), &scores, &dscores);
        gradcheck(|sink| loss(&scores, sink[0]), &[0.3], &[dsink]);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 2e-2)] {
                for (n, heads, width) in [(1, 1, 1), (3, 2, 5), (600, 3, 40)] {
                    let (keys, mut random) = (4, Random::new(2));
                    let scores: Vec<f64> = random.f64s(n * heads * keys).iter().map(|s| 4.0 * s).collect();
                    let values = random.f64s(n * heads * keys * width);
                    let sinks = random.tensor(DType::F32, &[heads]);
                    let (delta, of_head) = (random.tensor(DType::F32, &[n, heads]), to_f64(&sinks));
                    let part =
                        |i: usize| (&scores[i * keys..][..keys], &values[i * keys * width..][..keys * width]);
                    let all = |sink: Option<usize>| -> (Vec<f64>, Vec<f64>) {
                        let of = |i: usize| {
                            reference::forward(part(i).0, part(i).1, sink.map(|_| of_head[i % heads]))
                        };
                        let (out, lse): (Vec<_>, Vec<_>) = (0..n * heads).map(of).unzip();
                        (out.concat(), lse)
                    };
                    let tensor = |values: &[f64], shape: &[usize]| {
                        let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
                        Tensor::from_slice(&values, shape)
                    };
                    let (out, lse) = all(None);
                    let mut out = tensor(&out, &[n, heads, width]).to_dtype(dtype).on(&dev);
                    let mut lse = tensor(&lse, &[n, heads]).on(&dev);
                    let (sinks, deltas) = (sinks.on(&dev), to_f64(&delta));
                    forward(&dev, sinks.view(), out.view_mut(), lse.view_mut());
                    let (expected, expected_lse) = all(Some(0));
                    assert_close("out", &to_f64(&out), &expected, tolerance);
                    assert_close("lse", &to_f64(&lse), &expected_lse, 2e-6);
                    let mut dsinks = Tensor::from_slice(&vec![1.0f32; heads], &[heads]).on(&dev);
                    backward(&dev, sinks.view(), lse.view(), delta.on(&dev).view(), dsinks.view_mut());
                    let of_sink = |h: usize| -> f64 {
                        (0..n)
                            .map(|i| i * heads + h)
                            .map(|i| (of_head[h] - expected_lse[i]).exp() * deltas[i])
                            .sum()
                    };
                    let expected: Vec<f64> = (0..heads).map(|h| 1.0 - of_sink(h)).collect();
                    assert_close("dsinks", &to_f64(&dsinks), &expected, 1e-5);
                }
            }
        }
    }

    #[test]
    fn edges_no_query_and_large_sinks() {
        for dev in devices() {
            let sinks = Tensor::from_slice(&[500.0f32, -500.0], &[2]).on(&dev);
            let (mut none, mut lse) = (dev.zeros(DType::F32, &[0, 2, 1]), dev.zeros(DType::F32, &[0, 2]));
            forward(&dev, sinks.view(), none.view_mut(), lse.view_mut());
            let mut out = Tensor::from_slice(&[2.0f32, 2.0], &[1, 2, 1]).on(&dev);
            let mut lse = dev.zeros(DType::F32, &[1, 2]);
            forward(&dev, sinks.view(), out.view_mut(), lse.view_mut());
            assert_eq!((out.to_f32_vec(), lse.to_f32_vec()), (vec![0.0, 2.0], vec![500.0, 0.0]));
        }
    }
}
