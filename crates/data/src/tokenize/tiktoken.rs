//! tiktoken's files (a token in base 64 and its rank, a line each) → the JSON of the tokenizers library.
//!
//! The file says nothing of how text is split before its bytes are merged, nor of special tokens. The former is told by the
//! class that `tokenizer_config.json` names, the latter stand there too or are the class's own. A merge is any way to put a
//! token together of two others, the lowest rank first, and a word that is a token is one at once (`ignore_merges`): so
//! tiktoken does it.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// Words of GPT-4, and of Llama 3 and GLM-4 after it: digits in threes.
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen: digits one by one.
const SINGLE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How the tokenizer of a class splits words.
fn pattern(class: &str) -> Option<&'static str> {
    match class {
        "ChatGLM4Tokenizer" | "PreTrainedTokenizerFast" | "PreTrainedTokenizer" | "LlamaTokenizer" | "" => {
            Some(THREE_DIGITS)
        }
        "QWenTokenizer" => Some(SINGLE_DIGITS),
        _ => None,
    }
}

/// Special tokens that the code of a class adds behind those of the file.
fn special_tokens(class: &str) -> Vec<String> {
    match class {
        // tokenization_qwen.py of Qwen-7B: 208 of them.
        "QWenTokenizer" => {
            let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
            named.into_iter().chain((0..205).map(|i| format!("<|extra_{i}|>"))).collect()
        }
        _ => Vec::new(),
    }
}

/// The tokenizer that a file describes, in the form of `tokenizer.json`; `class` is its `tokenizer_class`.
///
/// # Errors
/// What is wrong with the file, or a class whose words are not known.
pub(super) fn convert(text: &str, class: &str) -> Result<Value, String> {
    let pattern = pattern(class).ok_or_else(|| {
        format!(
            "`tokenizer_class` is `{class}`, which splits words by rules of its own that are not known here"
        )
    })?;
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = || format!("line {} is not a token in base 64 and its rank", at + 1);
        let (token, rank) = line.trim().split_once(' ').ok_or_else(wrong)?;
        let token = from_base64(token).filter(|token| !token.is_empty()).ok_or_else(wrong)?;
        ranks.insert(token, rank.parse().map_err(|_| wrong())?);
    }
    if ranks.is_empty() {
        return Err("it has no tokens".to_owned());
    }
    let mut merges = Vec::new();
    for (token, rank) in &ranks {
        for at in 1..token.len() {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ranks.get(left), ranks.get(right)) {
                merges.push(([*rank, *l, *r], left, right));
            }
        }
    }
    merges.sort_unstable();
    let merges: Vec<[String; 2]> =
        merges.iter().map(|(_, left, right)| [spelled(left), spelled(right)]).collect();
    let vocab: serde_json::Map<String, Value> =
        ranks.iter().map(|(token, rank)| (spelled(token), Value::from(*rank))).collect();
    let special: Vec<Value> = (ranks.len()..)
        .zip(special_tokens(class))
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, level,
        ]},
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": merges,
        },
    }))
}

/// Bytes as byte-level vocabularies spell them: printable ones as they are, the others from U+0100 on (GPT-2).
fn spelled(bytes: &[u8]) -> String {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        let letter = match is_printable(byte) {
            true => char::from(byte),
            false => {
                let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
                char::from_u32(256 + before).expect("there are 68 bytes that are not printable")
            }
        };
        text.write_char(letter).expect("a text takes every letter");
    }
    text
}

/// The bytes of a text in base 64 with padding; `None` where it is none.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bytes, mut word, mut bits) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for letter in digits.bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (word, bits) = (word << 6 | u32::from(digit), bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (text, bytes) in [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Zg", "Z===", "Zm9*", "=Zm9"] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_said_with_its_line() {
        let error = |text: &str, class: &str| convert(text, class).expect_err("refused");
        assert!(error("IQ== 0\nIg==\n", "").starts_with("line 2 is not a token"));
        assert!(error("", "").contains("no tokens"));
        assert!(error("IQ== 0\n", "OtherTokenizer").contains("`OtherTokenizer`"));
    }
}
