//! Losses that make something else of the cross-entropy of a position (stages 10 and 11 of the walk).
//!
//! With p = softmax(z), target t, nll = −log p_t, V logits:
//!
//! | loss | formula | gradient by z_j |
//! |---|---|---|
//! | smoothed (Szegedy et al., 2016) | (1−ε)·nll − ε/V·Σ_j log p_j | p_j − (1−ε)·\[j = t\] − ε/V |
//! | DFT (Wu et al., 2025) | sg(p_t)·nll | p_t·(p_j − \[j = t\]) |
//! | EAFT | sg((H/3)^α)·nll, H the entropy of the 20 largest logits | (H/3)^α·(p_j − \[j = t\]) |
//! | ASFT | DFT's + α·KL(q ‖ p), q = softmax of a reference's logits | DFT's + α·(p_j − q_j) |
//!
//! sg stops the gradient. Sources: transformers' `LabelSmoother`, LLaMA-Factory's `trainer_utils.py`.
//!
//! Each is scaled by 1 / (supervised tokens of the step), as [`crate::cross_entropy`] is, whose contract this is too:
//! logits f32 or bf16 are replaced by their gradient, arithmetic is f32. Memory-bound: one more pass over the logits
//! than cross-entropy, and for ASFT two over the reference's.

use crate::cross_entropy::{self, STATISTICS};
use crate::exp::exp;
use crate::isa::per_isa;
use crate::lanes::sum_by;
use crate::softcap::slope;
use crate::{Device, Element, Isa, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Logits whose entropy weighs a position of EAFT.
const TOP: usize = 20;
/// What that entropy is divided by: about log TOP.
const TOP_ENTROPY: f64 = 3.0;

/// What is minimised at each supervised position.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Loss {
    /// nll.
    #[default]
    CrossEntropy,
    /// Part of the target's probability is spread over all tokens.
    Smoothed {
        /// ε.
        factor: f32,
    },
    /// Weighed by the target's probability.
    Dft,
    /// Weighed by how undecided the model is.
    Eaft {
        /// α.
        alpha: f32,
    },
    /// As [`Loss::Dft`], and held near a reference model.
    Asft {
        /// α.
        alpha: f32,
    },
}

impl Loss {
    /// Whether it reads the logits of a reference model.
    pub fn needs_reference(self) -> bool {
        matches!(self, Loss::Asft { .. })
    }
}

/// Factors of the gradient of a position: dz_j = scale·(softmax·p_j − target·[j = t] − everywhere − reference·q_j).
#[derive(Debug, Clone, Copy)]
struct Factors {
    softmax: f32,
    target: f32,
    everywhere: f32,
    reference: f32,
}

impl Factors {
    /// dz_j / scale where the target is another token.
    #[inline(always)]
    fn at(self, p: f32, q: f32) -> f32 {
        self.softmax * p - self.everywhere - self.reference * q
    }
}

/// The gradient by a logit z, times the slope of its cap if that is above 0.
#[inline(always)]
fn scaled(d: f32, z: f32, (scale, cap): (f32, f32)) -> f32 {
    scale * d * if cap > 0.0 { slope(z, cap) } else { 1.0 }
}

