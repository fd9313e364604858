//! Packing (stage 7 of the walk): [`Example`]s → one padding-free [`PackedBatch`].
//!
//! Rows are laid end to end. `cu_seqlens` marks where each begins, positions restart at 0, and
//! nothing else separates them: attention must be causal and block-diagonal by `cu_seqlens`, so rows
//! never see each other. This is also the one place that shifts labels by one token: a row's last
//! token has no next token and therefore no target.

use std::collections::BTreeSet;

use crate::labels::{Example, IGNORE_INDEX};

/// Rows that are packed against each other: large enough for a good fill, small enough that rows
/// stay near their place in the data set.
pub const WINDOW: usize = 8192;

/// A micro-batch without padding; N is the number of its tokens, B of its rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PackedBatch {
    /// Token ids, `[N]`.
    pub input_ids: Vec<u32>,
    /// What each token is to predict, `[N]`: the label of the next token of the same row, or
    /// [`IGNORE_INDEX`] (always so at a row's last token).
    pub targets: Vec<i32>,
    /// How much each position with a target counts in the loss, 1 at the others, `[N]`; empty where all count the same, 1.
    pub weights: Vec<f32>,
    /// Place of each token in its row, `[N]`.
    pub position_ids: Vec<u32>,
    /// Where each row begins, and N: `[B + 1]`, from 0, strictly increasing.
    pub cu_seqlens: Vec<u32>,
    /// Index of each row in the loader's examples, `[B]`.
    pub rows: Vec<usize>,
}

impl PackedBatch {
    /// Lays the given rows end to end; rows without tokens are left out.
    pub fn new(examples: &[Example], rows: impl IntoIterator<Item = usize>) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for row in rows {
            let example = &examples[row];
            if example.input_ids.is_empty() {
                continue;
            }
            batch.input_ids.extend_from_slice(&example.input_ids);
            batch.targets.extend_from_slice(&example.labels[1..]);
            batch.targets.push(IGNORE_INDEX);
            batch.add_weights(example);
            batch.position_ids.extend(0..example.input_ids.len() as u32);
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
            batch.rows.push(row);
        }
        batch
    }

    /// Adds the weights of the row whose targets were added last, shifted like them.
    fn add_weights(&mut self, example: &Example) {
        if self.weights.is_empty() && example.weights.is_empty() {
            return;
        }
        let from = self.targets.len() - example.len();
        self.weights.resize(from, 1.0);
        self.weights.extend(example.weights.iter().skip(1));
        self.weights.resize(self.targets.len(), 1.0);
    }

    /// What of the batch is not as the examples have it: rows that see each other, positions that run on, targets that
    /// are not the next label of the same row.
    ///
    /// # Errors
    /// The first fault, in words.
    pub fn check(&self, examples: &[Example]) -> Result<(), String> {
        let tokens = self.input_ids.len();
        if self.cu_seqlens.first() != Some(&0)
            || self.cu_seqlens.last() != Some(&(tokens as u32))
            || self.cu_seqlens.len() != self.rows.len() + 1
            || self.targets.len() != tokens
            || self.position_ids.len() != tokens
            || ![0, tokens].contains(&self.weights.len())
        {
            return Err("its parts have different lengths".to_owned());
        }
        for (bounds, row) in self.cu_seqlens.windows(2).zip(&self.rows) {
            let Some(example) = examples.get(*row) else { return Err(format!("there is no row {row}")) };
            let range = bounds[0] as usize..bounds[1] as usize;
            if self.input_ids.get(range.clone()) != Some(&example.input_ids[..]) {
                return Err(format!("row {row} does not stand where it is said to"));
            }
            if !self.position_ids[range.clone()].iter().copied().eq(0..range.len() as u32) {
                return Err(format!("the positions of row {row} do not begin at 0"));
            }
            let targets = &self.targets[range.clone()];
            let (last, inner) = targets.split_last().ok_or_else(|| format!("row {row} is empty"))?;
            if *last != IGNORE_INDEX || inner != &example.labels[1..] {
                return Err(format!("the targets of row {row} are not its next labels"));
            }
            let weights = self.weights.get(range.clone()).unwrap_or_default();
            let or_one = |weights: &[f32], at: usize| weights.get(at).copied().unwrap_or(1.0);
            let is_next = |at| or_one(weights, at) == or_one(&example.weights, at + 1);
            // Comparing one by one is for the few batches that have weights.
            let has_weights = !weights.is_empty() || !example.weights.is_empty();
            if has_weights && !(0..inner.len()).all(is_next) {
                return Err(format!("the weights of row {row} are not those of its next labels"));
            }
        }
        Ok(())
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Number of tokens with a target: the ones the loss counts.
    pub fn supervised(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE_INDEX).count()
    }

    /// What the loss is divided by: the sum of the weights of all positions with a target; without weights their number.
    pub fn weight(&self) -> f64 {
        match self.weights.is_empty() {
            true => self.supervised() as f64,
            false => {
                let pairs = self.targets.iter().zip(&self.weights);
                pairs
                    .filter(|(target, _)| **target != IGNORE_INDEX)
                    .map(|(_, weight)| f64::from(*weight))
                    .sum()
            }
        }
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        let rows = self.cu_seqlens.windows(2);
        rows.map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }
}

/// Groups rows into bins of at most `capacity` tokens: best fit decreasing inside windows of
/// [`WINDOW`] rows. The same lengths give the same bins; bins are in the order of their first row,
/// and rows in a bin keep their order. A row longer than `capacity` has a bin of its own.
pub fn bins(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for start in (0..lengths.len()).step_by(WINDOW) {
        let window = start..lengths.len().min(start + WINDOW);
        all.extend(best_fit_decreasing(lengths, window, capacity));
    }
    all
}

