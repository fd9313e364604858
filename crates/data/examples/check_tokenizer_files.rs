//! Compares a tokenizer read from `tokenizer.model` (SentencePiece, tiktoken) with the one of `tokenizer.json` beside it.
//!
//! usage: check_tokenizer_files TEXT_FILE MODEL_DIR…
//!
//! Every line of the text file is encoded by both; ids, decoded texts and vocabularies must be equal. Exit status 1 if
//! a line differs.

use std::path::Path;
use std::process::ExitCode;

use sft_data::tokenize::Tokenizer;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [texts, folders @ ..] = arguments.as_slice() else {
        eprintln!("usage: check_tokenizer_files TEXT_FILE MODEL_DIR…");
        return ExitCode::from(2);
    };
    let mut all_equal = true;
    for folder in folders {
        match check(texts, Path::new(folder)) {
            Ok((equal, lines, tokens)) => {
                println!(
                    "{} {equal}/{lines} lines ({tokens} tokens) {folder}",
                    if equal == lines { "ok  " } else { "DIFF" }
                );
                all_equal &= equal == lines;
            }
            Err(error) => {
                println!("FAIL {folder}: {error}");
                all_equal = false;
            }
        }
    }
    ExitCode::from(u8::from(!all_equal))
}

fn check(texts: &str, folder: &Path) -> Result<(usize, usize, usize), Box<dyn std::error::Error>> {
    let expected = Tokenizer::load(folder)?;
    let alone = tempfile::tempdir()?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() && name != "tokenizer.json" {
            std::fs::copy(&path, alone.path().join(name))?;
        }
    }
    let found = Tokenizer::load(alone.path())?;
    let (mut equal, mut lines, mut tokens) = (0, 0, 0);
    for id in 0..expected.vocab_size() as u32 {
        if expected.token_text(id) != found.token_text(id) {
            return Err(format!("id {id}: {:?}, {:?}", expected.token_text(id), found.token_text(id)).into());
        }
    }
    for line in std::fs::read_to_string(texts)?.split_inclusive('\n') {
        let (a, b) = (expected.encode(line)?, found.encode(line)?);
        let is_equal = a == b && expected.decode(&a, false) == found.decode(&b, false);
        if !is_equal && lines - equal < 3 {
            println!("  {line:?}\n    {a:?}\n    {b:?}");
        }
        (equal, lines, tokens) = (equal + usize::from(is_equal), lines + 1, tokens + a.len());
    }
    Ok((equal, lines, tokens))
}
