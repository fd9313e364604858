//! One block of the decoder (stages 9 and 11 of the walk).
//!
//! > m = of_sum(x + r·after(attention(before(x)))), y = of_sum(m + r·after(mlp(before(m))))
//!
//! before, after and of_sum are norms, or nothing; r is 1 in most families. In parallel blocks mlp reads before(x)
//! instead, by a norm of its own or by attention's. Saved for backward: m, what the two layers saved, and what goes
//! into `after` and `of_sum`; the outputs of `before` are computed again from x and m.
//!
//! Few families end a block with a layer that takes in [`crate::per_layer`], and multiply y by a number.

use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::attention::{self, Attention};
use crate::cache::LayerCache;
use crate::feed_forward::{self, FeedForward};
use crate::inputs;
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::norm::Norm;
use crate::norms::{Norms, SavedNorms};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::per_layer::{self, PerLayer};
use crate::spec::{DecoderSpec, InputNames, LayerSpec};

/// A block.
#[derive(Debug)]
pub struct Block {
    /// Norms around the attention layer.
    pub attention_norms: Norms,
    /// The attention layer.
    pub self_attn: Attention,
    /// Norms around the feed-forward layer.
    pub mlp_norms: Norms,
    /// The feed-forward layer, or experts.
    pub mlp: FeedForward,
    /// Whether both layers read x.
    pub parallel: bool,
    /// At the end of the block.
    pub per_layer: Option<PerLayer>,
    /// Multiplies what the block puts out, [1]; never trained.
    pub output_scalar: Option<Parameter>,
    /// r.
    pub residual_multiplier: f32,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    attention_norms: SavedNorms,
    attention: attention::Saved,
    /// Where mlp reads it.
    m: Option<Tensor>,
    mlp_norms: SavedNorms,
    mlp: feed_forward::Saved,
    per_layer: Option<per_layer::Saved>,
}

impl Saved {
    /// Room for `tokens` tokens in the block of this number.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (model, layer): (&DecoderSpec, usize),
        adapters: &LayerAdapters,
    ) -> Self {
        let (spec, norm, hidden) = (&model.layers[layer], model.norm, model.hidden_size);
        let shape = (tokens, hidden);
        Self {
            attention_norms: SavedNorms::new(arena, dtype, shape, spec.attention_norms, norm),
            attention: attention::Saved::new(arena, dtype, tokens, (&spec.attention, norm), adapters),
            m: (!spec.parallel).then(|| arena.tensor(dtype, &[tokens, hidden])),
            mlp_norms: SavedNorms::new(arena, dtype, shape, spec.mlp_norms, norm),
            mlp: feed_forward::Saved::new(arena, dtype, shape, spec, adapters),
            per_layer: spec
                .per_layer
                .map(|layer| per_layer::Saved::new(arena, dtype, tokens, (model, layer), adapters)),
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
    /// Of parallel blocks: m, then the gradient of attention's input, [N, C].
    parallel: Option<Tensor>,
    inputs: inputs::Scratch,
    pub(crate) per_layer: Option<per_layer::Inputs>,
    pub(crate) mlp: feed_forward::Scratch,
    attention: attention::Scratch,
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
        let c = spec.hidden_size;
        let dense = spec.layers.iter().filter_map(LayerSpec::dense);
        let widest = dense.map(|mlp| mlp.intermediate_size).max().unwrap_or(0);
        let attention = spec.layers.iter().map(|l| l.attention.heads * l.attention.head_dim).max();
        let inputs = widest.max(c).max(attention.unwrap_or(0));
        let changes_outputs = spec.layers.iter().any(LayerSpec::changes_outputs);
        let parallel = spec.layers.iter().any(|layer| layer.parallel);
        let (rank, dropout) = (adapters.largest_rank(), adapters.has_dropout());
        let linears = linear::Scratch::new(arena, dtype, backward_tokens, inputs, rank, dropout);
        Self {
            h: arena.tensor(dtype, &[tokens, c]),
            t: arena.tensor(dtype, &[tokens, c]),
            dout: changes_outputs.then(|| arena.tensor(dtype, &[backward_tokens, c])),
            parallel: parallel.then(|| arena.tensor(dtype, &[tokens, c])),
            inputs: inputs::Scratch::new(arena, dtype, tokens, widest_fused(spec), linears),
            mlp: feed_forward::Scratch::new(arena, dtype, (tokens, backward_tokens), spec),
            per_layer: per_layer::Inputs::new(arena, dtype, tokens, spec, adapters),
            attention: attention::Scratch::new(arena, dtype, backward_tokens, spec),
        }
    }
}

