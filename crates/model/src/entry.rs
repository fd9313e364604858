//! From token ids to the first block (stages 9 and 11 of the walk).
//!
//! > h₀ = norm(project_in(s·embed_tokens[ids]) + embed_positions[position + offset])
//!
//! Most families have the embedding alone; s is 1 in most. In training NEFTune (Jain et al., 2023) adds uniform noise of
//! ±α/√(T·d) to the embedding of a row of T tokens, d wide, before s: its derivative is that of nothing. Saved for backward: what goes into `project_in` and into
//! the norm.

use sft_kernels::{DType, Tensor, View, ViewMut, random, rows};

use crate::arena::Arena;
use crate::linear::{self, Linear};
use crate::method::Adapters;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::per_layer::{self, PerLayerInputs};
use crate::spec::{DecoderSpec, PositionsSpec};

/// What stands between the embedding and the first block.
#[derive(Debug)]
pub struct Entry {
    /// s.
    pub multiplier: f32,
    /// [C, width of the embedding].
    pub project_in: Option<Linear>,
    /// Learned positions, [rows, C].
    pub positions: Option<Positions>,
    /// Of the sum.
    pub norm: Option<Norm>,
    /// NEFTune's α: noise on the embedding in training.
    pub noise: Option<f32>,
    /// What makes inputs of their own for all blocks, from h₀.
    pub per_layer: Option<PerLayerInputs>,
}

/// Learned positions.
#[derive(Debug)]
pub struct Positions {
    /// [rows, C].
    pub weight: Parameter,
    /// Rows before that of position 0.
    pub offset: u32,
}

/// Workspace, and what forward leaves for backward.
#[derive(Debug)]
pub struct Scratch {
    projection: Option<Projection>,
    /// Rows of the positions' embedding.
    index: Vec<u32>,
    /// A summand, or a gradient, [N, C].
    t: Option<Tensor>,
    /// The norm's input, and its statistics.
    normed: Option<(Tensor, Tensor)>,
}

/// Of `project_in`.
#[derive(Debug)]
struct Projection {
    /// Its input, then that's gradient, [N, width].
    x: Tensor,
    dx: Tensor,
    saved: linear::Saved,
    scratch: linear::Scratch,
}

impl Scratch {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Self {
        let c = spec.hidden_size;
        let projection = spec.embedding_projection.map(|projection| {
            let (width, carried) = (projection.width, adapters.outside.carried_by(projection.into));
            Projection {
                x: arena.tensor(dtype, &[tokens, width]),
                dx: arena.tensor(dtype, &[tokens, width]),
                saved: linear::Saved::new(arena, dtype, tokens, carried),
                scratch: linear::Scratch::new(
                    arena,
                    dtype,
                    (tokens, tokens),
                    width,
                    carried,
                    adapters.has_dropout(),
                ),
            }
        });
        let adds = spec.positions.is_some() || spec.embedding_norm.is_some();
        let statistics = [tokens, spec.norm.kind.statistics()];
        Self {
            projection,
            index: Vec::with_capacity(if spec.positions.is_some() { tokens } else { 0 }),
            t: adds.then(|| arena.tensor(dtype, &[tokens, c])),
            normed: spec
                .embedding_norm
                .map(|_| (arena.tensor(dtype, &[tokens, c]), arena.tensor(DType::F32, &statistics))),
        }
    }
}

impl Positions {
    /// Learned positions of this weight.
    pub fn new(spec: PositionsSpec, weight: Parameter) -> Self {
        Self { weight, offset: spec.offset as u32 }
    }
}

