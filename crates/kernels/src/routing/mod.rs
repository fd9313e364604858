//! Which experts a token goes to, and with which weights (stages 9 and 11 of the walk).
//!
//! From a router's logits z, [N, E], the scores s = softmax(z) or σ(z). The `top_k` experts with the largest s + b are
//! chosen (b corrects the choice and nothing else; with groups, among the experts of the best groups alone); ties go to
//! the first. Their weights are
//!
//! > w = scale · s, or with `normalised` w = scale · s / Σ s over those chosen
//!
//! (Shazeer et al., 2017; groups, b and σ: DeepSeek-V2 and V3). Derivative, with g = ∂/∂s, zero for those not chosen:
//!
//! > softmax: dz = s·(g − Σ g·s), σ: dz = g·s·(1 − s), normalised: g = scale·(dw − Σ dw·w/scale) / Σ s
//!
//! SparseMixer (Liu et al., 2024, as transformers evaluates it) chooses one expert after the other: the largest logit of
//! those left, with the softmax over those of them that come within `tolerance` of it for its weight.
//!
//! The auxiliary loss of balance (Fedus et al., 2021, equations 4 to 6) has the gradient `balance[e]` by the softmax of
//! z, the same for every token; it joins the rest here.
//!
//! Logits and weights are f32, arithmetic too. The choice is on the host, because how many tokens an expert has decides
//! about launches: on a GPU this is the one thing of a pass that the host waits for, N·top_k words a layer. Saved for
//! backward: z and the choice; scores are computed again. Memory-bound: z is read once, and written once backward.

mod on_cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use on_cuda::SOURCE;

use crate::{DType, Device, View, ViewMut};

/// Experts of a layer, at most: a GPU's block has the scores of its tokens in shared memory.
pub const MOST_EXPERTS: usize = 1024;

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scoring {
    /// Over all experts.
    Softmax,
    /// Each by itself.
    Sigmoid,
    /// One softmax for each choice, over those within a relative distance of the best.
    SparseMixer {
        /// The distance: 2·`router_jitter_noise`.
        tolerance: f32,
    },
}

/// Experts in groups of equal size, of which some are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// Of how many the experts may be chosen.
    pub chosen: usize,
    /// A group counts as much as so many of its best experts together: 1 or 2.
    pub best: usize,
}

/// The rule of a router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// How logits become scores.
    pub scoring: Scoring,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Groups of experts.
    pub groups: Option<Groups>,
    /// Whether weights are divided by their sum.
    pub normalised: bool,
    /// Multiplies the weights.
    pub scale: f32,
}

/// Keeps a sum of scores that are all 0 from being divided by.
const LEAST_SUM: f32 = 1e-20;

/// Tokens that one task handles.
const TOKENS_PER_TASK: usize = 64;

/// Chooses experts for every token: `index[t·top_k + j]`, best first, and their weights f32 [N, top_k]. Logits are
/// f32 [N, E], `correction` is f32 [E].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    rule: &Rule,
    logits: View<'_>,
    correction: Option<View<'_>>,
    weights: ViewMut<'_>,
    index: &mut [u32],
) {
    let _timed = dev.pass("routing", logits.byte_len());
    let (n, experts) = check(rule, logits);
    assert_eq!(weights.shape(), [n, rule.top_k], "routing: weights");
    assert_eq!(index.len(), n * rule.top_k, "routing: index");
    assert!(
        correction.is_none_or(|b| b.elements() == experts && b.dtype() == DType::F32),
        "routing: correction"
    );
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, rule, logits, correction, weights, index);
    }
    let (logits, correction) = (logits.as_slice::<f32>(), correction.map(View::as_slice::<f32>));
    let chunk = TOKENS_PER_TASK * rule.top_k;
    dev.for_each_chunk_pair(
        (weights.as_mut_slice::<f32>(), chunk),
        (index, chunk),
        |task, weights, index| {
            let logits = &logits[task * TOKENS_PER_TASK * experts..];
            let mut token = Token::new(experts);
            let chosen = weights.chunks_mut(rule.top_k).zip(index.chunks_mut(rule.top_k));
            for (logits, (weights, index)) in logits.chunks_exact(experts).zip(chosen) {
                token.choose(rule, logits, correction, weights, index);
            }
        },
    );
}

/// What leads to the gradient of the logits.
#[derive(Debug)]
pub struct Backward<'a> {
    /// f32 [N, E].
    pub logits: View<'a>,
    /// Of forward.
    pub index: &'a [u32],
    /// Gradient of the weights, f32 [N, top_k].
    pub dweights: View<'a>,
    /// Gradient by the softmax of every token's logits, [E].
    pub balance: Option<&'a [f32]>,
    /// f32 [N, E], overwritten.
    pub dlogits: ViewMut<'a>,
}

