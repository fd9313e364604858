//! BLEU-4 of characters (Papineni et al. 2002), smoothed as NIST's `mteval-v13a` does: the `k`-th precision of a hypothesis
//! without a match is 1 / (2ᵏ · its n-grams). The same as NLTK's `sentence_bleu` with `SmoothingFunction.method3`.

use std::collections::HashMap;

/// In 0 to 1; 0 where no character is in both.
pub fn bleu_4(generated: &str, expected: &str) -> f64 {
    let [generated, expected] = [generated, expected].map(|text| text.chars().collect::<Vec<char>>());
    let (mut unmatched, mut logs) = (0, 0.0);
    for n in 1..=4 {
        let (found, wanted) = (counts(&generated, n), counts(&expected, n));
        let clipped = |(gram, count): (&&[char], &usize)| wanted.get(gram).map_or(0, |w| *w.min(count));
        let matches: usize = found.iter().map(clipped).sum();
        if n == 1 && matches == 0 {
            return 0.0;
        }
        let total = found.values().sum::<usize>().max(1) as f64;
        let precision = match matches {
            0 => {
                unmatched += 1;
                1.0 / (f64::from(1 << unmatched) * total)
            }
            matches => matches as f64 / total,
        };
        logs += 0.25 * precision.ln();
    }
    let lack = expected.len() as f64 / generated.len() as f64;
    let brevity = if lack < 1.0 { 1.0 } else { (1.0 - lack).exp() };
    brevity * logs.exp()
}

/// How often each run of `n` characters is there.
fn counts(text: &[char], n: usize) -> HashMap<&[char], usize> {
    let mut counts = HashMap::new();
    text.windows(n).for_each(|gram| *counts.entry(gram).or_default() += 1);
    counts
}
