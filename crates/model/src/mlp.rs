//! The feed-forward layer of a block (stages 9 and 11 of the walk).
//!
//! > y = down_proj(act(gate_proj(x)) · up_proj(x)), or without a gate y = down_proj(act(up_proj(x)))
//!
//! Saved for backward: the outputs of `gate_proj` and `up_proj`, which backward overwrites by their gradients; what
//! goes into `down_proj` where there is a gate and room, else it is computed again with them, in the place of its own
//! gradient.

use sft_kernels::gated::{self, Activation};
use sft_kernels::xielu::{self, XieluParams};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, activation, rows};

use crate::arena::Arena;
use crate::inputs::{self, Inputs};
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{ActivationSpec, MlpSpec};

/// A feed-forward layer.
#[derive(Debug)]
pub struct Mlp {
    /// To gate and up [F, C], or to up alone.
    pub gate_up: Inputs,
    /// [C, F].
    pub down_proj: Linear,
    /// Its name inside the block.
    pub output: &'static str,
    /// On the gate, or on what there is without one.
    pub activation: Act,
    /// Of the gate, and of what goes into `down_proj`.
    pub multipliers: [f32; 2],
}

/// An activation with its weights, if it has any.
#[derive(Debug)]
pub enum Act {
    /// A function.
    Fixed(Activation),
    /// xIELU, only where there is no gate.
    Xielu(Box<Xielu>),
}

/// The weights of xIELU.
#[derive(Debug)]
pub struct Xielu {
    /// [1].
    pub alpha_p: Parameter,
    /// [1].
    pub alpha_n: Parameter,
    /// A scalar that is never trained.
    pub beta: Parameter,
    /// The same.
    pub eps: Parameter,
}

impl Xielu {
    fn params(&self) -> XieluParams {
        let first = |parameter: &Parameter| parameter.value().to_f32_vec()[0];
        let [alpha_p, alpha_n] = [&self.alpha_p, &self.alpha_n].map(first);
        XieluParams { alpha_p, alpha_n, beta: first(&self.beta), eps: first(&self.eps) }
    }

    /// Adds to the gradients of the two numbers.
    fn accumulate(&mut self, gradients: [f32; 2]) {
        for (parameter, gradient) in [&mut self.alpha_p, &mut self.alpha_n].into_iter().zip(gradients) {
            parameter.accumulate(|d| {
                let sum = d.as_view().to_f32_vec()[0] + gradient;
                d.copy_from(View::of(&[sum], &[1]));
            });
        }
    }
}

impl Act {
    /// Its weights.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let all = match self {
            Act::Fixed(_) => None,
            Act::Xielu(x) => Some([&x.alpha_p, &x.alpha_n, &x.beta, &x.eps]),
        };
        all.into_iter().flatten()
    }

    /// Its weights.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let all = match self {
            Act::Fixed(_) => None,
            Act::Xielu(x) => Some([&mut x.alpha_p, &mut x.alpha_n, &mut x.beta, &mut x.eps]),
        };
        all.into_iter().flatten()
    }
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    gate: Option<Tensor>,
    up: Tensor,
    /// What goes into `down_proj`, where it is kept.
    inner: Option<Tensor>,
    gate_up: inputs::Saved,
    down_proj: linear::Saved,
}

impl Saved {
    /// Room for `tokens` tokens; with `keeps_inputs`, for what goes into `down_proj` too.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &MlpSpec,
        adapters: &LayerAdapters,
        keeps_inputs: bool,
    ) -> Self {
        let f = spec.intermediate_size;
        let gate = spec.gated.then(|| arena.tensor(dtype, &[tokens, f]));
        let up = arena.tensor(dtype, &[tokens, f]);
        let inner = (spec.gated && keeps_inputs).then(|| arena.tensor(dtype, &[tokens * f]));
        let gate_up = inputs::Saved::new(arena, dtype, tokens, spec.inputs, adapters);
        let down_proj = linear::Saved::new(arena, dtype, tokens, adapters.carried_by(spec.output));
        Self { gate, up, inner, gate_up, down_proj }
    }

    /// F.
    fn width(&self) -> usize {
        self.up.shape()[1]
    }
}

/// The first elements of a flat buffer as [n, F].
fn shaped(buffer: &Tensor, [n, f]: [usize; 2]) -> View<'_> {
    buffer.head(n * f).reshape(&[n, f])
}

