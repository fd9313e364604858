//! The head: final norm, logits and cross-entropy at the supervised positions alone (stages 10 and 11 of the walk).
//!
//! > z = cap(s·project_out(norm(h))·Wᵀ + b) at each position with a target, loss = Σ w·nll(z, target), or what [`objective`] makes of nll
//!
//! w is 1 but for answers whose row says otherwise; where all are, nothing is multiplied by it.
//! s is 1 in most families, and cap(z) is z but for those that cap logits: c·tanh(z/c). Few have b or project_out, and
//! one has no norm.
//!
//! Positions are taken in chunks, so that logits [N, V] never exist whole; forward and backward of a chunk follow
//! each other while its logits are there. The gradient of positions without a target is zero.

use sft_kernels::objective::{self, Loss};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, convert, cross_entropy, rows, softcap};

use crate::arena::Arena;
use crate::column::Column;
use crate::linear::{self, Linear};
use crate::method::Adapters;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Batch;
use crate::reference::Reference;
use crate::spec::DecoderSpec;
use crate::watch::Watch;

/// Bytes of logits that exist at a time, at most (but for a single row of a huge vocabulary).
const LOGITS_BYTES: usize = 256 << 20;
/// The same on a GPU, which needs more rows at a time to be busy.
const LOGITS_BYTES_ON_CARD: usize = 640 << 20;

/// What a micro-batch adds to the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSums {
    /// Σ −w·log P(target).
    pub nll: f64,
    /// Σ w; without weights the number of supervised positions.
    pub weight: f64,
    /// Σ of what is minimised, which is the same but with another [`Loss`].
    pub loss: f64,
    /// Supervised positions.
    pub supervised: usize,
    /// Positions whose target has the largest logit.
    pub correct: usize,
}

impl std::ops::AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.weight += other.weight;
        self.loss += other.loss;
        self.supervised += other.supervised;
        self.correct += other.correct;
    }
}

impl LossSums {
    /// Σ w·nll / Σ w: the mean cross-entropy of a token, which evaluation measures.
    pub fn mean(&self) -> f64 {
        if self.weight > 0.0 { self.nll / self.weight } else { self.nll }
    }

    /// Σ w·loss / Σ w: the mean of what is minimised.
    pub fn mean_loss(&self) -> f64 {
        if self.weight > 0.0 { self.loss / self.weight } else { self.loss }
    }
}

/// What positions are to predict, and how much each counts.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// The token, or a negative number where there is none, [N].
    pub ids: &'a [i32],
    /// w, [N]; empty where all are 1.
    pub weights: &'a [f32],
}

impl<'a> From<Batch<'a>> for Targets<'a> {
    fn from(batch: Batch<'a>) -> Self {
        Self { ids: batch.targets, weights: batch.weights }
    }
}

/// The weights behind the last block. With a tied head `weight` is the embedding's.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// The final norm.
    pub norm: Option<&'a Norm>,
    /// [width of the head, C].
    pub project_out: Option<&'a Linear>,
    /// [V, C], or [V, width of the head].
    pub weight: &'a Parameter,
    /// [V].
    pub bias: Option<&'a Parameter>,
}

/// The same, to add to their gradients.
#[derive(Debug)]
pub struct LayersMut<'a> {
    /// The final norm.
    pub norm: Option<&'a mut Norm>,
    /// [width of the head, C].
    pub project_out: Option<&'a mut Linear>,
    /// [V, C], or [V, width of the head].
    pub weight: &'a mut Parameter,
    /// [V].
    pub bias: Option<&'a mut Parameter>,
}

impl LayersMut<'_> {
    fn as_ref(&self) -> Layers<'_> {
        Layers {
            norm: self.norm.as_deref(),
            project_out: self.project_out.as_deref(),
            weight: self.weight,
            bias: self.bias.as_deref(),
        }
    }
}

/// Workspace of the head.
#[derive(Debug)]
pub struct Scratch {
    /// Hidden states at supervised positions, [S, C].
    hidden: Tensor,
    /// After the norm, [S, C].
    normed: Tensor,
    /// The gradient of `normed`, [S, C].
    d: Tensor,
    dhidden: Tensor,
    statistics: Tensor,
    projection: Option<Projection>,
    /// [chunk, V].
    logits: Tensor,
    index: Vec<u32>,
    targets: Vec<u32>,
    /// Of each supervised position, [S, 4].
    positions: Tensor,
    /// w of the supervised positions, where not all are 1.
    weights: Option<Weights>,
    weighted: bool,
    /// Sums of the micro-batches since they were cleared; `None` where nothing is allocated.
    totals: Option<cross_entropy::Totals>,
    supervised: usize,
    weight: f64,
    /// What is minimised.
    pub(crate) loss: Loss,
}

