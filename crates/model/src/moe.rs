//! A mixture of experts (stages 9 and 11 of the walk).
//!
//! > y[t] = Σⱼ w[t, j]·down_e(act(gate_e(x[t])) · up_e(x[t])), e = e(t, j) the j-th expert that the router chose for t
//!
//! Few families weigh an expert's input instead of its output. Tokens are grouped by expert, so that each expert has
//! one product per weight; see `sft_kernels::experts`.
//!
//! Saved for backward: the router's logits, the choice, the weights, and the outputs of gate and up, which backward
//! overwrites by their gradients; what goes into `down` is computed again.

use sft_kernels::experts::{self, Grouping};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, columns, gated, routing, rows};

use crate::arena::Arena;
use crate::balance::Balance;
use crate::experts::Experts;
use crate::inputs::{in_rows, in_rows_mut};
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters, LowRank};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, MoeSpec};

/// A router and its experts.
#[derive(Debug)]
pub struct Moe {
    /// [E, C].
    pub router: Linear,
    /// Added to scores for the choice, f32 [E]; never trained.
    pub correction: Option<Parameter>,
    /// [E, 2F, C].
    pub gate_up: Experts,
    /// [E, C, F].
    pub down: Experts,
    /// What it is.
    pub spec: MoeSpec,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// f32 [N, E].
    logits: Tensor,
    /// f32 [N, k].
    weights: Tensor,
    /// Experts of each token, [N·k].
    index: Vec<u32>,
    /// [N·k, F].
    gate: Tensor,
    /// [N·k, F].
    up: Tensor,
    router: linear::Saved,
    gate_up: crate::experts::Saved,
    down: crate::experts::Saved,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &MoeSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        let (slots, f) = (tokens * spec.top_k(), spec.intermediate_size);
        let of_experts = |arena: &mut Arena<'_>, name| {
            crate::experts::Saved::new(arena, dtype, slots, adapters.carried_by(name))
        };
        Self {
            gate_up: of_experts(arena, spec.gate_up.weight),
            down: of_experts(arena, spec.down.weight),
            logits: arena.tensor(DType::F32, &[tokens, spec.experts]),
            weights: arena.tensor(DType::F32, &[tokens, spec.top_k()]),
            index: arena.indices(slots),
            gate: arena.tensor(dtype, &[slots, f]),
            up: arena.tensor(dtype, &[slots, f]),
            router: linear::Saved::new(arena, dtype, tokens, adapters.carried_by(spec.router.name)),
        }
    }
}

/// Workspace that all mixtures share, each taking what it needs; M = N·k.
#[derive(Debug)]
pub struct Scratch {
    grouping: Grouping,
    /// Rows of x by expert, [M, C].
    x: Tensor,
    /// What `down` puts out, or the gradient of it, and then of `x`, [M, C].
    out: Tensor,
    /// Gate and up side by side, or their gradient, [M, 2F].
    fused: Tensor,
    /// What goes into `down`, [M, F].
    inner: Tensor,
    /// Its gradient, [M, F].
    dinner: Tensor,
    /// f32 [N, k].
    dweights: Tensor,
    /// f32 [N, E].
    dlogits: Tensor,
    /// The same in the compute dtype.
    dlogits_rounded: Option<Tensor>,
    /// Of adapters, [M · largest R].
    dxa: Option<Tensor>,
    /// The auxiliary loss.
    pub balance: Balance,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer, and for `backward_tokens` in what backward alone needs; nothing
    /// without experts.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Option<Self> {
        let all = || spec.layers.iter().filter_map(|layer| layer.moe.as_ref());
        let widest = |width: fn(&MoeSpec) -> usize| all().map(width).max();
        let (experts, k) = (widest(|m| m.experts)?, widest(MoeSpec::top_k)?);
        let (c, f) = (spec.hidden_size, widest(|m| m.top_k() * m.intermediate_size)?);
        let carried = |moe: &MoeSpec, layer: &LayerAdapters| {
            let both = [moe.gate_up.weight, moe.down.weight].map(|name| layer.carried_by(name)?.low_rank());
            both.into_iter().flatten().map(|LowRank { rank, .. }| rank * moe.top_k()).max()
        };
        let layers = spec.layers.iter().zip(&adapters.layers);
        let rank = layers.filter_map(|(layer, adapters)| carried(layer.moe.as_ref()?, adapters)).max();
        let mut buffer = |len: usize| arena.tensor(dtype, &[len]);
        Some(Self {
            dxa: rank.map(|rank| buffer(backward_tokens * rank)),
            grouping: Grouping::default(),
            x: buffer(tokens * k * c),
            out: buffer(tokens * k * c),
            fused: buffer(2 * tokens * f),
            inner: buffer(tokens * f),
            dinner: buffer(backward_tokens * f),
            dlogits_rounded: (dtype != DType::F32).then(|| buffer(backward_tokens * experts)),
            dweights: arena.tensor(DType::F32, &[backward_tokens * k]),
            dlogits: arena.tensor(DType::F32, &[backward_tokens * experts]),
            balance: Balance::new(spec.moe_aux_loss_coef, experts),
        })
    }
}

