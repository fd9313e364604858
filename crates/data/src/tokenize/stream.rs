//! Decoding piece by piece, for answers that are shown while they are made.

use super::Tokenizer;

/// Turns ids into text as they come; what it returns is always valid UTF-8.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The ids of the last piece (for context: a leading space may depend on them) and those since.
    ids: Vec<u32>,
    /// How many of `ids` have been returned as text.
    read: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, ids: Vec::new(), read: 0 }
    }

    /// Takes an id; returns the text that is now certain, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.pending();
        // An unfinished character decodes to U+FFFD: wait for the rest of it.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return None;
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Some(text)
    }

    /// What is left, an unfinished character as U+FFFD.
    pub fn finish(self) -> String {
        self.pending()
    }

    fn pending(&self) -> String {
        let decode = |ids| self.tokenizer.decode(ids, self.skip_special_tokens);
        let known = decode(&self.ids[..self.read]);
        let all = decode(&self.ids);
        all.strip_prefix(&known).unwrap_or_default().to_owned()
    }
}
