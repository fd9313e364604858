//! Byte-level BPE word by word: the library's ids, without its bookkeeping.
//!
//! GPT-2's way of tokenising splits a text into words by a pattern and encodes each by itself, so a word that was met
//! before has its ids at hand. The library does the same with offsets kept through every step; here a word's ids are
//! looked up, and only a new word goes to the library's model. What a tokenizer does beyond that (other normalizers,
//! added tokens that swallow spaces, patterns with other look-ahead) is left to the library.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use serde_json::Value;
use tokenizers::{Model, ModelWrapper};

/// The pattern of GPT-2, which the library has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How patterns end that leave the last space of several to the next word.
const SPACES: &str = r"|\s+(?!\S)|\s+";
/// Bytes of the longest word that is kept, and how many are.
const LONGEST_KEPT: usize = 64;
const MOST_KEPT: usize = 1 << 19;

/// A tokenizer that splits texts into words.
#[derive(Debug, Clone)]
pub(super) struct Words {
    /// Tells tokenizers apart in the words of a thread.
    number: u64,
    pattern: Regex,
    /// Runs of white space that end with a line break are words of their own.
    line_breaks: bool,
    /// Texts are brought into normal form C first.
    composes: bool,
    spelling: Arc<Spelling>,
    /// Added tokens, if there are any, and their ids.
    added: Option<Arc<(AhoCorasick, Vec<u32>)>>,
}

/// What tokens stand for.
#[derive(Debug)]
struct Spelling {
    /// Bytes by id.
    bytes: Vec<Box<[u8]>>,
    /// How the vocabulary spells a byte.
    characters: [char; 256],
}

/// Ids of words, a thread each.
type Known = HashMap<Box<str>, Box<[u32]>, BuildHasherDefault<Fx>>;

thread_local! {
    static KNOWN: RefCell<(u64, Known)> = RefCell::new((0, Known::default()));
}

impl Words {
    /// `None` if the tokenizer works otherwise. `vocab` is the whole vocabulary, added tokens included.
    pub(super) fn new(inner: &tokenizers::Tokenizer, vocab: &HashMap<String, u32>) -> Option<Self> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let ModelWrapper::BPE(model) = inner.get_model() else { return None };
        let is_none = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
        let is_plain = model.dropout.is_none()
            && !model.byte_fallback
            && is_none(&model.continuing_subword_prefix)
            && is_none(&model.end_of_word_suffix);
        let composes = match serde_json::to_value(inner.get_normalizer()).ok()? {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let pattern = pattern(&serde_json::to_value(inner.get_pre_tokenizer()).ok()?)?;
        let (words, line_breaks) = (pattern.strip_suffix(SPACES)?, pattern.contains(r"\s*[\r\n]+"));
        let is_regular = !["(?!", "(?=", "(?<", "++", "?+", "*+"].iter().any(|mark| words.contains(mark));
        if !is_plain || !is_regular {
            return None;
        }
        let mut made = Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            pattern: Regex::new(&format!(r"(?:{words})|\s+")).ok()?,
            line_breaks,
            composes,
            spelling: Arc::new(Spelling::new(inner, vocab)),
            added: None,
        };
        made.add_tokens(inner)?;
        Some(made)
    }

    /// Takes over the tokenizer's added tokens; `None` if one is more than its text.
    pub(super) fn add_tokens(&mut self, inner: &tokenizers::Tokenizer) -> Option<()> {
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let normalized = added.values().filter(|token| token.normalized).count();
        let is_plain = added.values().all(|token| !token.lstrip && !token.rstrip && !token.single_word);
        // Normalized ones are sought in a second pass, after the normalizer.
        if !is_plain || (normalized > 0 && (self.composes || normalized < added.len())) {
            return None;
        }
        let (ids, texts): (Vec<u32>, Vec<&str>) = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(&id, token)| (id, &*token.content))
            .unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()?;
        self.added = (!ids.is_empty()).then(|| Arc::new((finder, ids)));
        Some(())
    }

    /// The ids of a text; `None` if the library has to do it.
    pub(super) fn encode(&self, inner: &tokenizers::Tokenizer, text: &str) -> Option<Vec<u32>> {
        if self.composes && !text.chars().all(is_composed) {
            return None;
        }
        KNOWN.with_borrow_mut(|(number, known)| {
            if *number != self.number || known.len() > MOST_KEPT {
                known.clear();
                *number = self.number;
            }
            let mut ids = Vec::with_capacity(text.len() / 3);
            let mut done = 0;
            if let Some((finder, added)) = self.added.as_deref() {
                for found in finder.find_iter(text) {
                    self.encode_words(inner, known, &text[done..found.start()], &mut ids)?;
                    ids.push(added[found.pattern().as_usize()]);
                    done = found.end();
                }
            }
            self.encode_words(inner, known, &text[done..], &mut ids)?;
            Some(ids)
        })
    }

    /// The bytes of a text that each of its ids stands for; tokens that share a character share its bytes.
    pub(super) fn ranges(&self, text: &str, ids: &[u32]) -> Option<Vec<Range<usize>>> {
        let mut at = 0;
        let ranges = ids.iter().map(|&id| {
            let end = at + self.spelling.bytes.get(id as usize)?.len();
            let range = text.floor_char_boundary(at)..text.ceil_char_boundary(end);
            at = end;
            Some(range)
        });
        let ranges: Option<Vec<_>> = ranges.collect();
        ranges.filter(|_| at == text.len())
    }

    /// The bytes that ids stand for.
    pub(super) fn bytes(&self, ids: &[u32]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            out.extend_from_slice(self.spelling.bytes.get(id as usize)?);
        }
        Some(out)
    }

    fn encode_words(
        &self,
        inner: &tokenizers::Tokenizer,
        known: &mut Known,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Option<()> {
        let mut at = 0;
        while at < text.len() {
            let found = self.pattern.find_at(text, at)?;
            if found.start() != at || found.is_empty() {
                return None;
            }
            let word = self.shortened(text, found.range());
            at += word.len();
            if let Some(found) = known.get(word) {
                ids.extend_from_slice(found);
                continue;
            }
            let spelled: String = word.bytes().map(|byte| self.spelling.characters[byte as usize]).collect();
            let tokens = inner.get_model().tokenize(&spelled).ok()?;
            let new: Box<[u32]> = tokens.iter().map(|token| token.id).collect();
            ids.extend_from_slice(&new);
            if word.len() <= LONGEST_KEPT {
                known.insert(word.into(), new);
            }
        }
        Some(())
    }

    /// The word that was found; of several white space characters before a word the last belongs to that.
    fn shortened<'a>(&self, text: &'a str, range: Range<usize>) -> &'a str {
        let word = &text[range.clone()];
        let Some(last) = word.chars().next_back().filter(|last| last.is_whitespace()) else { return word };
        let is_break = self.line_breaks && matches!(last, '\r' | '\n');
        let is_last = range.end == text.len();
        let is_single = word.len() == last.len_utf8();
        if is_last || is_break || is_single || !word.chars().all(char::is_whitespace) {
            return word;
        }
        &word[..word.len() - last.len_utf8()]
    }
}

