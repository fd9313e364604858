//! Cross-entropy of logits against the next token (stages 10 and 11 of the walk).
//!
//! Formula, per position with logits z and target t:
//!
//! > nll = log Σ_j exp(z_j) − z_t, dz_j = scale · (softmax(z)_j − [j = t])
//!
//! `scale` is 1 / (supervised tokens of the optimizer step), the only place where the loss is normalised.
//! Only supervised positions come here: whoever gathers them decides (see `IGNORE_INDEX` in the data crate).
//! Logits are f32 or bf16 and are replaced by their gradient; arithmetic is f32. Memory-bound: read once for the loss,
//! in blocks whose sums are scaled when a larger logit turns up, and read and written once for the gradient; an `exp`
//! each.

use crate::exp::{exp, exp_all};
use crate::isa::per_isa;
use crate::lanes::{max, sum_by};
use crate::{DType, Device, Element, Isa, Tensor, View, ViewMut, softcap, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Logits that go through the loops together, in the first-level cache.
const BLOCK: usize = 512;

/// Numbers that forward leaves of a position: −log P(target); log Σ exp(z), for backward; 1 if the target has the
/// largest logit (the first of equals wins, as in torch's argmax), else 0; and the loss, which is the first of these
/// but where [`crate::objective`] says otherwise.
pub const STATISTICS: usize = 4;

/// What positions come to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ −log P(target).
    pub nll: f64,
    /// Σ loss.
    pub loss: f64,
    /// Positions whose target has the largest logit.
    pub correct: usize,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.loss += other.loss;
        self.correct += other.correct;
    }
}

/// The sums of many micro-batches, kept where ops run, so that no one waits for a GPU before they are wanted.
#[derive(Debug)]
pub struct Totals {
    on_host: Sums,
    /// Three f64 on a GPU, in the room of six f32: Σ nll, the number of correct ones, and Σ loss.
    on_card: Option<Tensor>,
}

impl Totals {
    /// Of nothing yet.
    pub fn new(dev: &Device) -> Self {
        let on_card = dev.cuda().map(|_| dev.zeros(DType::F32, &[6]));
        Self { on_host: Sums::default(), on_card }
    }

    /// Adds positions f32 [S, 4], in their order on the CPU and in a fixed one on a GPU.
    ///
    /// # Panics
    /// If they have another shape.
    pub fn add(&mut self, dev: &Device, positions: View<'_>) {
        assert_eq!(
            (positions.dim(1), positions.dtype()),
            (STATISTICS, DType::F32),
            "cross_entropy: positions"
        );
        if let (Some(cuda), Some(totals)) = (dev.cuda(), &mut self.on_card) {
            return on_cuda::add(cuda, positions, totals.view_mut());
        }
        let mut sums = Sums::default();
        for position in positions.as_slice::<f32>().chunks_exact(STATISTICS) {
            sums.nll += f64::from(position[0]);
            sums.loss += f64::from(position[3]);
            sums.correct += usize::from(position[2] == 1.0);
        }
        self.on_host += sums;
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.on_host = Sums::default();
        if let Some(totals) = &mut self.on_card {
            totals.view_mut().zero();
        }
    }

    /// The sums so far; waits until they are known.
    pub fn read(&self, dev: &Device) -> Sums {
        match (dev.cuda(), &self.on_card) {
            (Some(cuda), Some(totals)) => on_cuda::read(cuda, totals.view()),
            _ => self.on_host,
        }
    }
}