/// The gradient of the logits.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, rule: &Rule, io: Backward<'_>) {
    let _timed = dev.pass("routing backward", 2 * io.logits.byte_len());
    let (n, experts) = check(rule, io.logits);
    assert_eq!(io.dweights.shape(), [n, rule.top_k], "routing: dweights");
    assert_eq!(io.dlogits.shape(), [n, experts], "routing: dlogits");
    assert_eq!(io.index.len(), n * rule.top_k, "routing: index");
    assert!(io.balance.is_none_or(|balance| balance.len() == experts), "routing: balance");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, rule, io);
    }
    let (logits, dweights) = (io.logits.as_slice::<f32>(), io.dweights.as_slice::<f32>());
    let (index, balance) = (io.index, io.balance);
    dev.for_each_chunk(io.dlogits.as_mut_slice::<f32>(), TOKENS_PER_TASK * experts, |task, dlogits| {
        let first = task * TOKENS_PER_TASK;
        let mut token = Token::new(experts);
        let chosen = dweights[first * rule.top_k..]
            .chunks(rule.top_k)
            .zip(index[first * rule.top_k..].chunks(rule.top_k));
        let rows = dlogits.chunks_exact_mut(experts).zip(logits[first * experts..].chunks_exact(experts));
        for ((dlogits, logits), (dweights, index)) in rows.zip(chosen) {
            token.gradient(rule, logits, (dweights, index), dlogits);
            if let Some(balance) = balance {
                token.add_balance(logits, balance, dlogits);
            }
        }
    });
}

/// N and E, once they fit the rule.
fn check(rule: &Rule, logits: View<'_>) -> (usize, usize) {
    let (n, experts) = (logits.dim(0), logits.dim(1));
    assert_eq!(logits.dtype(), DType::F32, "routing: logits are float32");
    assert!((1..=MOST_EXPERTS).contains(&experts), "routing: 1 to {MOST_EXPERTS} experts, not {experts}");
    assert!((1..=experts).contains(&rule.top_k), "routing: {} of {experts} experts", rule.top_k);
    if let Some(groups) = rule.groups {
        let fits = experts.is_multiple_of(groups.count) && (1..=groups.count).contains(&groups.chosen);
        let reach = groups.chosen * (experts / groups.count.max(1));
        assert!(fits && reach >= rule.top_k, "routing: {groups:?} of {experts} experts");
    }
    (n, experts)
}

/// The scores of one token, and what its choice is made by.
struct Token {
    scores: Vec<f32>,
    choice: Vec<f32>,
}

impl Token {
    fn new(experts: usize) -> Self {
        Self { scores: vec![0.0; experts], choice: vec![0.0; experts] }
    }

    fn score(&mut self, rule: &Rule, logits: &[f32]) {
        match rule.scoring {
            Scoring::Softmax => softmax(logits, &mut self.scores),
            Scoring::Sigmoid => {
                self.scores.iter_mut().zip(logits).for_each(|(s, z)| *s = 1.0 / (1.0 + (-z).exp()));
            }
            Scoring::SparseMixer { .. } => self.scores.copy_from_slice(logits),
        }
    }

    fn choose(
        &mut self,
        rule: &Rule,
        logits: &[f32],
        correction: Option<&[f32]>,
        weights: &mut [f32],
        index: &mut [u32],
    ) {
        self.score(rule, logits);
        self.choice.copy_from_slice(&self.scores);
        if let Some(correction) = correction {
            self.choice.iter_mut().zip(correction).for_each(|(s, b)| *s += b);
        }
        if let Some(groups) = rule.groups {
            keep_groups(&mut self.choice, groups);
        }
        for (weight, index) in weights.iter_mut().zip(index) {
            let best = largest(&self.choice);
            *index = best as u32;
            *weight = match rule.scoring {
                Scoring::SparseMixer { tolerance } => {
                    1.0 / self
                        .near(logits, best, tolerance)
                        .map(|near| (near - logits[best]).exp())
                        .sum::<f32>()
                }
                Scoring::Softmax | Scoring::Sigmoid => self.scores[best],
            };
            self.choice[best] = f32::NEG_INFINITY;
        }
        let sum = if rule.normalised { weights.iter().sum::<f32>() + LEAST_SUM } else { 1.0 };
        weights.iter_mut().for_each(|w| *w *= rule.scale / sum);
    }

