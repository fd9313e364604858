//! The decoder (stages 9 to 11 of the walk): a micro-batch through the embedding, the blocks and the head, and back.
//!
//! > h₀ = entry(embed_tokens[ids]), h_{l+1} = block_l(h_l), loss = head(h_L)

use std::path::Path;

use sft_kernels::quantized::QuantizedWeight;
use sft_kernels::{DType, Device, Slab, Tensor};

use crate::ModelError;
use crate::block::Block;
use crate::cache::{KvCache, LayerCaches};
use crate::entry::Entry;
use crate::families;
use crate::head::{self, LogitParams, LossSums};
use crate::linear::Linear;
use crate::loading::{self, Source};
use crate::method::{Adapters, Method};
use crate::moe::Moe;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::{Batch, Pass};
use crate::quantization::{self, Precision, Quantization};
use crate::reference::Reference;
use crate::rotary::{Rotaries, Rotary};
use crate::spec::DecoderSpec;
use crate::watch::{NonFinite, Watch};
use crate::weights::WeightFiles;
use crate::workspace::Workspace;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    /// What it is made of.
    pub spec: DecoderSpec,
    /// Type of activations and of frozen weights.
    pub compute: DType,
    /// [V, C], or [V, width of the embedding].
    pub embed_tokens: Parameter,
    /// What stands between it and the blocks.
    pub entry: Entry,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The final norm, [C].
    pub norm: Option<Norm>,
    /// Between it and the head, [width of the embedding, C].
    pub project_out: Option<Linear>,
    /// As the embedding; `None` if the head uses the embedding's.
    pub lm_head: Option<Parameter>,
    /// [V].
    pub head_bias: Option<Parameter>,
    pub(crate) adapters: Adapters,
}

impl Decoder {
    /// Reads a model folder.
    ///
    /// # Errors
    /// Everything that [`families::read_spec`], [`WeightFiles::open_model`] and [`loading::load`] find.
    pub fn read(
        dev: &Device,
        folder: &Path,
        method: &Method,
        precision: impl Into<Precision>,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let spec = families::read_spec(folder)?;
        let files = WeightFiles::open_model(folder)?;
        let mut precision = precision.into();
        // What is read of it is refused by `read_spec` otherwise.
        let found = quantization::of_checkpoint(&families::text_config(folder)?).ok().flatten();
        precision.quantization = found.map(Quantization::Found).or(precision.quantization);
        loading::load(dev, &spec, &Source::Files(&files), method, precision, seed)
    }

    /// The first of its quantised layers, if there are any.
    pub fn a_quantized_weight(&self) -> Option<&QuantizedWeight> {
        self.base_parameters().into_iter().find_map(Parameter::as_quantized)
    }

    /// Packs the frozen weights of all linear layers and of the head for their products: no step packs them again.
    pub fn pack_frozen(&mut self, dev: &Device) {
        let mut slab = Slab::on(dev);
        self.linears_mut().for_each(|linear| linear.weight.pack(dev, &mut slab));
        self.lm_head.as_mut().unwrap_or(&mut self.embed_tokens).pack(dev, &mut slab);
    }

    /// The adapters on it.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// h₀ to h_L into the workspace.
    fn forward_blocks(
        &self,
        pass: &Pass<'_>,
        batch: Batch<'_>,
        work: &mut Workspace,
        mut caches: Option<&mut [KvCache]>,
    ) {
        let n = batch.input_ids.len();
        let (h, entry) = work.entry();
        let ids = (batch.input_ids, batch.position_ids);
        self.entry.forward(pass, &self.embed_tokens, ids, h.head_mut(n), entry);
        pass.see("embedding", work.entry().0.head(n));
        for (l, block) in self.blocks.iter().enumerate() {
            self.enter(pass, l, false);
            let (x, y, saved, scratch) = work.layer(l);
            let caches = caches.as_deref_mut().map(|rows| LayerCaches { rows, layer: l });
            block.forward(pass, x.head(n), y.head_mut(n), saved, scratch, caches);
        }
    }

    /// Tells whoever watches that block l is next.
    fn enter(&self, pass: &Pass<'_>, l: usize, is_backward: bool) {
        if let Some(watch) = pass.watch {
            watch.enter(format!("{}.{l}", self.spec.names.layers), is_backward);
        }
    }

