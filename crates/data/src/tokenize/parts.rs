//! Tokenising a text with a say in where tokens may lie: cut at given bytes, special tokens where allowed.
//!
//! It takes the library's own steps (added tokens, normalizer, pre-tokenizer, model) on one string, so
//! that a piece after a cut is not mistaken for the beginning of a text.

use std::ops::Range;

use tokenizers::normalizer::Range as Slice;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::Token;

/// A stretch of the text, and the added token it is.
type Piece = (Range<usize>, Option<u32>);

/// The tokens of `text`: none across a byte of `cuts`; where `is_plain(id, range)` holds for an added
/// token that the library finds, it is tokenised as the text that spells it.
pub(super) fn encode(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    cuts: &[usize],
    is_plain: &dyn Fn(u32, Range<usize>) -> bool,
) -> tokenizers::Result<Vec<Token>> {
    let mut parts = PreTokenizedString::from(text);
    let pieces = pieces(tokenizer, text, cuts, is_plain);
    parts.split(|_, whole: NormalizedString| {
        let slices = pieces.iter().filter_map(|(range, id)| {
            let slice = whole.slice(Slice::Original(range.clone()))?;
            let token = id.map(|id| {
                let text = text[range.clone()].to_owned();
                vec![tokenizers::Token::new(id, text, (0, range.len()))]
            });
            Some((slice, token))
        });
        Ok(slices.collect::<Vec<_>>())
    })?;
    if let Some(normalizer) = tokenizer.get_normalizer() {
        parts.normalize(|piece| normalizer.normalize(piece))?;
    }
    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut parts)?;
    }
    parts.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?;
    let encoding = parts.into_encoding(None, 0, OffsetType::Byte)?;
    let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
    Ok(pairs.map(|(&id, &(start, end))| Token { id, range: start..end }).collect())
}

/// Added tokens and the text between them, cut.
fn pieces(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    cuts: &[usize],
    is_plain: &dyn Fn(u32, Range<usize>) -> bool,
) -> Vec<Piece> {
    let none = None::<&tokenizers::NormalizerWrapper>;
    let found = tokenizer.get_added_vocabulary().extract_and_normalize(none, text);
    let mut pieces: Vec<Piece> = Vec::new();
    for (_, (start, end), tokens) in found.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        let id = tokens.as_ref().and_then(|tokens| tokens.first()).map(|token| token.id);
        match (id.filter(|&id| !is_plain(id, start..end)), pieces.last_mut()) {
            (None, Some((range, None))) => range.end = end,
            (id, _) => pieces.push((start..end, id)),
        }
    }
    let cut = |(range, id): Piece| {
        let inside =
            cuts.iter().copied().filter(|cut| id.is_none() && range.start < *cut && *cut < range.end);
        let mut ends: Vec<usize> = inside.collect();
        ends.push(range.end);
        let starts = std::iter::once(range.start).chain(ends.clone());
        starts.zip(ends).map(|(start, end)| (start..end, id)).collect::<Vec<Piece>>()
    };
    pieces.into_iter().flat_map(cut).collect()
}
