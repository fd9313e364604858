//! A text in words, as the Python package `jieba` 0.42 cuts it: Chinese by its dictionary and a hidden Markov model, the
//! rest at spaces and signs.

use std::sync::LazyLock;

use jieba_rs::Jieba;
use regex::Regex;

/// All words of a text, the signs and spaces between them included.
pub fn cut(text: &str) -> Vec<&str> {
    static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);
    let mut words = Vec::new();
    for token in JIEBA.cut(text, true) {
        match is_latin(token.word) && !JIEBA.has_word(token.word) {
            true => push_parts(token.word, &mut words),
            false => words.push(token.word),
        }
    }
    words
}

/// The crate leaves such a run whole, as `a-b` or `10.5%`.
fn is_latin(word: &str) -> bool {
    word.len() > 1 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+#&._%-".contains(&b))
}

/// Words and numbers, and what is between them.
fn push_parts<'a>(run: &'a str, words: &mut Vec<&'a str>) {
    static PART: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("[a-zA-Z0-9]+(?:[.][0-9]+)?%?").expect("a valid pattern"));
    let mut end = 0;
    for part in PART.find_iter(run) {
        words.extend((end < part.start()).then(|| &run[end..part.start()]));
        words.push(part.as_str());
        end = part.end();
    }
    words.extend((end < run.len()).then(|| &run[end..]));
}
