//! Prompts → answers: the prompt in pieces, then a token at a time, with keys and values kept.
//!
//! In: token ids. Out: the token ids of the answer without its end token, and why it ended. What the cache already
//! holds of a prompt is not computed again, so that the turns of a conversation cost only what is new in them.

use std::ops::ControlFlow;

use sft_config::RunConfig;
use sft_kernels::Device;
use sft_model::Decoder;
use sft_model::cache::KvCache;
use sft_model::spec::{DecoderSpec, RopeScaling};
use sft_model::workspace::{Purpose, Workspace};

use crate::InferError;
use crate::sampler::{Sampler, SamplingOptions};

/// Tokens of a prompt that go through the model at a time.
pub(crate) const PROMPT_PIECE: usize = 512;

/// Tokens that the first cache holds; it grows when a conversation needs more.
const FIRST_CAPACITY: usize = 2048;

/// How answers are made.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// How a token is chosen.
    pub sampling: SamplingOptions,
    /// Longest answer in tokens; 0 lets `max_length` decide.
    pub max_new_tokens: usize,
    /// Longest prompt and answer together, read when `max_new_tokens` is 0.
    pub max_length: usize,
    /// Leave special tokens out of the text of answers.
    pub skip_special_tokens: bool,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

impl GenerationOptions {
    /// Always the most likely token, at most `max_new_tokens` of them.
    pub fn greedy(max_new_tokens: usize, stop_ids: &[u32]) -> Self {
        Self {
            sampling: SamplingOptions::GREEDY,
            max_new_tokens,
            max_length: max_new_tokens,
            skip_special_tokens: true,
            stop_ids: stop_ids.to_vec(),
        }
    }

    /// What the configuration says.
    pub fn from_config(config: &RunConfig, stop_ids: &[u32]) -> Self {
        Self {
            sampling: SamplingOptions {
                do_sample: config.do_sample,
                temperature: config.temperature,
                top_k: config.top_k,
                top_p: config.top_p,
                repetition_penalty: config.repetition_penalty,
                seed: config.seed,
                ..SamplingOptions::GREEDY
            },
            max_new_tokens: config.max_new_tokens,
            max_length: config.max_length,
            skip_special_tokens: config.skip_special_tokens,
            stop_ids: stop_ids.to_vec(),
        }
    }

    /// Tokens of a row with a prompt of so many tokens at most.
    pub fn longest(&self, spec: &DecoderSpec, prompt: usize) -> usize {
        self.longest_with(prompt).min(longest_row(spec))
    }

    /// The same, whatever the model takes.
    fn longest_with(&self, prompt: usize) -> usize {
        match self.max_new_tokens {
            0 => self.max_length,
            tokens => prompt.saturating_add(tokens),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model gave an end token.
    Stop,
    /// `max_new_tokens` or `max_length`.
    Length,
    /// Prompt and answer fill the longest row that the model takes.
    Context,
    /// The caller broke off.
    Cancelled,
}

/// What a caller is told on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So much of the prompt has been read.
    Prompt {
        /// Tokens read, those in the cache included.
        read: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// The next token of the answer; the end token is not told.
    Token(u32),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its tokens, without the end token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt that the cache held already.
    pub reused: usize,
}

/// A decoder at work on one row.
#[derive(Debug)]
pub struct Generator<'a> {
    dev: &'a Device,
    decoder: &'a Decoder,
    work: Workspace,
    cache: KvCache,
    /// The tokens whose keys and values are in the cache.
    cached_ids: Vec<u32>,
}

impl<'a> Generator<'a> {
    /// Takes a workspace for the decoder; nothing is computed yet.
    pub fn new(dev: &'a Device, decoder: &'a Decoder) -> Self {
        let spec = &decoder.spec;
        let (piece, capacity) = (prompt_piece(spec), FIRST_CAPACITY.min(longest_row(spec)));
        let work = Workspace::new(dev, spec, decoder.adapters(), decoder.compute, piece, Purpose::Forward);
        let cache = KvCache::new(dev, spec, decoder.compute, capacity);
        Self { dev, decoder, work, cache, cached_ids: Vec::new() }
    }

    /// Tokens of the longest row that the model takes.
    pub fn longest_row(&self) -> usize {
        longest_row(&self.decoder.spec)
    }