fn best_fit_decreasing(
    lengths: &[usize],
    window: std::ops::Range<usize>,
    capacity: usize,
) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = window.collect();
    rows.sort_by_key(|&row| (std::cmp::Reverse(lengths[row]), row));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Open bins by room left, then by age: the first with enough room is the fullest that fits.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for row in rows {
        let need = lengths[row];
        let (room, bin) = match open.range((need, 0)..).next().copied() {
            Some(place) => {
                open.remove(&place);
                place
            }
            None => {
                bins.push(Vec::new());
                (capacity.max(need), bins.len() - 1)
            }
        };
        bins[bin].push(row);
        open.insert((room - need, bin));
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins.sort_unstable_by_key(|bin| bin[0]);
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::example;

    #[test]
    fn targets_are_the_next_label_of_the_same_row() {
        let rows = [example(&[5, 6, 7, 8], &[-100, -100, 7, 8]), example(&[9, 10], &[9, 10])];
        let batch = PackedBatch::new(&rows, [0, 1]);
        assert_eq!(batch.input_ids, [5, 6, 7, 8, 9, 10]);
        assert_eq!(batch.targets, [-100, 7, 8, -100, 10, -100]);
        assert_eq!(batch.position_ids, [0, 1, 2, 3, 0, 1]);
        assert_eq!(batch.cu_seqlens, [0, 4, 6]);
        assert_eq!((batch.tokens(), batch.supervised()), (6, 3));
        assert_eq!(batch.longest_row(), 4);
    }

    #[test]
    fn known_faults_of_packing_are_found() {
        let rows = [example(&[5, 6, 7], &[-100, 6, 7]), example(&[9, 10], &[9, 10])];
        let fault = |mutate: fn(&mut PackedBatch)| {
            let mut batch = PackedBatch::new(&rows, [0, 1]);
            mutate(&mut batch);
            batch.check(&rows).expect_err("a fault")
        };
        assert_eq!(PackedBatch::new(&rows, [0, 1]).check(&rows), Ok(()));
        let leak = fault(|batch| {
            batch.cu_seqlens = vec![0, 5];
            batch.rows = vec![0];
        });
        assert_eq!(leak, "row 0 does not stand where it is said to", "rows that see each other");
        let positions = fault(|batch| batch.position_ids = (0..5).collect());
        assert_eq!(positions, "the positions of row 1 do not begin at 0");
        let across = fault(|batch| batch.targets[2] = 9);
        assert_eq!(
            across, "the targets of row 0 are not its next labels",
            "a row's end predicts the next row"
        );
        let unshifted = fault(|batch| batch.targets = vec![-100, 6, 7, 9, 10]);
        assert_eq!(unshifted, "the targets of row 0 are not its next labels");
        let zeros = fault(|batch| batch.targets.fill(IGNORE_INDEX));
        assert_eq!(zeros, "the targets of row 0 are not its next labels", "masks that packing lost");
    }

    #[test]
    fn weights_are_shifted_like_targets_and_1_where_rows_have_none() {
        let weighted = Example { weights: vec![1.0, 0.5, 2.0], ..example(&[1, 2, 3], &[-100, 2, 3]) };
        let rows = [example(&[5, 6], &[-100, 6]), weighted, example(&[9, 10], &[9, 10])];
        let mut batch = PackedBatch::new(&rows, [0, 1, 2]);
        assert_eq!(batch.targets, [6, -100, 2, 3, -100, 10, -100]);
        assert_eq!(batch.weights, [1.0, 1.0, 0.5, 2.0, 1.0, 1.0, 1.0]);
        assert_eq!((batch.supervised(), batch.weight()), (4, 4.5));
        assert_eq!(batch.check(&rows), Ok(()));
        assert!(PackedBatch::new(&rows, [0, 2]).weights.is_empty());
        batch.weights[2] = 1.0;
        assert_eq!(batch.check(&rows).unwrap_err(), "the weights of row 1 are not those of its next labels");
        batch.weights.clear();
        assert_eq!(batch.check(&rows).unwrap_err(), "the weights of row 1 are not those of its next labels");
    }

    #[test]
    fn empty_rows_leave_no_trace() {
        let rows = [example(&[], &[]), example(&[1], &[1])];
        let batch = PackedBatch::new(&rows, [0, 1]);
        assert_eq!(batch.cu_seqlens, [0, 1]);
        assert_eq!(batch.rows, [1]);
    }

    #[test]
    fn every_row_is_in_one_bin_and_no_bin_overflows() {
        let lengths: Vec<usize> = (0..20_000).map(|i| 1 + (i * 7919) % 700).collect();
        let bins = bins(&lengths, 1024);
        let mut seen: Vec<usize> = bins.concat();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..lengths.len()));
        for bin in &bins {
            assert!(bin.iter().map(|&row| lengths[row]).sum::<usize>() <= 1024);
        }
    }

    #[test]
    fn short_rows_fill_bins_to_98_percent() {
        let lengths: Vec<usize> = (0..1000).map(|i| 20 + (i * i * 31) % 400).collect();
        let bins = bins(&lengths, 2048);
        let fill = lengths.iter().sum::<usize>() as f64 / (bins.len() * 2048) as f64;
        assert!(fill > 0.98, "{fill}");
    }

    #[test]
    fn a_row_longer_than_the_bin_stands_alone() {
        assert_eq!(bins(&[3, 50, 4], 10), [vec![0, 2], vec![1]]);
    }
}
