//! What mixes the tokens of a row in a block (stages 9 and 11 of the walk): attention, something else in its place, or
//! both.

use sft_kernels::{DType, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::attention::{self, Attention};
use crate::cache::LayerCaches;
use crate::inputs;
use crate::linear::Linear;
use crate::method::LayerAdapters;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::recurrent::{self, Recurrent};
use crate::short_conv::{self, ShortConv};
use crate::spec::{DecoderSpec, LayerSpec, MixerSpec};
use crate::workspace::Capacity;

/// A mixer.
#[derive(Debug)]
pub enum Mixer {
    /// Attention alone.
    Attention(Box<Attention>),
    /// A gated convolution.
    ShortConv(Box<ShortConv>),
    /// A recurrence.
    Recurrent(Box<Recurrent>),
    /// a·attention(x) + r·recurrence(x).
    Both {
        /// Attention.
        attention: Box<Attention>,
        /// The recurrence.
        recurrent: Box<Recurrent>,
        /// a and r.
        multipliers: [f32; 2],
    },
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    attention: Option<attention::Saved>,
    short_conv: Option<short_conv::Saved>,
    recurrent: Option<recurrent::Saved>,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (model, layer): (&DecoderSpec, &LayerSpec),
        adapters: &LayerAdapters,
    ) -> Self {
        let attention = layer
            .attends()
            .map(|spec| attention::Saved::new(arena, dtype, tokens, (spec, model.norm), adapters));
        let short_conv = match &layer.mixer {
            MixerSpec::ShortConv(spec) => {
                Some(short_conv::Saved::new(arena, dtype, (tokens, model.hidden_size), spec, adapters))
            }
            _ => None,
        };
        let recurrent =
            layer.mixer.recurrent().map(|spec| recurrent::Saved::new(arena, dtype, tokens, spec, adapters));
        Self { attention, short_conv, recurrent }
    }
}

/// Workspace that all mixers share.
#[derive(Debug)]
pub struct Scratch {
    attention: attention::Scratch,
    short_conv: Option<short_conv::Scratch>,
    recurrent: Option<recurrent::Scratch>,
    /// Of two at once: what the second puts out or the gradient of its input, and the gradient of an output, [N, C] each.
    both: Option<[Tensor; 2]>,
}

impl Scratch {
    /// Room for a workspace's tokens; for `backward_tokens` in what backward alone needs.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (Capacity { tokens, seen }, backward_tokens): (Capacity, usize),
        spec: &DecoderSpec,
    ) -> Self {
        let (c, all) = (spec.hidden_size, (tokens, backward_tokens));
        let any = |is: fn(&MixerSpec) -> bool| spec.layers.iter().any(|layer| is(&layer.mixer));
        let has_conv = any(|mixer| matches!(mixer, MixerSpec::ShortConv(_)));
        let has_both = any(|mixer| matches!(mixer, MixerSpec::Both { .. }));
        Self {
            attention: attention::Scratch::new(arena, dtype, (backward_tokens, seen), spec),
            short_conv: has_conv.then(|| short_conv::Scratch::new(arena, dtype, all, c)),
            recurrent: recurrent::Scratch::new(arena, dtype, all, spec),
            both: has_both.then(|| [tokens, backward_tokens].map(|tokens| arena.tensor(dtype, &[tokens, c]))),
        }
    }
}

/// The workspace of a mixer that the model has.
const MADE: &str = "the workspace was made for the mixers of this model";

