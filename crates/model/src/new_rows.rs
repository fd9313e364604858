//! Rows of the vocabulary that a model's files do not have: what `resize_vocab` makes of embedding and head (stage 16 of
//! the walk).
//!
//! In: a matrix [V, C] of a file, one row a token, and how many rows it is to have. Out: the matrix with rows for the new
//! tokens, which begin as LLaMA-Factory's `resize_embedding_layer` lets them begin: the mean of all rows, or of the rows
//! of the tokens that describe a token, with noise of standard deviation 1/√C or without. Where tokens are described, rows
//! that are no token's begin as the mean.

use sft_kernels::{Element, Tensor, random, with_dtype};

/// What the rows of new tokens begin as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRows {
    /// V of the model's files.
    pub stored: usize,
    /// Number of tokens; rows from here on make the multiple of [`MULTIPLE`].
    pub tokens: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Whether rows of described tokens have noise too.
    pub noise: bool,
    /// New tokens, each with the ids of the tokens of its description. Their rows begin anew even where the files have
    /// them, as models do whose V is rounded up.
    pub described: Vec<(u32, Vec<u32>)>,
}

/// Rows of embedding and head come in multiples of this, as LLaMA-Factory makes them.
pub const MULTIPLE: usize = 64;

impl NewRows {
    /// Whether a matrix of so many rows is another than the files'.
    pub(crate) fn change(&self, rows: usize) -> bool {
        rows != self.stored || !self.described.is_empty()
    }

    /// A matrix [V, C] with its rows from there to `rows` added. Noise is drawn by `name` and row.
    pub(crate) fn add(&self, name: &str, stored: &Tensor, rows: usize) -> Tensor {
        let width = stored.shape()[1];
        let mut all = Tensor::zeros(stored.dtype(), &[rows, width]);
        all.view_mut().into_rows(0..self.stored).copy_from(stored.view());
        let noise = 1.0 / (width as f64).sqrt();
        let key = random::key(self.seed, &[random::name_part("new rows"), random::name_part(name)]);
        with_dtype!(stored.dtype(), E => {
            let (from, to) = (stored.view().as_slice::<E>(), all.view_mut().as_mut_slice::<E>());
            let mut put = |row: usize, begin: &[f64], noise: f64| {
                let out = &mut to[row * width..(row + 1) * width];
                for (i, (x, begin)) in out.iter_mut().zip(begin).enumerate() {
                    let drawn = random::normal(key, (row * width + i) as u64);
                    *x = E::from_f32((begin + noise * drawn) as f32);
                }
            };
            let everything = mean(from.chunks_exact(width), width);
            for row in self.stored..rows {
                let is_noisy = self.described.is_empty() || row < self.tokens;
                put(row, &everything, if is_noisy { noise } else { 0.0 });
            }
            for (id, words) in &self.described {
                let known = words.iter().map(|id| *id as usize).filter(|id| self.has(*id));
                let known: Vec<&[E]> = known.map(|id| &from[id * width..(id + 1) * width]).collect();
                let begin = if known.is_empty() { everything.clone() } else { mean(known.into_iter(), width) };
                put(*id as usize, &begin, if self.noise { noise } else { 0.0 });
            }
        });
        all
    }

    /// As [`NewRows::add`] of the bias of a head, whose new elements are the mean of the others.
    pub(crate) fn add_to_bias(&self, stored: &Tensor, rows: usize) -> Tensor {
        let mut values = stored.to_f32_vec();
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len().max(1) as f64;
        values.resize(rows, mean as f32);
        Tensor::from_slice(&values, &[rows]).to_dtype(stored.dtype())
    }

    /// Whether a token has a row in the files that means something.
    fn has(&self, id: usize) -> bool {
        id < self.stored && !self.described.iter().any(|(new, _)| *new as usize == id)
    }
}

/// The mean of rows.
fn mean<'a, E: Element>(rows: impl Iterator<Item = &'a [E]>, width: usize) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0.0; width], 0.0);
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.to_f32()));
        count += 1.0;
    }
    sum.iter_mut().for_each(|sum| *sum /= f64::max(count, 1.0));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32], width: usize) -> Tensor {
        Tensor::from_slice(values, &[values.len() / width, width])
    }

    #[test]
    fn rows_that_files_have_stay_and_new_ones_are_the_mean_with_noise() {
        let width = 256;
        let values: Vec<f32> = (0..3 * width).map(|i| (i % 7) as f32).collect();
        let new = NewRows { stored: 3, tokens: 4, seed: 1, noise: true, described: Vec::new() };
        let all = new.add("embed", &rows(&values, width), 64).to_f32_vec();
        assert_eq!(all[..3 * width], values);
        let mean = |column: usize| (0..3).map(|row| values[row * width + column]).sum::<f32>() / 3.0;
        let noise: Vec<f64> = (3 * width..64 * width)
            .map(|i| f64::from(all[i] - mean(i % width)) * f64::sqrt(width as f64))
            .collect();
        let variance = noise.iter().map(|x| x * x).sum::<f64>() / noise.len() as f64;
        // Of 15,616 draws the variance is within 0.05 of 1 but for one time in 10,000.
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
        assert_ne!(all[3 * width..4 * width], all[4 * width..5 * width]);
    }

    #[test]
    fn a_described_token_begins_as_the_mean_of_its_description() {
        let new = NewRows {
            stored: 4,
            tokens: 6,
            seed: 1,
            noise: false,
            // The second is described by itself and by nothing else, the third has a row in the files already.
            described: vec![(4, vec![0, 2, 5]), (5, vec![5]), (3, vec![1])],
        };
        let all = new.add("embed", &rows(&[1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 90.0, 91.0], 2), 6).to_f32_vec();
        assert_eq!(all[8..10], [4.0, 5.0]);
        assert_eq!(all[6..8], [3.0, 4.0]);
        assert_eq!(all[10..12], [25.25, 26.25], "the mean of all rows");
        assert_eq!(all[..6], [1.0, 2.0, 3.0, 4.0, 7.0, 8.0]);
    }
}
