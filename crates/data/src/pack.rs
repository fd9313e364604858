//! Packing (stage 7 of the walk): [`Example`]s → one padding-free [`PackedBatch`].
//!
//! Rows are laid end to end. `cu_seqlens` marks where each begins, positions restart at 0, and
//! nothing else separates them: attention must be causal and block-diagonal by `cu_seqlens`, so rows
//! never see each other. Rows that begin alike may share what they begin with ([`crate::prefixes`]).
//! Labels are shifted by one token: a row's last token has no next token and therefore no target.

use std::collections::BTreeSet;

use crate::labels::{Example, IGNORE_INDEX};
use crate::prefixes::Tree;

/// Rows that are packed against each other: large enough for a good fill, small enough that rows
/// stay near their place in the data set.
pub const WINDOW: usize = 8192;

/// Keys that the pieces of joined micro-batches see at most, for each token of [`Joining::room`]: each piece's are copied
/// side by side.
const SEEN_PER_TOKEN: usize = 4;

/// Keys that the pieces of any micro-batch see at most, of rows of `tokens` tokens; where some are joined, `tokens` of room.
///
/// A row adds a piece of its own, which sees what it would alone, and at most one more by parting another one, which
/// sees less: so they are no more than twice the tokens of the rows, unless rows are joined by what is computed of them.
pub fn most_seen(tokens: usize, are_joined: bool) -> usize {
    tokens * if are_joined { SEEN_PER_TOKEN } else { 2 }
}

/// How the rows of a step are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Joining {
    /// Micro-batches that follow each other are one while so many tokens are computed of it at most; 0 joins none.
    pub room: usize,
    /// Whether what rows of a micro-batch begin with in common is computed once.
    pub shares_prefixes: bool,
}

/// A micro-batch without padding; N is the number of its tokens, B of its rows, P of its pieces: each row is one, unless
/// rows share what they begin with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PackedBatch {
    /// Token ids, `[N]`.
    pub input_ids: Vec<u32>,
    /// What each token is to predict, `[N]`: the label of the next token of the same row, or
    /// [`IGNORE_INDEX`] (always so at a row's last token). Of a token of several rows, that of the one which has one.
    pub targets: Vec<i32>,
    /// How much each position with a target counts in the loss, 1 at the others, `[N]`; empty where all count the same, 1.
    pub weights: Vec<f32>,
    /// Place of each token in its row, `[N]`.
    pub position_ids: Vec<u32>,
    /// Where each piece begins, and N: `[P + 1]`, from 0, strictly increasing.
    pub cu_seqlens: Vec<u32>,
    /// Index of each row in the loader's examples, `[B]`.
    pub rows: Vec<usize>,
    /// What rows share; `None` where each row is a piece.
    pub shared: Option<Shared>,
}

/// Of a micro-batch whose rows share pieces: the tokens that each piece sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    starts: Vec<u32>,
    seen: Vec<u32>,
    copy_starts: Vec<u32>,
    copies: Vec<u32>,
    last_pieces: Vec<usize>,
}

impl Shared {
    /// Of pieces that see the tokens `seen[starts[p]..starts[p + 1]]` of a batch of `tokens`, and rows that end with
    /// `last_pieces`.
    pub(crate) fn new(starts: Vec<u32>, seen: Vec<u32>, last_pieces: Vec<usize>, tokens: usize) -> Self {
        let mut copy_starts = vec![0; tokens + 1];
        for token in &seen {
            copy_starts[*token as usize + 1] += 1;
        }
        for i in 0..tokens {
            copy_starts[i + 1] += copy_starts[i];
        }
        let (mut next, mut copies) = (copy_starts.clone(), vec![0; seen.len()]);
        for (copy, token) in seen.iter().enumerate() {
            copies[next[*token as usize] as usize] = copy as u32;
            next[*token as usize] += 1;
        }
        Self { starts, seen, copy_starts, copies, last_pieces }
    }

    /// Where what each piece sees begins in [`Shared::seen`], and its length: `[P + 1]`.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Tokens in the order of their rows: the pieces before a piece, then its own.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// The other way round: token i is at the places `copies[starts[i]..starts[i + 1]]` of [`Shared::seen`], in ascending
    /// order; (starts `[N + 1]`, copies).
    pub fn copies(&self) -> (&[u32], &[u32]) {
        (&self.copy_starts, &self.copies)
    }
}

impl PackedBatch {
    /// Lays the given rows end to end; rows without tokens are left out.
    pub fn new(examples: &[Example], rows: impl IntoIterator<Item = usize>) -> Self {
        Self::of(Tree::new(false), examples, rows)
    }

    /// The same, where rows share what they begin with.
    pub fn sharing(examples: &[Example], rows: impl IntoIterator<Item = usize>) -> Self {
        Self::of(Tree::new(true), examples, rows)
    }