impl Mixer {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
        mut caches: Option<LayerCaches<'_>>,
    ) {
        let s = saved;
        match self {
            Self::Attention(attention) => {
                let scratches = (&mut scratch.attention, inputs);
                attention.forward(pass, x, y, s.attention.as_mut().expect(MADE), scratches, caches);
            }
            Self::ShortConv(conv) => {
                let scratch = scratch.short_conv.as_mut().expect(MADE);
                conv.forward(pass, x, y, s.short_conv.as_mut().expect(MADE), (scratch, inputs), caches);
            }
            Self::Recurrent(recurrent) => {
                let scratch = scratch.recurrent.as_mut().expect(MADE);
                recurrent.forward(pass, x, y, s.recurrent.as_mut().expect(MADE), (scratch, inputs), caches);
            }
            Self::Both { attention, recurrent, multipliers: [a, r] } => {
                let (n, dev) = (x.dim(0), pass.dev);
                let of_attention = s.attention.as_mut().expect(MADE);
                let shared = caches.as_mut().map(LayerCaches::reborrow);
                let scratches = (&mut scratch.attention, &mut *inputs);
                attention.forward(pass, x, y.reborrow(), of_attention, scratches, shared);
                scale(pass, *a, y.reborrow());
                let [t, _] = scratch.both.as_mut().expect(MADE);
                let scratches = (scratch.recurrent.as_mut().expect(MADE), inputs);
                let of_recurrent = s.recurrent.as_mut().expect(MADE);
                recurrent.forward(pass, x, t.head_mut(n), of_recurrent, scratches, caches);
                scale(pass, *r, t.head_mut(n));
                rows::add(dev, t.head(n), y);
            }
        }
    }

    /// The gradient of x (if wanted) from that of y; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        mut dx: Option<ViewMut<'_>>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let s = saved;
        match self {
            Self::Attention(attention) => {
                let scratches = (&mut scratch.attention, inputs);
                attention.backward(pass, x, dy, dx, s.attention.as_mut().expect(MADE), scratches);
            }
            Self::ShortConv(conv) => {
                let scratches = (scratch.short_conv.as_mut().expect(MADE), inputs);
                conv.backward(pass, x, dy, dx, s.short_conv.as_mut().expect(MADE), scratches);
            }
            Self::Recurrent(recurrent) => {
                let scratches = (scratch.recurrent.as_mut().expect(MADE), inputs);
                recurrent.backward(pass, x, dy, dx, s.recurrent.as_mut().expect(MADE), scratches);
            }
            Self::Both { attention, recurrent, multipliers: [a, r] } => {
                let (n, dev) = (x.dim(0), pass.dev);
                let [t, d] = scratch.both.as_mut().expect(MADE);
                rows::scale(dev, dy, *a, d.head_mut(n));
                let to = dx.as_mut().map(ViewMut::reborrow);
                let scratches = (&mut scratch.attention, &mut *inputs);
                attention.backward(pass, x, d.head(n), to, s.attention.as_mut().expect(MADE), scratches);
                rows::scale(dev, dy, *r, d.head_mut(n));
                let to = dx.is_some().then(|| t.head_mut(n));
                let scratches = (scratch.recurrent.as_mut().expect(MADE), inputs);
                recurrent.backward(pass, x, d.head(n), to, s.recurrent.as_mut().expect(MADE), scratches);
                if let Some(dx) = dx {
                    rows::add(dev, t.head(n), dx);
                }
            }
        }
    }

    fn attention(&self) -> Option<&Attention> {
        match self {
            Self::Attention(attention) | Self::Both { attention, .. } => Some(attention),
            Self::ShortConv(_) | Self::Recurrent(_) => None,
        }
    }

    fn recurrent(&self) -> Option<&Recurrent> {
        match self {
            Self::Recurrent(recurrent) | Self::Both { recurrent, .. } => Some(recurrent),
            Self::Attention(_) | Self::ShortConv(_) => None,
        }
    }

    fn short_conv(&self) -> Option<&ShortConv> {
        if let Self::ShortConv(conv) = self { Some(conv) } else { None }
    }

    /// Its linear layers with their names inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let attention = self.attention().into_iter().flat_map(Attention::linears);
        let conv = self.short_conv().into_iter().flat_map(ShortConv::linears);
        attention.chain(conv).chain(self.recurrent().into_iter().flat_map(Recurrent::linears))
    }

    /// Its weights beside those of linear layers, in the order of [`Mixer::parts_mut`].
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let attention = self.attention().into_iter().flat_map(Attention::parameters);
        let conv = self.short_conv().into_iter().flat_map(ShortConv::parameters);
        attention.chain(conv).chain(self.recurrent().into_iter().flat_map(Recurrent::parameters))
    }

    /// Its weights beside those of linear layers, and its linear layers with their names inside the block.
    pub fn parts_mut(&mut self) -> PartsMut<'_> {
        match self {
            Self::Attention(attention) => attention.parts_mut(),
            Self::ShortConv(conv) => conv.parts_mut(),
            Self::Recurrent(recurrent) => recurrent.parts_mut(),
            Self::Both { attention, recurrent, .. } => {
                let (mut parameters, mut linears) = attention.parts_mut();
                let (more_parameters, more_linears) = recurrent.parts_mut();
                parameters.extend(more_parameters);
                linears.extend(more_linears);
                (parameters, linears)
            }
        }
    }
}

/// Weights beside those of linear layers, and linear layers with their names inside the block.
pub type PartsMut<'a> = (Vec<&'a mut Parameter>, Vec<(&'static str, &'a mut Linear)>);

fn scale(pass: &Pass<'_>, by: f32, x: ViewMut<'_>) {
    if by != 1.0 {
        rows::scale_in_place(pass.dev, by, x);
    }
}
