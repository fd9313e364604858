//! Compares this crate's tokenising with the tokenizers library's own, id for id and byte for byte.
//!
//! usage: check_words TOKENIZER_DIR RANDOM_TEXTS FILE…    (every line of the files is a text)

use std::process::ExitCode;

use sft_data::shuffle::Pcg64;
use sft_data::tokenize::Tokenizer;

/// What random texts are made of: spaces, breaks, marks, letters and numbers of several scripts, halves of tokens.
const PIECES: [&str; 44] = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "a",
    "B",
    "the",
    " of",
    "'s",
    "'S",
    "'ll",
    "’s",
    "don't",
    "1",
    "23",
    "4567",
    "٣",
    "½",
    "é",
    "ß",
    "ſ",
    "你好",
    "世",
    "。",
    "、",
    "한국",
    "Привет",
    "ا",
    "e\u{301}",
    "😀",
    "👨‍👩‍👧",
    "\u{200b}",
    "!",
    "...",
    "_",
    "<|im_end|>",
    "<|im_",
    "</s>",
    "#",
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, random, files @ ..] = arguments.as_slice() else {
        eprintln!("usage: check_words TOKENIZER_DIR RANDOM_TEXTS FILE…");
        return ExitCode::from(2);
    };
    match check(folder, random.parse().unwrap_or(0), files) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn check(folder: &str, random: usize, files: &[String]) -> Result<usize, Box<dyn std::error::Error>> {
    let ours = Tokenizer::load(folder)?;
    let path = std::path::Path::new(folder).join("tokenizer.json");
    let mut library = tokenizers::Tokenizer::from_file(path).map_err(|error| error.to_string())?;
    library.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    let mut texts: Vec<String> = Vec::new();
    for file in files {
        texts.extend(std::fs::read_to_string(file)?.lines().map(str::to_owned));
    }
    let mut rng = Pcg64::new(1);
    for _ in 0..random {
        let length = 1 + rng.at_most(12);
        texts.push((0..length).map(|_| PIECES[rng.at_most(PIECES.len() as u64 - 1) as usize]).collect());
    }
    let mut different = 0;
    for text in &texts {
        let encoding = library.encode(text.as_str(), false).map_err(|error| error.to_string())?;
        let ids = ours.encode(text)?;
        let tokens = ours.encode_with_ranges(text)?;
        let ranges = tokens.iter().map(|token| (token.range.start, token.range.end));
        if ids != encoding.get_ids() || !ranges.eq(encoding.get_offsets().iter().copied()) {
            different += 1;
            if different <= 5 {
                println!(
                    "DIFF {text:?}\n  library {:?} {:?}\n  ours    {ids:?} {:?}",
                    encoding.get_ids(),
                    encoding.get_offsets(),
                    tokens.iter().map(|token| token.range.clone()).collect::<Vec<_>>()
                );
            }
        }
    }
    println!("{folder}: {} of {} texts equal", texts.len() - different, texts.len());
    Ok(different)
}
