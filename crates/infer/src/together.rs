//! Many prompts → their answers, several rows at a time: a step reads the weights once for all of them.
//!
//! A row that ends makes room for the next prompt. Prompts are read one by one, in pieces as [`Generator`] reads them; then
//! each row in work adds a token to every step.

use std::ops::ControlFlow;

use sft_kernels::{DType, Device, random};
use sft_model::Decoder;
use sft_model::cache::KvCache;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::Workspace;

use crate::InferError;
use crate::generate::{
    Continuation, Generation, GenerationOptions, Generator, PROMPT_PIECE, StopReason, has_one_rotation,
};

/// What is to be continued.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'p> {
    /// Its row: the answer is drawn with a seed of its own.
    pub row: usize,
    /// Its tokens.
    pub ids: &'p [u32],
}

/// A decoder at work on several rows.
#[derive(Debug)]
pub struct Together<'a> {
    dev: &'a Device,
    decoder: &'a Decoder,
    work: &'a mut Workspace,
    rows: usize,
}

/// A row in work.
#[derive(Debug)]
struct Row {
    row: usize,
    continuation: Continuation,
    /// The token that its cache lacks.
    next: u32,
}

impl<'a> Together<'a> {
    /// Up to `rows` rows at a time, as many as `work` has tokens at most.
    pub fn new(dev: &'a Device, decoder: &'a Decoder, work: &'a mut Workspace, rows: usize) -> Self {
        let rows = rows.clamp(1, work.max_tokens().max(1));
        Self { dev, decoder, work, rows }
    }

    /// Bytes that it takes for so many rows of up to `longest` tokens, beside weights and workspace.
    pub fn bytes(
        spec: &DecoderSpec,
        compute: DType,
        (rows, on_card): (usize, bool),
        longest: usize,
    ) -> usize {
        // The host reads logits, and draws from pairs of an id and a probability.
        let copies = if on_card { 1 } else { 4 };
        rows * (KvCache::bytes(spec, compute, longest) + copies * spec.vocab_size * DType::F32.bytes())
    }

    /// Continues every prompt. `stop` is asked before every token; `on_end` gets each row with its answer as it ends, or why
    /// it has none (no token, no room). Whether none was stopped.
    ///
    /// # Errors
    /// What is wrong with the model, whatever the row.
    pub fn generate(
        &mut self,
        prompts: &[Prompt<'_>],
        options: &GenerationOptions,
        mut stop: impl FnMut() -> bool,
        mut on_end: impl FnMut(usize, Result<Generation, InferError>),
    ) -> Result<bool, InferError> {
        let spec = &self.decoder.spec;
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut options = options.clone();
            options.sampling.seed = random::key(options.sampling.seed, &[prompt.row as u64]);
            match Continuation::new(spec, prompt.ids, &options) {
                Ok(row) if has_one_rotation(spec, row.end) => together.push((*prompt, row)),
                Ok(_) => alone.push((*prompt, options)),
                Err(error) => on_end(prompt.row, Err(error)),
            }
        }
        if !self.generate_together(together, &mut stop, &mut on_end)? {
            return Ok(false);
        }
        // Rows whose positions depend on their length do not go on with others.
        let mut generator = None;
        for (Prompt { row, ids }, options) in alone {
            let generator = generator.get_or_insert_with(|| Generator::new(self.dev, self.decoder));
            let goes_on = |stop: bool| if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let generation = generator.generate(ids, &options, |_| goes_on(stop()))?;
            if generation.reason == StopReason::Cancelled {
                return Ok(false);
            }
            on_end(row, Ok(generation));
        }
        Ok(true)
    }

    fn generate_together(
        &mut self,
        waiting: Vec<(Prompt<'_>, Continuation)>,
        stop: &mut impl FnMut() -> bool,
        on_end: &mut impl FnMut(usize, Result<Generation, InferError>),
    ) -> Result<bool, InferError> {
        let Self { dev, decoder, work, rows: most } = self;
        let (spec, vocabulary) = (&decoder.spec, decoder.spec.vocab_size);
        let capacity = waiting.iter().map(|(_, row)| row.end).max().unwrap_or(0);
        // The first ones are those of the rows in work, in their order.
        let mut caches = KvCache::several(dev, spec, decoder.compute, capacity, waiting.len().min(*most));
        let mut rows: Vec<Row> = Vec::new();
        let mut waiting = waiting.into_iter();
        loop {
            while rows.len() < caches.len() {
                let Some((Prompt { row, ids }, continuation)) = waiting.next() else { break };
                let cache = std::slice::from_mut(&mut caches[rows.len()]);
                cache[0].truncate(0);
                let mut logits = Vec::new();
                for piece in ids.chunks(PROMPT_PIECE.min(work.max_tokens())) {
                    if stop() {
                        return Ok(false);
                    }
                    logits = decoder.extend(dev, &[piece], cache, work)?.to_f32_vec();
                }
                let mut row = Row { row, continuation, next: 0 };
                match row.step(&mut logits)? {
                    None => rows.push(row),
                    Some(reason) => on_end(row.row, Ok(row.continuation.ended(reason, 0))),
                }
            }
            if rows.is_empty() {
                return Ok(true);
            }
            if stop() {
                return Ok(false);
            }
            let next: Vec<u32> = rows.iter().map(|row| row.next).collect();
            let next: Vec<&[u32]> = next.chunks(1).collect();
            let mut logits = decoder.extend(dev, &next, &mut caches[..rows.len()], work)?.to_f32_vec();
            // From the last on, so that the row that takes the place of one that ends has been looked at.
            for (at, logits) in logits.chunks_exact_mut(vocabulary).enumerate().rev() {
                let Some(reason) = rows[at].step(logits)? else { continue };
                caches.swap(at, rows.len() - 1);
                let row = rows.swap_remove(at);
                on_end(row.row, Ok(row.continuation.ended(reason, 0)));
            }
        }
    }
}

impl Row {
    /// Takes its next token by its logits; why it ends, if it does.
    fn step(&mut self, logits: &mut [f32]) -> Result<Option<StopReason>, InferError> {
        let Some(id) = self.continuation.next(logits)? else { return Ok(Some(StopReason::Stop)) };
        self.next = id;
        Ok(self.continuation.is_full())
    }
}