    /// The loss of a micro-batch, nothing trained.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn evaluate(
        &self,
        dev: &Device,
        batch: Batch<'_>,
        work: &mut Workspace,
    ) -> Result<LossSums, ModelError> {
        self.check_ids(batch)?;
        let rotary = work.take_rotary(dev, batch);
        let pass = pass_of(dev, &rotary, batch, None);
        self.forward_blocks(&pass, batch, work, None);
        let (hidden, head) = work.output(self.blocks.len(), batch.input_ids.len());
        let (params, layers) = (LogitParams::of(&self.spec), self.head_layers());
        head.clear_sums();
        head::loss(dev, params, layers, hidden, batch.into(), head);
        let sums = head.sums(dev);
        work.give_rotary(rotary);
        Ok(sums)
    }

    /// What [`head::logits_of`] reads of a micro-batch, nothing trained.
    pub(crate) fn prepare_head(
        &self,
        dev: &Device,
        batch: Batch<'_>,
        work: &mut Workspace,
    ) -> Result<(), ModelError> {
        self.check_ids(batch)?;
        let rotary = work.take_rotary(dev, batch);
        let pass = pass_of(dev, &rotary, batch, None);
        self.forward_blocks(&pass, batch, work, None);
        let (hidden, head) = work.output(self.blocks.len(), batch.input_ids.len());
        head::prepare(dev, self.head_layers(), hidden, batch.targets, head);
        work.give_rotary(rotary);
        Ok(())
    }

    /// Adds the loss of a micro-batch to the workspace's sums ([`Workspace::loss_sums`]), and the gradient of
    /// `scale` · Σ w·loss to the gradients of all trained weights. Waits for nothing on a GPU. `dropout` is the key of this micro-batch's dropout masks.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn loss_and_gradients(
        &mut self,
        dev: &Device,
        batch: Batch<'_>,
        scale: f32,
        dropout: Option<u64>,
        work: &mut Workspace,
    ) -> Result<(), ModelError> {
        self.train_pass(dev, batch, (scale, dropout), work, None, None)
    }

    /// [`Decoder::loss_and_gradients`] part by part: what stands behind the blocks, each block from the last one, what stands before
    /// them. All weights rest but those of the part that backward is at; `update` gets those when their gradients are whole. An
    /// embedding that is the head too belongs to the last part.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn loss_and_updates(
        &mut self,
        dev: &Device,
        batch: Batch<'_>,
        scale: f32,
        dropout: Option<u64>,
        work: &mut Workspace,
        update: &mut Update<'_>,
    ) -> Result<(), ModelError> {
        self.trained_mut().into_iter().for_each(|parameter| parameter.set_rest(true));
        self.train_pass(dev, batch, (scale, dropout), work, None, Some(update))
    }

    /// [`Decoder::loss_and_gradients`] once more, or [`Decoder::loss_and_updates`] without an update if `by_parts`, every
    /// output looked at: the first value that is not finite. Adds to sums and gradients as those do.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn first_non_finite(
        &mut self,
        dev: &Device,
        batch: Batch<'_>,
        scale: f32,
        dropout: Option<u64>,
        work: &mut Workspace,
        by_parts: bool,
    ) -> Result<Option<NonFinite>, ModelError> {
        let watch = Watch::default();
        let mut nothing = |_: &mut [&mut Parameter]| ();
        let update: Option<&mut Update<'_>> = if by_parts { Some(&mut nothing) } else { None };
        self.train_pass(dev, batch, (scale, dropout), work, Some(&watch), update)?;
        Ok(watch.into_first())
    }

    fn train_pass(
        &mut self,
        dev: &Device,
        batch: Batch<'_>,
        (scale, dropout): (f32, Option<u64>),
        work: &mut Workspace,
        watch: Option<&Watch>,
        mut update: Option<&mut Update<'_>>,
    ) -> Result<(), ModelError> {
        self.check_ids(batch)?;
        let n = batch.input_ids.len();
        let mut reference = work.take_reference();
        if let Some(reference) = &mut reference {
            reference.forward(dev, batch)?;
        }
        let rotary = work.take_rotary(dev, batch);
        let pass = Pass { watch, ..pass_of(dev, &rotary, batch, dropout) };
        work.begin_forward();
        self.forward_blocks(&pass, batch, work, None);
        work.finish_forward();

        let (lowest, of_entry) = self.lowest_trained(update.is_some());
        self.head_backward(&pass, batch, scale, work, reference.as_deref_mut(), &mut update);
        let last = if of_entry { 0 } else { lowest };
        for l in (last..self.blocks.len()).rev() {
            self.block_backward(&pass, (l, n), l > lowest || of_entry, work, &mut update);
        }
        if of_entry {
            self.entry_backward(&pass, batch, work, &mut update);
        }
        work.give_reference(reference);
        work.give_rotary(rotary);
        Ok(())
    }

    /// The lowest block that takes a gradient, below which none is needed, and whether what stands before all blocks takes
    /// one; `by_parts`, what rests now takes one in its turn.
    fn lowest_trained(&mut self, by_parts: bool) -> (usize, bool) {
        let takes = |p: &Parameter| p.takes_gradient() || by_parts && p.is_trained();
        let of_entry = takes(&self.embed_tokens) || self.entry.parameters_mut().into_iter().any(|p| takes(p));
        let trains = |block: &mut Block| block.parameters_mut().into_iter().any(|p| takes(p));
        (self.blocks.iter_mut().position(trains).unwrap_or(self.blocks.len()), of_entry)
    }

    /// The loss, and the way back to h_L.
    fn head_backward(
        &mut self,
        pass: &Pass<'_>,
        batch: Batch<'_>,
        scale: f32,
        work: &mut Workspace,
        reference: Option<&mut Reference>,
        update: &mut Option<&mut Update<'_>>,
    ) {
        let (n, dev) = (batch.input_ids.len(), pass.dev);
        let Self { embed_tokens, norm, project_out, lm_head, head_bias, spec, .. } = self;
        if update.is_some() {
            embed_tokens.set_rest(lm_head.is_some());
            behind_blocks(norm, project_out, lm_head, head_bias).into_iter().for_each(|p| p.set_rest(false));
        }
        let (hidden, head, d) = work.output_and_gradient(n);
        let layers = head::LayersMut {
            norm: norm.as_mut(),
            project_out: project_out.as_mut(),
            weight: lm_head.as_mut().unwrap_or(embed_tokens),
            bias: head_bias.as_mut(),
        };
        let (states, factor) = ((hidden, batch.into()), (scale, pass.dropout));
        let scratch = (&mut *head, reference);
        head::loss_and_backward(dev, LogitParams::of(spec), layers, states, factor, scratch, d);
        if let Some(watch) = pass.watch {
            watch.enter(String::new(), false);
            head.show(dev, watch);
            watch.enter(String::new(), true);
            pass.see("head", work.output_and_gradient(n).2.as_view());
        }
        if let Some(update) = update {
            finish_part(behind_blocks(norm, project_out, lm_head, head_bias), update);
        }
    }

    /// The way back through block l, of `n` tokens.
    fn block_backward(
        &mut self,
        pass: &Pass<'_>,
        (l, n): (usize, usize),
        needs_dx: bool,
        work: &mut Workspace,
        update: &mut Option<&mut Update<'_>>,
    ) {
        let block = &mut self.blocks[l];
        if work.recomputes(l) {
            let (x, y, saved, scratch) = work.layer(l);
            block.forward(pass, x.head(n), y.head_mut(n), saved, scratch, None);
        }
        if update.is_some() {
            block.parameters_mut().into_iter().for_each(|p| p.set_rest(false));
        }
        let (x, d, saved, scratch) = work.layer_backward(l);
        if let Some(watch) = pass.watch {
            watch.enter(format!("{}.{l}", self.spec.names.layers), true);
        }
        block.backward(pass, x.head(n), d.head_mut(n), needs_dx, saved, scratch);
        if let Some(watch) = pass.watch {
            watch.enter(String::new(), true);
            for p in block.parameters_mut() {
                p.gradient().into_iter().for_each(|g| watch.see(pass.dev, p.name(), g, |_| None));
            }
        }
        if let Some(update) = update {
            finish_part(block.parameters_mut(), update);
        }
    }

    /// The way back through what makes h₀.
    fn entry_backward(
        &mut self,
        pass: &Pass<'_>,
        batch: Batch<'_>,
        work: &mut Workspace,
        update: &mut Option<&mut Update<'_>>,
    ) {
        let (n, Self { embed_tokens, entry, .. }) = (batch.input_ids.len(), self);
        if update.is_some() {
            before_blocks(embed_tokens, entry).into_iter().for_each(|p| p.set_rest(false));
        }
        let (h, d, scratch) = work.entry_gradient();
        entry.backward(pass, embed_tokens, batch.input_ids, (h.head(n), d.head_mut(n)), scratch);
        if let Some(update) = update {
            finish_part(before_blocks(embed_tokens, entry), update);
        }
    }

    /// Logits f32 [N, V] of all positions of a micro-batch, its targets ignored.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    pub fn logits(&self, dev: &Device, batch: Batch<'_>, work: &mut Workspace) -> Result<Tensor, ModelError> {
        self.check_ids(batch)?;
        let n = batch.input_ids.len();
        let rotary = work.take_rotary(dev, batch);
        let pass = pass_of(dev, &rotary, batch, None);
        self.forward_blocks(&pass, batch, work, None);
        work.give_rotary(rotary);
        let all: Vec<u32> = (0..n as u32).collect();
        Ok(self.head_logits(dev, work, (n, &all)))
    }

    /// Appends tokens `rows[r]` to the row in `caches[r]`; returns the logits f32 [rows with tokens, V] that follow the last
    /// of each.
    ///
    /// # Errors
    /// A token id outside of the vocabulary.
    ///
    /// # Panics
    /// If there is no token, or not a cache for each row, or a cache or the workspace has no room for them.
    pub fn extend(
        &self,
        dev: &Device,
        rows: &[&[u32]],
        caches: &mut [KvCache],
        work: &mut Workspace,
    ) -> Result<Tensor, ModelError> {
        assert_eq!(rows.len(), caches.len(), "a cache for each row");
        let (mut ids, mut positions, mut starts, mut last) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        for (row, cache) in rows.iter().zip(caches.iter()) {
            ids.extend_from_slice(row);
            positions.extend((cache.len()..).take(row.len()).map(|position| position as u32));
            starts.push(ids.len() as u32);
            last.extend((!row.is_empty()).then(|| ids.len() as u32 - 1));
        }
        assert!(!ids.is_empty(), "a step of generation has a token");
        let batch = Batch {
            input_ids: &ids,
            position_ids: &positions,
            cu_seqlens: &starts,
            shared: None,
            targets: &[],
            weights: &[],
        };
        self.check_ids(batch)?;
        let rotary = work.take_rotary(dev, batch);
        self.forward_blocks(&pass_of(dev, &rotary, batch, None), batch, work, Some(&mut *caches));
        work.give_rotary(rotary);
        caches.iter_mut().zip(rows).for_each(|(cache, row)| cache.advance(row.len()));
        Ok(self.head_logits(dev, work, (ids.len(), &last)))
    }

    /// Logits at positions of the `n` tokens that went through the blocks last.
    fn head_logits(&self, dev: &Device, work: &mut Workspace, (n, positions): (usize, &[u32])) -> Tensor {
        let mut logits = dev.zeros(DType::F32, &[positions.len(), self.spec.vocab_size]);
        let (hidden, head) = work.output(self.blocks.len(), n);
        let (params, layers) = (LogitParams::of(&self.spec), self.head_layers());
        head::logits(dev, params, layers, (hidden, positions), logits.view_mut(), head);
        logits
    }

    pub(crate) fn head_layers(&self) -> head::Layers<'_> {
        head::Layers {
            norm: self.norm.as_ref(),
            project_out: self.project_out.as_ref(),
            weight: self.lm_head.as_ref().unwrap_or(&self.embed_tokens),
            bias: self.head_bias.as_ref(),
        }
    }

    fn check_ids(&self, batch: Batch<'_>) -> Result<(), ModelError> {
        if let Some(positions) = self.spec.positions {
            let longest = positions.rows - positions.offset;
            if let Some(position) = batch.position_ids.iter().copied().find(|p| *p as usize >= longest) {
                return Err(ModelError::PositionOutside { position, longest });
            }
        }
        let vocab_size = self.spec.vocab_size;
        let targets = batch.targets.iter().filter_map(|t| u32::try_from(*t).ok());
        let outside = batch.input_ids.iter().copied().chain(targets).find(|id| *id as usize >= vocab_size);
        outside.map_or(Ok(()), |id| Err(ModelError::TokenOutside { id, vocab_size }))
    }

    /// Every weight but the adapters', in the order of [`Decoder::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.embed_tokens];
        all.extend(self.entry.base_parameters());
        all.extend(self.blocks.iter().flat_map(Block::base_parameters));
        all.extend(self.norm.iter().flat_map(Norm::parameters));
        all.extend(self.project_out.iter().flat_map(Linear::base_parameters));
        all.extend(self.lm_head.iter().chain(&self.head_bias));
        all
    }

    /// Number of weights, adapters left out, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.base_parameters().iter().map(|p| p.elements()).sum()
    }

    /// Every weight, adapters included, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { embed_tokens, entry, blocks, norm, project_out, lm_head, head_bias, .. } = self;
        let mut all = before_blocks(embed_tokens, entry);
        all.extend(blocks.iter_mut().flat_map(Block::parameters_mut));
        all.extend(behind_blocks(norm, project_out, lm_head, head_bias));
        all
    }

    /// The weights that training changes, in a fixed order.
    pub fn trained_mut(&mut self) -> Vec<&mut Parameter> {
        self.parameters_mut().into_iter().filter(|parameter| parameter.is_trained()).collect()
    }

    /// Every linear layer but the head.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.blocks.iter().flat_map(|block| block.linears().map(|(_, linear)| linear));
        blocks.chain(self.entry.linears()).chain(&self.project_out)
    }

    /// Every mixture of experts.
    pub(crate) fn mixtures(&self) -> impl Iterator<Item = &Moe> {
        self.blocks.iter().filter_map(|block| block.mlp.as_ref()?.moe.as_ref())
    }

    /// Every mixture of experts.
    pub(crate) fn mixtures_mut(&mut self) -> impl Iterator<Item = &mut Moe> {
        self.blocks.iter_mut().filter_map(Block::mixture_mut)
    }

    /// Every linear layer but the head, in the same order.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.blocks.iter_mut().flat_map(|block| block.linears_mut().map(|(_, linear)| linear));
        blocks.chain(self.entry.linears_mut()).chain(&mut self.project_out)
    }
}

