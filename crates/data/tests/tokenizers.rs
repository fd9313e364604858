//! Tokenizers: what is read beside `tokenizer.json`, and decoding piece by piece.

mod byte_tokenizer;

use std::fs;

use sft_data::tokenize::Tokenizer;

#[test]
fn a_stream_gives_whole_characters_only() {
    let tokenizer = byte_tokenizer::tokenizer(None);
    let text = "aü👋.";
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<Option<String>> =
        tokenizer.encode(text).unwrap().into_iter().map(|id| stream.push(id)).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(pieces, [some("a"), None, some("ü"), None, None, None, some("👋"), some(".")]);
    assert_eq!(stream.finish(), "");
}

#[test]
fn an_unfinished_character_is_given_at_the_end() {
    let tokenizer = byte_tokenizer::tokenizer(None);
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(0xf0), None);
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn special_tokens_are_shown_or_skipped() {
    let tokenizer = byte_tokenizer::tokenizer(None);
    let ids = tokenizer.encode("a<|im_end|>b").unwrap();
    assert_eq!(ids, [97, 259, 98]);
    assert_eq!(tokenizer.decode(&ids, false), "a<|im_end|>b");
    assert_eq!(tokenizer.decode(&ids, true), "ab");
    assert_eq!(tokenizer.text_of(259), "<|im_end|>");
    assert!(tokenizer.is_special(259) && !tokenizer.is_special(97));
}

#[test]
fn nothing_is_added_to_a_text() {
    let tokenizer = byte_tokenizer::tokenizer(None);
    assert_eq!(tokenizer.encode("hi").unwrap(), [104, 105]);
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(256), Some(257), Some(257))
    );
    assert_eq!(tokenizer.vocab_size(), 268);
}

#[test]
fn ranges_are_the_bytes_of_the_text() {
    let tokens = byte_tokenizer::tokenizer(None).encode_with_ranges("a ü<s>").unwrap();
    let ranges: Vec<_> = tokens.into_iter().map(|token| (token.id, token.range)).collect();
    assert_eq!(ranges, [(97, 0..1), (32, 1..2), (0xc3, 2..4), (0xbc, 2..4), (256, 4..7)]);
}

#[test]
fn a_missing_tokenizer_is_said_to_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), "").unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("only tokenizer.model, which is not read") && error.contains("help:"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
}
