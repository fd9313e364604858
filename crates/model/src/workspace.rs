//! Every buffer that a pass needs, made once: activations, what forward saves, gradients of activations, scratch.

use sft_kernels::attention::{backward_scratch_bytes, backward_scratch_bytes_on_gpu};
use sft_kernels::objective::Loss;
use sft_kernels::{DType, Device, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::balance::Balance;
use crate::block;
use crate::entry;
use crate::head;
use crate::method::Adapters;
use crate::pass::Batch;
use crate::per_layer;
use crate::reference::Reference;
use crate::rotary::Rotaries;
use crate::spec::{DecoderSpec, LayerSpec};

/// What a workspace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward and backward.
    Training(Recomputed),
    /// Forward alone.
    Forward,
}

/// What backward computes again, since forward does not keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recomputed {
    /// What no memory would spare: probabilities of attention, and the like.
    Least,
    /// The outputs of the norms before layers and of gated activations, by a pass over memory each. And gradient
    /// checkpointing: so many blocks, the first ones, save what they do in turns, and all of it is computed again.
    Blocks(usize),
}

impl Recomputed {
    /// Blocks that are computed again.
    pub fn blocks(self) -> usize {
        match self {
            Recomputed::Least => 0,
            Recomputed::Blocks(blocks) => blocks,
        }
    }
}

/// Bytes that attention takes beside a workspace in backward: on a CPU of so many threads with rows of `longest` tokens, or
/// on a GPU (`None`).
pub fn attention_bytes(spec: &DecoderSpec, capacity: Capacity, on_cpu: Option<(usize, usize)>) -> usize {
    let Capacity { tokens, seen } = capacity;
    let keys = tokens.max(seen);
    let attention = spec.layers.iter().filter_map(LayerSpec::attends);
    let bytes = attention.map(|a| {
        let heads = [a.heads, a.kv_heads, a.head_dim];
        match on_cpu {
            Some((threads, longest)) => backward_scratch_bytes(heads, [tokens, keys], longest, threads),
            None => backward_scratch_bytes_on_gpu(heads, keys),
        }
    });
    bytes.max().unwrap_or(0)
}

/// What a workspace has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Keys that the pieces of rows that begin alike see; 0 where rows never share what they begin with.
    pub seen: usize,
}

impl From<usize> for Capacity {
    fn from(tokens: usize) -> Self {
        Self { tokens, seen: 0 }
    }
}

/// The buffers of a pass.
#[derive(Debug)]
pub struct Workspace {
    /// h₀ … h_L in training; two in turn for forward alone.
    hidden: Vec<Tensor>,
    /// What each block saved; one for all blocks of one shape with recomputation or forward alone.
    saved: Vec<block::Saved>,
    /// Which of them is that of a block.
    saved_of: Vec<usize>,
    scratch: block::Scratch,
    entry: entry::Scratch,
    head: head::Scratch,
    /// The gradient of the current h, [N, C].
    d: Tensor,
    rotary: Option<Rotaries>,
    /// What a loss compares with.
    reference: Option<Box<Reference>>,
    capacity: Capacity,
}

/// Of what makes h₀ and the blocks' own inputs.
type EntryScratch<'a> = (&'a mut entry::Scratch, Option<&'a mut per_layer::Inputs>);

/// Bytes of a workspace by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkspaceBytes {
    /// Inputs of the blocks, and what blocks save.
    pub activations: usize,
    /// Workspace shared by blocks, gradients of activations, positions.
    pub scratch: usize,
    /// The head: logits of a chunk, and states at supervised positions.
    pub head: usize,
}

impl WorkspaceBytes {
    /// The sum.
    pub fn total(&self) -> usize {
        self.activations + self.scratch + self.head
    }
}

impl Workspace {
    /// Makes all buffers.
    pub fn new(
        dev: &Device,
        spec: &DecoderSpec,
        adapters: &Adapters,
        compute: DType,
        capacity: impl Into<Capacity>,
        purpose: Purpose,
    ) -> Self {
        Self::build(&mut Arena::allocating(dev), spec, adapters, compute, capacity.into(), purpose).0
    }

