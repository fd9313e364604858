//! Rows in work: prompts that come and go, and a token for each row at every step, which reads the weights once for all of
//! them.
//!
//! A prompt is read in pieces as [`Generator`](crate::Generator) reads it, and may take turns with the tokens of the other
//! rows. The caches of rows that have ended are kept until others take their place, so that a prompt that begins alike need
//! not be read again; what another row's cache holds of a prompt is copied.

use sft_kernels::{DType, Device};
use sft_model::Decoder;
use sft_model::cache::KvCache;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::Workspace;

use crate::InferError;
use crate::generate::{Continuation, Generation, PROMPT_PIECE, StopReason};

/// What becomes of a row at a step.
#[derive(Debug)]
pub enum Told {
    /// Its prompt is read.
    Read {
        /// Tokens of it that a cache held already.
        reused: usize,
    },
    /// Its next token.
    Token(u32),
    /// It has ended, or why it cannot go on.
    Ended(Result<Generation, InferError>),
}

/// A decoder at work on several rows.
#[derive(Debug)]
pub struct Slots<'a> {
    dev: &'a Device,
    decoder: &'a Decoder,
    work: &'a mut Workspace,
    /// Of the rows in work, in their order; then those that no row has.
    caches: Vec<KvCache>,
    /// What is in each of them.
    held: Vec<Held>,
    rows: Vec<Row>,
    /// Rows that have read their prompts; they are the first.
    ready: usize,
    keeps_answers: bool,
    begun: u64,
}

/// Tokens at the end of a prompt that its next turn may not have: what opens an answer, or says that it has no thoughts.
const LAST_WORDS: usize = 16;

/// What a cache holds.
#[derive(Debug, Default)]
struct Held {
    ids: Vec<u32>,
    /// So many of them were read as a prompt.
    read: usize,
    /// When a row took it last: the smallest first.
    taken: u64,
}

/// A row in work.
#[derive(Debug)]
struct Row {
    key: u64,
    prompt: Vec<u32>,
    continuation: Continuation,
    /// Tokens of its prompt that a cache held already.
    reused: usize,
    /// The token that its cache lacks, once the prompt is read.
    next: u32,
}

impl<'a> Slots<'a> {
    /// Up to `rows` rows at a time of up to `longest` tokens each; there are no more of them than `work` has tokens. Pieces that a
    /// prompt begins with as another one does are not read again: those that are whole in both, so that a row's bits are what
    /// they would be.
    pub fn new(
        dev: &'a Device,
        decoder: &'a Decoder,
        work: &'a mut Workspace,
        (rows, longest): (usize, usize),
    ) -> Self {
        let rows = rows.clamp(1, work.capacity().tokens.max(1));
        let caches = KvCache::several(dev, &decoder.spec, decoder.compute, longest, rows);
        let held = caches.iter().map(|_| Held::default()).collect();
        Self { dev, decoder, work, caches, held, rows: Vec::new(), ready: 0, keeps_answers: false, begun: 0 }
    }

