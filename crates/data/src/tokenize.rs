//! Tokens (stage 5 of the walk): text with spans → token ids with spans; ids → text.
//!
//! In: a model directory with `tokenizer.json`. What the library's file does not say is read from
//! its neighbours: special tokens from `tokenizer_config.json` and `special_tokens_map.json`, chat
//! templates from `tokenizer_config.json` and `*.jinja`, end tokens of generation from
//! `generation_config.json`.
//!
//! Nothing is ever added to a text: the beginning-of-sequence token and its like come from the
//! template alone, so there is never a second one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use crate::error::DataError;
use crate::template::{Mark, Part, Rendered, Segment};

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
    /// No `tokenizer.json`, or a file that cannot be read or parsed.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        let file = dir.join("tokenizer.json");
        if !file.is_file() {
            return Err(no_tokenizer_json(dir));
        }
        let mut inner =
            tokenizers::Tokenizer::from_file(&file).map_err(|error| broken(&file, error.to_string()))?;
        // Offsets are needed as they are; special tokens come from the template.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken(&file, error.to_string()))?;
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        mark_words_as_transformers_does(&mut inner, &config)
            .map_err(|error| broken(&file, error.to_string()))?;
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        let generation = read_json(&dir.join("generation_config.json"))?;
        let special_tokens = special_tokens(&config, &map);
        let mut tokenizer = Self {
            vocab_size: 0,
            special_ids: HashSet::new(),
            added: HashMap::new(),
            bos: None,
            eos: None,
            pad: None,
            add_bos: config["add_bos_token"] == Value::Bool(true),
            generation_stop_ids: ids_of(&generation["eos_token_id"]),
            chat_templates: chat_templates(dir, &config)?,
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
    }

    /// The ids of a text, nothing added.
    ///
    /// # Errors
    /// The text has a character that the vocabulary has no token for, not even an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| self.cannot_encode(text, &e))?.get_ids().to_vec())
    }

    /// The ids of a text with the bytes each stands for, nothing added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_ranges(&self, text: &str) -> Result<Vec<Token>, DataError> {
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| self.cannot_encode(text, &e))?;
        let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pairs.map(|(&id, &(start, end))| Token { id, range: start..end }).collect())
    }

    /// The bytes of a token without the white space that some added tokens swallow around them.
    fn own_range(&self, token: &Token, text: &str) -> Range<usize> {
        let added = self.added.get(&token.id);
        match added.and_then(|own| Some((own, text.get(token.range.clone())?.find(own.as_str())?))) {
            Some((own, at)) => token.range.start + at..token.range.start + at + own.len(),
            None => token.range.clone(),
        }
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        // Unknown ids are skipped by the library; it has no other way to fail.
        self.inner.decode(ids, skip_special_tokens).unwrap_or_default()
    }

    /// Decodes a stream of ids piece by piece.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, skip_special_tokens, ids: Vec::new(), read: 0 }
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
        // Decoded after another token, so that nothing at the beginning of a text is stripped.
        let twice = self.decode(&[id, id], false);
        match twice.len().is_multiple_of(2) && twice[..twice.len() / 2] == twice[twice.len() / 2..] {
            true => twice[twice.len() / 2..].to_owned(),
            false => twice.strip_prefix(&self.decode(&[id], false)).unwrap_or(&twice).to_owned(),
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
        let Some(id) = self.inner.token_to_id(token) else {
            return Err(DataError::Tokenizer {
                path: self.dir.clone(),
                reason: format!("the template ends turns with `{token}`, which the vocabulary does not have"),
                help: "choose the template of this model family (`template: auto` uses the model's own)"
                    .into(),
            });
        };
        self.special_ids.insert(id);
        self.added.insert(id, token.to_owned());
        self.inner
            .add_special_tokens([AddedToken::from(token, true).normalized(false)])
            .map_err(|error| broken(&self.dir, error.to_string()))?;
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

impl DecodeStream<'_> {
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

/// transformers 5 does not take a Llama tokenizer's normalizer from tokenizer.json: it marks the
/// beginnings of words with `▁` itself, never twice, and unless `legacy` is set only at the very
/// beginning of a text, not after each special token.
fn mark_words_as_transformers_does(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
) -> tokenizers::Result<()> {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let is_llama = matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast");
    let normalizer = serde_json::to_value(inner.get_normalizer()).unwrap_or_default();
    let steps = normalizer["normalizers"].as_array().cloned().unwrap_or_default();
    let prepends = steps.iter().any(|step| step["type"] == "Prepend");
    if !is_llama || !prepends || inner.get_pre_tokenizer().is_some() {
        return Ok(());
    }
    let scheme = match (&config["add_prefix_space"], &config["legacy"]) {
        (Value::Bool(false), _) => PrependScheme::Never,
        (_, Value::Bool(true)) => PrependScheme::Always,
        _ => PrependScheme::First,
    };
    inner.with_normalizer(None::<tokenizers::NormalizerWrapper>)?;
    inner.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    Ok(())
}

fn broken(path: &Path, reason: String) -> DataError {
    DataError::Tokenizer {
        path: path.to_owned(),
        reason,
        help: "download the file again; if it is whole, it was written by a newer version of the tokenizers library".into(),
    }
}

fn no_tokenizer_json(dir: &Path) -> DataError {
    let others = ["tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt"];
    let found: Vec<&str> = others.into_iter().filter(|name| dir.join(name).is_file()).collect();
    let reason = match found.as_slice() {
        [] => "no tokenizer.json".to_owned(),
        found => format!("no tokenizer.json (only {}, which is not read)", found.join(", ")),
    };
    DataError::Tokenizer {
        path: dir.to_owned(),
        reason,
        help: "take tokenizer.json from the model's repository, or write it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)".into(),
    }
}

/// The JSON of a file; `null` if there is no such file.
fn read_json(path: &Path) -> Result<Value, DataError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|error| broken(path, format!("not JSON: {error}")))
}