impl Entry {
    /// h₀ [N, C], `embedding` being the embedding's weight.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        embedding: &Parameter,
        (ids, position_ids): (&[u32], &[u32]),
        mut h: ViewMut<'_>,
        (scratch, per_layer): (&mut Scratch, Option<&mut per_layer::Inputs>),
    ) {
        let (n, dev, s) = (ids.len(), pass.dev, scratch);
        let mut sum = match &mut s.normed {
            Some((x, _)) => x.head_mut(n),
            None => h.reborrow(),
        };
        match (&self.project_in, &mut s.projection) {
            (Some(linear), Some(p)) => {
                rows::gather(dev, embedding.value(), ids, self.multiplier, p.x.head_mut(n));
                self.add_noise(pass, p.x.head_mut(n));
                let x = p.x.head(n);
                linear.forward(dev, x, sum.reborrow(), &mut p.saved, &mut p.scratch, pass.dropout);
            }
            _ => {
                rows::gather(dev, embedding.value(), ids, self.multiplier, sum.reborrow());
                self.add_noise(pass, sum.reborrow());
            }
        }
        if let (Some(positions), Some(t)) = (&self.positions, &mut s.t) {
            s.index.clear();
            s.index.extend(position_ids.iter().map(|position| position + positions.offset));
            rows::gather(dev, positions.weight.value(), &s.index, 1.0, t.head_mut(n));
            rows::add(dev, t.head(n), sum);
        }
        if let (Some(norm), Some((x, statistics))) = (&self.norm, &mut s.normed) {
            norm.forward(dev, x.head(n), h.reborrow(), statistics.head_mut(n));
        }
        if let (Some(layer), Some(inputs)) = (&self.per_layer, per_layer) {
            layer.forward(pass, ids, h.as_view(), inputs);
        }
    }

    /// NEFTune's noise on the embedding x [N, d] of a micro-batch that is trained on.
    fn add_noise(&self, pass: &Pass<'_>, mut x: ViewMut<'_>) {
        let Some((alpha, key)) = self.noise.zip(pass.dropout) else { return };
        let (key, width) = (random::key(key, &[random::name_part("neftune")]), x.dim(1));
        for row in pass.rows.windows(2) {
            let [start, end] = [row[0] as usize, row[1] as usize];
            let scale = self.multiplier * alpha / (((end - start) * width) as f32).sqrt();
            let first = (start * width) as u64;
            random::add_uniform(pass.dev, (key, first), scale, x.reborrow().into_rows(start..end));
        }
    }

    /// Adds to the gradients of what is trained, `d` [N, C] being that of h₀ in `h`, which is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        embedding: &mut Parameter,
        ids: &[u32],
        (h, mut d): (View<'_>, ViewMut<'_>),
        (scratch, per_layer): (&mut Scratch, Option<&mut per_layer::Inputs>),
    ) {
        let (n, dev, s) = (ids.len(), pass.dev, scratch);
        if let (Some(layer), Some(inputs)) = (&mut self.per_layer, per_layer) {
            layer.backward(pass, ids, h, d.reborrow(), inputs);
        }
        if let (Some(norm), Some((x, statistics)), Some(t)) = (&mut self.norm, &s.normed, &mut s.t) {
            norm.backward_over(dev, (x.head(n), statistics.head(n)), d.as_view(), t.head_mut(n));
            d.reborrow().copy_from(t.head(n));
        }
        let d: View<'_> = d.as_view();
        if let Some(positions) = &mut self.positions {
            positions.weight.accumulate(|dw| rows::scatter_add(dev, d, &s.index, 1.0, dw));
        }
        let d = match (&mut self.project_in, &mut s.projection) {
            (Some(linear), Some(p)) => {
                let (x, dx) = (p.x.head(n), p.dx.head_mut(n));
                linear.backward(dev, x, d, Some(dx), false, &p.saved, &mut p.scratch, pass.dropout);
                p.dx.head(n)
            }
            _ => d,
        };
        embedding.accumulate(|dw| rows::scatter_add(dev, d, ids, self.multiplier, dw));
    }

    /// Its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.project_in.iter().chain(self.per_layer.iter().map(|layer| &layer.projection))
    }

    /// Its linear layers.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.project_in.iter_mut().chain(self.per_layer.iter_mut().map(|layer| &mut layer.projection))
    }

    /// Its weights but the adapter's, in the order of [`Entry::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.project_in.iter().flat_map(Linear::base_parameters).collect();
        all.extend(self.positions.iter().map(|positions| &positions.weight));
        all.extend(self.norm.iter().flat_map(Norm::parameters));
        all.extend(self.per_layer.iter().flat_map(PerLayerInputs::base_parameters));
        all
    }

    /// Its weights, an adapter's included.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> =
            self.project_in.iter_mut().flat_map(Linear::parameters_mut).collect();
        all.extend(self.positions.iter_mut().map(|positions| &mut positions.weight));
        all.extend(self.norm.iter_mut().flat_map(Norm::parameters_mut));
        all.extend(self.per_layer.iter_mut().flat_map(PerLayerInputs::parameters_mut));
        all
    }
}