/// The same, to write.
fn shaped_mut(buffer: &mut Tensor, [n, f]: [usize; 2]) -> ViewMut<'_> {
    buffer.head_mut(n * f).reshape(&[n, f])
}

/// Workspace that all feed-forward layers share.
#[derive(Debug)]
pub struct Scratch {
    /// What goes into `down_proj`, or its gradient, [N · widest F].
    inner: Tensor,
    /// Sums over parts of the gradients of an activation's weights.
    sums: Option<Tensor>,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer, F = `f`.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        f: usize,
        activation: Option<ActivationSpec>,
    ) -> Self {
        let has_weights = matches!(activation, Some(ActivationSpec::Xielu(_)));
        let sums = xielu::scratch_len(tokens * f);
        Self {
            inner: arena.tensor(dtype, &[tokens * f]),
            sums: has_weights.then(|| arena.tensor(DType::F32, &[sums])),
        }
    }
}

impl Mlp {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev, s) = (x.dim(0), pass.dev, saved);
        let up = s.up.head_mut(n);
        match &mut s.gate {
            Some(gate) => self.gate_up.forward(pass, x, [gate.head_mut(n), up], &mut s.gate_up, inputs),
            None => self.gate_up.forward(pass, x, [up], &mut s.gate_up, inputs),
        }
        if let Some(gate) = &mut s.gate {
            scale(dev, self.multipliers[0], gate.head_mut(n));
        }
        s.gate.iter().for_each(|gate| pass.see("mlp.gate_proj", gate.head(n)));
        pass.see("mlp.up_proj", s.up.head(n));
        let shape = [n, s.width()];
        let buffer = s.inner.as_mut().unwrap_or(&mut scratch.inner);
        let (up, inner) = (s.up.head(n), shaped_mut(buffer, shape));
        match (&self.activation, &s.gate) {
            (Act::Fixed(act), Some(gate)) => gated::forward(dev, *act, gate.head(n), up, inner),
            (Act::Fixed(act), None) => activation::forward(dev, *act, up, inner),
            (Act::Xielu(xielu), _) => xielu::forward(dev, xielu.params(), up, inner),
        }
        scale(dev, self.multipliers[1], shaped_mut(buffer, shape));
        let (inner, linears) = (shaped(buffer, shape), &mut inputs.linears);
        pass.see("mlp activation", inner);
        self.down_proj.forward(dev, inner, y.reborrow(), &mut s.down_proj, linears, pass.dropout);
        pass.see("mlp.down_proj", y.as_view());
    }

    /// The gradient of x from that of y; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        dx: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev, s, dropout) = (x.dim(0), pass.dev, saved, pass.dropout);
        let (shape, linears) = ([n, s.width()], &mut inputs.linears);
        let dinner = shaped_mut(&mut scratch.inner, shape);
        self.down_proj.backward_to_input(dev, dy, dinner, &s.down_proj, linears, dropout);
        scale(dev, self.multipliers[1], shaped_mut(&mut scratch.inner, shape));
        let dinner = shaped_mut(&mut scratch.inner, shape);
        let (up, again) = (s.up.head_mut(n), s.inner.is_none());
        match (&mut self.activation, &mut s.gate) {
            (Act::Fixed(act), Some(gate)) => {
                gated::backward(dev, *act, dinner, gate.head_mut(n), up, again);
            }
            (Act::Fixed(act), None) => activation::backward(dev, *act, dinner, up),
            (Act::Xielu(xielu), _) => {
                let sums = scratch.sums.as_mut().expect("made for an activation with weights");
                xielu.accumulate(xielu::backward(dev, xielu.params(), dinner, up, sums.view_mut()));
            }
        }
        if again {
            scale(dev, self.multipliers[1], shaped_mut(&mut scratch.inner, shape));
        }
        let inner = shaped(s.inner.as_ref().unwrap_or(&scratch.inner), shape);
        self.down_proj.backward_of_input(dev, inner, dy, linears, dropout);
        if let Some(gate) = &mut s.gate {
            scale(dev, self.multipliers[0], gate.head_mut(n));
        }
        let (up, dx) = (s.up.head(n), Some(dx));
        match &s.gate {
            Some(gate) => self.gate_up.backward(pass, x, [gate.head(n), up], dx, &s.gate_up, inputs),
            None => self.gate_up.backward(pass, x, [up], dx, &s.gate_up, inputs),
        }
    }
}

fn scale(dev: &Device, by: f32, x: ViewMut<'_>) {
    if by != 1.0 {
        rows::scale_in_place(dev, by, x);
    }
}
