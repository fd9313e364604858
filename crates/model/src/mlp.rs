//! The feed-forward layer of a block (stages 9 and 11 of the walk).
//!
//! > y = down_proj(act(gate_proj(x)) · up_proj(x)), or without a gate y = down_proj(act(up_proj(x)))
//!
//! Saved for backward: the outputs of `gate_proj` and `up_proj`, which backward overwrites by their gradients;
//! what goes into `down_proj` is computed again.

use sft_kernels::gated::{self, Activation};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, activation};

use crate::arena::Arena;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::pass::Pass;
use crate::spec::MlpSpec;

/// A feed-forward layer.
#[derive(Debug)]
pub struct Mlp {
    /// [F, C].
    pub gate_proj: Option<Linear>,
    /// [F, C].
    pub up_proj: Linear,
    /// [C, F].
    pub down_proj: Linear,
    /// On the gate, or on what there is without one.
    pub activation: Activation,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    gate: Option<Tensor>,
    up: Tensor,
    gate_proj: linear::Saved,
    up_proj: linear::Saved,
    down_proj: linear::Saved,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena,
        dtype: DType,
        tokens: usize,
        spec: &MlpSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        let f = spec.intermediate_size;
        let gate = spec.gated.then(|| arena.tensor(dtype, &[tokens, f]));
        let up = arena.tensor(dtype, &[tokens, f]);
        let mut linear = |name: &str| linear::Saved::new(arena, dtype, tokens, adapters.rank_of(name));
        Self {
            gate,
            up,
            gate_proj: linear("gate_proj"),
            up_proj: linear("up_proj"),
            down_proj: linear("down_proj"),
        }
    }
}

/// Workspace that all feed-forward layers share.
#[derive(Debug)]
pub struct Scratch {
    /// What goes into `down_proj`, [N, F].
    inner: Tensor,
    /// Its gradient, [N, F].
    dinner: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer.
    pub fn new(arena: &mut Arena, dtype: DType, tokens: usize, f: usize) -> Self {
        Self { inner: arena.tensor(dtype, &[tokens, f]), dinner: arena.tensor(dtype, &[tokens, f]) }
    }
}

impl Mlp {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, dev, s, dropout) = (x.dim(0), pass.dev, saved, pass.dropout);
        if let (Some(gate_proj), Some(gate)) = (&self.gate_proj, &mut s.gate) {
            gate_proj.forward(dev, x, gate.head_mut(n), &mut s.gate_proj, linears, dropout);
        }
        self.up_proj.forward(dev, x, s.up.head_mut(n), &mut s.up_proj, linears, dropout);
        self.activate(dev, n, s, scratch);
        self.down_proj.forward(dev, scratch.inner.head(n), y, &mut s.down_proj, linears, dropout);
    }

    /// What goes into `down_proj`, from what is saved.
    fn activate(&self, dev: &Device, n: usize, saved: &Saved, scratch: &mut Scratch) {
        let (up, inner) = (saved.up.head(n), scratch.inner.head_mut(n));
        match &saved.gate {
            Some(gate) => gated::forward(dev, self.activation, gate.head(n), up, inner),
            None => activation::forward(dev, self.activation, up, inner),
        }
    }

    /// The gradient of x from that of y; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        mut dx: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, linears): (&mut Scratch, &mut linear::Scratch),
    ) {
        let (n, dev, s, dropout) = (x.dim(0), pass.dev, saved, pass.dropout);
        self.activate(dev, n, s, scratch);
        let (inner, dinner) = (scratch.inner.head(n), Some(scratch.dinner.head_mut(n)));
        self.down_proj.backward(dev, inner, dy, dinner, false, &s.down_proj, linears, dropout);
        let dinner = scratch.dinner.head(n);
        let gated = match (&mut self.gate_proj, &mut s.gate) {
            (Some(gate_proj), Some(gate)) => {
                gated::backward(dev, self.activation, dinner, gate.head_mut(n), s.up.head_mut(n));
                let dx = Some(dx.reborrow());
                gate_proj.backward(dev, x, gate.head(n), dx, false, &s.gate_proj, linears, dropout);
                true
            }
            _ => {
                activation::backward(dev, self.activation, dinner, s.up.head_mut(n));
                false
            }
        };
        self.up_proj.backward(dev, x, s.up.head(n), Some(dx), gated, &s.up_proj, linears, dropout);
    }
}
