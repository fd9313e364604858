//! Random numbers from counters: the n-th number of a key is a hash of both, so nothing depends on order or threads.

/// The finaliser of SplitMix64 (Steele, Lea & Flood, 2014) over key and index.
#[inline(always)]
pub fn hash(key: u64, index: u64) -> u64 {
    let mut z = key ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A key for one use, from the seed of the run and what tells this use from others (step, layer, …).
pub fn key(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(hash(seed, 1), |key, part| hash(key, part.wrapping_add(1)))
}

/// A key part from a name.
pub fn name_part(name: &str) -> u64 {
    name.bytes().fold(0, |key, byte| hash(key, u64::from(byte) + 1))
}

/// The `index`-th number of `key`, uniform in [0, 1).
pub fn uniform(key: u64, index: u64) -> f64 {
    (hash(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `index`-th number of `key`, normally distributed (Box & Muller, 1958).
pub fn normal(key: u64, index: u64) -> f64 {
    let (u, v) = (uniform(key, 2 * index), uniform(key, 2 * index + 1));
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let numbers: Vec<f64> = (0..n).map(|i| normal(key(7, &[1]), i)).collect();
        let mean = numbers.iter().sum::<f64>() / n as f64;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