/// Changes the trained weights of a part of the model by their gradients.
pub type Update<'a> = dyn FnMut(&mut [&mut Parameter]) + 'a;

fn before_blocks<'a>(embed_tokens: &'a mut Parameter, entry: &'a mut Entry) -> Vec<&'a mut Parameter> {
    let mut all = vec![embed_tokens];
    all.extend(entry.parameters_mut());
    all
}

fn behind_blocks<'a>(
    norm: &'a mut Option<Norm>,
    project_out: &'a mut Option<Linear>,
    lm_head: &'a mut Option<Parameter>,
    head_bias: &'a mut Option<Parameter>,
) -> Vec<&'a mut Parameter> {
    let mut all: Vec<&mut Parameter> = norm.iter_mut().flat_map(Norm::parameters_mut).collect();
    all.extend(project_out.iter_mut().flat_map(Linear::parameters_mut));
    all.extend(lm_head.iter_mut().chain(head_bias));
    all
}

/// Updates what is trained of a part, and lets it rest.
fn finish_part(part: Vec<&mut Parameter>, update: &mut Update<'_>) {
    let mut trained: Vec<&mut Parameter> = part.into_iter().filter(|p| p.is_trained()).collect();
    update(&mut trained);
    trained.into_iter().for_each(|p| p.set_rest(true));
}

/// The pass of a micro-batch.
fn pass_of<'a>(dev: &'a Device, rotary: &'a Rotaries, batch: Batch<'a>, dropout: Option<u64>) -> Pass<'a> {
    let (tokens, rows, shared) = (batch.input_ids.len(), batch.cu_seqlens, batch.shared);
    let angles = |rope: &'a Option<Rotary>| rope.as_ref().map(|rope| rope.angles(tokens));
    let (rope, local_rope) = (angles(&rotary.rope), angles(&rotary.local_rope));
    let (query_scale, chunks) = (rotary.query_scale(tokens), rotary.chunks());
    Pass { dev, rope, local_rope, query_scale, rows, shared, chunks, dropout, watch: None }
}
