//! Normal numbers and seeds as torch's CPU generator gives them, for projections that are drawn.
//!
//! Sixteen numbers and more are made by Box and Muller's formula, sixteen at a time; fewer one by one in f64.

use sft_data::shuffle::Mt19937;

const GROUP: usize = 16;

/// `torch.randn(n, generator=torch.Generator().manual_seed(seed))` in f32.
pub(super) fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut words = Mt19937::new(seed);
    if n < GROUP {
        return one_by_one(&mut words, n);
    }
    let mut values: Vec<f32> = (0..n).map(|_| uniform(&mut words)).collect();
    let (groups, rest) = values.as_chunks_mut::<GROUP>();
    groups.iter_mut().for_each(to_normal);
    if !rest.is_empty() {
        // The last sixteen are drawn anew.
        let last = &mut values[n - GROUP..];
        last.iter_mut().for_each(|value| *value = uniform(&mut words));
        last.as_chunks_mut::<GROUP>().0.iter_mut().for_each(to_normal);
    }
    values
}

/// In [0, 1), of 24 bits.
fn uniform(words: &mut Mt19937) -> f32 {
    (words.next_u32() & ((1 << 24) - 1)) as f32 / (1u32 << 24) as f32
}

/// Eight pairs: the first halves are radii, the second angles.
fn to_normal(group: &mut [f32; GROUP]) {
    let (first, second) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = 2.0 * std::f32::consts::PI * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

fn one_by_one(words: &mut Mt19937, n: usize) -> Vec<f32> {
    let mut uniform = || (next_u64(words) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64;
    let pair = |_| {
        let (angle, radius) = (2.0 * std::f64::consts::PI * uniform(), (-2.0 * (-uniform()).ln_1p()).sqrt());
        [radius * angle.cos(), radius * angle.sin()]
    };
    (0..n.div_ceil(2)).flat_map(pair).take(n).map(|x| x as f32).collect()
}

fn next_u64(words: &mut Mt19937) -> u64 {
    let high = u64::from(words.next_u32());
    high << 32 | u64::from(words.next_u32())
}

/// The seed after this one, as the package apollo-torch draws it: the last of fifteen numbers below 2⁶³ − 1.
pub(super) fn next_seed(seed: u64) -> u64 {
    let mut words = Mt19937::new(seed);
    let draws = (0..15).map(|_| next_u64(&mut words) % (i64::MAX as u64));
    draws.last().unwrap_or(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_torchs() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../goldens/torch_random.json")).unwrap();
        for case in golden["normal"].as_array().unwrap() {
            let (seed, expected) = (case["seed"].as_u64().unwrap(), case["values"].as_array().unwrap());
            for (found, expected) in normal(seed, expected.len()).iter().zip(expected) {
                let off = (f64::from(*found) - expected.as_f64().unwrap()).abs();
                assert!(off < 2e-6, "seed {seed}: {found} and not {expected}");
            }
        }
        for pair in golden["seeds"].as_array().unwrap() {
            assert_eq!(next_seed(pair[0].as_u64().unwrap()), pair[1].as_u64().unwrap());
        }
    }
}