    /// Continues `prompt_ids`. `on_progress` hears of every piece of the prompt and of every token, and may break off.
    ///
    /// # Errors
    /// A prompt without tokens or without room for an answer, an id outside of the vocabulary, scores that are NaN.
    pub fn generate(
        &mut self,
        prompt_ids: &[u32],
        options: &GenerationOptions,
        mut on_progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Generation, InferError> {
        let mut row = Continuation::new(Context::of(&self.decoder.spec), prompt_ids, options)?;
        let reused = self.reuse(prompt_ids, row.end);
        let Some(mut logits) = self.read_prompt(prompt_ids, &mut on_progress)? else {
            return Ok(row.ended(StopReason::Cancelled, reused));
        };
        loop {
            let Some(id) = row.next(&mut logits)? else { return Ok(row.ended(StopReason::Stop, reused)) };
            if on_progress(Progress::Token(id)).is_break() {
                return Ok(row.ended(StopReason::Cancelled, reused));
            }
            if let Some(reason) = row.is_full() {
                return Ok(row.ended(reason, reused));
            }
            logits = self.extend(&[id])?;
        }
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.keep(0);
    }

    /// Keeps of the cache what the prompt begins with, but for its last token, whose logits are needed, or nothing where
    /// layers cannot go back to there; makes room for a row of `end` tokens. Returns how many tokens are kept.
    fn reuse(&mut self, prompt_ids: &[u32], end: usize) -> usize {
        let common = self.cached_ids.iter().zip(prompt_ids).take_while(|(a, b)| a == b).count();
        let spec = &self.decoder.spec;
        let capacity = self.cache.len() + self.cache.room();
        if end > capacity {
            let capacity = end.max(2 * capacity).min(longest_row(spec));
            self.cache = KvCache::new(self.dev, spec, self.decoder.compute, capacity);
            self.cached_ids.clear();
            return 0;
        }
        self.keep(if has_one_rotation(spec, end) { common.min(prompt_ids.len() - 1) } else { 0 });
        self.cached_ids.len()
    }

    fn keep(&mut self, tokens: usize) {
        let kept = self.cache.truncate(tokens);
        self.cached_ids.truncate(kept);
    }

    /// Reads what the cache lacks of the prompt; the logits after it, or `None` if the caller broke off.
    fn read_prompt(
        &mut self,
        prompt_ids: &[u32],
        on_progress: &mut impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Vec<f32>>, InferError> {
        let total = prompt_ids.len();
        let mut piece = self.work.capacity().tokens;
        if !has_one_rotation(&self.decoder.spec, total) && total > piece {
            let (spec, adapters) = (&self.decoder.spec, self.decoder.adapters());
            self.work =
                Workspace::new(self.dev, spec, adapters, self.decoder.compute, total, Purpose::Forward);
            piece = total;
        }
        let mut logits = Vec::new();
        for ids in prompt_ids[self.cached_ids.len()..].chunks(piece) {
            logits = self.extend(ids)?;
            if on_progress(Progress::Prompt { read: self.cached_ids.len(), total }).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(logits))
    }

    fn extend(&mut self, ids: &[u32]) -> Result<Vec<f32>, InferError> {
        let Self { dev, decoder, work, cache, cached_ids } = self;
        let cache = std::slice::from_mut(cache);
        let logits = dev.install(|| decoder.extend(dev, &[ids], cache, work))?;
        cached_ids.extend_from_slice(ids);
        Ok(logits.to_f32_vec())
    }
}

/// How long a row may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// What limits it.
    pub name: &'static str,
    /// Tokens of prompt and answer together.
    pub tokens: usize,
    /// What to do about a prompt that is longer.
    pub help: &'static str,
}

impl Context {
    /// Of the longest row that a model takes.
    pub fn of(spec: &DecoderSpec) -> Self {
        let help = "shorten the text, or forget earlier turns (`clear`)";
        Self { name: "max_position_embeddings", tokens: longest_row(spec), help }
    }

