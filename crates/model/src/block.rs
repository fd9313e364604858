//! One block of the decoder (stages 9 and 11 of the walk).
//!
//! > m = x + attention(input_layernorm(x)), y = m + mlp(post_attention_layernorm(m))
//!
//! Saved for backward: m and what the two layers saved; the norms' outputs are computed again from x and m.

use sft_kernels::rms_norm::{self, RmsNormParams};
use sft_kernels::{DType, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::attention::{self, Attention};
use crate::cache::LayerCache;
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::mlp::{self, Mlp};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, LayerSpec};

/// A block.
#[derive(Debug)]
pub struct Block {
    /// [C].
    pub input_layernorm: Parameter,
    /// The attention layer.
    pub self_attn: Attention,
    /// [C].
    pub post_attention_layernorm: Parameter,
    /// The feed-forward layer.
    pub mlp: Mlp,
    /// Constants of the two norms.
    pub norm: RmsNormParams,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    rstd1: Tensor,
    attention: attention::Saved,
    m: Tensor,
    rstd2: Tensor,
    mlp: mlp::Saved,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena,
        dtype: DType,
        (tokens, hidden): (usize, usize),
        spec: &LayerSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        Self {
            rstd1: arena.tensor(DType::F32, &[tokens]),
            attention: attention::Saved::new(arena, dtype, tokens, &spec.attention, adapters),
            m: arena.tensor(dtype, &[tokens, hidden]),
            rstd2: arena.tensor(DType::F32, &[tokens]),
            mlp: mlp::Saved::new(arena, dtype, tokens, &spec.mlp, adapters),
        }
    }
}

/// Workspace that all blocks share.
#[derive(Debug)]
pub struct Scratch {
    /// A norm's output, [N, C].
    h: Tensor,
    /// A layer's output, or the gradient of `h`, [N, C].
    t: Tensor,
    linears: linear::Scratch,
    mlp: mlp::Scratch,
    attention: attention::Scratch,
}

impl Scratch {
    /// Room for `tokens` tokens; for `backward_tokens` (0 where none follows) in what backward alone needs.
    pub fn new(
        arena: &mut Arena,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Self {
        let c = spec.hidden_size;
        let widest = spec.layers.iter().map(|l| l.mlp.intermediate_size).max().unwrap_or(0);
        let attention = &spec.layers[0].attention;
        let inputs = widest.max(c).max(attention.heads * attention.head_dim);
        Self {
            h: arena.tensor(dtype, &[tokens, c]),
            t: arena.tensor(dtype, &[tokens, c]),
            linears: linear::Scratch::new(
                arena,
                dtype,
                backward_tokens,
                inputs,
                adapters.largest_rank(),
                adapters.has_dropout(),
            ),
            mlp: mlp::Scratch::new(arena, dtype, tokens, widest),
            attention: attention::Scratch::new(arena, dtype, backward_tokens, attention),
        }
    }
}

impl Block {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        cache: Option<&mut LayerCache>,
    ) {
        let (n, dev, norm) = (x.dim(0), pass.dev, self.norm);
        let (s, w) = (saved, scratch);
        let weight = self.input_layernorm.value();
        rms_norm::forward(dev, norm, x, weight, w.h.head_mut(n), s.rstd1.head_mut(n));
        self.self_attn.forward(pass, w.h.head(n), w.t.head_mut(n), &mut s.attention, &mut w.linears, cache);
        rows::sum(dev, x, w.t.head(n), s.m.head_mut(n));
        let weight = self.post_attention_layernorm.value();
        rms_norm::forward(dev, norm, s.m.head(n), weight, w.h.head_mut(n), s.rstd2.head_mut(n));
        self.mlp.forward(pass, w.h.head(n), w.t.head_mut(n), &mut s.mlp, (&mut w.mlp, &mut w.linears));
        rows::sum(dev, s.m.head(n), w.t.head(n), y);
    }

