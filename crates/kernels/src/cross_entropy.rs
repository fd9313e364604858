//! Cross-entropy of logits against the next token (stages 10 and 11 of the walk).
//!
//! Formula, per position with logits z and target t:
//!
//! > nll = log Σ_j exp(z_j) − z_t, dz_j = scale · (softmax(z)_j − [j = t])
//!
//! `scale` is 1 / (supervised tokens of the optimizer step), the only place where the loss is normalised.
//! Only supervised positions come here: whoever gathers them decides (see `IGNORE_INDEX` in the data crate).
//! Logits are f32 and are replaced by their gradient. Memory-bound: read once for the loss, in blocks whose sums are
//! scaled when a larger logit turns up, and read and written once for the gradient; an `exp` each.

use crate::exp::{exp, exp_all};
use crate::isa::per_isa;
use crate::lanes::{max, sum_by};
use crate::{Device, Isa, View, ViewMut, softcap};

/// Logits that go through the loops together, in the first-level cache.
const BLOCK: usize = 512;

/// What is known of one position after forward.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    /// −log P(target).
    pub nll: f32,
    /// log Σ exp(z): kept for backward.
    pub lse: f32,
    /// Whether the target has the largest logit (the first of equals wins, as in torch's argmax).
    pub correct: bool,
}

/// Fills one [`Position`] for each row of `logits` (f32 [S, V]).
///
/// # Panics
/// If shapes do not fit or a target is outside the vocabulary.
pub fn forward(dev: &Device, logits: View<'_>, targets: &[u32], positions: &mut [Position]) {
    let _timed = dev.pass("cross-entropy", logits.byte_len());
    let v = logits.dim(1);
    assert_eq!((logits.dim(0), targets.len()), (positions.len(), positions.len()), "cross_entropy: rows");
    let logits = logits.as_slice::<f32>();
    dev.for_each_chunk(positions, 1, |row, position| {
        position[0] = loss_of_row(dev.isa(), &logits[row * v..(row + 1) * v], targets[row] as usize);
    });
}

/// Replaces the logits by scale · (softmax − one-hot); where they were capped at `softcap` (see [`crate::softcap`]),
/// by the gradient of what they were before.
///
/// # Panics
/// If shapes do not fit or a target is outside the vocabulary.
pub fn backward(
    dev: &Device,
    logits: ViewMut<'_>,
    targets: &[u32],
    positions: &[Position],
    scale: f32,
    softcap: Option<f32>,
) {
    let _timed = dev.pass("cross-entropy backward", 2 * logits.byte_len());
    let v = logits.dim(1);
    assert_eq!((logits.dim(0), targets.len()), (positions.len(), positions.len()), "cross_entropy: rows");
    dev.for_each_chunk(logits.as_mut_slice::<f32>(), v, |row, z| {
        let target = targets[row] as usize;
        match softcap {
            None => {
                scaled_softmax(dev.isa(), z, positions[row].lse, scale);
                z[target] -= scale;
            }
            Some(cap) => {
                let target_slope = softcap::slope(z[target], cap);
                capped_softmax(dev.isa(), z, positions[row].lse, scale, cap);
                z[target] -= scale * target_slope;
            }
        }
    });
}

fn loss_of_row(isa: Isa, z: &[f32], target: usize) -> Position {
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
    let mut block = [0.0; BLOCK];
    for z in z.chunks(BLOCK) {
        // The sum so far counts from the largest so far.
        let above = max_all(isa, z).max(largest);
        if above > largest {
            sum *= exp(largest - above);
            largest = above;
        }
        let block = &mut block[..z.len()];
        let from = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        differences(isa, z, from, block);
        exp_all(isa, block);
        sum += sum_all(isa, block);
    }
    let lse = largest + sum.ln();
    let correct = z[target] == largest && !z[..target].contains(&largest);
    Position { nll: lse - z[target], lse, correct }
}

fn scaled_softmax(isa: Isa, z: &mut [f32], lse: f32, scale: f32) {
    let mut block = [0.0; BLOCK];
    for z in z.chunks_mut(BLOCK) {
        let block = &mut block[..z.len()];
        differences(isa, z, lse, block);
        exp_all(isa, block);
        products(isa, block, scale, z);
    }
}

fn capped_softmax(isa: Isa, z: &mut [f32], lse: f32, scale: f32, cap: f32) {
    let mut block = [0.0; BLOCK];
    for z in z.chunks_mut(BLOCK) {
        let block = &mut block[..z.len()];
        differences(isa, z, lse, block);
        exp_all(isa, block);
        capped_products(isa, block, scale, cap, z);
    }
}