    /// What [`Workspace::new`] would take on a GPU or on the CPU, nothing allocated.
    pub fn plan(
        spec: &DecoderSpec,
        adapters: &Adapters,
        compute: DType,
        capacity: impl Into<Capacity>,
        purpose: Purpose,
        on_card: bool,
    ) -> WorkspaceBytes {
        let capacity = capacity.into();
        let mut bytes =
            Self::build(&mut Arena::counting(on_card), spec, adapters, compute, capacity, purpose).1;
        bytes.scratch += Rotaries::bytes(spec, capacity.tokens);
        bytes
    }

    fn build(
        arena: &mut Arena<'_>,
        spec: &DecoderSpec,
        adapters: &Adapters,
        compute: DType,
        capacity: Capacity,
        purpose: Purpose,
    ) -> (Self, WorkspaceBytes) {
        let (n, c, l) = (capacity.tokens, spec.hidden_size, spec.layers.len());
        let (hiddens, backward_tokens) = match purpose {
            Purpose::Training(_) => (l + 1, n),
            Purpose::Forward => (2, 0),
        };
        let shared = match purpose {
            Purpose::Training(recomputed) => recomputed.blocks().min(l),
            Purpose::Forward => l,
        };
        let keeps_inputs = purpose == Purpose::Training(Recomputed::Least);
        // Of those that share, the first block of the same shape stands for all of them.
        let first_like = |i: usize| {
            let like = |other: &LayerSpec| other.is_shaped_as(&spec.layers[i]);
            if i < shared { spec.layers.iter().position(like).unwrap_or(i) } else { i }
        };
        let firsts: Vec<usize> = (0..l).filter(|i| first_like(*i) == *i).collect();
        let saved_of = (0..l).filter_map(|i| firsts.binary_search(&first_like(i)).ok()).collect();
        let hidden = (0..hiddens).map(|_| arena.tensor(compute, &[n, c])).collect();
        // What several blocks share must fit the largest adapters; a block's own buffers fit its own.
        let saved = |arena: &mut Arena<'_>, i: usize| {
            let own = &adapters.layers[i];
            let layer_adapters = if i < shared { &adapters.merged() } else { own };
            block::Saved::new(arena, compute, n, (spec, i), layer_adapters, keeps_inputs)
        };
        let saved = firsts.iter().map(|i| saved(arena, *i)).collect();
        let activations = arena.bytes();
        let scratch = block::Scratch::new(arena, compute, (capacity, backward_tokens), spec, adapters);
        let entry = entry::Scratch::new(arena, compute, n, spec, adapters);
        let d = arena.tensor(compute, &[backward_tokens, c]);
        let rotary = arena.device().map(|dev| Rotaries::new(dev, spec, n));
        let scratch_bytes = arena.bytes() - activations;
        let head = head::Scratch::new(arena, compute, n, spec, adapters);
        let head_bytes = arena.bytes() - activations - scratch_bytes;
        let bytes = WorkspaceBytes { activations, scratch: scratch_bytes, head: head_bytes };
        let work =
            Self { hidden, saved, saved_of, scratch, entry, head, d, rotary, reference: None, capacity };
        (work, bytes)
    }

    /// The micro-batches to come have this part of their step's tokens: how much their balance among experts counts.
    pub fn set_share(&mut self, share: f32) {
        self.balance().for_each(|balance| balance.set_share(share));
    }

    /// Experts are counted anew.
    pub(crate) fn begin_forward(&mut self) {
        self.balance().for_each(Balance::begin);
    }

    /// All blocks have chosen their experts.
    pub(crate) fn finish_forward(&mut self) {
        self.balance().for_each(Balance::finish);
    }

    fn balance(&mut self) -> impl Iterator<Item = &mut Balance> {
        self.scratch.mlp.moe.iter_mut().map(|moe| &mut moe.balance)
    }

    /// What is minimised, with the model that it compares with if it does.
    ///
    /// # Panics
    /// If one of the two is without the other.
    pub fn set_loss(&mut self, loss: Loss, reference: Option<Reference>) {
        assert_eq!(loss.needs_reference(), reference.is_some(), "{loss:?} and a reference");
        self.head.loss = loss;
        self.reference = reference.map(Box::new);
    }

    /// The reference, lent out for a pass.
    pub(crate) fn take_reference(&mut self) -> Option<Box<Reference>> {
        self.reference.take()
    }

    pub(crate) fn give_reference(&mut self, reference: Option<Box<Reference>>) {
        self.reference = reference;
    }

    /// The head's workspace.
    pub(crate) fn head_mut(&mut self) -> &mut head::Scratch {
        &mut self.head
    }

    /// Forgets the loss of all micro-batches.
    pub fn clear_loss(&mut self) {
        self.head.clear_sums();
    }

    /// The loss of the micro-batches since then; waits until it is known.
    pub fn loss_sums(&self, dev: &Device) -> head::LossSums {
        self.head.sums(dev)
    }

    /// What fits.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether block l has to be computed again in backward: a later one has saved over it.
    pub fn recomputes(&self, l: usize) -> bool {
        self.saved_of[l + 1..].contains(&self.saved_of[l])
    }

    /// cos and sin of a micro-batch, lent out for a pass.
    pub(crate) fn take_rotary(&mut self, dev: &Device, batch: Batch<'_>) -> Rotaries {
        let n = batch.input_ids.len();
        let seen = batch.shared.map_or(0, |shared| shared.seen.len());
        let Capacity { tokens, seen: most } = self.capacity;
        assert!(
            n <= tokens && seen <= most,
            "{n} tokens that see {seen} keys in a workspace for {tokens} and {most}"
        );
        let mut rotary = self.rotary.take().expect("given back after every pass");
        rotary.fill(dev, batch.position_ids, batch.cu_seqlens);
        rotary
    }

    pub(crate) fn give_rotary(&mut self, rotary: Rotaries) {
        self.rotary = Some(rotary);
    }

    /// h₀, and the workspace of what makes it.
    pub(crate) fn entry(&mut self) -> (&mut Tensor, EntryScratch<'_>) {
        (&mut self.hidden[0], (&mut self.entry, self.scratch.per_layer.as_mut()))
    }

    /// h₀ and its gradient, and the workspace of what made it.
    pub(crate) fn entry_gradient(&mut self) -> (&Tensor, &mut Tensor, EntryScratch<'_>) {
        (&self.hidden[0], &mut self.d, (&mut self.entry, self.scratch.per_layer.as_mut()))
    }

    /// For the forward pass of block l: h_l, h_{l+1}, what it saves, scratch.
    pub(crate) fn layer(
        &mut self,
        l: usize,
    ) -> (&Tensor, &mut Tensor, &mut block::Saved, &mut block::Scratch) {
        let (from, to) = (l % self.hidden.len(), (l + 1) % self.hidden.len());
        let [x, y] = self.hidden.get_disjoint_mut([from, to]).expect("two buffers, both there");
        let saved = self.saved_of[l];
        (x, y, &mut self.saved[saved], &mut self.scratch)
    }

    /// For the backward pass of block l: h_l, the gradient, what it saved, scratch.
    pub(crate) fn layer_backward(
        &mut self,
        l: usize,
    ) -> (&Tensor, &mut Tensor, &mut block::Saved, &mut block::Scratch) {
        let saved = self.saved_of[l];
        (&self.hidden[l], &mut self.d, &mut self.saved[saved], &mut self.scratch)
    }

    /// h_L of `n` tokens, and the head's workspace.
    pub(crate) fn output(&mut self, layers: usize, n: usize) -> (View<'_>, &mut head::Scratch) {
        (self.hidden[layers % self.hidden.len()].head(n), &mut self.head)
    }

    /// As [`Workspace::output`], and where its gradient goes.
    pub(crate) fn output_and_gradient(&mut self, n: usize) -> (View<'_>, &mut head::Scratch, ViewMut<'_>) {
        let last = self.hidden.len() - 1;
        (self.hidden[last].head(n), &mut self.head, self.d.head_mut(n))
    }
}