/// The first elements of a flat buffer as a matrix.
fn matrix(buffer: &Tensor, rows: usize, columns: usize) -> View<'_> {
    buffer.head(rows * columns).reshape(&[rows, columns])
}

/// The same, to write.
fn matrix_mut(buffer: &mut Tensor, rows: usize, columns: usize) -> ViewMut<'_> {
    buffer.head_mut(rows * columns).reshape(&[rows, columns])
}

impl Moe {
    /// Rows that the parts of `fused` are seen in: those that take turns are columns of a matrix of F times as many.
    fn turns(&self) -> usize {
        if self.spec.interleaved { self.spec.intermediate_size } else { 1 }
    }

    /// Writes y [N, C] from x [N, C], or adds to it if `accumulate`.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        (y, accumulate): (ViewMut<'_>, bool),
        s: &mut Saved,
        (w, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, c, dev, spec) = (x.dim(0), x.dim(1), pass.dev, &self.spec);
        let (k, f) = (spec.top_k(), spec.intermediate_size);
        let m = n * k;
        self.router.forward(dev, x, s.logits.head_mut(n), &mut s.router, linears, pass.dropout);
        pass.see("router", s.logits.head(n));
        let correction = self.correction.as_ref().map(Parameter::value);
        let (logits, index) = (s.logits.head(n), &mut s.index[..m]);
        routing::forward(dev, &spec.rule, logits, correction, s.weights.head_mut(n), index);
        w.grouping.sort(index, spec.experts, k);
        w.balance.count(&w.grouping, n);
        let weights = s.weights.head(n);
        self.gather(dev, x, weights, w);
        let (rows, fused) = (matrix(&w.x, m, c), matrix_mut(&mut w.fused, m, 2 * f));
        self.gate_up.forward(dev, &w.grouping, rows, fused, &mut s.gate_up);
        let parts = [s.gate.head_mut(m), s.up.head_mut(m)].map(|part| in_rows_mut(part, m * self.turns()));
        columns::split(dev, in_rows(w.fused.head(2 * m * f), m * self.turns()), parts);
        let (gate, up) = (s.gate.head(m), s.up.head(m));
        gated::forward(dev, spec.activation, gate, up, matrix_mut(&mut w.inner, m, f));
        let (inner, out) = (matrix(&w.inner, m, f), matrix_mut(&mut w.out, m, c));
        self.down.forward(dev, &w.grouping, inner, out, &mut s.down);
        let weights = (!spec.weighs_input).then_some(weights);
        experts::combine(dev, &w.grouping, matrix(&w.out, m, c), weights, y, accumulate);
    }

    /// Rows of x by expert, as the experts take them.
    fn gather(&self, dev: &Device, x: View<'_>, weights: View<'_>, w: &mut Scratch) {
        let (m, c) = (weights.elements(), x.dim(1));
        rows::gather(dev, x, w.grouping.tokens(), 1.0, matrix_mut(&mut w.x, m, c));
        if self.spec.weighs_input {
            experts::scale(dev, &w.grouping, weights, matrix_mut(&mut w.x, m, c));
        }
    }

    /// Writes the gradient of x from that of y to `dx`, or adds it if `accumulate`; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        (mut dx, accumulate): (ViewMut<'_>, bool),
        s: &mut Saved,
        (w, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, c, dev, k) = (x.dim(0), x.dim(1), pass.dev, self.spec.top_k());
        let (m, experts) = (n * k, self.spec.experts);
        w.grouping.sort(&s.index[..m], experts, k);
        self.backward_experts(dev, x, dy, s, w);
        experts::combine(dev, &w.grouping, matrix(&w.out, m, c), None, dx.reborrow(), accumulate);

        let io = routing::Backward {
            logits: s.logits.head(n),
            index: &s.index[..m],
            dweights: matrix(&w.dweights, n, k),
            balance: w.balance.slopes(experts),
            dlogits: matrix_mut(&mut w.dlogits, n, experts),
        };
        routing::backward(dev, &self.spec.rule, io);
        let dlogits = match &mut w.dlogits_rounded {
            Some(rounded) => {
                rounded.head_mut(n * experts).copy_from(w.dlogits.head(n * experts));
                matrix(rounded, n, experts)
            }
            None => matrix(&w.dlogits, n, experts),
        };
        self.router.backward(dev, x, dlogits, Some(dx), true, &s.router, linears, pass.dropout);
    }

    /// Leaves the gradient of the experts' rows of x in `out`, and that of the weights in `dweights`.
    fn backward_experts(&mut self, dev: &Device, x: View<'_>, dy: View<'_>, s: &mut Saved, w: &mut Scratch) {
        let (n, c, f, turns) = (x.dim(0), x.dim(1), self.spec.intermediate_size, self.turns());
        let (m, weighs_input) = (n * self.spec.top_k(), self.spec.weighs_input);
        let weights = s.weights.head(n);
        let dweights = w.dweights.head_mut(m);
        gated::forward(
            dev,
            self.spec.activation,
            s.gate.head(m),
            s.up.head(m),
            matrix_mut(&mut w.inner, m, f),
        );
        rows::gather(dev, dy, w.grouping.tokens(), 1.0, matrix_mut(&mut w.out, m, c));
        let (inner, mut dinner) = (matrix(&w.inner, m, f), matrix_mut(&mut w.dinner, m, f));
        let dy = (matrix(&w.out, m, c), (!weighs_input).then_some(weights));
        self.down.backward_input(dev, &w.grouping, dy, dinner.reborrow(), &mut s.down, &mut w.dxa);
        if !weighs_input {
            experts::weigh(dev, &w.grouping, inner, dinner, weights, dweights);
            if let Some(bias) = &self.down.bias {
                let (dy, dweights) = (matrix(&w.out, m, c), w.dweights.head_mut(m));
                experts::weigh_bias(dev, &w.grouping, bias.value(), dy, dweights);
            }
        }
        if self.down.base_takes_gradient() && !weighs_input {
            experts::scale(dev, &w.grouping, weights, matrix_mut(&mut w.out, m, c));
        }
        self.down.backward_of_input(dev, &w.grouping, inner, matrix(&w.out, m, c), &w.dxa);
        gated::backward(
            dev,
            self.spec.activation,
            matrix_mut(&mut w.dinner, m, f),
            s.gate.head_mut(m),
            s.up.head_mut(m),
            false,
        );
        let parts = [s.gate.head(m), s.up.head(m)].map(|part| in_rows(part, m * turns));
        columns::join(dev, parts, in_rows_mut(w.fused.head_mut(2 * m * f), m * turns));
        let dfused = matrix(&w.fused, m, 2 * f);
        let dx = matrix_mut(&mut w.out, m, c);
        self.gate_up.backward_input(dev, &w.grouping, (dfused, None), dx, &mut s.gate_up, &mut w.dxa);
        if self.gate_up.reads_input_backward() {
            rows::gather(dev, x, w.grouping.tokens(), 1.0, matrix_mut(&mut w.x, m, c));
            if weighs_input {
                experts::scale(dev, &w.grouping, weights, matrix_mut(&mut w.x, m, c));
            }
            self.gate_up.backward_of_input(dev, &w.grouping, matrix(&w.x, m, c), dfused, &w.dxa);
        }
        if weighs_input {
            rows::gather(dev, x, w.grouping.tokens(), 1.0, matrix_mut(&mut w.x, m, c));
            let dweights = w.dweights.head_mut(m);
            experts::weigh(
                dev,
                &w.grouping,
                matrix(&w.x, m, c),
                matrix_mut(&mut w.out, m, c),
                weights,
                dweights,
            );
        }
    }

    /// Its weights, but for those of the router where that is a linear layer like others.
    pub fn base_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let router = (!self.spec.router.is_linear).then(|| self.router.base_parameters());
        let router = router.into_iter().flatten().chain(&self.correction);
        router.chain(self.gate_up.base_parameters()).chain(self.down.base_parameters())
    }

    /// The adapters that are not on linear layers to transformers.
    pub fn adapter_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let router = (!self.spec.router.is_linear).then(|| self.router.adapter_parameters());
        let experts = [&self.gate_up, &self.down].into_iter().flat_map(Experts::adapter_parameters);
        router.into_iter().flatten().chain(experts)
    }
}
