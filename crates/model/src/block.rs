//! One block of the decoder (stages 9 and 11 of the walk).
//!
//! > m = x + r·after(attention(before(x))), y = m + r·after(mlp(before(m)))
//!
//! before and after are norms, or nothing; r is 1 in most families. Saved for backward: m, what the two layers saved,
//! and what goes into `after`; the outputs of `before` are computed again from x and m.

use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::attention::{self, Attention};
use crate::cache::LayerCache;
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::mlp::{self, Mlp};
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, LayerSpec, NormNames};

/// A block.
#[derive(Debug)]
pub struct Block {
    /// Norms around the attention layer.
    pub attention_norms: Norms,
    /// The attention layer.
    pub self_attn: Attention,
    /// Norms around the feed-forward layer.
    pub mlp_norms: Norms,
    /// The feed-forward layer.
    pub mlp: Mlp,
    /// r.
    pub residual_multiplier: f32,
}

/// The norms around a layer, [C] each.
#[derive(Debug)]
pub struct Norms {
    /// Of its input.
    pub before: Option<Norm>,
    /// Of its output.
    pub after: Option<Norm>,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    attention_norms: SavedNorms,
    attention: attention::Saved,
    m: Tensor,
    mlp_norms: SavedNorms,
    mlp: mlp::Saved,
}

/// What the norms around a layer leave for backward.
#[derive(Debug)]
struct SavedNorms {
    /// `rstd` of the norm before the layer.
    before: Option<Tensor>,
    /// The layer's output, and `rstd` of the norm after it.
    after: Option<(Tensor, Tensor)>,
}

impl SavedNorms {
    fn new(arena: &mut Arena, dtype: DType, (tokens, hidden): (usize, usize), norms: NormNames) -> Self {
        let before = norms.before.map(|_| arena.tensor(DType::F32, &[tokens]));
        let after = norms
            .after
            .map(|_| (arena.tensor(dtype, &[tokens, hidden]), arena.tensor(DType::F32, &[tokens])));
        Self { before, after }
    }
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
        let shape = (tokens, hidden);
        Self {
            attention_norms: SavedNorms::new(arena, dtype, shape, spec.attention_norms),
            attention: attention::Saved::new(arena, dtype, tokens, &spec.attention, adapters),
            m: arena.tensor(dtype, &[tokens, hidden]),
            mlp_norms: SavedNorms::new(arena, dtype, shape, spec.mlp_norms),
            mlp: mlp::Saved::new(arena, dtype, tokens, &spec.mlp, adapters),
        }
    }
}

/// Workspace that all blocks share.
#[derive(Debug)]
pub struct Scratch {
    /// The output of a norm before a layer, [N, C].
    h: Tensor,
    /// What a layer adds, or the gradient of its input, [N, C].
    t: Tensor,
    /// The gradient of a layer's output where it is not that of the sum, [N, C].
    dout: Option<Tensor>,
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
        let changes_outputs = spec.layers.iter().any(LayerSpec::changes_outputs);
        Self {
            h: arena.tensor(dtype, &[tokens, c]),
            t: arena.tensor(dtype, &[tokens, c]),
            dout: changes_outputs.then(|| arena.tensor(dtype, &[backward_tokens, c])),
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

impl Norms {
    /// The layer's input: before(x) in `h`, or x itself.
    fn input<'a>(&self, dev: &Device, x: View<'a>, h: &'a mut Tensor, saved: &mut SavedNorms) -> View<'a> {
        let n = x.dim(0);
        match (&self.before, &mut saved.before) {
            (Some(norm), Some(rstd)) => {
                norm.forward(dev, x, h.head_mut(n), rstd.head_mut(n));
                h.head(n)
            }
            _ => x,
        }
    }

    /// Runs `layer`, which writes its output; leaves after(output) in `t`.
    fn output(
        &self,
        dev: &Device,
        t: &mut Tensor,
        n: usize,
        saved: &mut SavedNorms,
        layer: impl FnOnce(ViewMut<'_>),
    ) {
        match (&self.after, &mut saved.after) {
            (Some(norm), Some((output, rstd))) => {
                layer(output.head_mut(n));
                norm.forward(dev, output.head(n), t.head_mut(n), rstd.head_mut(n));
            }
            _ => layer(t.head_mut(n)),
        }
    }

    /// The gradient of the layer's output from that of the sum, `dy`: in `dout`, or `dy` itself.
    fn output_gradient<'a>(
        &mut self,
        dev: &Device,
        dy: View<'a>,
        residual_multiplier: f32,
        dout: &'a mut Option<Tensor>,
        saved: &SavedNorms,
    ) -> View<'a> {
        let n = dy.dim(0);
        match (&mut self.after, &saved.after, dout) {
            (Some(norm), Some((output, rstd)), Some(dout)) => {
                norm.backward_over(dev, (output.head(n), rstd.head(n)), dy, dout.head_mut(n));
                dout.head(n)
            }
            (_, _, Some(dout)) if residual_multiplier != 1.0 => {
                rows::scale(dev, dy, residual_multiplier, dout.head_mut(n));
                dout.head(n)
            }
            _ => dy,
        }
    }

    /// Adds to the gradient `d` of the sum's other part that of x through the layer, whose input has gradient `dh`.
    fn input_gradient(
        &mut self,
        dev: &Device,
        x: View<'_>,
        dh: View<'_>,
        d: Option<ViewMut<'_>>,
        saved: &SavedNorms,
    ) {
        match (&mut self.before, &saved.before, d) {
            (Some(norm), Some(rstd), d) => norm.backward(dev, (x, rstd.head(x.dim(0))), dh, d),
            (_, _, Some(d)) => rows::add(dev, dh, d),
            _ => {}
        }
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.before.iter().chain(&self.after).map(|norm| &norm.weight)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.before.iter_mut().chain(&mut self.after).map(|norm| &mut norm.weight)
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
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);
        let h = self.attention_norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        self.attention_norms.output(dev, &mut w.t, n, &mut s.attention_norms, |out| {
            self.self_attn.forward(pass, h, out, &mut s.attention, &mut w.linears, cache);
        });
        rows::sum(dev, x, (r, w.t.head(n)), s.m.head_mut(n));
        let m = s.m.head(n);
        let h = self.mlp_norms.input(dev, m, &mut w.h, &mut s.mlp_norms);
        self.mlp_norms.output(dev, &mut w.t, n, &mut s.mlp_norms, |out| {
            self.mlp.forward(pass, h, out, &mut s.mlp, (&mut w.mlp, &mut w.linears));
        });
        rows::sum(dev, m, (r, w.t.head(n)), y);
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
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);

