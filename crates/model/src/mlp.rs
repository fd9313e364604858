//! The gated feed-forward layer of a block (stages 9 and 11 of the walk).
//!
//! > y = down_proj(act(gate_proj(x)) · up_proj(x))
//!
//! Saved for backward: the outputs of `gate_proj` and `up_proj`, which backward overwrites by their gradients;
//! their gated product is computed again.

use sft_kernels::gated::{self, Activation};
use sft_kernels::{DType, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::pass::Pass;
use crate::spec::MlpSpec;

/// A gated feed-forward layer.
#[derive(Debug)]
pub struct Mlp {
    /// [F, C].
    pub gate_proj: Linear,
    /// [F, C].
    pub up_proj: Linear,
    /// [C, F].
    pub down_proj: Linear,
    /// On the gate.
    pub activation: Activation,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    gate: Tensor,
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
        let (gate, up) = (arena.tensor(dtype, &[tokens, f]), arena.tensor(dtype, &[tokens, f]));
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
    /// The gated product, [N, F].
    gated: Tensor,
    /// Its gradient, [N, F].
    dgated: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens of the widest layer.
    pub fn new(arena: &mut Arena, dtype: DType, tokens: usize, f: usize) -> Self {
        Self { gated: arena.tensor(dtype, &[tokens, f]), dgated: arena.tensor(dtype, &[tokens, f]) }
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
        self.gate_proj.forward(dev, x, s.gate.head_mut(n), &mut s.gate_proj, linears, dropout);
        self.up_proj.forward(dev, x, s.up.head_mut(n), &mut s.up_proj, linears, dropout);
        gated::forward(dev, self.activation, s.gate.head(n), s.up.head(n), scratch.gated.head_mut(n));
        self.down_proj.forward(dev, scratch.gated.head(n), y, &mut s.down_proj, linears, dropout);
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
        gated::forward(dev, self.activation, s.gate.head(n), s.up.head(n), scratch.gated.head_mut(n));
        let dgated = Some(scratch.dgated.head_mut(n));
        self.down_proj.backward(
            dev,
            scratch.gated.head(n),
            dy,
            dgated,
            false,
            &s.down_proj,
            linears,
            dropout,
        );
        gated::backward(dev, self.activation, scratch.dgated.head(n), s.gate.head_mut(n), s.up.head_mut(n));
        let (dgate, dup) = (s.gate.head(n), s.up.head(n));
        self.gate_proj.backward(dev, x, dgate, Some(dx.reborrow()), false, &s.gate_proj, linears, dropout);
        self.up_proj.backward(dev, x, dup, Some(dx), true, &s.up_proj, linears, dropout);
    }
}