    fn of<'a>(mut tree: Tree<'a>, examples: &'a [Example], rows: impl IntoIterator<Item = usize>) -> Self {
        rows.into_iter().for_each(|row| tree.insert(row, &examples[row]));
        tree.lay_out()
    }

    /// What of the batch is not as the examples have it: rows that see each other, positions that run on, targets that
    /// are not the next label of the same row.
    ///
    /// # Errors
    /// The first fault, in words.
    pub fn check(&self, examples: &[Example]) -> Result<(), String> {
        let (tokens, pieces) = (self.input_ids.len(), self.cu_seqlens.len().saturating_sub(1));
        let rows_have_pieces = match &self.shared {
            None => pieces == self.rows.len(),
            Some(shared) => shared.last_pieces.len() == self.rows.len() && shared.starts.len() == pieces + 1,
        };
        if self.cu_seqlens.first() != Some(&0)
            || self.cu_seqlens.last() != Some(&(tokens as u32))
            || !rows_have_pieces
            || self.targets.len() != tokens
            || self.position_ids.len() != tokens
            || ![0, tokens].contains(&self.weights.len())
        {
            return Err("its parts have different lengths".to_owned());
        }
        let mut labels = 0;
        for (i, row) in self.rows.iter().enumerate() {
            let Some(example) = examples.get(*row) else { return Err(format!("there is no row {row}")) };
            self.check_row(i, *row, example)?;
            labels += example.labels.iter().skip(1).filter(|label| **label != IGNORE_INDEX).count();
        }
        let targets = self.supervised();
        match targets == labels {
            true => Ok(()),
            false => {
                Err(format!("{targets} positions have a target, and {labels} labels of its rows are one"))
            }
        }
    }

    /// The same of its i-th row.
    fn check_row(&self, i: usize, row: usize, example: &Example) -> Result<(), String> {
        let places = || self.row_places(i).map(|place| place as usize);
        let ids = places().map(|place| self.input_ids.get(place));
        if !ids.eq(example.input_ids.iter().map(Some)) {
            return Err(format!("row {row} does not stand where it is said to"));
        }
        if !places().map(|place| self.position_ids[place]).eq(0..example.len() as u32) {
            return Err(format!("the positions of row {row} do not begin at 0"));
        }
        // A target of another row that goes through the place is counted by the caller.
        let is_shared = self.shared.is_some();
        let next = example.labels.iter().skip(1).copied().chain([IGNORE_INDEX]);
        if !places()
            .zip(next)
            .all(|(place, label)| self.targets[place] == label || is_shared && label == IGNORE_INDEX)
        {
            return Err(format!("the targets of row {row} are not its next labels"));
        }
        let weight = |weights: &[f32], at: usize| weights.get(at).copied().unwrap_or(1.0);
        let counts = |at: usize| example.labels.get(at + 1).is_some_and(|label| *label != IGNORE_INDEX);
        let is_next = |(at, place)| weight(&self.weights, place) == weight(&example.weights, at + 1);
        // Comparing one by one is for the few batches that have weights.
        let has_weights = !self.weights.is_empty() || !example.weights.is_empty();
        if has_weights && !places().enumerate().filter(|(at, _)| counts(*at)).all(is_next) {
            return Err(format!("the weights of row {row} are not those of its next labels"));
        }
        Ok(())
    }

    /// Where the tokens of its i-th row stand, in their order.
    pub fn row_places(&self, i: usize) -> impl Iterator<Item = u32> + '_ {
        let (alone, seen) = match &self.shared {
            None => (self.cu_seqlens[i]..self.cu_seqlens[i + 1], &[][..]),
            Some(shared) => {
                let last = shared.last_pieces[i];
                (0..0, &shared.seen[shared.starts[last] as usize..shared.starts[last + 1] as usize])
            }
        };
        alone.chain(seen.iter().copied())
    }

    fn row_len(&self, i: usize) -> usize {
        let (starts, piece) = match &self.shared {
            None => (&self.cu_seqlens, i),
            Some(shared) => (&shared.starts, shared.last_pieces[i]),
        };
        (starts[piece + 1] - starts[piece]) as usize
    }

    /// Tokens of its rows, each row counted for itself: what other trainers count.
    pub fn row_tokens(&self) -> usize {
        (0..self.rows.len()).map(|row| self.row_len(row)).sum()
    }

    /// Keys that its pieces see, each for itself.
    pub fn seen_keys(&self) -> usize {
        self.shared.as_ref().map_or(self.tokens(), |shared| shared.seen.len())
    }

    /// Number of tokens that are computed, N.
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
        (0..self.rows.len()).map(|row| self.row_len(row)).max().unwrap_or(0)
    }
}

