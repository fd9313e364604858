//! A tokenizer that can be read by eye: one token a byte (its id is the byte), then special tokens.
//!
//! It is written to a folder and loaded from there, as a model's is.

use std::fs;

use serde_json::{Value, json};
use sft_data::tokenize::Tokenizer;

/// Special tokens, ids from 256.
const SPECIAL: [&str; 12] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
];

/// The tokenizer, with a chat template if one is given.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn tokenizer(chat_template: Option<&str>) -> Tokenizer {
    tokenizer_with(chat_template, &[])
}

/// The tokenizer with further special tokens.
pub fn tokenizer_with(chat_template: Option<&str>, special: &[&str]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &json!([]), chat_template, special);
    Tokenizer::load(folder.path()).unwrap()
}

/// The same with one merge: two line breaks are one token, 256; special tokens follow from 257.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn merging_tokenizer(chat_template: Option<&str>) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &json!([["Ċ", "Ċ"]]), chat_template, &[]);
    Tokenizer::load(folder.path()).unwrap()
}

fn write(folder: &std::path::Path, merges: &Value, chat_template: Option<&str>, special: &[&str]) {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255_u8).map(|byte| (character(byte).to_string(), Value::from(byte))).collect();
    let mut first_special = 256;
    if merges != &json!([]) {
        vocab.insert("ĊĊ".into(), Value::from(256));
        first_special += 1;
    }
    let added: Vec<Value> = SPECIAL
        .iter()
        .chain(special)
        .enumerate()
        .map(|(i, token)| {
            json!({"id": first_special + i, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": chat_template});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// How byte-level vocabularies spell a byte: printable ones as they are, the others from U+0100 on.
fn character(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(256 + before).unwrap()
}
