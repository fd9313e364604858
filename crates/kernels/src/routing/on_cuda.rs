//! The same on a GPU: a warp has one token.

use super::{Backward, Rule, Scoring};
use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{View, ViewMut};

pub(crate) static SOURCE: Source = Source::new("routing", include_str!("routing.cu"));

/// Threads of a block, a warp for each token.
const THREADS: usize = 128;
const TOKENS_PER_BLOCK: usize = THREADS / 32;

/// `RoutingRule` of routing.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct RoutingRule {
    tokens: u32,
    experts: u32,
    top_k: u32,
    groups: u32,
    groups_chosen: u32,
    group_best: u32,
    scoring: u32,
    normalised: u32,
    scale: f32,
    tolerance: f32,
}

impl RoutingRule {
    fn of(rule: &Rule, logits: View<'_>) -> Self {
        let (scoring, tolerance) = match rule.scoring {
            Scoring::Softmax => (0, 0.0),
            Scoring::Sigmoid => (1, 0.0),
            Scoring::SparseMixer { tolerance } => (2, tolerance),
        };
        let [groups, groups_chosen, group_best] =
            rule.groups.map_or([1, 1, 1], |g| [g.count as u32, g.chosen as u32, g.best as u32]);
        Self {
            tokens: logits.dim(0) as u32,
            experts: logits.dim(1) as u32,
            top_k: rule.top_k as u32,
            groups,
            groups_chosen,
            group_best,
            scoring,
            normalised: u32::from(rule.normalised),
            scale: rule.scale,
            tolerance,
        }
    }

    fn grid(&self) -> Grid {
        let floats = TOKENS_PER_BLOCK * (2 * self.experts + self.groups) as usize;
        Grid::new((self.tokens as usize).div_ceil(TOKENS_PER_BLOCK), THREADS)
            .shared(floats * size_of::<f32>())
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RoutingForward {
    rule: RoutingRule,
    logits: DevicePtr,
    correction: DevicePtr,
    weights: DevicePtr,
    index: DevicePtr,
}
// SAFETY: the struct of the kernel; shapes were checked, and the index is in scratch of its size.
unsafe impl Params for RoutingForward {}

pub(super) fn forward(
    cuda: &Cuda,
    rule: &Rule,
    logits: View<'_>,
    correction: Option<View<'_>>,
    mut weights: ViewMut<'_>,
    index: &mut [u32],
) {
    let rule = RoutingRule::of(rule, logits);
    let scratch = cuda.scratch(size_of_val(index));
    let params = RoutingForward {
        rule,
        logits: logits.device(),
        correction: correction.map_or(DevicePtr::NULL, |b| b.device()),
        weights: weights.device(),
        index: scratch.start(),
    };
    cuda.launch(&SOURCE, "routing_forward", &[], rule.grid(), params);
    let mut bytes = vec![0; size_of_val(index)];
    cuda.read(scratch.start(), &mut bytes);
    let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    index.iter_mut().zip(words).for_each(|(index, word)| *index = word);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RoutingBackward {
    rule: RoutingRule,
    logits: DevicePtr,
    index: DevicePtr,
    dweights: DevicePtr,
    balance: DevicePtr,
    dlogits: DevicePtr,
}
// SAFETY: the struct of the kernel; shapes were checked.
unsafe impl Params for RoutingBackward {}

pub(super) fn backward(cuda: &Cuda, rule: &Rule, mut io: Backward<'_>) {
    let rule = RoutingRule::of(rule, io.logits);
    let params = RoutingBackward {
        rule,
        logits: io.logits.device(),
        index: cuda.indices(io.index),
        dweights: io.dweights.device(),
        balance: io.balance.map_or(DevicePtr::NULL, |balance| cuda.values(balance)),
        dlogits: io.dlogits.device(),
    };
    cuda.launch(&SOURCE, "routing_backward", &[], rule.grid(), params);
}