/// The micro-batches of items, each of so many rows: `batch_size` items each, or several times as many where they are
/// joined.
///
/// # Panics
/// If a batch is not what its rows say: a fault of this program.
pub(crate) fn micro_batches<'a>(
    examples: &'a [Example],
    items: &[&[usize]],
    batch_size: usize,
    joining: Joining,
) -> Vec<PackedBatch> {
    // With whether several micro-batches are joined in it.
    let mut trees: Vec<(Tree<'a>, bool)> = Vec::new();
    for rows in items.chunks(batch_size) {
        let own = || rows.iter().copied().flatten().map(|row| examples[*row].len()).sum::<usize>();
        let may_fit = |tree: &&Tree<'a>| joining.shares_prefixes || tree.tokens() + own() <= joining.room;
        let last = trees.last().map(|(tree, _)| tree).filter(|_| joining.room > 0).filter(may_fit);
        let with = |mut tree: Tree<'a>| {
            rows.iter().copied().flatten().for_each(|row| tree.insert(*row, &examples[*row]));
            tree
        };
        let fits =
            |tree: &Tree<'a>| tree.tokens() <= joining.room && tree.seen() <= most_seen(joining.room, true);
        match last.map(|last| with(last.clone())).filter(fits) {
            Some(joined) => *trees.last_mut().expect("joined to the last one") = (joined, true),
            None => trees.push((with(Tree::new(joining.shares_prefixes)), false)),
        }
    }
    let batches = trees.iter().map(|(tree, is_joined)| {
        let fits_apart = !is_joined || tree.row_tokens() <= joining.room;
        let batch = match joining.shares_prefixes && !tree.pays() && fits_apart {
            true => PackedBatch::new(examples, tree.rows()),
            false => tree.lay_out(),
        };
        let checked = batch.check(examples);
        assert!(checked.is_ok(), "a batch is its rows: {checked:?}");
        batch
    });
    batches.collect()
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

    /// The micro-batches of rows, each an item.
    fn of_rows(rows: &[Example], batch_size: usize, joining: Joining) -> Vec<PackedBatch> {
        let items: Vec<[usize; 1]> = (0..rows.len()).map(|row| [row]).collect();
        let items: Vec<&[usize]> = items.iter().map(|item| &item[..]).collect();
        micro_batches(rows, &items, batch_size, joining)
    }

    #[test]
    fn micro_batches_are_joined_while_they_fit_in_their_order() {
        let joined = |lengths: &[usize], batch_size, room| -> Vec<Vec<usize>> {
            let row = |(i, length): (usize, &usize)| example(&vec![i as u32; *length], &vec![1; *length]);
            let rows: Vec<Example> = lengths.iter().enumerate().map(row).collect();
            let [shared, apart] = [true, false].map(|shares_prefixes| {
                let batches = of_rows(&rows, batch_size, Joining { room, shares_prefixes });
                batches.into_iter().map(|batch| batch.rows).collect::<Vec<_>>()
            });
            assert_eq!(shared, apart, "rows that have nothing in common");
            apart
        };
        assert_eq!(joined(&[3, 3, 3, 9, 1, 1], 1, 0), [[0], [1], [2], [3], [4], [5]]);
        assert_eq!(joined(&[3, 3, 3, 9, 1, 1], 1, 6), [vec![0, 1], vec![2], vec![3], vec![4, 5]]);
        assert_eq!(joined(&[3, 3, 3, 9, 1, 1, 2], 2, 10), [vec![0, 1], vec![2, 3], vec![4, 5, 6]]);
        assert!(joined(&[], 2, 10).is_empty());
    }

    #[test]
    fn rows_that_share_are_joined_by_what_is_computed_and_by_the_keys_that_they_see() {
        let row = |own: u32| {
            let ids: Vec<u32> = (0..100).chain([1000 + own; 5]).collect();
            example(&ids, &[vec![IGNORE_INDEX; 100], vec![7; 5]].concat())
        };
        let rows: Vec<Example> = (0..60).map(row).collect();
        let of = |room| of_rows(&rows, 1, Joining { room, shares_prefixes: true });
        // The last token of the prompt has a target in each row.
        let few = &of(150)[0];
        assert_eq!(
            (few.rows.len(), few.tokens(), few.seen_keys()),
            (4, 99 + 4 * 6, 99 + 4 * 105),
            "600 keys at most"
        );
        let many = &of(1000)[0];
        assert_eq!(
            (many.rows.len(), many.tokens(), many.seen_keys()),
            (37, 99 + 37 * 6, 99 + 37 * 105),
            "4000 at most"
        );
        assert_eq!(of(100_000).len(), 1);
    }

    #[test]
    fn rows_with_little_in_common_share_nothing() {
        let row = |own: u32| {
            let ids: Vec<u32> = (0..6).chain([1000 + own; 300]).collect();
            example(&ids, &[vec![IGNORE_INDEX; 7], vec![7; 299]].concat())
        };
        let rows: Vec<Example> = (0..2).map(row).collect();
        let batches = micro_batches(&rows, &[&[0, 1]], 1, Joining { room: 1000, shares_prefixes: true });
        assert_eq!(batches, [PackedBatch::new(&rows, [0, 1])]);
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