/// Fills a row of `positions` (f32 [S, 4], see [`STATISTICS`]) for each row of `logits` ([S, V]).
///
/// # Panics
/// If shapes do not fit or a target is outside the vocabulary.
pub fn forward(dev: &Device, logits: View<'_>, targets: &[u32], positions: ViewMut<'_>) {
    let _timed = dev.pass("cross-entropy", logits.byte_len());
    let v = logits.dim(1);
    check(logits, targets, positions.as_view());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, logits, targets, positions);
    }
    with_dtype!(logits.dtype(), E => {
        let logits = logits.as_slice::<E>();
        dev.for_each_chunk(positions.as_mut_slice::<f32>(), STATISTICS, |row, position| {
            let statistics = loss_of_row(dev.isa(), &logits[row * v..(row + 1) * v], targets[row] as usize);
            position.copy_from_slice(&statistics);
        });
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
    positions: View<'_>,
    scale: f32,
    softcap: Option<f32>,
) {
    let _timed = dev.pass("cross-entropy backward", 2 * logits.byte_len());
    let v = logits.dim(1);
    check(logits.as_view(), targets, positions);
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, logits, targets, positions, scale, softcap);
    }
    let positions = positions.as_slice::<f32>();
    with_dtype!(logits.dtype(), E => {
        dev.for_each_chunk(logits.as_mut_slice::<E>(), v, |row, z| {
            let lse = positions[row * STATISTICS + 1];
            gradient_of_row(dev.isa(), z, targets[row] as usize, lse, scale, softcap);
        });
    });
}

/// [`forward`] and then [`backward`], row by row: logits are in a cache when they are needed again.
///
/// # Panics
/// If shapes do not fit or a target is outside the vocabulary.
pub fn forward_backward(
    dev: &Device,
    logits: ViewMut<'_>,
    targets: &[u32],
    positions: ViewMut<'_>,
    scale: f32,
    softcap: Option<f32>,
) {
    let _timed = dev.pass("cross-entropy and backward", 2 * logits.byte_len());
    check(logits.as_view(), targets, positions.as_view());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward_backward(cuda, logits, targets, positions, scale, softcap);
    }
    let (v, isa) = (logits.dim(1), dev.isa());
    with_dtype!(logits.dtype(), E => {
        let positions = (positions.as_mut_slice::<f32>(), STATISTICS);
        dev.for_each_chunk_pair(positions, (logits.as_mut_slice::<E>(), v), |row, position, z| {
            let target = targets[row] as usize;
            let statistics = loss_of_row(isa, z, target);
            position.copy_from_slice(&statistics);
            gradient_of_row(isa, z, target, statistics[1], scale, softcap);
        });
    });
}

fn check(logits: View<'_>, targets: &[u32], positions: View<'_>) {
    let (rows, v) = (logits.dim(0), logits.dim(1));
    assert_eq!(targets.len(), rows, "cross_entropy: targets");
    assert_eq!(positions.shape(), [rows, STATISTICS], "cross_entropy: positions");
    assert_eq!(positions.dtype(), DType::F32, "cross_entropy: positions are float32");
    assert!(
        targets.iter().all(|target| (*target as usize) < v),
        "cross_entropy: target outside of {v} logits"
    );
}

fn loss_of_row<E: Element>(isa: Isa, z: &[E], target: usize) -> [f32; STATISTICS] {
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
    let mut block = [0.0; BLOCK];
    for z in z.chunks(BLOCK) {
        let block = &mut block[..z.len()];
        differences(isa, z, 0.0, block);
        // The sum so far counts from the largest so far.
        let above = max_all(isa, block).max(largest);
        if above > largest {
            sum *= exp(largest - above);
            largest = above;
        }
        let from = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        differences(isa, z, from, block);
        exp_all(isa, block);
        sum += sum_all(isa, block);
    }
    let lse = largest + sum.ln();
    let of_target = z[target].to_f32();
    let correct = of_target == largest && !z[..target].iter().any(|z| z.to_f32() == largest);
    [lse - of_target, lse, f32::from(u8::from(correct)), lse - of_target]
}

/// scale · (softmax − one-hot), times the slope of the cap.
fn gradient_of_row<E: Element>(
    isa: Isa,
    z: &mut [E],
    target: usize,
    lse: f32,
    scale: f32,
    softcap: Option<f32>,
) {
    // The target's is rounded once, after the subtraction.
    let of_target = z[target].to_f32();
    let p = exp(of_target - lse);
    let mut block = [0.0; BLOCK];
    for z in z.chunks_mut(BLOCK) {
        let block = &mut block[..z.len()];
        differences(isa, z, lse, block);
        exp_all(isa, block);
        match softcap {
            None => products(isa, block, scale, z),
            Some(cap) => capped_products(isa, block, scale, cap, z),
        }
    }
    z[target] = E::from_f32(match softcap {
        None => scale * p - scale,
        Some(cap) => {
            let slope = softcap::slope(of_target, cap);
            scale * p * slope - scale * slope
        }
    });
}