/// Fills the `positions` of logits ([`STATISTICS`]), their loss being `loss`, and replaces the logits by the gradient
/// of `scale` · Σ loss; where they were capped at `softcap`, by that of what they were before. `reference` is [S, V].
///
/// # Panics
/// If shapes do not fit, a target is outside the vocabulary, or a loss lacks the reference that it reads.
pub fn forward_backward(
    dev: &Device,
    loss: Loss,
    (logits, reference): (ViewMut<'_>, Option<View<'_>>),
    targets: &[u32],
    mut positions: ViewMut<'_>,
    (scale, softcap): (f32, Option<f32>),
) {
    if loss == Loss::CrossEntropy {
        return cross_entropy::forward_backward(dev, logits, targets, positions, scale, softcap);
    }
    assert!(reference.is_some() || !loss.needs_reference(), "objective: {loss:?} without a reference");
    let like = |other: View<'_>| other.shape() == logits.shape() && other.dtype() == logits.dtype();
    assert!(reference.is_none_or(like), "objective: logits and their reference");
    cross_entropy::forward(dev, logits.as_view(), targets, positions.reborrow());
    let _timed = dev.pass("loss and backward", 2 * logits.byte_len());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, loss, (logits, reference), targets, positions, (scale, softcap));
    }
    let (v, isa) = (logits.dim(1), dev.isa());
    with_dtype!(logits.dtype(), E => {
        let reference = reference.map(View::as_slice::<E>);
        let positions = (positions.as_mut_slice::<f32>(), STATISTICS);
        dev.for_each_chunk_pair(positions, (logits.as_mut_slice::<E>(), v), |row, position, z| {
            let reference = reference.map(|reference| &reference[row * v..(row + 1) * v]);
            let reference = reference.map(|q| (q, log_sum_exp(isa, q)));
            let factors = weigh(isa, loss, z, reference, position);
            // The target's is rounded once, after the subtraction.
            let (lse, target) = (position[1], targets[row] as usize);
            let (of_target, scaling) = (z[target].to_f32(), (scale, softcap.unwrap_or(0.0)));
            let of_reference = reference.map_or(0.0, |(q, lse_q)| exp(q[target].to_f32() - lse_q));
            gradient(isa, z, lse, reference, factors, scaling);
            let by = factors.at(exp(of_target - lse), of_reference) - factors.target;
            z[target] = E::from_f32(scaled(by, of_target, scaling));
        });
    });
}

/// Writes a position's loss, and returns the factors of its gradient.
fn weigh<E: Element>(
    isa: Isa,
    loss: Loss,
    z: &[E],
    reference: Option<(&[E], f32)>,
    position: &mut [f32],
) -> Factors {
    let (nll, lse) = (position[0], position[1]);
    let weighed = |weight: f32| Factors { softmax: weight, target: weight, everywhere: 0.0, reference: 0.0 };
    let (value, factors) = match loss {
        Loss::CrossEntropy => (nll, weighed(1.0)),
        Loss::Smoothed { factor } => {
            let everywhere = factor / z.len() as f32;
            let mean = sum_all(isa, z) / z.len() as f32;
            let factors = Factors { target: 1.0 - factor, everywhere, ..weighed(1.0) };
            ((1.0 - factor) * nll + factor * (lse - mean), factors)
        }
        Loss::Dft => (exp(-nll) * nll, weighed(exp(-nll))),
        Loss::Eaft { alpha } => {
            let weight = (entropy_of_largest(z) / TOP_ENTROPY).powf(f64::from(alpha)) as f32;
            (weight * nll, weighed(weight))
        }
        Loss::Asft { alpha } => {
            let (q, lse_q) = reference.expect("checked above");
            let weight = exp(-nll);
            let value = weight * nll + alpha * divergence(isa, q, lse_q, z, lse);
            (value, Factors { softmax: weight + alpha, reference: alpha, ..weighed(weight) })
        }
    };
    position[3] = value;
    factors
}

/// Entropy of the softmax of the [`TOP`] largest.
fn entropy_of_largest<E: Element>(z: &[E]) -> f64 {
    let mut top = [f32::NEG_INFINITY; TOP];
    let count = z.len().min(TOP);
    for z in z.iter().map(|z| z.to_f32()) {
        if z > top[TOP - 1] {
            let place = top.partition_point(|other| *other >= z);
            top.copy_within(place..TOP - 1, place + 1);
            top[place] = z;
        }
    }
    let above = |z: &f32| f64::from(z - top[0]);
    let sum: f64 = top[..count].iter().map(|z| above(z).exp()).sum();
    let weighed = |z: &f32| if *z == f32::NEG_INFINITY { 0.0 } else { above(z).exp() * above(z) };
    // Rounding must not make a certain position's entropy negative, which has no power.
    (sum.ln() - top[..count].iter().map(weighed).sum::<f64>() / sum).max(0.0)
}

