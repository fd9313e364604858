//! ROUGE-1, ROUGE-2 and ROUGE-L of words (Lin 2004), as the Python package `rouge_chinese` 1.0.3 computes them: n-grams count
//! once, F1 = 2·P·R / (P + R + 10⁻⁸), and ROUGE-L is of the whole text.
//!
//! The package joins words by spaces, parts the text into sentences and splits it at spaces again. All that is left of this is
//! that a word with a blank inside falls apart and that a blank line is a word, an empty one.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;

/// Keeps F1 from being 0/0.
const EPSILON: f64 = 1e-8;

/// F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in 0 to 1; 0 where one of the texts has no word.
pub fn f1(generated: &[&str], expected: &[&str]) -> [f64; 3] {
    let is_blank = |words: &[&str]| words.iter().all(|word| word.chars().all(is_space));
    if is_blank(generated) || is_blank(expected) {
        return [0.0; 3];
    }
    let [generated, expected] = [generated, expected].map(|words| lines(&words.join(" ")));
    let [generated, expected] = [&generated, &expected].map(|lines| split(lines));
    let of_runs = |n: usize| {
        let [found, wanted] =
            [&generated, &expected].map(|words| words.windows(n).collect::<HashSet<&[&str]>>());
        f1_of(found.intersection(&wanted).count(), found.len(), wanted.len())
    };
    let common = longest_common(&generated, &expected);
    [of_runs(1), of_runs(2), f1_of(common, generated.len(), expected.len())]
}

fn f1_of(matches: usize, found: usize, wanted: usize) -> f64 {
    let share = |of: usize| if of == 0 { 0.0 } else { matches as f64 / of as f64 };
    let (precision, recall) = (share(found), share(wanted));
    2.0 * (precision * recall / (precision + recall + EPSILON))
}

/// Length of the longest common subsequence.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut now = before.clone();
    for x in a {
        for (j, y) in b.iter().enumerate() {
            now[j + 1] = if x == y { before[j] + 1 } else { before[j + 1].max(now[j]) };
        }
        std::mem::swap(&mut before, &mut now);
    }
    before[b.len()]
}

/// The sentences and lines of a text, empty ones left out.
fn lines(text: &str) -> Vec<String> {
    static ENDS: LazyLock<[Regex; 4]> = LazyLock::new(|| {
        // A stop, six dots, an ellipsis; a stop in quotation marks that no other stop follows.
        let patterns =
            ["([。！？?])([^”’])", r"(\.{6})([^”’])", "(…{2})([^”’])", "([。！？?][”’])([^，。！？?])"];
        // In a class `^` takes line breaks too, as in Python.
        patterns.map(|pattern| Regex::new(pattern).expect("a valid pattern"))
    });
    let mut text = text.to_owned();
    for end in ENDS.iter() {
        text = end.replace_all(&text, "$1\n$2").into_owned();
    }
    let lines = text.trim_end_matches(is_space).split('\n');
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The words of all lines, an empty one of a blank line.
fn split(lines: &[String]) -> Vec<&str> {
    let of_line = |line: &'_ String| line.chars().all(is_space);
    let mut words = Vec::new();
    for line in lines {
        match of_line(line) {
            true => words.push(""),
            false => words.extend(line.split(is_space).filter(|word| !word.is_empty())),
        }
    }
    words
}

/// What Python's `str.split()` splits at.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