/// The weights of the supervised positions, [S], and what their numbers are multiplied by, [4·S].
#[derive(Debug)]
struct Weights {
    of_logits: Column,
    of_positions: Column,
}

/// Of `project_out`.
#[derive(Debug)]
struct Projection {
    /// Its output, [S, width of the head].
    y: Tensor,
    dy: Tensor,
    saved: linear::Saved,
    scratch: linear::Scratch,
}

impl Scratch {
    /// Room for `tokens` supervised tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Self {
        let (hidden, vocab) = (spec.hidden_size, spec.vocab_size);
        // A GPU's products write and read logits in the compute dtype, as transformers does; caps are computed in f32.
        let (logits, bytes) = match (arena.is_on_card(), spec.final_logit_softcapping) {
            (true, None) => (dtype, LOGITS_BYTES_ON_CARD),
            (true, Some(_)) => (DType::F32, LOGITS_BYTES_ON_CARD),
            (false, _) => (DType::F32, LOGITS_BYTES),
        };
        let chunk = (bytes / (vocab * logits.bytes())).clamp(1, tokens.max(1));
        let projection = spec.embedding_projection.map(|projection| {
            let (width, carried) = (projection.width, adapters.outside.carried_by(projection.out_of));
            Projection {
                y: arena.tensor(dtype, &[tokens, width]),
                dy: arena.tensor(dtype, &[tokens, width]),
                saved: linear::Saved::new(arena, dtype, tokens, carried),
                scratch: linear::Scratch::new(
                    arena,
                    dtype,
                    (tokens, tokens),
                    hidden,
                    carried,
                    adapters.has_dropout(),
                ),
            }
        });
        Self {
            hidden: arena.tensor(dtype, &[tokens, hidden]),
            normed: arena.tensor(dtype, &[tokens, hidden]),
            d: arena.tensor(dtype, &[tokens, hidden]),
            dhidden: arena.tensor(dtype, &[tokens, hidden]),
            statistics: arena.tensor(DType::F32, &[tokens, spec.norm.kind.statistics()]),
            projection,
            logits: arena.tensor(logits, &[chunk, vocab]),
            index: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            positions: arena.tensor(DType::F32, &[tokens, cross_entropy::STATISTICS]),
            weights: None,
            weighted: false,
            totals: arena.device().map(cross_entropy::Totals::new),
            supervised: 0,
            weight: 0.0,
            loss: Loss::default(),
        }
    }

    /// Gathers the supervised positions; returns how many there are.
    fn select(&mut self, dev: &Device, hidden: View<'_>, targets: Targets<'_>) -> usize {
        self.index.clear();
        self.targets.clear();
        for (position, target) in targets.ids.iter().enumerate() {
            if let Ok(target) = u32::try_from(*target) {
                self.index.push(position as u32);
                self.targets.push(target);
            }
        }
        let s = self.index.len();
        self.weighted = !targets.weights.is_empty();
        match self.weighted {
            false => self.weight += s as f64,
            true => self.weigh(dev, targets.weights),
        }
        rows::gather(dev, hidden, &self.index, 1.0, self.hidden.head_mut(s));
        s
    }

    /// Shows the states and losses of the last micro-batch to whoever watches.
    pub(crate) fn show(&self, dev: &Device, watch: &Watch) {
        let s = self.index.len();
        let token = |row: usize| self.index.get(row).map(|token| *token as usize);
        watch.see(dev, "final norm", self.normed.head(s), token);
        watch.see(dev, "logits and loss", self.positions.head(s), token);
    }

    /// Takes the weights of the supervised positions.
    fn weigh(&mut self, dev: &Device, weights: &[f32]) {
        let (s, room) = (self.index.len(), self.positions.shape()[0]);
        // Most runs have none, and need no room for them.
        let columns = self.weights.get_or_insert_with(|| Weights {
            of_logits: Column::new(dev, &[room]),
            of_positions: Column::new(dev, &[room, cross_entropy::STATISTICS]),
        });
        let of_logits = columns.of_logits.values(s);
        of_logits.iter_mut().zip(&self.index).for_each(|(w, position)| *w = weights[*position as usize]);
        self.weight += of_logits.iter().copied().map(f64::from).sum::<f64>();
        // Of a position's numbers −log P and the loss are what counts.
        let of_positions = columns.of_positions.values(s);
        let each = of_positions.chunks_exact_mut(cross_entropy::STATISTICS);
        each.zip(&*of_logits).for_each(|(numbers, w)| numbers.copy_from_slice(&[*w, 1.0, 1.0, *w]));
        columns.of_logits.send(s);
        columns.of_positions.send(s);
    }

    /// Counts the positions of a micro-batch.
    fn count(&mut self, dev: &Device) {
        let supervised = self.targets.len();
        self.supervised += supervised;
        if let Some(weights) = self.weights.as_ref().filter(|_| self.weighted && supervised > 0) {
            let numbers = supervised * cross_entropy::STATISTICS;
            let weights = weights.of_positions.view(supervised).reshape(&[numbers]);
            rows::scale_each(dev, weights, self.positions.head_mut(supervised).reshape(&[numbers, 1]));
        }
        self.totals.as_mut().expect("allocated").add(dev, self.positions.head(supervised));
    }

    /// Forgets all micro-batches.
    pub fn clear_sums(&mut self) {
        (self.supervised, self.weight) = (0, 0.0);
        self.totals.iter_mut().for_each(cross_entropy::Totals::clear);
    }

    /// What the micro-batches since then come to; waits until that is known.
    pub fn sums(&self, dev: &Device) -> LossSums {
        let sums = self.totals.as_ref().map(|totals| totals.read(dev)).unwrap_or_default();
        LossSums {
            nll: sums.nll,
            loss: sums.loss,
            weight: self.weight,
            supervised: self.supervised,
            correct: sums.correct,
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

    /// Logits of states that the head reads.
    fn forward(self, dev: &Device, states: View<'_>, layers: Layers<'_>, mut logits: ViewMut<'_>) {
        let bias = layers.bias.map(Parameter::value);
        let product = layers.weight.x_wt(states, logits.reborrow());
        product.alpha(self.scale).bias(bias).run(dev);
        if let Some(cap) = self.softcap {
            softcap::forward(dev, cap, logits);
        }
    }
}

impl Layers<'_> {
    /// The states that the head reads, from hidden ones [S, C]: `normed`, or the output of `projection`.
    fn states<'a>(
        self,
        dev: &Device,
        hidden: View<'_>,
        (normed, statistics): (&'a mut Tensor, &mut Tensor),
        projection: &'a mut Option<Projection>,
        dropout: Option<u64>,
    ) -> View<'a> {
        let s = hidden.dim(0);
        match self.norm {
            Some(norm) => norm.forward(dev, hidden, normed.head_mut(s), statistics.head_mut(s)),
            None => normed.head_mut(s).copy_from(hidden),
        }
        match (self.project_out, projection) {
            (Some(linear), Some(p)) => {
                let y = p.y.head_mut(s);
                linear.forward(dev, normed.head(s), y, &mut p.saved, &mut p.scratch, dropout);
                p.y.head(s)
            }
            _ => normed.head(s),
        }
    }
}

