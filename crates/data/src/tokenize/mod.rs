//! Tokens (stage 5 of the walk): text with spans → token ids with spans; ids → text.
//!
//! In: a model directory with `tokenizer.json`. What the library's file does not say is read from
//! its neighbours: special tokens from `tokenizer_config.json` and `special_tokens_map.json`, chat
//! templates from `tokenizer_config.json` and `*.jinja`, end tokens of generation from
//! `generation_config.json`.
//!
//! Nothing is ever added to a text: the beginning-of-sequence token and its like come from the
//! template alone, so there is never a second one.

mod files;
mod stream;
mod tokenizer;

use std::ops::Range;

use crate::error::DataError;
use crate::template::{Mark, Part, Rendered, Segment};

pub use stream::DecodeStream;
pub use tokenizer::{Token, Tokenizer};

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

/// The tokens of a rendered conversation, each segment tokenised by itself.
///
/// A token that lies in two parts is an answer where both are learned, else a [`Part::Border`].
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn tokens(tokenizer: &Tokenizer, rendered: &Rendered) -> Result<Vec<MarkedToken>, DataError> {
    let marked = |id, mark: Mark| MarkedToken { id, mark, is_target: mark.part != Part::Prompt };
    let mut out = Vec::new();
    for segment in &rendered.segments {
        match segment {
            Segment::Token { id, mark } => out.push(marked(*id, *mark)),
            Segment::Text { text, spans } => match spans.as_slice() {
                [(_, mark)] => {
                    let ids = tokenizer.encode(text)?;
                    out.extend(ids.into_iter().map(|id| marked(id, *mark)));
                }
                spans => {
                    let tokens = tokenizer.encode_with_ranges(text)?;
                    let mut first = 0;
                    out.extend(tokens.into_iter().map(|token| {
                        let range = tokenizer.own_range(&token, text);
                        let (mark, is_target) = mark_of(&range, spans, &mut first);
                        MarkedToken { id: token.id, mark, is_target }
                    }));
                }
            },
        }
    }
    Ok(out)
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
