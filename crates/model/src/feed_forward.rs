//! The second layer of a block (stages 9 and 11 of the walk): a feed-forward layer, experts, or both.
//!
//! > y = mlp(x), or y = moe(x), or y = [σ(shared_gate(x)) ·] mlp(x) + moe(x)

use sft_kernels::{DType, Tensor, View, ViewMut, row_gate};

use crate::arena::Arena;
use crate::inputs;
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::mlp::{self, Mlp};
use crate::moe::{self, Moe};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, LayerSpec};

/// The second layer of a block.
#[derive(Debug)]
pub struct FeedForward {
    /// What all tokens go through.
    pub mlp: Option<Mlp>,
    /// [1, C]: what of a shared expert's output is taken.
    pub shared_gate: Option<Linear>,
    /// Experts.
    pub moe: Option<Moe>,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    mlp: Option<mlp::Saved>,
    shared: Option<Shared>,
    moe: Option<moe::Saved>,
}

/// Of a gated shared expert.
#[derive(Debug)]
struct Shared {
    /// The gate's logit, [N, 1].
    logit: Tensor,
    /// What the expert puts out, [N, C].
    out: Tensor,
    gate: linear::Saved,
}

impl Saved {
    /// Room for `tokens` tokens of width C = `hidden`; with `keeps_inputs`, for what enters `down_proj` too.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, hidden): (usize, usize),
        spec: &LayerSpec,
        adapters: &LayerAdapters,
        keeps_inputs: bool,
    ) -> Self {
        let mlp = spec.dense().map(|mlp| mlp::Saved::new(arena, dtype, tokens, mlp, adapters, keeps_inputs));
        let shared_gate = spec.moe.as_ref().and_then(|moe| moe.shared_gate);
        let shared = shared_gate.map(|name| Shared {
            logit: arena.tensor(dtype, &[tokens, 1]),
            out: arena.tensor(dtype, &[tokens, hidden]),
            gate: linear::Saved::new(arena, dtype, tokens, adapters.carried_by(name)),
        });
        let moe = spec.moe.as_ref().map(|moe| moe::Saved::new(arena, dtype, tokens, moe, adapters));
        Self { mlp, shared, moe }
    }
}

/// Workspace that the second layers of all blocks share.
#[derive(Debug)]
pub struct Scratch {
    mlp: mlp::Scratch,
    /// Of experts, where a block has some.
    pub moe: Option<moe::Scratch>,
}

impl Scratch {
    /// Room for `tokens` tokens; for `backward_tokens` (0 where none follows) in what backward alone needs.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Self {
        let dense = || spec.layers.iter().filter_map(LayerSpec::dense);
        let widest = dense().map(|mlp| mlp.intermediate_size).max().unwrap_or(0);
        Self {
            mlp: mlp::Scratch::new(arena, dtype, tokens, widest, dense().next().map(|mlp| mlp.activation)),
            moe: moe::Scratch::new(arena, dtype, (tokens, backward_tokens), spec, adapters),
        }
    }
}

const OF_EXPERTS: &str = "made for a model with experts";

impl FeedForward {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        s: &mut Saved,
        (w, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let n = x.dim(0);
        if let (Some(mlp), Some(saved)) = (&self.mlp, &mut s.mlp) {
            match (&self.shared_gate, &mut s.shared) {
                (Some(gate), Some(shared)) => {
                    mlp.forward(pass, x, shared.out.head_mut(n), saved, (&mut w.mlp, inputs));
                    let (logit, linears) = (shared.logit.head_mut(n), &mut inputs.linears);
                    gate.forward(pass.dev, x, logit, &mut shared.gate, linears, pass.dropout);
                    row_gate::forward(pass.dev, shared.logit.head(n), shared.out.head(n), y.reborrow());
                }
                _ => mlp.forward(pass, x, y.reborrow(), saved, (&mut w.mlp, inputs)),
            }
        }
        if let (Some(moe), Some(saved)) = (&self.moe, &mut s.moe) {
            let scratch = (w.moe.as_mut().expect(OF_EXPERTS), &mut inputs.linears);
            moe.forward(pass, x, (y, self.mlp.is_some()), saved, scratch);
        }
    }

