//! How like an expected text a generated one is: BLEU-4 and ROUGE, in per cent, as LLaMA-Factory reports them.
//!
//! In: two texts. Out: [`Similarity`]. BLEU counts characters ([`bleu`]), ROUGE words ([`rouge`], [`words`]), so both serve
//! languages with and without spaces. A row's figures are rounded to four decimals, as there, before their mean is taken.

mod bleu;
mod rouge;
mod words;

/// How like an expected text a generated one is; each in 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Similarity {
    /// Geometric mean of the precisions of one to four characters in a row, times the penalty for brevity.
    pub bleu_4: f64,
    /// F1 of the distinct words.
    pub rouge_1: f64,
    /// F1 of the distinct pairs of adjacent words.
    pub rouge_2: f64,
    /// F1 of the longest common subsequence of words.
    pub rouge_l: f64,
}

impl Similarity {
    /// Compares a generated text with the one that was expected.
    pub fn of(generated: &str, expected: &str) -> Self {
        let [rouge_1, rouge_2, rouge_l] = rouge::f1(&words::cut(generated), &words::cut(expected));
        let score = |share: f64| rounded(100.0 * share);
        Self {
            bleu_4: score(bleu::bleu_4(generated, expected)),
            rouge_1: score(rouge_1),
            rouge_2: score(rouge_2),
            rouge_l: score(rouge_l),
        }
    }

    /// The mean over rows; 0 of none.
    pub fn mean(rows: &[Self]) -> Self {
        let count = rows.len().max(1) as f64;
        let mean = |of: fn(&Self) -> f64| rows.iter().map(of).sum::<f64>() / count;
        Self {
            bleu_4: mean(|row| row.bleu_4),
            rouge_1: mean(|row| row.rouge_1),
            rouge_2: mean(|row| row.rouge_2),
            rouge_l: mean(|row| row.rouge_l),
        }
    }
}

/// To four decimals, halves to even.
fn rounded(value: f64) -> f64 {
    format!("{value:.4}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests;