fn log_sum_exp<E: Element>(isa: Isa, z: &[E]) -> f32 {
    let largest = z.iter().fold(f32::NEG_INFINITY, |largest, z| largest.max(z.to_f32()));
    largest + sum_of_exp(isa, z, largest).ln()
}

per_isa! {
    fn sum_all<E: Element>(z: &[E]) -> f32 {
        sum_by(z, |z| z)
    }

    fn sum_of_exp<E: Element>(z: &[E], from: f32) -> f32 {
        sum_by(z, |z| exp(z - from))
    }

    /// KL(q ‖ p) = Σ q·(log q − log p).
    fn divergence<E: Element>(q: &[E], lse_q: f32, z: &[E], lse: f32) -> f32 {
        let mut sum = 0.0f64;
        for (q, z) in q.iter().zip(z) {
            let (log_q, log_p) = (q.to_f32() - lse_q, z.to_f32() - lse);
            let q = exp(log_q);
            sum += f64::from(if q > 0.0 { q * (log_q - log_p) } else { 0.0 });
        }
        sum as f32
    }

    /// All of a row's gradient but what the target takes.
    fn gradient<E: Element>(
        z: &mut [E],
        lse: f32,
        reference: Option<(&[E], f32)>,
        factors: Factors,
        scaling: (f32, f32),
    ) {
        for (j, z) in z.iter_mut().enumerate() {
            let value = z.to_f32();
            let q = reference.map_or(0.0, |(q, lse_q)| exp(q[j].to_f32() - lse_q));
            *z = E::from_f32(scaled(factors.at(exp(value - lse), q), value, scaling));
        }
    }
}

mod on_cuda {
    //! The same on a GPU, a block for each row: `objective.cu`.

    use super::Loss;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("objective", include_str!("objective.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Objective {
        logits: DevicePtr,
        reference: DevicePtr,
        targets: DevicePtr,
        positions: DevicePtr,
        vocabulary: u64,
        kind: u32,
        strength: f32,
        scale: f32,
        softcap: f32,
    }

    // SAFETY: the struct of the kernel; shapes were checked, and targets are inside.
    unsafe impl Params for Objective {}

    pub fn backward(
        cuda: &Cuda,
        loss: Loss,
        (mut logits, reference): (ViewMut<'_>, Option<View<'_>>),
        targets: &[u32],
        mut positions: ViewMut<'_>,
        (scale, softcap): (f32, Option<f32>),
    ) {
        let (rows, v, dtype) = (logits.dim(0), logits.dim(1), logits.dtype());
        let (kind, strength) = match loss {
            Loss::CrossEntropy => (0, 0.0),
            Loss::Smoothed { factor } => (1, factor),
            Loss::Dft => (2, 0.0),
            Loss::Eaft { alpha } => (3, alpha),
            Loss::Asft { alpha } => (4, alpha),
        };
        let params = Objective {
            logits: logits.device(),
            reference: reference.map_or(DevicePtr::NULL, |reference| reference.device()),
            targets: cuda.indices(targets),
            positions: positions.device(),
            vocabulary: v as u64,
            kind,
            strength,
            scale,
            softcap: softcap.unwrap_or(0.0),
        };
        let grid = Grid::new(rows, v.next_multiple_of(32).min(THREADS));
        cuda.launch(&SOURCE, "objective_backward", &[dtype], grid, params);
    }
}

#[cfg(test)]
mod reference {
    //! The definition: plain loops in f64, weights and reference being constants.

    use super::{Loss, TOP};

    pub fn softmax(z: &[f64]) -> Vec<f64> {
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect()
    }