    /// The gradient of x from that of y; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        mut dx: ViewMut<'_>,
        s: &mut Saved,
        (w, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev) = (x.dim(0), pass.dev);
        let has_mlp = self.mlp.is_some();
        if let (Some(mlp), Some(saved)) = (&mut self.mlp, &mut s.mlp) {
            match (&mut self.shared_gate, &mut s.shared) {
                (Some(gate), Some(shared)) => {
                    row_gate::backward(dev, dy, shared.logit.head_mut(n), shared.out.head_mut(n));
                    let (d, scratch) = (shared.out.head(n), (&mut w.mlp, &mut *inputs));
                    mlp.backward(pass, x, d, dx.reborrow(), saved, scratch);
                    let (d, linears) = (shared.logit.head(n), &mut inputs.linears);
                    gate.backward(dev, x, d, Some(dx.reborrow()), true, &shared.gate, linears, pass.dropout);
                }
                _ => mlp.backward(pass, x, dy, dx.reborrow(), saved, (&mut w.mlp, inputs)),
            }
        }
        if let (Some(moe), Some(saved)) = (&mut self.moe, &mut s.moe) {
            let scratch = (w.moe.as_mut().expect(OF_EXPERTS), &mut inputs.linears);
            moe.backward(pass, x, dy, (dx, has_mlp), saved, scratch);
        }
    }

    /// Every linear layer with its name inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let mlp = self.mlp.iter().flat_map(|mlp| mlp.gate_up.iter().chain([(mlp.output, &mlp.down_proj)]));
        let spec = self.moe.as_ref().map(|moe| &moe.spec);
        let gate = spec.and_then(|spec| spec.shared_gate).zip(self.shared_gate.as_ref());
        let router = self.moe.iter().filter(|moe| moe.spec.router.is_linear);
        mlp.chain(gate).chain(router.map(|moe| (moe.spec.router.name, &moe.router)))
    }

    /// Every linear layer with its name inside the block.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear)> {
        let mlp = self.mlp.iter_mut().flat_map(|mlp| {
            let down = (mlp.output, &mut mlp.down_proj);
            mlp.gate_up.iter_mut().chain([down])
        });
        let name = self.moe.as_ref().and_then(|moe| moe.spec.shared_gate);
        let gate = name.zip(self.shared_gate.as_mut());
        let router = self.moe.iter_mut().filter(|moe| moe.spec.router.is_linear);
        mlp.chain(gate).chain(router.map(|moe| (moe.spec.router.name, &mut moe.router)))
    }

    /// The weights that are not linear layers'.
    pub fn other_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let experts = self.moe.iter().flat_map(Moe::base_parameters);
        experts.chain(self.mlp.iter().flat_map(|mlp| mlp.activation.parameters()))
    }

    /// Every weight, adapters included: those of [`FeedForward::linears`], and the others.
    pub fn parameters_mut(&mut self) -> [Vec<&mut Parameter>; 2] {
        let [mut linears, mut others] = [Vec::new(), Vec::new()];
        let mut activation = None;
        if let Some(Mlp { gate_up, down_proj, activation: act, .. }) = &mut self.mlp {
            linears.extend(gate_up.linears.iter_mut().chain([down_proj]).flat_map(Linear::parameters_mut));
            activation = Some(act);
        }
        linears.extend(self.shared_gate.iter_mut().flat_map(Linear::parameters_mut));
        if let Some(Moe { router, correction, gate_up, down, spec }) = &mut self.moe {
            let to = if spec.router.is_linear { &mut linears } else { &mut others };
            to.extend(router.parameters_mut());
            others.extend(correction.as_mut());
            others.extend(gate_up.parameters_mut().chain(down.parameters_mut()));
        }
        others.extend(activation.into_iter().flat_map(mlp::Act::parameters_mut));
        [linears, others]
    }
}