        // y = m + r·after(mlp(before(m)))
        let (m, norms) = (s.m.head(n), &mut self.mlp_norms);
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.mlp_norms);
        let h = norms.input(dev, m, &mut w.h, &mut s.mlp_norms);
        let scratches = (&mut w.mlp, &mut w.linears);
        self.mlp.backward(pass, h, dout, w.t.head_mut(n), &mut s.mlp, scratches);
        norms.input_gradient(dev, m, w.t.head(n), Some(d.reborrow()), &s.mlp_norms);

        // m = x + r·after(attention(before(x)))
        let norms = &mut self.attention_norms;
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.attention_norms);
        let h = norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        let needs_dh = needs_dx || norms.before.as_ref().is_some_and(|norm| norm.weight.is_trained());
        let dh = needs_dh.then(|| w.t.head_mut(n));
        self.self_attn.backward(pass, h, dout, dh, &s.attention, (&mut w.attention, &mut w.linears));
        if needs_dh {
            norms.input_gradient(dev, x, w.t.head(n), needs_dx.then_some(d), &s.attention_norms);
        }
    }

    /// Every linear layer with its name inside the block.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear)> {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &mut self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &mut self.mlp;
        let attention = [
            ("self_attn.q_proj", q_proj),
            ("self_attn.k_proj", k_proj),
            ("self_attn.v_proj", v_proj),
            ("self_attn.o_proj", o_proj),
        ];
        let gate = gate_proj.as_mut().map(|linear| ("mlp.gate_proj", linear));
        attention.into_iter().chain(gate).chain([("mlp.up_proj", up_proj), ("mlp.down_proj", down_proj)])
    }

    /// Every linear layer with its name inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &self.mlp;
        let attention = [
            ("self_attn.q_proj", q_proj),
            ("self_attn.k_proj", k_proj),
            ("self_attn.v_proj", v_proj),
            ("self_attn.o_proj", o_proj),
        ];
        let gate = gate_proj.as_ref().map(|linear| ("mlp.gate_proj", linear));
        attention.into_iter().chain(gate).chain([("mlp.up_proj", up_proj), ("mlp.down_proj", down_proj)])
    }

    /// Every weight but the adapters', in the order of [`Block::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.attention_norms.parameters().collect();
        let norms = [&self.self_attn.q_norm, &self.self_attn.k_norm];
        all.extend(norms.into_iter().flatten().map(|norm| &norm.weight));
        for (_, linear) in self.linears() {
            all.push(&linear.weight);
            all.extend(&linear.bias);
        }
        all.extend(self.mlp_norms.parameters());
        all
    }

    /// Every weight, adapters included, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> = self.attention_norms.parameters_mut().collect();
        let Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, .. } = &mut self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &mut self.mlp;
        all.extend([q_norm, k_norm].into_iter().flatten().map(|norm| &mut norm.weight));
        let linears =
            [q_proj, k_proj, v_proj, o_proj].into_iter().chain(gate_proj).chain([up_proj, down_proj]);
        for linear in linears {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            if let Some(lora) = &mut linear.lora {
                all.extend([&mut lora.a, &mut lora.b]);
            }
        }
        all.extend(self.mlp_norms.parameters_mut());
        all
    }
}