    /// Of those that were left when `best` was chosen, itself among them: the logits within the distance.
    fn near<'a>(&'a self, logits: &'a [f32], best: usize, tolerance: f32) -> impl Iterator<Item = f32> + 'a {
        let top = logits[best];
        let left = self.choice.iter().zip(logits).filter(|(choice, _)| **choice > f32::NEG_INFINITY);
        left.map(|(_, z)| *z).filter(move |z| (top - z) / z.abs().max(top) <= tolerance)
    }

    fn gradient(&mut self, rule: &Rule, logits: &[f32], (dw, index): (&[f32], &[u32]), dz: &mut [f32]) {
        self.score(rule, logits);
        dz.fill(0.0);
        if let Scoring::SparseMixer { tolerance } = rule.scoring {
            return self.gradient_of_mixer(rule.scale, tolerance, logits, (dw, index), dz);
        }
        let chosen = || dw.iter().zip(index).map(|(dw, e)| (*dw, *e as usize));
        let (sum, shared) = if rule.normalised {
            let sum = chosen().map(|(_, e)| self.scores[e]).sum::<f32>() + LEAST_SUM;
            (sum, chosen().map(|(dw, e)| dw * self.scores[e]).sum::<f32>() / sum)
        } else {
            (1.0, 0.0)
        };
        chosen().for_each(|(dw, e)| dz[e] = rule.scale * (dw - shared) / sum);
        if rule.scoring == Scoring::Sigmoid {
            dz.iter_mut().zip(&self.scores).for_each(|(dz, s)| *dz *= s * (1.0 - s));
        } else {
            through_softmax(&self.scores, dz);
        }
    }

    fn gradient_of_mixer(
        &mut self,
        scale: f32,
        tolerance: f32,
        logits: &[f32],
        (dw, index): (&[f32], &[u32]),
        dz: &mut [f32],
    ) {
        self.choice.copy_from_slice(logits);
        for (dw, best) in dw.iter().zip(index) {
            let (best, top) = (*best as usize, logits[*best as usize]);
            let sum: f32 = self.near(logits, best, tolerance).map(|z| (z - top).exp()).sum();
            let weight = 1.0 / sum;
            for (e, (z, choice)) in logits.iter().zip(&self.choice).enumerate() {
                if *choice > f32::NEG_INFINITY && (top - z) / z.abs().max(top) <= tolerance {
                    dz[e] -= scale * dw * weight * (z - top).exp() / sum;
                }
            }
            dz[best] += scale * dw * weight;
            self.choice[best] = f32::NEG_INFINITY;
        }
    }

    fn add_balance(&mut self, logits: &[f32], balance: &[f32], dz: &mut [f32]) {
        softmax(logits, &mut self.scores);
        self.choice.copy_from_slice(balance);
        through_softmax(&self.scores, &mut self.choice);
        dz.iter_mut().zip(&self.choice).for_each(|(dz, d)| *dz += d);
    }
}

fn softmax(z: &[f32], s: &mut [f32]) {
    let top = z.iter().fold(f32::NEG_INFINITY, |top, z| top.max(*z));
    s.iter_mut().zip(z).for_each(|(s, z)| *s = (z - top).exp());
    let sum: f32 = s.iter().sum();
    s.iter_mut().for_each(|s| *s /= sum);
}

/// From the gradient of a softmax s to that of its argument.
fn through_softmax(s: &[f32], d: &mut [f32]) {
    let mean: f32 = d.iter().zip(s).map(|(d, s)| d * s).sum();
    d.iter_mut().zip(s).for_each(|(d, s)| *d = s * (*d - mean));
}

/// The first of the largest values. NaN counts as least: such a token goes to the first expert, and its loss is NaN.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] || values[best].is_nan() {
            best = i;
        }
    }
    best
}

/// Takes the experts outside of the best groups out of the choice.
fn keep_groups(choice: &mut [f32], groups: Groups) {
    let size = choice.len() / groups.count;
    let worth = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for value in group {
            (first, second) = if *value > first { (*value, first) } else { (first, second.max(*value)) };
        }
        if groups.best == 2 { first + second } else { first }
    };
    let mut worths: Vec<f32> = choice.chunks(size).map(worth).collect();
    let mut kept = vec![false; groups.count];
    for _ in 0..groups.chosen {
        let best = largest(&worths);
        (kept[best], worths[best]) = (true, f32::NEG_INFINITY);
    }
    let outside = choice.chunks_mut(size).zip(kept).filter(|(_, kept)| !kept);
    outside.for_each(|(group, _)| group.fill(f32::NEG_INFINITY));
}
