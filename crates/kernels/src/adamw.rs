//! The AdamW update and the norm of gradients (stage 12 of the walk).
//!
//! Formula (Loshchilov & Hutter, 2019), in torch's order, with g the clipped gradient and t the step from 1:
//!
//! > p ← p·(1 − lr·wd);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! > p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)
//!
//! Everything is f32; parameters, m and v are overwritten. Memory-bound: 16 bytes read and 12 written an element.

use rayon::prelude::*;

use crate::isa::per_isa;
use crate::lanes::sum_by;
use crate::{Device, View, ViewMut};

const CHUNK: usize = 8192;

/// Constants of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWParams {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, β₁.
    pub beta1: f64,
    /// Decay of the second moment, β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1.
    pub step: u64,
    /// The gradient is multiplied by it first: clipping.
    pub grad_scale: f32,
}

/// What one update changes. All f32, of one length.
#[derive(Debug)]
pub struct AdamWState<'a> {
    /// Parameters.
    pub p: ViewMut<'a>,
    /// First moment.
    pub m: ViewMut<'a>,
    /// Second moment.
    pub v: ViewMut<'a>,
}

/// One update by the gradient `g`.
///
/// # Panics
/// If lengths differ or a tensor is not f32.
pub fn update(dev: &Device, params: &AdamWParams, g: View<'_>, state: AdamWState<'_>) {
    let _timed = dev.pass("adamw", 7 * g.byte_len());
    let g = g.as_slice::<f32>();
    let (p, m, v) =
        (state.p.as_mut_slice::<f32>(), state.m.as_mut_slice::<f32>(), state.v.as_mut_slice::<f32>());
    assert_eq!((p.len(), m.len(), v.len()), (g.len(), g.len(), g.len()), "adamw: lengths");
    // Bias corrections in f64, as torch computes them in Python floats.
    let t = params.step.min(i32::MAX as u64) as i32;
    let correction1 = 1.0 - params.beta1.powi(t);
    let correction2 = 1.0 - params.beta2.powi(t);
    let step_size = (params.learning_rate / correction1) as f32;
    let root2 = correction2.sqrt() as f32;
    let decay = (1.0 - params.learning_rate * params.weight_decay) as f32;
    let (b2, eps) = (params.beta2 as f32, params.eps as f32);
    let (rest1, rest2) = ((1.0 - params.beta1) as f32, (1.0 - params.beta2) as f32);
    let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    dev.for_each_item(chunks.enumerate(), |(i, ((p, m), v))| {
        let factors =
            Factors { grad_scale: params.grad_scale, rest1, b2, rest2, decay, step_size, root2, eps };
        update_chunk(dev.isa(), factors, &g[i * CHUNK..], p, m, v);
    });
}

/// The constants of one step, in `f32`.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    rest1: f32,
    b2: f32,
    rest2: f32,
    decay: f32,
    step_size: f32,
    root2: f32,
    eps: f32,
}

per_isa! {
    fn update_chunk(f: Factors, g: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * f.grad_scale;
            *m += (g - *m) * f.rest1;
            *v = *v * f.b2 + g * g * f.rest2;
            *p = *p * f.decay - f.step_size * (*m / (v.sqrt() / f.root2 + f.eps));
        }
    }

    fn squares(g: &[f32]) -> f32 {
        sum_by(g, |g| g * g)
    }
}

/// Σ g² of one tensor, in f64 over fixed chunks.
///
/// # Panics
/// If it is not f32.
pub fn sum_of_squares(dev: &Device, g: View<'_>) -> f64 {
    let _timed = dev.pass("gradient norm", g.byte_len());
    let g = g.as_slice::<f32>();
    let mut sums = vec![0.0f64; g.len().div_ceil(CHUNK)];
    dev.for_each_chunk(&mut sums, 1, |i, sum| {
        let chunk = &g[i * CHUNK..g.len().min((i + 1) * CHUNK)];
        sum[0] = f64::from(squares(dev.isa(), chunk));
    });
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::testing::{assert_close, devices};

    #[test]
    fn three_updates_match_torch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/adamw.json")).unwrap();
        let read = |value: &serde_json::Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
        for dev in devices() {
            let start = read(&golden["start"]);
            let n = start.len();
            let mut p = Tensor::from_slice(&start, &[n]);
            let (mut m, mut v) =
                (Tensor::zeros(crate::DType::F32, &[n]), Tensor::zeros(crate::DType::F32, &[n]));
            for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
                let gradient = read(&step["gradient"]);
                let params = AdamWParams {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step: i as u64 + 1,
                    grad_scale: 1.0,
                };
                let state = AdamWState { p: p.view_mut(), m: m.view_mut(), v: v.view_mut() };
                update(&dev, &params, View::of(&gradient, &[n]), state);
                let found: Vec<f64> = p.to_f32_vec().into_iter().map(f64::from).collect();
                let expected: Vec<f64> = serde_json::from_value(step["parameter"].clone()).unwrap();
                assert_close("parameter", &found, &expected, 1e-6);
            }
        }
    }

    #[test]
    fn sum_of_squares_is_exact_where_f32_alone_is_not() {
        for dev in devices() {
            let g = vec![0.1f32; 1_000_003];
            let expected = 1_000_003.0 * f64::from(0.1f32) * f64::from(0.1f32);
            let found = sum_of_squares(&dev, View::of(&g, &[g.len()]));
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} and not {expected}");
        }
    }
}