    /// The same, no longer than rows whose positions do not depend on their length: these can go on side by side, and parts
    /// of them be kept.
    pub fn alike(spec: &DecoderSpec) -> Self {
        let longest = Self::of(spec);
        let tokens = match spec.rope.as_ref().map(|rope| &rope.scaling) {
            Some(RopeScaling::Dynamic { max_position_embeddings, .. }) => *max_position_embeddings,
            Some(RopeScaling::LongRope { original_max_position_embeddings, .. }) => {
                *original_max_position_embeddings
            }
            _ => usize::MAX,
        };
        Self { tokens: longest.tokens.min(tokens), ..longest }
    }
}

/// A row on its way from its prompt to its end.
#[derive(Debug)]
pub struct Continuation {
    sampler: Sampler,
    stop_ids: Vec<u32>,
    prompt: usize,
    ids: Vec<u32>,
    /// Tokens of the row at most.
    pub end: usize,
    /// What ends it there.
    reason: StopReason,
}

impl Continuation {
    /// Begins behind a prompt, in a row that is no longer than `context`.
    ///
    /// # Errors
    /// A prompt without tokens or without room for an answer.
    pub fn new(
        context: Context,
        prompt_ids: &[u32],
        options: &GenerationOptions,
    ) -> Result<Self, InferError> {
        let prompt = prompt_ids.len();
        let too_long = |limit, value, help| InferError::PromptTooLong { tokens: prompt, limit, value, help };
        if prompt == 0 {
            return Err(InferError::EmptyPrompt);
        }
        if prompt >= context.tokens {
            return Err(too_long(context.name, context.tokens, context.help));
        }
        let wanted = options.longest_with(prompt);
        if wanted <= prompt {
            let help = "raise it, or set `max_new_tokens`, which counts the answer alone";
            return Err(too_long("max_length", options.max_length, help));
        }
        let reason = if wanted > context.tokens { StopReason::Context } else { StopReason::Length };
        let sampler = Sampler::new(options.sampling, prompt_ids);
        let (stop_ids, end) = (options.stop_ids.clone(), wanted.min(context.tokens));
        Ok(Self { sampler, stop_ids, prompt, ids: Vec::new(), end, reason })
    }

    /// The next token by its logits [V], which are changed, or `None` if it is one that ends the answer.
    ///
    /// # Errors
    /// Logits that are NaN.
    pub fn next(&mut self, logits: &mut [f32]) -> Result<Option<u32>, InferError> {
        if logits.iter().any(|z| z.is_nan()) {
            return Err(InferError::NotANumber { position: self.prompt + self.ids.len() });
        }
        let id = Some(self.sampler.next(logits)).filter(|id| !self.stop_ids.contains(id));
        self.ids.extend(id);
        Ok(id)
    }

    /// What ends the row now, if it may have no further token.
    pub fn is_full(&self) -> Option<StopReason> {
        (self.prompt + self.ids.len() == self.end).then_some(self.reason)
    }

    /// The answer.
    pub fn ended(self, reason: StopReason, reused: usize) -> Generation {
        Generation { ids: self.ids, reason, reused }
    }
}

/// Tokens of the longest row that a model takes: what it was made for, or what its scaling of positions reaches.
fn longest_row(spec: &DecoderSpec) -> usize {
    let max = spec.max_position_embeddings;
    let scaled = match spec.rope.as_ref().map(|rope| &rope.scaling) {
        None
        | Some(RopeScaling::Default | RopeScaling::LongRope { .. } | RopeScaling::Proportional { .. }) => {
            max as f64
        }
        Some(RopeScaling::Linear { factor }) => max as f64 * factor,
        Some(RopeScaling::Dynamic { factor, max_position_embeddings }) => {
            *max_position_embeddings as f64 * factor
        }
        Some(
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. }
            | RopeScaling::Llama3 { factor, original_max_position_embeddings, .. },
        ) => *original_max_position_embeddings as f64 * factor,
    };
    max.max(scaled as usize)
}

fn prompt_piece(spec: &DecoderSpec) -> usize {
    PROMPT_PIECE.min(longest_row(spec))
}

/// Whether a position is rotated alike in every row of up to `tokens` tokens. Dynamic scaling and LongRoPE are
/// otherwise: there the whole prompt is read at once, as transformers does, and no part of it can be kept for a longer
/// row.
pub(crate) fn has_one_rotation(spec: &DecoderSpec, tokens: usize) -> bool {
    tokens <= Context::alike(spec).tokens
}