per_isa! {
    fn max_all(z: &[f32]) -> f32 {
        max(z)
    }

    fn sum_all(x: &[f32]) -> f32 {
        sum_by(x, |x| x)
    }

    fn differences<E: Element>(z: &[E], from: f32, difference: &mut [f32]) {
        difference.iter_mut().zip(z).for_each(|(difference, z)| *difference = z.to_f32() - from);
    }

    fn products<E: Element>(p: &[f32], scale: f32, dz: &mut [E]) {
        dz.iter_mut().zip(p).for_each(|(dz, p)| *dz = E::from_f32(scale * p));
    }

    fn capped_products<E: Element>(p: &[f32], scale: f32, cap: f32, z: &mut [E]) {
        z.iter_mut().zip(p).for_each(|(z, p)| *z = E::from_f32(scale * p * softcap::slope(z.to_f32(), cap)));
    }
}

mod on_cuda {
    //! The same on a GPU, a block for each row: `cross_entropy.cu`.

    use super::Sums;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("cross_entropy", include_str!("cross_entropy.cu"));

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct CrossEntropy {
        logits: DevicePtr,
        targets: DevicePtr,
        positions: DevicePtr,
        vocabulary: u64,
        scale: f32,
        softcap: f32,
    }

    // SAFETY: the struct of the kernels; shapes were checked, and targets are inside.
    unsafe impl Params for CrossEntropy {}

