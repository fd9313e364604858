//! Tokens (stage 5 of the walk): text with spans → token ids with spans; ids → text.
//!
//! In: a model directory with `tokenizer.json`, or where it has none with the file of SentencePiece or of
//! tiktoken. What the library's file does not say is read from
//! its neighbours: special tokens from `tokenizer_config.json` and `special_tokens_map.json`, chat
//! templates from `tokenizer_config.json` and `*.jinja`, end tokens of generation from
//! `generation_config.json`.
//!
//! Nothing is ever added to a text: the beginning-of-sequence token and its like come from the
//! template alone, so there is never a second one.

mod files;
mod model_file;
mod new_tokens;
mod parts;
mod sentencepiece;
mod stream;
mod tiktoken;
mod tokenizer;
mod typed;
mod words;

use std::ops::Range;

use crate::error::DataError;
use crate::template::{Mark, Part, Rendered, Segment};

pub use new_tokens::{NewToken, NewTokens};
pub use stream::DecodeStream;
pub use tokenizer::{Token, Tokenizer};
pub(crate) use typed::{TypedTokens, Which};

/// A token of a rendered conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkedToken {
    /// Its id.
    pub id: u32,
    /// Its turn, and what it is.
    pub mark: Mark,
    /// Whether it belongs to what the model answers, not to what it is given.
    pub is_target: bool,
}

/// A rendered conversation, tokenised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Its tokens in order.
    pub tokens: Vec<MarkedToken>,
    /// Borders between prompt and answer that a token would have lain across, had the text been tokenised
    /// as a whole.
    pub cuts: usize,
}

/// The tokens of a rendered conversation, each segment tokenised by itself.
///
/// A text is tokenised once. Where a token would lie across a border between what inference gives and
/// what the model answers, the text is cut there: inference tokenises the prompt alone, so it never makes
/// such a token, and what is trained has to begin with what is asked. A token that lies in two parts
/// elsewhere is an answer where both are learned, else a [`Part::Border`].
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn tokens(tokenizer: &Tokenizer, rendered: &Rendered) -> Result<Tokens, DataError> {
    let marked = |id, mark: Mark| MarkedToken { id, mark, is_target: mark.part != Part::Prompt };
    let mut out = Vec::new();
    let mut all_cuts = 0;
    for segment in &rendered.segments {
        match segment {
            Segment::Token { id, mark } => out.push(marked(*id, *mark)),
            Segment::Text { text, spans, borders, typed } => match spans.as_slice() {
                [(_, mark)] if borders.is_empty() && typed.is_empty() => {
                    let ids = tokenizer.encode(text)?;
                    out.extend(ids.into_iter().map(|id| marked(id, *mark)));
                }
                spans => {
                    let mut first = 0;
                    let (tokens, cuts) = uncrossed(tokenizer, text, borders, typed)?;
                    all_cuts += cuts;
                    out.extend(tokens.into_iter().map(|token| {
                        let range = tokenizer.own_range(&token, text);
                        let (mark, is_target) = mark_of(&range, spans, &mut first);
                        MarkedToken { id: token.id, mark, is_target }
                    }));
                }
            },
        }
    }
    Ok(Tokens { tokens: out, cuts: all_cuts })
}

/// The tokens of a text, none of them across a border, and how many would have been.
fn uncrossed(
    tokenizer: &Tokenizer,
    text: &str,
    borders: &[usize],
    typed: &[Range<usize>],
) -> Result<(Vec<Token>, usize), DataError> {
    let tokens = match typed {
        [] => tokenizer.encode_with_ranges(text)?,
        typed => tokenizer.encode_parts(text, &[], typed)?,
    };
    let is_crossed = |border: &usize| {
        let before = tokens.partition_point(|token| token.range.end <= *border);
        tokens.get(before).is_some_and(|token| {
            let range = tokenizer.own_range(token, text);
            range.start < *border && *border < range.end
        })
    };
    let cuts: Vec<usize> = borders.iter().copied().filter(is_crossed).collect();
    match cuts.as_slice() {
        [] => Ok((tokens, 0)),
        cuts => Ok((tokenizer.encode_parts(text, cuts, typed)?, cuts.len())),
    }
}

/// The mark of a range of text. `first` is the span where the last search ended: tokens come in order.
fn mark_of(range: &Range<usize>, spans: &[(Range<usize>, Mark)], first: &mut usize) -> (Mark, bool) {
    while *first + 1 < spans.len() && spans[*first].0.end <= range.start {
        *first += 1;
    }
    let (_, begins) = spans[*first];
    let overlapped =
        spans[*first..].iter().take_while(|(span, _)| span.start < range.end.max(range.start + 1));
    let is_target = begins.part != Part::Prompt;
    let mut part = begins.part;
    for (_, other) in overlapped {
        let learned = |part| matches!(part, Part::Answer | Part::End);
        if other.part != part && !(learned(other.part) && learned(part)) {
            part = Part::Border;
        }
    }
    (Mark { part, ..begins }, is_target)
}