/// Adds the loss of hidden states [N, C] to the sums.
pub fn loss(
    dev: &Device,
    params: LogitParams,
    layers: Layers<'_>,
    hidden: View<'_>,
    targets: Targets<'_>,
    scratch: &mut Scratch,
) {
    let s = scratch.select(dev, hidden, targets);
    let w = scratch;
    let normed = (&mut w.normed, &mut w.statistics);
    let states = layers.states(dev, w.hidden.head(s), normed, &mut w.projection, None);
    let chunk = w.logits.shape()[0];
    for start in (0..s).step_by(chunk) {
        let part = start..s.min(start + chunk);
        let n = part.len();
        params.forward(dev, states.rows(part.clone()), layers, w.logits.head_mut(n));
        let (targets, positions) = (&w.targets[part.clone()], w.positions.view_mut().into_rows(part));
        cross_entropy::forward(dev, w.logits.head(n), targets, positions);
    }
    w.count(dev);
}

/// The states that a reference's head reads at the supervised positions of hidden states [N, C], into its scratch.
pub(crate) fn prepare(
    dev: &Device,
    layers: Layers<'_>,
    hidden: View<'_>,
    targets: &[i32],
    scratch: &mut Scratch,
) {
    let s = scratch.select(dev, hidden, Targets { ids: targets, weights: &[] });
    let w = scratch;
    let normed = (&mut w.normed, &mut w.statistics);
    layers.states(dev, w.hidden.head(s), normed, &mut w.projection, None);
}

