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
fn a_character_of_several_tokens_is_shown_with_the_last_of_them() {
    let tokenizer = byte_tokenizer::tokenizer(None);
    let ids = tokenizer.encode("a汉👋.").unwrap();
    assert_eq!(tokenizer.texts_of(&ids), ["a", "", "", "汉", "", "", "", "👋", "."]);
    // What is no character stays marked, token by token.
    assert_eq!(tokenizer.texts_of(&[0xe6, 97, 0xf0]), ["\u{fffd}", "a", "\u{fffd}"]);
    assert_eq!(tokenizer.texts_of(&[]), Vec::<String>::new());
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
    fs::write(folder.path().join("vocab.txt"), "").unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("only vocab.txt, which is not read") && error.contains("help:"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("tokenizer.json"));
}

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// A folder with nothing but this file, under the name that models give it, and a configuration.
fn folder_of(file: &str, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let name = if file.ends_with(".model") { "tokenizer.model" } else { file };
    fs::copy(format!("{DATA}/{file}"), folder.path().join(name)).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    folder
}

// The ids were printed by sentencepiece 0.2 and tiktoken; `make_tokenizer_files.py` made files and ids.
#[test]
fn files_without_tokenizer_json_give_the_ids_of_their_own_libraries() {
    let goldens = include_str!("tokenizer_files.json");
    let goldens: serde_json::Map<String, serde_json::Value> = serde_json::from_str(goldens).unwrap();
    assert_eq!(goldens.len(), 4);
    for (file, cases) in &goldens {
        let folder = folder_of(file, "{}");
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        for case in cases.as_array().unwrap() {
            let (text, ids): (String, Vec<u32>) = serde_json::from_value(case.clone()).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{file}: {text:?}");
        }
    }
}

#[test]
fn such_files_have_the_special_tokens_of_their_configuration() {
    let config = r#"{"added_tokens_decoder": {"420": {"content": "<|im_end|>", "special": true}},
        "eos_token": "<|im_end|>", "bos_token": "<s>"}"#;
    let pieces = |folder: &tempfile::TempDir| Tokenizer::load(folder.path()).unwrap().vocab_size();
    let size = pieces(&folder_of("bpe.model", "{}"));
    let config = config.replace("420", &size.to_string());
    let folder = folder_of("bpe.model", &config);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(size as u32)));
    let ids = tokenizer.encode("the cat<|im_end|><mark>").unwrap();
    assert_eq!(ids[ids.len() - 2..], [size as u32, 3]);
    assert!(tokenizer.is_special(size as u32) && !tokenizer.is_special(3));
    let gap = config.replace(&format!("\"{size}\""), &format!("\"{}\"", size + 5));
    let error = Tokenizer::load(folder_of("bpe.model", &gap).path()).unwrap_err().to_string();
    assert!(error.contains("leaves a gap"), "{error}");
}

// tokenization_qwen.py of Qwen-7B: `<|im_end|>` is 151645 behind 151,643 ranks.
#[test]
fn the_first_qwen_has_the_special_tokens_of_its_code() {
    let plain = Tokenizer::load(folder_of("bytes.tiktoken", "{}").path()).unwrap();
    let ranks = plain.vocab_size() as u32;
    let folder =
        folder_of("bytes.tiktoken", r#"{"tokenizer_class": "QWenTokenizer", "eos_token": "<|im_end|>"}"#);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(
        tokenizer.encode("<|endoftext|><|im_start|><|im_end|>").unwrap(),
        [ranks, ranks + 1, ranks + 2]
    );
    assert_eq!(tokenizer.encode("<|extra_204|>").unwrap(), [ranks + 207]);
    assert_eq!(tokenizer.eos_id(), Some(ranks + 2));
}

// `openai-community/gpt2` has no more than this in its tokenizer_config.json.
#[test]
fn a_class_has_its_own_end_token_where_the_files_name_none() {
    let eos_of = |config: &str| {
        let folder = folder_of("bytes.tiktoken", config);
        let plain = Tokenizer::load(folder.path()).unwrap();
        let end = plain.vocab_size();
        let added = format!(
            r#""added_tokens_decoder": {{"{end}": {{"content": "<|endoftext|>", "special": true}}}}"#
        );
        let config = config.replacen('{', &format!("{{{added}, "), 1);
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let eos = Tokenizer::load(folder.path()).unwrap().eos_id();
        eos.map(|eos| eos as usize == end)
    };
    assert_eq!(eos_of(r#"{"model_max_length": 1024}"#), Some(true));
    assert_eq!(eos_of(r#"{"model_max_length": 1024, "eos_token": ""}"#), None);
    assert_eq!(eos_of(r#"{"model_max_length": 1024, "eos_token": null}"#), None);
}

#[test]
fn a_pointer_of_git_lfs_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 7\n";
    for name in ["tokenizer.model", "tokenizer.json"] {
        fs::write(folder.path().join(name), pointer).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("Git LFS") && error.contains("git lfs pull"), "{error}");
    }
    let error = Tokenizer::load(folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
}

#[test]
fn a_broken_model_file_is_an_error_and_never_a_panic() {
    for file in ["unigram.model", "bpe.model", "spaces.model", "bytes.tiktoken"] {
        let good = fs::read(format!("{DATA}/{file}")).unwrap();
        for at in (0..good.len()).step_by(good.len() / 97) {
            let folder = folder_of(file, "{}");
            let name = if file.ends_with(".model") { "tokenizer.model" } else { file };
            let mut bytes = good.clone();
            bytes[at] ^= 0x55;
            fs::write(folder.path().join(name), &bytes[..]).unwrap();
            let _ = Tokenizer::load(folder.path()).map(|tokenizer| tokenizer.encode("the cat"));
            fs::write(folder.path().join(name), &good[..at]).unwrap();
            let _ = Tokenizer::load(folder.path());
        }
    }
}