    fn launch(
        cuda: &Cuda,
        name: &'static str,
        logits: View<'_>,
        targets: &[u32],
        positions: DevicePtr,
        (scale, softcap): (f32, Option<f32>),
    ) {
        let (rows, v) = (logits.dim(0), logits.dim(1));
        assert!(v <= i32::MAX as usize, "cross_entropy: {v} logits");
        assert!(matches!(logits.dtype(), DType::F32 | DType::BF16), "cross_entropy: {logits:?}");
        let params = CrossEntropy {
            logits: logits.device(),
            targets: cuda.indices(targets),
            positions,
            vocabulary: v as u64,
            scale,
            softcap: softcap.unwrap_or(0.0),
        };
        let threads = (v / 16).next_multiple_of(32).clamp(32, 1024);
        cuda.launch(&SOURCE, name, &[logits.dtype()], Grid::new(rows, threads), params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct AddPositions {
        positions: DevicePtr,
        totals: DevicePtr,
        count: u64,
    }

    // SAFETY: the struct of the kernel; `positions` holds four f32 for each of `count`, `totals` three f64.
    unsafe impl Params for AddPositions {}

    pub fn add(cuda: &Cuda, positions: View<'_>, mut totals: ViewMut<'_>) {
        let count = positions.dim(0) as u64;
        let params = AddPositions { positions: positions.device(), totals: totals.device(), count };
        cuda.launch(&SOURCE, "cross_entropy_add", &[], Grid::new(1, 1024), params);
    }

    pub fn read(cuda: &Cuda, totals: View<'_>) -> Sums {
        let sums = cuda.read_f64(totals.device(), 3);
        Sums { nll: sums[0], loss: sums[2], correct: sums[1] as usize }
    }

    pub fn forward(cuda: &Cuda, logits: View<'_>, targets: &[u32], mut positions: ViewMut<'_>) {
        launch(cuda, "cross_entropy_forward", logits, targets, positions.device(), (0.0, None));
    }

    pub fn backward(
        cuda: &Cuda,
        logits: ViewMut<'_>,
        targets: &[u32],
        positions: View<'_>,
        scale: f32,
        softcap: Option<f32>,
    ) {
        let name = "cross_entropy_backward";
        launch(cuda, name, logits.as_view(), targets, positions.device(), (scale, softcap));
    }

    pub fn forward_backward(
        cuda: &Cuda,
        logits: ViewMut<'_>,
        targets: &[u32],
        mut positions: ViewMut<'_>,
        scale: f32,
        softcap: Option<f32>,
    ) {
        let name = "cross_entropy_forward_backward";
        launch(cuda, name, logits.as_view(), targets, positions.device(), (scale, softcap));
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

    /// The numbers of each position, and the sums of all.
    fn positions_of(dev: &Device, logits: &Tensor, targets: &[u32]) -> Vec<[f32; STATISTICS]> {
        let mut positions = dev.zeros(DType::F32, &[targets.len(), STATISTICS]);
        forward(dev, logits.view(), targets, positions.view_mut());
        positions.to_f32_vec().as_chunks().0.to_vec()
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (s, v) in [(1, 1), (3, 17), (6, 1000), (2, 3 * BLOCK + 5), (2, 40_000)] {
                for dtype in [DType::F32, DType::BF16] {
                    let mut logits = Random::new(6).tensor(dtype, &[s, v]).on(&dev);
                    let mut again = logits.to_dtype(dtype);
                    let targets: Vec<u32> = (0..s).map(|i| ((i * 7 + v - 1) % v) as u32).collect();
                    let (nll, gradient) = reference::loss(&to_f64(&logits), &targets, 0.5);
                    let mut positions = dev.zeros(DType::F32, &[s, STATISTICS]);
                    forward(&dev, logits.view(), &targets, positions.view_mut());
                    let found: Vec<f64> = to_f64(&positions).chunks(STATISTICS).map(|p| p[0]).collect();
                    assert_close("nll", &found, &nll, 2e-6);
                    let mut totals = Totals::new(&dev);
                    totals.add(&dev, positions.view());
                    let total = totals.read(&dev).nll;
                    assert_close("sum", &[total], &[nll.iter().sum()], 2e-6);
                    backward(&dev, logits.view_mut(), &targets, positions.view(), 0.5, None);
                    let tolerance = if dtype == DType::F32 { 1e-6 } else { 1.0 / 512.0 };
                    assert_close("dlogits", &to_f64(&logits), &gradient, tolerance);
                    let mut at_once = dev.zeros(DType::F32, &[s, STATISTICS]);
                    forward_backward(&dev, again.view_mut(), &targets, at_once.view_mut(), 0.5, None);
                    assert_eq!(at_once.to_f32_vec(), positions.to_f32_vec());
                    assert_eq!(again.to_f32_vec(), logits.to_f32_vec());
                }
            }
        }
    }

    #[test]
    fn edges_large_logits_and_ties() {
        for dev in devices() {
            let on = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape).on(&dev);
            let logits = on(&[1e4f32, -1e4, 1e4, f32::NEG_INFINITY], &[2, 2]);
            let found = positions_of(&dev, &logits, &[0, 0]).into_iter().map(|p| (p[0], p[2]));
            assert_eq!(found.collect::<Vec<_>>(), [(0.0, 1.0), (0.0, 1.0)]);
            let ties = on(&[1.0f32; 40], &[1, 40]);
            for (target, correct) in [(0, 1.0), (1, 0.0), (9, 0.0), (39, 0.0)] {
                let found = positions_of(&dev, &ties, &[target])[0][2];
                assert_eq!(found, correct, "the first of equals is the answer");
            }
            assert_eq!(positions_of(&dev, &dev.zeros(DType::F32, &[0, 2]), &[]), [[0.0; STATISTICS]; 0]);
            // The largest logit comes last, after a block that is impossible.
            let mut late = vec![f32::NEG_INFINITY; 2 * BLOCK];
            late[BLOCK..].fill(-50.0);
            late[2 * BLOCK - 1] = 3.0;
            let late = on(&late, &[1, 2 * BLOCK]);
            assert_eq!(positions_of(&dev, &late, &[2 * BLOCK as u32 - 1]), [[0.0, 3.0, 1.0, 0.0]]);
        }
    }
}