    /// The same, which does not read again what a cache holds of a prompt, answers included. Bits of a row may then depend on
    /// what was asked before it.
    pub fn keeping_conversations(self) -> Self {
        Self { keeps_answers: true, ..self }
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

    /// Tokens that its workspace has to take: of a row each, or of a piece of a prompt.
    pub fn tokens(rows: usize, longest: usize) -> usize {
        rows.max(PROMPT_PIECE.min(longest))
    }

    /// Whether another row can begin.
    pub fn has_room(&self) -> bool {
        self.rows.len() < self.caches.len()
    }

    /// Whether no row is in work.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes a row in, which the caller knows by `key`.
    ///
    /// # Panics
    /// Without room for it ([`Slots::has_room`]), or if it is longer than a row may be.
    pub fn begin(&mut self, key: u64, prompt: &[u32], continuation: Continuation) {
        let at = self.rows.len();
        let free = at..self.caches.len();
        let common = |slot: usize| self.common(slot, prompt);
        // The one whose conversation goes on or is asked again; else the one that was taken longest ago, which copies what
        // others hold.
        let gain = |slot: usize| {
            let kept = self.caches[slot].kept(common(slot));
            if kept + LAST_WORDS >= self.held[slot].read { kept } else { 0 }
        };
        let best = free.max_by_key(|&slot| (gain(slot), u64::MAX - self.held[slot].taken));
        let slot = best.expect("callers ask whether there is room");
        let common = common(slot);
        let kept = self.caches[slot].truncate(common);
        assert!(continuation.end <= kept + self.caches[slot].room(), "a row that is longer than its cache");
        self.begun += 1;
        let held = &mut self.held[slot];
        held.ids.truncate(kept);
        (held.read, held.taken) = (held.read.min(kept), self.begun);
        self.caches.swap(at, slot);
        self.held.swap(at, slot);
        self.rows.push(Row { key, prompt: prompt.to_vec(), continuation, reused: kept, next: 0 });
    }

    /// Tokens of a prompt that its row may take over from a slot.
    fn common(&self, slot: usize, prompt: &[u32]) -> usize {
        let Held { ids, read, .. } = &self.held[slot];
        let alike = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The logits of the last token are needed.
        let common = alike.min(prompt.len() - 1);
        if self.keeps_answers { common } else { common.min(*read) / self.piece() * self.piece() }
    }

    /// Tokens of a piece of a prompt.
    fn piece(&self) -> usize {
        PROMPT_PIECE.min(self.work.capacity().tokens)
    }

    /// Takes over what another slot holds of the prompt of a row in work.
    fn copy_beginning(&mut self, at: usize) {
        let prompt = &self.rows[at].prompt;
        let others = (0..self.caches.len()).filter(|slot| *slot != at);
        let Some((common, from)) = others.map(|slot| (self.common(slot, prompt), slot)).max() else { return };
        if common <= self.held[at].ids.len() {
            return;
        }
        let [to, from] = self.caches.get_disjoint_mut([at, from]).expect("two slots, both there");
        let (held, row) = (&mut self.held[at], &mut self.rows[at]);
        let before = held.ids.len();
        let now = self.dev.install(|| to.copy_beginning(from, common));
        held.ids.extend_from_slice(&row.prompt[before..now]);
        held.read = now;
        row.reused += now - before;
    }

    /// Forgets a row in work, if there is one of that key.
    pub fn leave(&mut self, key: u64) {
        if let Some(at) = self.rows.iter().position(|row| row.key == key) {
            self.take(at);
        }
    }

    /// Reads up to `pieces` pieces of prompts, then gives a token to every row that has read its own. `told` hears of both by
    /// the row's key; before every piece and every token it is asked whether to go on: `None` breaks off in the middle.
    ///
    /// # Errors
    /// What is wrong with the model, whatever the row.
    pub fn step(
        &mut self,
        pieces: usize,
        mut goes_on: impl FnMut() -> bool,
        mut told: impl FnMut(u64, Told),
    ) -> Result<Option<()>, InferError> {
        for _ in 0..pieces {
            if self.ready == self.rows.len() {
                break;
            }
            if !goes_on() {
                return Ok(None);
            }
            self.read_piece(&mut told)?;
        }
        if self.ready == 0 {
            return Ok(Some(()));
        }
        if !goes_on() {
            return Ok(None);
        }
        let next: Vec<u32> = self.rows[..self.ready].iter().map(|row| row.next).collect();
        let ids: Vec<&[u32]> = next.chunks(1).collect();
        let Self { dev, decoder, work, caches, .. } = self;
        let logits = dev.install(|| decoder.extend(dev, &ids, &mut caches[..ids.len()], work))?;
        let mut logits = logits.to_f32_vec();
        self.held.iter_mut().zip(next).for_each(|(held, id)| held.ids.push(id));
        // From the last on, so that the row that takes the place of one that ends has been looked at.
        for (at, logits) in logits.chunks_exact_mut(self.decoder.spec.vocab_size).enumerate().rev() {
            self.choose(at, logits, &mut told);
        }
        Ok(Some(()))
    }

    /// The next piece of the first prompt that is not read.
    fn read_piece(&mut self, told: &mut impl FnMut(u64, Told)) -> Result<(), InferError> {
        let (at, size) = (self.ready, self.piece());
        self.copy_beginning(at);
        let (prompt, held) = (&self.rows[at].prompt, &mut self.held[at]);
        let read = held.ids.len();
        let piece = &prompt[read..prompt.len().min(read + size)];
        let cache = std::slice::from_mut(&mut self.caches[at]);
        let Self { dev, decoder, work, .. } = self;
        let logits = dev.install(|| decoder.extend(dev, &[piece], cache, work))?;
        held.ids.extend_from_slice(piece);
        held.read = held.ids.len();
        if held.ids.len() == prompt.len() {
            self.ready += 1;
            told(self.rows[at].key, Told::Read { reused: self.rows[at].reused });
            self.choose(at, &mut logits.to_f32_vec(), told);
        }
        Ok(())
    }

    /// The next token of a row by its logits.
    fn choose(&mut self, at: usize, logits: &mut [f32], told: &mut impl FnMut(u64, Told)) {
        let row = &mut self.rows[at];
        let ended = match row.continuation.next(logits) {
            Ok(Some(id)) => {
                row.next = id;
                told(row.key, Told::Token(id));
                row.continuation.is_full().map(Ok)
            }
            Ok(None) => Some(Ok(StopReason::Stop)),
            Err(error) => Some(Err(error)),
        };
        if let Some(reason) = ended {
            let Row { key, continuation, reused, .. } = self.take(at);
            told(key, Told::Ended(reason.map(|reason| continuation.ended(reason, reused))));
        }
    }

    /// Takes a row out; its cache comes behind those of all others.
    fn take(&mut self, mut at: usize) -> Row {
        if at < self.ready {
            self.ready -= 1;
            self.rows.swap(at, self.ready);
            self.caches.swap(at, self.ready);
            self.held.swap(at, self.ready);
            at = self.ready;
        }
        let in_work = at..self.rows.len();
        self.caches[in_work.clone()].rotate_left(1);
        self.held[in_work].rotate_left(1);
        self.rows.remove(at)
    }
}
