//! Special tokens that a message spells: what somebody typed is text, never a token.
//!
//! Before a template is rendered each of them gives way to one private character; after that the
//! character gives way to the words again, and the place is remembered, so that the tokenizer takes it
//! for text. Training and inference both go this way.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

/// The first private character: the last plane of Unicode, which no text has a meaning for.
const FIRST: u32 = 0x10_0000;
/// How many there are.
const MOST: usize = 0xfffe;

/// Finds special tokens in texts.
#[derive(Debug, Clone, Default)]
pub(crate) struct TypedTokens {
    /// `None` without special tokens.
    finder: Option<Arc<AhoCorasick>>,
    texts: Arc<Vec<String>>,
}

/// Which special tokens a text may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    /// None: what people and tools write.
    All,
    /// None of these: what ends an answer cannot stand inside it; other special tokens a model writes itself.
    These(&'a [String]),
}

impl TypedTokens {
    pub(super) fn new(mut texts: Vec<String>) -> Self {
        texts.retain(|text| !text.trim().is_empty());
        // Ids are in no order; the same tokenizer must give the same characters.
        texts.sort_unstable();
        texts.truncate(MOST);
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
        // It fails for more patterns than memory holds; a vocabulary has far fewer special tokens.
        let finder = finder.ok().filter(|_| !texts.is_empty());
        Self { finder: finder.map(Arc::new), texts: Arc::new(texts) }
    }

    /// Whether the text spells one of them.
    pub(crate) fn is_in(&self, text: &str, which: Which<'_>) -> bool {
        self.found(text, which).next().is_some()
    }

    /// The text with a private character for each.
    pub(crate) fn hidden(&self, text: &str, which: Which<'_>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for (range, place) in self.found(text, which) {
            out.push_str(&text[done..range.start]);
            out.extend(char::from_u32(FIRST + place as u32));
            done = range.end;
        }
        out.push_str(&text[done..]);
        out
    }

    /// What a private character stands for.
    pub(crate) fn shown(&self, character: char) -> Option<&str> {
        let place = (character as u32).checked_sub(FIRST)?;
        self.texts.get(place as usize).map(String::as_str)
    }

    fn found<'a>(
        &'a self,
        text: &'a str,
        which: Which<'a>,
    ) -> impl Iterator<Item = (Range<usize>, usize)> + 'a {
        let found = self.finder.iter().flat_map(move |finder| finder.find_iter(text));
        let found = found.map(|found| (found.range(), found.pattern().as_usize()));
        found.filter(move |(_, place)| match which {
            Which::All => true,
            Which::These(texts) => texts.contains(&self.texts[*place]),
        })
    }
}
