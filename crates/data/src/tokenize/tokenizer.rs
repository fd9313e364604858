//! The tokenizer of a model: text ↔ ids, special tokens, and what the model's files say about them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use super::files;
use super::model_file;
use super::new_tokens::{NewToken, NewTokens};
use super::parts;
use super::stream::DecodeStream;
use super::typed::TypedTokens;
use super::words::Words;
use crate::error::DataError;

/// The tokenizer of a model, with its special tokens and chat templates.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    dir: PathBuf,
    /// `bos_token`, `eos_token`, … with their text, as chat templates see them.
    special_tokens: BTreeMap<String, String>,
    special_ids: HashSet<u32>,
    /// Tokens that are recognised before the text is split, special or not.
    added: HashMap<u32, String>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    generation_stop_ids: Vec<u32>,
    chat_templates: BTreeMap<String, String>,
    vocab_size: usize,
    typed: TypedTokens,
    /// The quicker way, where the tokenizer allows it.
    words: Option<Words>,
    /// Those that its files do not have, in the order of their ids.
    new_tokens: Vec<NewToken>,
    /// Whether a template may add the tokens that it ends turns with.
    may_grow: bool,
}

/// A token and the bytes of the text it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Bytes of the encoded text; tokens that share a character share its range.
    pub range: Range<usize>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory.
    ///
    /// # Errors
    /// No file that is read, or one that cannot be read or parsed.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        let file = dir.join("tokenizer.json");
        let config = files::read_json(&dir.join("tokenizer_config.json"))?;
        let mut inner = model_file::load(dir, &config)?;
        // Offsets are needed as they are; special tokens come from the template.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| files::broken(&file, error.to_string()))?;
        files::mark_words_as_transformers_does(&mut inner, &config)
            .map_err(|error| files::broken(&file, error.to_string()))?;
        let map = files::read_json(&dir.join("special_tokens_map.json"))?;
        let generation = files::read_json(&dir.join("generation_config.json"))?;
        let mut special_tokens = files::special_tokens(&config, &map);
        for (key, token) in files::tokens_of_class(&config) {
            // One that is null on purpose stays so.
            let is_told = special_tokens.contains_key(*key) || config.get(key).is_some();
            if !is_told && inner.token_to_id(token).is_some() {
                special_tokens.insert((*key).to_owned(), (*token).to_owned());
            }
        }
        let mut tokenizer = Self {
            vocab_size: 0,
            typed: TypedTokens::default(),
            words: None,
            new_tokens: Vec::new(),
            may_grow: false,
            special_ids: HashSet::new(),
            added: HashMap::new(),
            bos: None,
            eos: None,
            pad: None,
            add_bos: config["add_bos_token"] == Value::Bool(true),
            generation_stop_ids: files::ids_of(&generation["eos_token_id"]),
            chat_templates: files::chat_templates(dir, &config)?,
            dir: dir.to_owned(),
            special_tokens,
            inner,
        };
        tokenizer.index();
        Ok(tokenizer)
    }

    /// A tokenizer made in memory: `special_tokens` maps `bos_token`, `eos_token`, … to their text.
    pub fn from_parts(
        mut inner: tokenizers::Tokenizer,
        special_tokens: BTreeMap<String, String>,
        chat_template: Option<String>,
    ) -> Self {
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let mut tokenizer = Self {
            inner,
            dir: PathBuf::new(),
            special_tokens,
            special_ids: HashSet::new(),
            added: HashMap::new(),
            bos: None,
            eos: None,
            pad: None,
            add_bos: false,
            generation_stop_ids: Vec::new(),
            chat_templates: chat_template.map(|text| ("default".to_owned(), text)).into_iter().collect(),
            vocab_size: 0,
            typed: TypedTokens::default(),
            words: None,
            new_tokens: Vec::new(),
            may_grow: false,
        };
        tokenizer.index();
        tokenizer
    }

    fn index(&mut self) {
        let id = |key: &str| self.inner.token_to_id(self.special_tokens.get(key)?);
        (self.bos, self.eos, self.pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let added = self.inner.get_added_tokens_decoder();
        self.special_ids = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        self.added = added.into_iter().map(|(id, token)| (id, token.content)).collect();
        let vocab = self.inner.get_vocab(true);
        self.vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        self.typed = TypedTokens::new(self.special_texts());
        self.words = Words::new(&self.inner, &vocab);
    }

    /// Adds tokens to the vocabulary: their ids follow the largest one. One that it has as a piece of words keeps its id, and
    /// is never split from now on.
    ///
    /// # Errors
    /// A token that the library refuses.
    pub fn add(&mut self, tokens: &NewTokens) -> Result<(), DataError> {
        self.may_grow |= tokens.may_grow;
        for (content, special) in tokens.all() {
            let had_row = self.inner.token_to_id(content).is_some();
            let is_added = had_row && self.inner.get_added_vocabulary().get_vocab().contains_key(content);
            let token = AddedToken::from(content, special);
            let added = match special {
                true => self.inner.add_special_tokens([token]),
                false => self.inner.add_tokens([token]),
            };
            added.map_err(|error| files::broken(&self.dir, error.to_string()))?;
            if let Some(id) = self.inner.token_to_id(content).filter(|_| !is_added) {
                self.new_tokens.push(NewToken { id, content: content.to_owned(), special, had_row });
            }
        }
        if tokens.all().next().is_some() {
            self.index();
        }
        Ok(())
    }

    /// The tokens that the folder's files do not have, in the order of their ids.
    pub fn new_tokens(&self) -> &[NewToken] {
        &self.new_tokens
    }

    /// The ids of a text, nothing added.
    ///
    /// # Errors
    /// The text has a character that the vocabulary has no token for, not even an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        if let Some(ids) = self.words.as_ref().and_then(|words| words.encode(&self.inner, text)) {
            return Ok(ids);
        }
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| self.cannot_encode(text, &e))?.get_ids().to_vec())
    }

    /// The ids of a text with the bytes each stands for, nothing added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_ranges(&self, text: &str) -> Result<Vec<Token>, DataError> {
        if let Some(words) = &self.words
            && let Some(ids) = words.encode(&self.inner, text)
            && let Some(ranges) = words.ranges(text, &ids)
        {
            return Ok(ids.into_iter().zip(ranges).map(|(id, range)| Token { id, range }).collect());
        }
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| self.cannot_encode(text, &e))?;
        let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pairs.map(|(&id, &(start, end))| Token { id, range: start..end }).collect())
    }

    /// The ids of a text that was put together of parts: no token lies across one of the bytes `cuts`
    /// (in order), and a special token that begins inside one of the ranges `typed` (in order, apart) is plain text.
    ///
    /// Everything else is as in [`Tokenizer::encode_with_ranges`]; a piece after a cut is no beginning of
    /// a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(super) fn encode_parts(
        &self,
        text: &str,
        cuts: &[usize],
        typed: &[Range<usize>],
    ) -> Result<Vec<Token>, DataError> {
        let encoding = parts::encode(&self.inner, text, cuts, &|id, range| {
            let own = self.own_range(&Token { id, range }, text);
            let next = typed.partition_point(|typed| typed.end <= own.start);
            self.is_special(id) && typed.get(next).is_some_and(|typed| typed.contains(&own.start))
        });
        encoding.map_err(|error| self.cannot_encode(text, &error))
    }

    /// Special tokens, to find where a message spells one.
    pub(crate) fn typed(&self) -> &TypedTokens {
        &self.typed
    }

    /// The bytes of a token without the white space that some added tokens swallow around them.
    pub(super) fn own_range(&self, token: &Token, text: &str) -> Range<usize> {
        let added = self.added.get(&token.id);
        match added.and_then(|own| Some((own, text.get(token.range.clone())?.find(own.as_str())?))) {
            Some((own, at)) => token.range.start + at..token.range.start + at + own.len(),
            None => token.range.clone(),
        }
    }

    /// The bytes that ids stand for in a text, where the vocabulary is one of bytes.
    pub(crate) fn bytes_of(&self, ids: &[u32]) -> Option<Vec<u8>> {
        self.words.as_ref()?.bytes(ids)
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        // Unknown ids are skipped by the library; it has no other way to fail.
        self.inner.decode(ids, skip_special_tokens).unwrap_or_default()
    }

    /// Decodes a stream of ids piece by piece.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special_tokens)
    }

    /// One more than the largest id: the smallest vocabulary a model needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text that a token stands for inside a text: spaces kept, special tokens as they are
    /// spelled, bytes that are no character by themselves as U+FFFD.
    pub fn text_of(&self, id: u32) -> String {
        self.text_within(&[id])
    }

    /// The texts that tokens stand for inside a text, as [`Tokenizer::text_of`]; a character of which each has some bytes is
    /// the last one's.
    pub fn texts_of(&self, ids: &[u32]) -> Vec<String> {
        /// Bytes of a character at most.
        const MOST: usize = 4;
        let is_broken = |text: &String| text.contains(char::REPLACEMENT_CHARACTER);
        let mut texts: Vec<String> = ids.iter().map(|&id| self.text_of(id)).collect();
        let mut next = 0;
        while next < ids.len() {
            let parts = texts[next..].iter().take(MOST).take_while(|text| is_broken(text)).count();
            let whole = |count: &usize| Some((*count, self.text_within(&ids[next..next + count])));
            let joined = (2..=parts).filter_map(|count| whole(&count)).find(|(_, text)| !is_broken(text));
            next += match joined {
                Some((count, text)) => {
                    texts[next..next + count].fill(String::new());
                    texts[next + count - 1] = text;
                    count
                }
                None => 1,
            };
        }
        texts
    }

    fn text_within(&self, ids: &[u32]) -> String {
        // Decoded after the same tokens, so that nothing at the beginning of a text is stripped.
        let twice = self.decode(&[ids, ids].concat(), false);
        let (half, is_even) = (twice.len() / 2, twice.len().is_multiple_of(2));
        match is_even && twice.is_char_boundary(half) && twice[..half] == twice[half..] {
            true => twice[half..].to_owned(),
            false => twice.strip_prefix(&self.decode(ids, false)).unwrap_or(&twice).to_owned(),
        }
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the id is of a special token: one that is no text (`<|im_end|>`, `</s>`).
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// All special tokens as texts.
    pub(crate) fn special_texts(&self) -> Vec<String> {
        let special = self.added.iter().filter(|(id, _)| self.special_ids.contains(id));
        special.map(|(_, text)| text.clone()).collect()
    }

    /// Beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Padding token, or the end-of-sequence token if there is none.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad.or(self.eos)
    }

    /// Whether plain text begins with the beginning-of-sequence token (`add_bos_token`).
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// End tokens named by `generation_config.json`.
    pub fn generation_stop_ids(&self) -> &[u32] {
        &self.generation_stop_ids
    }

    /// Special tokens by name (`bos_token` → `<s>`), as chat templates see them.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special_tokens
    }

    /// Chat templates by name; a single one is called `default`.
    pub fn chat_templates(&self) -> &BTreeMap<String, String> {
        &self.chat_templates
    }

    /// The directory it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes `token` the end-of-sequence token (LLaMA-Factory's `replace_eos`).
    ///
    /// # Errors
    /// The vocabulary does not have it.
    pub(crate) fn replace_eos(&mut self, token: &str) -> Result<(), DataError> {
        if self.special_tokens.get("eos_token").is_some_and(|eos| eos == token) {
            return Ok(());
        }
        self.mark_special(token)?;
        self.special_tokens.insert("eos_token".to_owned(), token.to_owned());
        self.eos = self.inner.token_to_id(token);
        Ok(())
    }

    /// Recognises `token` as one special token wherever it stands in a text, and leaves the spaces
    /// around it alone.
    ///
    /// # Errors
    /// The vocabulary does not have it.
    pub(crate) fn mark_special(&mut self, token: &str) -> Result<(), DataError> {
        if self.may_grow && self.inner.token_to_id(token).is_none() {
            return self.add(&NewTokens { special: vec![token.to_owned()], ..NewTokens::default() });
        }
        let Some(id) = self.inner.token_to_id(token) else {
            return Err(DataError::Tokenizer {
                path: self.dir.clone(),
                reason: format!("the template ends turns with `{token}`, which the vocabulary does not have"),
                help: "choose the template of this model family (`template: auto` uses the model's own), or \
                       `resize_vocab: true`, which adds the token and a row of the embedding for it"
                    .into(),
            });
        };
        if self.special_ids.insert(id) {
            self.added.insert(id, token.to_owned());
            self.typed = TypedTokens::new(self.special_texts());
        }
        self.inner
            .add_special_tokens([AddedToken::from(token, true).normalized(false)])
            .map_err(|error| files::broken(&self.dir, error.to_string()))?;
        let words = self.words.take();
        self.words = words.and_then(|mut words| words.add_tokens(&self.inner).map(|()| words));
        Ok(())
    }

    fn cannot_encode(&self, text: &str, error: &tokenizers::Error) -> DataError {
        let start: String = text.chars().take(60).collect();
        DataError::Tokenizer {
            path: self.dir.clone(),
            reason: format!("cannot encode `{start}…`: {error}"),
            help: "the vocabulary has no token for a character and no unknown token; use a tokenizer with byte fallback".into(),
        }
    }
}