/// The pattern that splits words, from the library's description.
fn pattern(splitter: &Value) -> Option<String> {
    let is_bytes = |step: &Value, own: bool| {
        step["type"] == "ByteLevel" && step["add_prefix_space"] == false && step["use_regex"] == own
    };
    if is_bytes(splitter, true) {
        return Some(GPT2.to_owned());
    }
    match splitter["pretokenizers"].as_array()?.as_slice() {
        [split, bytes] if split["type"] == "Split" && is_bytes(bytes, false) => {
            let isolates = split["behavior"] == "Isolated" && split["invert"] == false;
            split["pattern"]["Regex"].as_str().filter(|_| isolates).map(str::to_owned)
        }
        _ => None,
    }
}

/// Whether normal form C leaves the character alone wherever it stands, said of the common ones only.
fn is_composed(c: char) -> bool {
    matches!(c as u32,
        0..=0x2ff | 0x391..=0x3ce | 0x400..=0x482 | 0x48a..=0x52f | 0x2010..=0x2027 | 0x2030..=0x205e | 0x20a0..=0x20bf
        | 0x2190..=0x21ff | 0x2500..=0x27bf | 0x3000..=0x3029 | 0x3030..=0x303f | 0x3041..=0x3096 | 0x30a1..=0x30fe
        | 0x4e00..=0x9fff | 0xff01..=0xffee | 0x1f300..=0x1faff)
}

impl Spelling {
    fn new(inner: &tokenizers::Tokenizer, vocab: &HashMap<String, u32>) -> Self {
        let characters: [char; 256] = std::array::from_fn(|byte| character(byte as u8));
        let values: HashMap<char, u8> = (0..=255).map(|byte| (characters[usize::from(byte)], byte)).collect();
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let mut bytes = vec![Box::<[u8]>::default(); size];
        for (text, &id) in vocab {
            bytes[id as usize] = match added.get(&id) {
                Some(token) => token.content.as_bytes().into(),
                None => text.chars().filter_map(|c| values.get(&c).copied()).collect(),
            };
        }
        Self { bytes, characters }
    }
}

/// How byte-level vocabularies spell a byte: printable ones as they are, the others from U+0100 on.
fn character(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match is_printable(byte) {
        true => char::from(byte),
        // At most 68 others: U+0100 to U+0143 are characters.
        false => {
            char::from_u32(0x100 + (0..byte).filter(|&b| !is_printable(b)).count() as u32).unwrap_or('?')
        }
    }
}

/// A quick hash of short words (rustc's): multiply and rotate, eight bytes at a time.
#[derive(Default)]
struct Fx(u64);

impl Hasher for Fx {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