/// Logits of a chunk of the positions that [`prepare`] was for.
pub(crate) fn logits_of<'a>(
    dev: &Device,
    params: LogitParams,
    layers: Layers<'_>,
    part: std::ops::Range<usize>,
    w: &'a mut Scratch,
) -> View<'a> {
    let n = part.len();
    let states = w.projection.as_ref().map_or(&w.normed, |p| &p.y).view().rows(part);
    params.forward(dev, states, layers, w.logits.head_mut(n));
    w.logits.head(n)
}

/// As [`loss`], of what is to be minimised, and computes the gradient of `scale` · Σ w·loss: of the hidden states into `dhidden` [N, C], of the
/// layers added to theirs. `dropout` as in [`Linear::forward`].
pub fn loss_and_backward(
    dev: &Device,
    params: LogitParams,
    mut layers: LayersMut<'_>,
    (hidden, targets): (View<'_>, Targets<'_>),
    (scale, dropout): (f32, Option<u64>),
    (scratch, mut reference): (&mut Scratch, Option<&mut Reference>),
    dhidden: ViewMut<'_>,
) {
    let s = scratch.select(dev, hidden, targets);
    let w = scratch;
    let normed = (&mut w.normed, &mut w.statistics);
    layers.as_ref().states(dev, w.hidden.head(s), normed, &mut w.projection, dropout);
    let chunk = w.logits.shape()[0];
    for start in (0..s).step_by(chunk) {
        let part = start..s.min(start + chunk);
        let n = part.len();
        let (states, d) = match &mut w.projection {
            Some(p) => (&p.y, &mut p.dy),
            None => (&w.normed, &mut w.d),
        };
        let states = states.view().rows(part.clone());
        let targets = &w.targets[part.clone()];
        let positions = w.positions.view_mut().into_rows(part.clone());
        params.forward(dev, states, layers.as_ref(), w.logits.head_mut(n));
        let reference = reference.as_deref_mut().map(|reference| reference.logits(dev, part.clone()));
        let logits = (w.logits.head_mut(n), reference);
        let scaling = (scale, params.softcap);
        objective::forward_backward(dev, w.loss, logits, targets, positions, scaling);
        if let Some(weights) = w.weights.as_ref().filter(|_| w.weighted) {
            let weights = weights.of_logits.view(part.end).rows(part.clone());
            rows::scale_each(dev, weights, w.logits.head_mut(n));
        }
        if let Some(bias) = &mut layers.bias {
            bias.accumulate(|db| rows::sum_rows(dev, w.logits.head(n), db));
        }
        // Logits are f32 whatever the others are, products of their gradient are not.
        let dlogits = match states.dtype() {
            DType::F32 => w.logits.head_mut(n),
            _ => convert::narrow(dev, w.logits.head_mut(n)),
        };
        let dlogits = dlogits.as_view();
        // The gradient of s·z is s times that of z.
        let to = d.view_mut().into_rows(part);
        layers.weight.dy_w(dlogits, to).alpha(params.scale).run(dev);
        layers.weight.add_dyt_x(dev, dlogits, states, params.scale);
    }
    if let (Some(linear), Some(p)) = (layers.project_out, &mut w.projection) {
        let (x, dy, dx) = (w.normed.head(s), p.dy.head(s), Some(w.d.head_mut(s)));
        linear.backward(dev, x, dy, dx, false, &p.saved, &mut p.scratch, dropout);
    }
    let d = match layers.norm {
        Some(norm) => {
            let saved = (w.hidden.head(s), w.statistics.head(s));
            norm.backward_over(dev, saved, w.d.head(s), w.dhidden.head_mut(s));
            w.dhidden.head(s)
        }
        None => w.d.head(s),
    };
    rows::place(dev, d, &w.index, dhidden);
    w.count(dev);
}

/// Logits f32 [S, V] at positions of the hidden states [N, C]: for generation and for comparisons, not for training.
pub fn logits(
    dev: &Device,
    params: LogitParams,
    layers: Layers<'_>,
    (hidden, positions): (View<'_>, &[u32]),
    logits: ViewMut<'_>,
    scratch: &mut Scratch,
) {
    let w = scratch;
    rows::gather(dev, hidden, positions, 1.0, w.hidden.head_mut(positions.len()));
    let normed = (&mut w.normed, &mut w.statistics);
    let states = layers.states(dev, w.hidden.head(positions.len()), normed, &mut w.projection, None);
    params.forward(dev, states, layers, logits);
}