/// The widest output of a linear layer that makes several things at once.
fn widest_fused(spec: &DecoderSpec) -> Option<usize> {
    let widths = spec.layers.iter().flat_map(|layer| {
        let a = &layer.attention;
        let qkv = (a.inputs, (a.heads + 2 * a.kv_heads) * a.head_dim);
        let mlp = layer.dense().map(|mlp| (mlp.inputs, mlp.intermediate_size * (1 + usize::from(mlp.gated))));
        [qkv].into_iter().chain(mlp)
    });
    widths.filter(|(names, _)| matches!(names, InputNames::Fused { .. })).map(|(_, width)| width).max()
}

impl Block {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        cache: Option<&mut LayerCache>,
    ) {
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);
        let h = self.attention_norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        self.attention_norms.output(dev, &mut w.t, n, &mut s.attention_norms, |out| {
            self.self_attn.forward(pass, h, out, &mut s.attention, &mut w.inputs, cache);
        });
        let m = s.m.as_mut().or(w.parallel.as_mut()).expect("saved, or scratch of a parallel block");
        self.attention_norms.sum(dev, x, (r, w.t.head(n)), m.head_mut(n), &mut s.attention_norms);
        let m = m.head(n);
        let h = match (self.parallel, &self.mlp_norms.before) {
            (true, None) => w.h.head(n),
            (parallel, _) => {
                self.mlp_norms.input(dev, if parallel { x } else { m }, &mut w.h, &mut s.mlp_norms)
            }
        };
        self.mlp_norms.output(dev, &mut w.t, n, &mut s.mlp_norms, |out| {
            self.mlp.forward(pass, h, out, &mut s.mlp, (&mut w.mlp, &mut w.inputs));
        });
        self.mlp_norms.sum(dev, m, (r, w.t.head(n)), y.reborrow(), &mut s.mlp_norms);
        if let (Some(layer), Some(saved), Some(p)) = (&self.per_layer, &mut s.per_layer, &w.per_layer) {
            layer.forward(pass, y.reborrow(), &mut w.t, saved, (p, &mut w.inputs.linears));
        }
        self.scale_output(dev, y, &mut w.t);
    }

    /// Multiplies the block's output, or the gradient of it.
    fn scale_output(&self, dev: &Device, y: ViewMut<'_>, t: &mut Tensor) {
        let Some(scalar) = &self.output_scalar else { return };
        let n = y.dim(0);
        rows::scale(dev, y.as_view(), scalar.value().to_f32_vec()[0], t.head_mut(n));
        y.copy_from(t.head(n));
    }

    /// From the gradient of y in `d` to that of the sum before the last layer.
    fn backward_end(&mut self, pass: &Pass<'_>, mut d: ViewMut<'_>, s: &mut Saved, w: &mut Scratch) {
        self.scale_output(pass.dev, d.reborrow(), &mut w.t);
        if let (Some(layer), Some(saved), Some(p)) = (&mut self.per_layer, &mut s.per_layer, &mut w.per_layer)
        {
            layer.backward(pass, d, &mut w.t, saved, (p, &mut w.inputs.linears));
        }
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
        self.backward_end(pass, d.reborrow(), saved, scratch);
        if self.parallel {
            return self.backward_parallel(pass, x, d, needs_dx, saved, scratch);
        }
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);

        // y = of_sum(m + r·after(mlp(before(m))))
        let m = s.m.as_ref().expect("saved where blocks are not parallel").head(n);
        let norms = &mut self.mlp_norms;
        norms.sum_gradient(dev, d.reborrow(), &mut w.t, &s.mlp_norms);
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.mlp_norms);
        let h = norms.input(dev, m, &mut w.h, &mut s.mlp_norms);
        let scratches = (&mut w.mlp, &mut w.inputs);
        self.mlp.backward(pass, h, dout, w.t.head_mut(n), &mut s.mlp, scratches);
        norms.input_gradient(dev, m, w.t.head(n), Some(d.reborrow()), &s.mlp_norms);

        // m = of_sum(x + r·after(attention(before(x))))
        let norms = &mut self.attention_norms;
        norms.sum_gradient(dev, d.reborrow(), &mut w.t, &s.attention_norms);
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.attention_norms);
        let h = norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        let needs_dh = needs_dx || norms.before.as_ref().is_some_and(Norm::is_trained);
        let dh = needs_dh.then(|| w.t.head_mut(n));
        self.self_attn.backward(pass, h, dout, dh, &s.attention, (&mut w.attention, &mut w.inputs));
        if needs_dh {
            norms.input_gradient(dev, x, w.t.head(n), needs_dx.then_some(d), &s.attention_norms);
        }
    }

    /// The same where y = x + r·after(attention(before(x))) + r·after(mlp(before(x))).
    fn backward_parallel(
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
        let dh_attention = w.parallel.as_mut().expect("scratch of parallel blocks");
        let norms = &mut self.attention_norms;
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.attention_norms);
        let h = norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        let (dh, scratches) = (Some(dh_attention.head_mut(n)), (&mut w.attention, &mut w.inputs));
        self.self_attn.backward(pass, h, dout, dh, &s.attention, scratches);

        let is_shared = self.mlp_norms.before.is_none();
        let norms = &mut self.mlp_norms;
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.mlp_norms);
        let h = if is_shared { w.h.head(n) } else { norms.input(dev, x, &mut w.h, &mut s.mlp_norms) };
        let scratches = (&mut w.mlp, &mut w.inputs);
        self.mlp.backward(pass, h, dout, w.t.head_mut(n), &mut s.mlp, scratches);

        // `d` is the gradient of y until both layers have read it.
        if is_shared {
            rows::add(dev, w.t.head(n), dh_attention.head_mut(n));
        } else {
            let dx = needs_dx.then(|| d.reborrow());
            norms.input_gradient(dev, x, w.t.head(n), dx, &s.mlp_norms);
        }
        let dx = needs_dx.then_some(d);
        self.attention_norms.input_gradient(dev, x, dh_attention.head(n), dx, &s.attention_norms);
    }

    /// Every linear layer with its name inside the block.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear)> {
        let Attention { qkv, o_proj, spec, .. } = &mut self.self_attn;
        let attention = qkv.iter_mut().chain([(spec.output, o_proj)]);
        let per_layer = self.per_layer.iter_mut().flat_map(PerLayer::linears_mut);
        attention.chain(self.mlp.linears_mut()).chain(per_layer)
    }

    /// Every linear layer with its name inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let Attention { qkv, o_proj, spec, .. } = &self.self_attn;
        let attention = qkv.iter().chain([(spec.output, o_proj)]);
        let per_layer = self.per_layer.iter().flat_map(PerLayer::linears);
        attention.chain(self.mlp.linears()).chain(per_layer)
    }

    /// Every weight but the adapters', in the order of [`Block::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.attention_norms.parameters().collect();
        let norms = [&self.self_attn.q_norm, &self.self_attn.k_norm];
        all.extend(norms.into_iter().flatten().flat_map(Norm::parameters));
        all.extend(self.linears().flat_map(|(_, linear)| linear.base_parameters()));
        all.extend(self.mlp.other_parameters());
        all.extend(self.mlp_norms.parameters());
        all.extend(self.per_layer.iter().flat_map(|layer| layer.norm.parameters()));
        all.extend(&self.output_scalar);
        all
    }

    /// Every weight, adapters included, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> = self.attention_norms.parameters_mut().collect();
        let Attention { qkv, o_proj, q_norm, k_norm, .. } = &mut self.self_attn;
        all.extend([q_norm, k_norm].into_iter().flatten().flat_map(Norm::parameters_mut));
        let attention = qkv.linears.iter_mut().chain([o_proj]);
        all.extend(attention.flat_map(Linear::parameters_mut));
        let [linears, others] = self.mlp.parameters_mut();
        all.extend(linears);
        let per_layer =
            self.per_layer.as_mut().map(|layer| (&mut layer.gate, &mut layer.output, &mut layer.norm));
        let (per_layer, per_layer_norm) =
            per_layer.map_or((None, None), |(gate, output, norm)| (Some([gate, output]), Some(norm)));
        all.extend(per_layer.into_iter().flatten().flat_map(Linear::parameters_mut));
        all.extend(others);
        all.extend(self.mlp_norms.parameters_mut());
        all.extend(per_layer_norm.into_iter().flat_map(Norm::parameters_mut));
        all.extend(&mut self.output_scalar);
        all
    }
}
