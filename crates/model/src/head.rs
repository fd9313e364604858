//! The head: final norm, logits and cross-entropy at the supervised positions alone (stages 10 and 11 of the walk).
//!
//! > z = cap(s·norm(h)·Wᵀ) at each position with a target, loss = Σ nll(z, target)
//!
//! s is 1 in most families, and cap(z) is z but for those that cap logits: c·tanh(z/c).
//!
//! Positions are taken in chunks, so that logits [N, V] never exist whole; forward and backward of a chunk follow
//! each other while its logits are there. The gradient of positions without a target is zero.

use sft_kernels::cross_entropy::{self, Position};
use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows, softcap};

use crate::arena::Arena;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::spec::DecoderSpec;

/// Bytes of logits that exist at a time, at most (but for a single row of a huge vocabulary).
const LOGITS_BYTES: usize = 256 << 20;

/// What a micro-batch adds to the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSums {
    /// Σ −log P(target).
    pub nll: f64,
    /// Supervised positions.
    pub supervised: usize,
    /// Positions whose target has the largest logit.
    pub correct: usize,
}

impl std::ops::AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.supervised += other.supervised;
        self.correct += other.correct;
    }
}

/// Workspace of the head.
#[derive(Debug)]
pub struct Scratch {
    /// Hidden states at supervised positions, [S, C].
    hidden: Tensor,
    /// After the norm; then its gradient's input, [S, C].
    normed: Tensor,
    /// The gradient of `normed`, then of `hidden`, [S, C].
    d: Tensor,
    dhidden: Tensor,
    rstd: Tensor,
    /// f32 [chunk, V].
    logits: Tensor,
    index: Vec<u32>,
    targets: Vec<u32>,
    positions: Vec<Position>,
}

impl Scratch {
    /// Room for `tokens` supervised tokens.
    pub fn new(arena: &mut Arena, dtype: DType, tokens: usize, hidden: usize, vocab: usize) -> Self {
        let chunk = (LOGITS_BYTES / (vocab * 4)).clamp(1, tokens.max(1));
        Self {
            hidden: arena.tensor(dtype, &[tokens, hidden]),
            normed: arena.tensor(dtype, &[tokens, hidden]),
            d: arena.tensor(dtype, &[tokens, hidden]),
            dhidden: arena.tensor(dtype, &[tokens, hidden]),
            rstd: arena.tensor(DType::F32, &[tokens]),
            logits: arena.tensor(DType::F32, &[chunk, vocab]),
            index: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
        }
    }

    /// Gathers the supervised positions; returns how many there are.
    fn select(&mut self, dev: &Device, hidden: View<'_>, targets: &[i32]) -> usize {
        self.index.clear();
        self.targets.clear();
        for (position, target) in targets.iter().enumerate() {
            if let Ok(target) = u32::try_from(*target) {
                self.index.push(position as u32);
                self.targets.push(target);
            }
        }
        let s = self.index.len();
        self.positions.clear();
        self.positions.resize(s, Position::default());
        rows::gather(dev, hidden, &self.index, 1.0, self.hidden.head_mut(s));
        s
    }

    fn sums(&self) -> LossSums {
        LossSums {
            nll: self.positions.iter().map(|p| f64::from(p.nll)).sum(),
            supervised: self.positions.len(),
            correct: self.positions.iter().filter(|p| p.correct).count(),
        }
    }
}

/// What happens to logits before they are probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitParams {
    /// s.
    pub scale: f32,
    /// c.
    pub softcap: Option<f32>,
}

impl LogitParams {
    /// Those of a model.
    pub fn of(spec: &DecoderSpec) -> Self {
        Self { scale: spec.logit_scale, softcap: spec.final_logit_softcapping }
    }

    /// Logits of normed states.
    fn forward(self, dev: &Device, normed: View<'_>, weight: &Parameter, mut logits: ViewMut<'_>) {
        weight.x_wt(normed, logits.reborrow()).alpha(self.scale).run(dev);
        if let Some(cap) = self.softcap {
            softcap::forward(dev, cap, logits);
        }
    }
}

/// The loss of hidden states [N, C]; `norm` is the final norm, `weight` the head's [V, C].
pub fn loss(
    dev: &Device,
    params: LogitParams,
    (norm, weight): (&Norm, &Parameter),
    hidden: View<'_>,
    targets: &[i32],
    scratch: &mut Scratch,
) -> LossSums {
    let s = scratch.select(dev, hidden, targets);
    let w = scratch;
    norm.forward(dev, w.hidden.head(s), w.normed.head_mut(s), w.rstd.head_mut(s));
    let chunk = w.logits.shape()[0];
    for start in (0..s).step_by(chunk) {
        let part = start..s.min(start + chunk);
        let n = part.len();
        params.forward(dev, w.normed.view().rows(part.clone()), weight, w.logits.head_mut(n));
        cross_entropy::forward(dev, w.logits.head(n), &w.targets[part.clone()], &mut w.positions[part]);
    }
    w.sums()
}

/// The loss as [`loss`], and the gradient of `scale` · Σ nll: of the hidden states into `dhidden` [N, C], of norm and
/// head added to theirs.
///
/// With a tied head `weight` is the embedding's.
pub fn loss_and_backward(
    dev: &Device,
    params: LogitParams,
    (norm, weight): (&mut Norm, &mut Parameter),
    (hidden, targets): (View<'_>, &[i32]),
    scale: f32,
    scratch: &mut Scratch,
    dhidden: ViewMut<'_>,
) -> LossSums {
    let s = scratch.select(dev, hidden, targets);
    let w = scratch;
    norm.forward(dev, w.hidden.head(s), w.normed.head_mut(s), w.rstd.head_mut(s));
    let chunk = w.logits.shape()[0];
    for start in (0..s).step_by(chunk) {
        let part = start..s.min(start + chunk);
        let (n, normed) = (part.len(), w.normed.view().rows(part.clone()));
        let (targets, positions) = (&w.targets[part.clone()], &mut w.positions[part.clone()]);
        params.forward(dev, normed, weight, w.logits.head_mut(n));
        cross_entropy::forward(dev, w.logits.head(n), targets, positions);
        // The gradient of s·z is s times that of z: it goes in with the loss's own factor.
        let scale = scale * params.scale;
        cross_entropy::backward(dev, w.logits.head_mut(n), targets, positions, scale, params.softcap);
        weight.dy_w(w.logits.head(n), w.d.view_mut().into_rows(part)).run(dev);
        let dlogits = w.logits.head(n);
        weight.accumulate(|_, dw| Matmul::dyt_x(dlogits, normed, dw).accumulate().run(dev));
    }
    w.dhidden.head_mut(s).zero();
    let saved = (w.hidden.head(s), w.rstd.head(s));
    norm.backward(dev, saved, w.d.head(s), Some(w.dhidden.head_mut(s)));
    rows::place(dev, w.dhidden.head(s), &w.index, dhidden);
    w.sums()
}

/// Logits f32 [N, V] of all the given hidden states [N, C]: for generation and for comparisons, not for training.
pub fn logits(
    dev: &Device,
    params: LogitParams,
    (norm, weight): (&Norm, &Parameter),
    hidden: View<'_>,
    logits: ViewMut<'_>,
    scratch: &mut Scratch,
) {
    let (n, w) = (hidden.dim(0), scratch);
    norm.forward(dev, hidden, w.normed.head_mut(n), w.rstd.head_mut(n));
    params.forward(dev, w.normed.head(n), weight, logits);
}