per_isa! {
    fn max_all(z: &[f32]) -> f32 {
        max(z)
    }

    fn sum_all(x: &[f32]) -> f32 {
        sum_by(x, |x| x)
    }

    fn differences(z: &[f32], from: f32, difference: &mut [f32]) {
        difference.iter_mut().zip(z).for_each(|(difference, z)| *difference = z - from);
    }

    fn products(p: &[f32], scale: f32, dz: &mut [f32]) {
        dz.iter_mut().zip(p).for_each(|(dz, p)| *dz = scale * p);
    }

    fn capped_products(p: &[f32], scale: f32, cap: f32, z: &mut [f32]) {
        z.iter_mut().zip(p).for_each(|(z, p)| *z = scale * p * softcap::slope(*z, cap));
    }
}

#[cfg(test)]
mod reference {
    /// (nll of each row, gradient of scale · Σ nll).
    pub fn loss(logits: &[f64], targets: &[u32], scale: f64) -> (Vec<f64>, Vec<f64>) {
        let v = logits.len() / targets.len().max(1);
        let (mut nll, mut dlogits) = (Vec::new(), Vec::new());
        for (z, target) in logits.chunks(v.max(1)).zip(targets) {
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            nll.push(total.ln() - z[*target as usize]);
            dlogits.extend(
                z.iter()
                    .enumerate()
                    .map(|(j, z)| scale * (z.exp() / total - f64::from(u8::from(j == *target as usize)))),
            );
        }
        (nll, dlogits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};
    use crate::{DType, Tensor};

    #[test]
    fn gradcheck_of_the_reference() {
        let (logits, targets) = (Random::new(4).f64s(3 * 5), [4, 0, 2]);
        let (_, gradient) = reference::loss(&logits, &targets, 0.25);
        gradcheck(|z| 0.25 * reference::loss(z, &targets, 1.0).0.iter().sum::<f64>(), &logits, &gradient);
    }

    #[test]
    fn matches_torch() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/cross_entropy.json")).unwrap();
        let read = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
        let targets: Vec<u32> = serde_json::from_value(golden["targets"].clone()).unwrap();
        let (nll, gradient) = reference::loss(&read("logits"), &targets, 1.0 / targets.len() as f64);
        assert_close("nll", &nll, &read("nll"), 1e-12);
        assert_close("gradient of the mean", &gradient, &read("gradient"), 1e-12);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (s, v) in [(1, 1), (3, 17), (6, 1000), (2, 3 * BLOCK + 5)] {
                let mut logits = Random::new(6).tensor(DType::F32, &[s, v]);
                let targets: Vec<u32> = (0..s).map(|i| ((i * 7 + v - 1) % v) as u32).collect();
                let (nll, gradient) = reference::loss(&to_f64(&logits), &targets, 0.5);
                let mut positions = vec![Position::default(); s];
                forward(&dev, logits.view(), &targets, &mut positions);
                let found: Vec<f64> = positions.iter().map(|p| p.nll.into()).collect();
                assert_close("nll", &found, &nll, 1e-6);
                backward(&dev, logits.view_mut(), &targets, &positions, 0.5, None);
                assert_close("dlogits", &to_f64(&logits), &gradient, 1e-6);
            }
        }
    }

    #[test]
    fn edges_large_logits_and_ties() {
        for dev in devices() {
            let logits = Tensor::from_slice(&[1e4f32, -1e4, 1e4, f32::NEG_INFINITY], &[2, 2]);
            let mut positions = [Position::default(); 2];
            forward(&dev, logits.view(), &[0, 0], &mut positions);
            assert_eq!(positions.map(|p| (p.nll, p.correct)), [(0.0, true), (0.0, true)]);
            let ties = Tensor::from_slice(&[1.0f32, 1.0], &[1, 2]);
            forward(&dev, ties.view(), &[1], &mut positions[..1]);
            assert!(!positions[0].correct, "the first of equals is the answer");
            let none = Tensor::zeros(DType::F32, &[0, 2]);
            forward(&dev, none.view(), &[], &mut []);
            // The largest logit comes last, after a block that is impossible.
            let mut late = vec![f32::NEG_INFINITY; 2 * BLOCK];
            late[BLOCK..].fill(-50.0);
            late[2 * BLOCK - 1] = 3.0;
            let late = Tensor::from_slice(&late, &[1, 2 * BLOCK]);
            forward(&dev, late.view(), &[2 * BLOCK as u32 - 1], &mut positions[..1]);
            assert_eq!((positions[0].nll, positions[0].lse, positions[0].correct), (0.0, 3.0, true));
        }
    }
}