    /// What stops the gradient of a loss.
    pub fn weight(loss: Loss, z: &[f64], target: usize) -> f64 {
        match loss {
            Loss::Dft | Loss::Asft { .. } => softmax(z)[target],
            Loss::Eaft { alpha } => {
                let mut top = z.to_vec();
                top.sort_by(|a, b| b.total_cmp(a));
                top.truncate(TOP);
                let entropy: f64 = softmax(&top).iter().map(|p| -p * p.ln()).sum();
                (entropy / 3.0).powf(f64::from(alpha))
            }
            Loss::CrossEntropy | Loss::Smoothed { .. } => 1.0,
        }
    }

    pub fn loss(loss: Loss, z: &[f64], q: &[f64], target: usize, weight: f64) -> f64 {
        let p = softmax(z);
        let nll = -p[target].ln();
        match loss {
            Loss::CrossEntropy => nll,
            Loss::Smoothed { factor } => {
                let factor = f64::from(factor);
                (1.0 - factor) * nll - factor / z.len() as f64 * p.iter().map(|p| p.ln()).sum::<f64>()
            }
            Loss::Dft | Loss::Eaft { .. } => weight * nll,
            Loss::Asft { alpha } => {
                let kl: f64 = softmax(q).iter().zip(&p).map(|(q, p)| q * (q.ln() - p.ln())).sum();
                weight * nll + f64::from(alpha) * kl
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};
    use crate::{DType, Tensor};

    const ALL: [Loss; 4] =
        [Loss::Smoothed { factor: 0.1 }, Loss::Dft, Loss::Eaft { alpha: 1.5 }, Loss::Asft { alpha: 0.25 }];

    /// Losses of all rows, and gradients of `scale` times their sum.
    fn found(
        dev: &Device,
        loss: Loss,
        [z, q]: [&Tensor; 2],
        targets: &[u32],
        scaling: (f32, Option<f32>),
    ) -> (Vec<f64>, Vec<f64>) {
        let mut logits = z.to_dtype(z.dtype()).on(dev);
        let reference = q.to_dtype(q.dtype()).on(dev);
        let mut positions = dev.zeros(DType::F32, &[targets.len(), STATISTICS]);
        let reference = loss.needs_reference().then(|| reference.view());
        forward_backward(dev, loss, (logits.view_mut(), reference), targets, positions.view_mut(), scaling);
        let losses = to_f64(&positions).chunks(STATISTICS).map(|p| p[3]).collect();
        (losses, to_f64(&logits))
    }

    #[test]
    fn gradcheck_of_all_losses() {
        let (v, target) = (23, 4);
        let cpu = Device::cpu(crate::CpuOptions::default()).unwrap();
        for loss in ALL {
            let mut random = Random::new(5);
            let [z, q] = [0; 2].map(|_| random.tensor(DType::F32, &[1, v]));
            let (_, gradient) = found(&cpu, loss, [&z, &q], &[target as u32], (1.0, None));
            let [z, q] = [&z, &q].map(to_f64);
            let weight = reference::weight(loss, &z, target);
            let gradient64: Vec<f64> = gradient.clone();
            // f32's rounding is above what differences in f64 resolve: a bound of its own.
            let differences = |at: usize| {
                let by = |h: f64| {
                    let mut z = z.clone();
                    z[at] += h;
                    reference::loss(loss, &z, &q, target, weight)
                };
                (by(1e-5) - by(-1e-5)) / 2e-5
            };
            let expected: Vec<f64> = (0..v).map(differences).collect();
            assert_close(&format!("{loss:?}"), &gradient64, &expected, 1e-6);
            gradcheck(|z| reference::loss(loss, z, &q, target, weight), &z, &expected);
        }
    }

    #[test]
    fn matches_llama_factory_and_transformers() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/objective.json")).unwrap();
        let read = |of: &serde_json::Value| -> Vec<f32> { serde_json::from_value(of.clone()).unwrap() };
        let targets: Vec<u32> = serde_json::from_value(golden["targets"].clone()).unwrap();
        let (rows, scale) = (targets.len(), 1.0 / targets.len() as f32);
        let [z, q] = ["logits", "reference"].map(|name| read(&golden[name]));
        let shape = [rows, z.len() / rows];
        let [z, q] = [z, q].map(|values| Tensor::from_slice(&values, &shape));
        let losses = golden["losses"].as_array().unwrap();
        assert_eq!(losses.len(), 7);
        for dev in devices() {
            for of in losses {
                let strength = of["strength"].as_f64().unwrap() as f32;
                let loss = match of["name"].as_str().unwrap() {
                    "smoothed" => Loss::Smoothed { factor: strength },
                    "dft" => Loss::Dft,
                    "eaft" => Loss::Eaft { alpha: strength },
                    "asft" => Loss::Asft { alpha: strength },
                    other => panic!("{other}"),
                };
                let (losses, gradient) = found(&dev, loss, [&z, &q], &targets, (scale, None));
                let mean = losses.iter().sum::<f64>() / rows as f64;
                assert_close(&format!("{loss:?}"), &[mean], &[of["loss"].as_f64().unwrap()], 2e-6);
                let expected: Vec<f64> = read(&of["gradient"]).into_iter().map(f64::from).collect();
                assert_close(&format!("gradient of {loss:?}"), &gradient, &expected, 2e-6);
            }
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for loss in ALL {
                for (v, cap) in [(3, None), (40, Some(30.0)), (1000, None)] {
                    for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::BF16, 1.0 / 256.0)] {
                        let mut random = Random::new(9);
                        let [z, q] = [0; 2].map(|_| random.tensor(dtype, &[3, v]));
                        let targets = [0, v as u32 / 2, v as u32 - 1];
                        let (losses, gradient) = found(&dev, loss, [&z, &q], &targets, (0.5, cap));
                        let [z, q] = [&z, &q].map(to_f64);
                        for (row, target) in targets.iter().enumerate() {
                            let [z, q] = [&z, &q].map(|x| &x[row * v..(row + 1) * v]);
                            let target = *target as usize;
                            let weight = reference::weight(loss, z, target);
                            let expected = reference::loss(loss, z, q, target, weight);
                            assert_close(&format!("{loss:?} of {v}"), &[losses[row]], &[expected], 1e-5);
                            let by = |at: usize, h: f64| {
                                let mut z = z.to_vec();
                                z[at] += h;
                                reference::loss(loss, &z, q, target, weight)
                            };
                            let slope = |z: f64| cap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
                            let d = |at| 0.5 * (by(at, 1e-5) - by(at, -1e-5)) / 2e-5 * slope(z[at]);
                            let expected: Vec<f64> = (0..v).map(d).collect();
                            let found = &gradient[row * v..(row + 1) * v];
                            assert_close(&format!("d{loss:?} of {v}"), found, &expected, tolerance);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn edges_certain_positions_impossible_tokens_and_no_row() {
        for dev in devices() {
            let mut z = vec![f32::NEG_INFINITY; 24];
            z[3] = 50.0;
            let z = Tensor::from_slice(&z, &[1, 24]);
            for loss in [Loss::Dft, Loss::Eaft { alpha: 1.0 }, Loss::Asft { alpha: 0.1 }] {
                let (losses, gradient) = found(&dev, loss, [&z, &z], &[3], (1.0, None));
                assert_eq!(losses, [0.0], "{loss:?}");
                assert!(gradient.iter().all(|d| d.abs() < 1e-6), "{loss:?}: {gradient:?}");
                let none = Tensor::zeros(DType::F32, &[0, 24]);
                assert!(found(&dev, loss, [&none, &none], &[], (1.0, None)).0.is_empty());
            }
        }
    }
}