    /// Turns the gradient of y in `d` into that of x. Below the first trained layer no one asks for it: with
    /// `needs_dx` false what is in `d` afterwards means nothing.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut d: ViewMut<'_>,
        needs_dx: bool,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let (n, dev, norm) = (x.dim(0), pass.dev, self.norm);
        let (s, w) = (saved, scratch);

        // y = m + mlp(norm(m))
        let m = s.m.head(n);
        let weight = &mut self.post_attention_layernorm;
        rms_norm::forward(dev, norm, m, weight.value(), w.h.head_mut(n), s.rstd2.head_mut(n));
        let scratches = (&mut w.mlp, &mut w.linears);
        self.mlp.backward(pass, w.h.head(n), d.as_view(), w.t.head_mut(n), &mut s.mlp, scratches);
        norm_backward(pass, norm, weight, (m, s.rstd2.head(n)), w.t.head(n), Some(d.reborrow()));

        // m = x + attention(norm(x))
        let weight = &mut self.input_layernorm;
        rms_norm::forward(dev, norm, x, weight.value(), w.h.head_mut(n), s.rstd1.head_mut(n));
        let dh = (needs_dx || weight.is_trained()).then(|| w.t.head_mut(n));
        let scratches = (&mut w.attention, &mut w.linears);
        self.self_attn.backward(pass, w.h.head(n), d.as_view(), dh, &s.attention, scratches);
        if needs_dx || weight.is_trained() {
            let dx = needs_dx.then_some(d);
            norm_backward(pass, norm, weight, (x, s.rstd1.head(n)), w.t.head(n), dx);
        }
    }

    /// Every linear layer with its name inside the block.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.self_attn.q_proj),
            ("self_attn.k_proj", &mut self.self_attn.k_proj),
            ("self_attn.v_proj", &mut self.self_attn.v_proj),
            ("self_attn.o_proj", &mut self.self_attn.o_proj),
            ("mlp.gate_proj", &mut self.mlp.gate_proj),
            ("mlp.up_proj", &mut self.mlp.up_proj),
            ("mlp.down_proj", &mut self.mlp.down_proj),
        ]
    }

    /// Every linear layer with its name inside the block.
    pub fn linears(&self) -> [(&'static str, &Linear); 7] {
        [
            ("self_attn.q_proj", &self.self_attn.q_proj),
            ("self_attn.k_proj", &self.self_attn.k_proj),
            ("self_attn.v_proj", &self.self_attn.v_proj),
            ("self_attn.o_proj", &self.self_attn.o_proj),
            ("mlp.gate_proj", &self.mlp.gate_proj),
            ("mlp.up_proj", &self.mlp.up_proj),
            ("mlp.down_proj", &self.mlp.down_proj),
        ]
    }

    /// Every weight but the adapters', in the order of [`Block::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.input_layernorm];
        all.extend([&self.self_attn.q_norm, &self.self_attn.k_norm].into_iter().flatten());
        for (_, linear) in self.linears() {
            all.push(&linear.weight);
            all.extend(&linear.bias);
        }
        all.push(&self.post_attention_layernorm);
        all
    }

    /// Every weight, adapters included, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all = vec![&mut self.input_layernorm];
        let Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, .. } = &mut self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &mut self.mlp;
        all.extend([q_norm, k_norm].into_iter().flatten());
        for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            if let Some(lora) = &mut linear.lora {
                all.extend([&mut lora.a, &mut lora.b]);
            }
        }
        all.push(&mut self.post_attention_layernorm);
        all
    }
}

/// The way of the gradient `dy` through a norm of (x, rstd), added to `dx` if there is one.
pub(crate) fn norm_backward(
    pass: &Pass<'_>,
    params: RmsNormParams,
    weight: &mut Parameter,
    (x, rstd): (View<'_>, View<'_>),
    dy: View<'_>,
    dx: Option<ViewMut<'_>>,
) {
    let saved = rms_norm::Saved { x, rstd };
    if let Some(dx) = dx {
        rms_norm::backward_input(pass.dev, params, weight.value(), dy, saved, dx, true);
    }
    weight.accumulate(|_, dw| rms_norm::backward_weight(pass.dev, dy, saved, dw));
}