fn read_text(path: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(path).map_err(|source| DataError::Io { path: path.to_owned(), source })
}

fn ids_of(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}

/// Every `*_token` that is a string or an added token; the configuration wins over the older map.
fn special_tokens(config: &Value, map: &Value) -> BTreeMap<String, String> {
    let mut tokens = BTreeMap::new();
    for source in [map, config] {
        for (key, value) in source.as_object().into_iter().flatten() {
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let Some(text) = text.filter(|_| key.ends_with("_token")) {
                tokens.insert(key.clone(), text.to_owned());
            }
        }
    }
    tokens
}

/// `chat_template.jinja` (and `additional_chat_templates/NAME.jinja`), else `chat_template` of the
/// configuration (one text, or a list of named ones), else the older `chat_template.json`.
fn chat_templates(dir: &Path, config: &Value) -> Result<BTreeMap<String, String>, DataError> {
    let mut templates = BTreeMap::new();
    let single = dir.join("chat_template.jinja");
    if single.is_file() {
        templates.insert("default".to_owned(), read_text(&single)?);
    }
    if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(name), Some("jinja")) = (name, path.extension().and_then(|e| e.to_str())) {
                templates.insert(name.to_owned(), read_text(&path)?);
            }
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let older = read_json(&dir.join("chat_template.json"))?;
    for value in [&config["chat_template"], &older["chat_template"]] {
        match value {
            Value::String(text) => {
                templates.insert("default".to_owned(), text.clone());
            }
            Value::Array(named) => templates.extend(named.iter().filter_map(|entry| {
                let (name, text) = (entry["name"].as_str()?, entry["template"].as_str()?);
                Some((name.to_owned(), text.to_owned()))
            })),
            _ => continue,
        }
        break;
    }
    Ok(templates)
}
