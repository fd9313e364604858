//! Rows of a micro-batch that begin alike (stage 7 of the walk): what they have in common is laid down, and computed, once.
//!
//! Attention is causal, so that the states of a row's first tokens are those of any other row that begins with the same
//! ones: a system prompt, descriptions of tools, the turns before the last one. The rows of a micro-batch are a tree of
//! pieces. A token of a piece sees those before it in its piece and the pieces that this one continues; its gradient is
//! the sum of what all rows through it send back. Losses and gradients are those of rows laid end to end, but for rounding.
//!
//! A position has one target, so that rows share tokens as far as at most one of them has a target there.

use crate::labels::{Example, IGNORE_INDEX};
use crate::pack::{PackedBatch, Shared};

/// Tokens in common from which on it pays to let two rows share them: a piece more costs attention's part of a tile, which
/// is less than a token costs in the layers around it.
const LEAST: usize = 4;

/// Part of the tokens of rows that must be in common for sharing to pay: copies of keys and values take up to as much where
/// there is one for each query head.
const LEAST_PART: f64 = 0.02;

/// Rows that are looked at to know whether rows begin alike: so many neighbours, in so many places, of so many tokens in all.
const NEIGHBOURS: usize = 16;
const PLACES: usize = 32;
const LOOKED_AT: usize = 1 << 20;

/// Whether rows begin alike, so that it pays to share.
pub fn begin_alike(examples: &[Example]) -> bool {
    let mut tree = Tree::new(true);
    let apart = examples.len().div_ceil(PLACES).max(NEIGHBOURS);
    let rows = examples.chunks(apart).flat_map(|chunk| chunk.iter().take(NEIGHBOURS));
    for example in rows {
        tree.insert(0, example);
        if tree.row_tokens > LOOKED_AT {
            break;
        }
    }
    tree.pays()
}

/// Rows as a tree of pieces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree<'a> {
    pieces: Vec<Piece<'a>>,
    /// Pieces that continue no other.
    roots: Vec<usize>,
    /// Each row and its last piece.
    rows: Vec<(usize, usize)>,
    /// Tokens of the rows, each counted for itself.
    row_tokens: usize,
    /// Whether rows share pieces.
    shares: bool,
    /// Whether a row has weights.
    weighted: bool,
}

/// Tokens that stand side by side in all rows that have them.
#[derive(Debug, Clone)]
struct Piece<'a> {
    ids: &'a [u32],
    /// Place of the first one in its rows.
    first: usize,
    /// Of the one row that has a target there, if any.
    targets: Vec<i32>,
    weights: Vec<f32>,
    /// The piece that it continues.
    before: Option<usize>,
    /// Those that continue it.
    after: Vec<usize>,
}

impl<'a> Piece<'a> {
    fn of(example: &'a Example) -> Self {
        let (ids, labels) = (&example.input_ids[..], &example.labels[..]);
        let targets = labels.iter().skip(1).copied().chain([IGNORE_INDEX]).collect();
        let mut weights: Vec<f32> = example.weights.iter().skip(1).copied().collect();
        weights.resize(ids.len(), 1.0);
        Self { ids, first: 0, targets, weights, before: None, after: Vec::new() }
    }

    /// Tokens of `other` from its `from`-th on that the two can share.
    fn in_common(&self, other: &Piece<'_>, from: usize) -> usize {
        let ids = self.ids.iter().zip(&other.ids[from..]);
        let targets = self.targets.iter().zip(&other.targets[from..]);
        let is_free = |(a, b): (&i32, &i32)| *a == IGNORE_INDEX || *b == IGNORE_INDEX;
        ids.zip(targets).take_while(|((a, b), targets)| a == b && is_free(*targets)).count()
    }

    /// Takes over the targets of `other` from its `from`-th token on.
    fn take_targets(&mut self, other: &Piece<'_>, from: usize) {
        for i in (0..self.ids.len()).filter(|i| other.targets[from + i] != IGNORE_INDEX) {
            (self.targets[i], self.weights[i]) = (other.targets[from + i], other.weights[from + i]);
        }
    }

    /// Keeps the first `at` tokens, and gives back the others.
    fn split_off(&mut self, at: usize) -> Piece<'a> {
        let (ids, rest) = self.ids.split_at(at);
        self.ids = ids;
        Piece {
            ids: rest,
            first: self.first + at,
            targets: self.targets.split_off(at),
            weights: self.weights.split_off(at),
            before: self.before,
            after: std::mem::take(&mut self.after),
        }
    }

    /// Tokens from the beginnings of its rows to its end.
    fn end(&self) -> usize {
        self.first + self.ids.len()
    }
}

impl<'a> Tree<'a> {
    /// Without rows.
    pub fn new(shares: bool) -> Self {
        Self { shares, ..Self::default() }
    }

    /// Adds a row; one without tokens is left out.
    pub fn insert(&mut self, row: usize, example: &'a Example) {
        if example.is_empty() {
            return;
        }
        self.weighted |= !example.weights.is_empty();
        self.row_tokens += example.len();
        let mut own = Piece::of(example);
        let mut from = 0;
        while let Some((piece, common)) = self.longest_in_common(own.before, &own, from) {
            let is_whole = common == self.pieces[piece].ids.len();
            if !is_whole && common < LEAST {
                break;
            }
            if !is_whole {
                self.split(piece, common);
            }
            self.pieces[piece].take_targets(&own, from);
            own.before = Some(piece);
            from += common;
        }
        let own = own.split_off(from);
        let place = self.pieces.len();
        let last = match own.before {
            Some(before) if own.ids.is_empty() => before,
            before => {
                self.siblings(before).push(place);
                self.pieces.push(own);
                place
            }
        };
        self.rows.push((row, last));
    }

    /// Of the pieces behind another one, or of the first ones, that which has most in common with a row from its
    /// `from`-th token on.
    fn longest_in_common(
        &self,
        before: Option<usize>,
        row: &Piece<'_>,
        from: usize,
    ) -> Option<(usize, usize)> {
        let candidates = match before {
            _ if !self.shares => return None,
            Some(before) => &self.pieces[before].after,
            None => &self.roots,
        };
        let in_common = candidates.iter().map(|piece| (*piece, self.pieces[*piece].in_common(row, from)));
        // The first of several.
        in_common.filter(|(_, common)| *common > 0).reduce(|a, b| if b.1 > a.1 { b } else { a })
    }

    /// Makes two pieces of one, the first of which keeps its place.
    fn split(&mut self, piece: usize, at: usize) {
        let rest = self.pieces.len();
        let mut second = self.pieces[piece].split_off(at);
        second.before = Some(piece);
        for after in &second.after {
            self.pieces[*after].before = Some(rest);
        }
        self.pieces[piece].after.push(rest);
        for (_, last) in self.rows.iter_mut().filter(|(_, last)| *last == piece) {
            *last = rest;
        }
        self.pieces.push(second);
    }

    fn siblings(&mut self, before: Option<usize>) -> &mut Vec<usize> {
        match before {
            Some(before) => &mut self.pieces[before].after,
            None => &mut self.roots,
        }
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.ids.len()).sum()
    }

    /// Tokens of its rows, each counted for itself.
    pub fn row_tokens(&self) -> usize {
        self.row_tokens
    }

    /// Its rows, in the order in which they came.
    pub fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().map(|(row, _)| *row)
    }

    /// Whether enough is in common.
    pub fn pays(&self) -> bool {
        let in_common = self.row_tokens - self.tokens();
        in_common as f64 > LEAST_PART * self.row_tokens as f64
    }

    /// Keys that the pieces see, each for itself.
    pub fn seen(&self) -> usize {
        self.pieces.iter().map(Piece::end).sum()
    }

    /// The batch: a piece stands somewhere behind the one that it continues.
    pub fn lay_out(&self) -> PackedBatch {
        let mut batch = PackedBatch { cu_seqlens: vec![0], ..PackedBatch::default() };
        let mut places = vec![0; self.pieces.len()];
        let mut order = Vec::with_capacity(self.pieces.len());
        let mut waiting: Vec<usize> = self.roots.iter().rev().copied().collect();
        while let Some(i) = waiting.pop() {
            let piece = &self.pieces[i];
            waiting.extend(piece.after.iter().rev());
            places[i] = order.len();
            order.push(i);
            batch.input_ids.extend_from_slice(piece.ids);
            batch.targets.extend_from_slice(&piece.targets);
            if self.weighted {
                batch.weights.extend_from_slice(&piece.weights);
            }
            batch.position_ids.extend(piece.first as u32..piece.end() as u32);
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
        }
        batch.rows = self.rows().collect();
        let are_apart = self.pieces.len() == self.rows.len() && self.roots.len() == self.rows.len();
        if !are_apart {
            batch.shared = Some(self.shared(&order, &places, &batch.cu_seqlens));
        }
        batch
    }

    /// Who sees what of pieces in this order.
    fn shared(&self, order: &[usize], places: &[usize], cu_seqlens: &[u32]) -> Shared {
        let mut seen = Vec::with_capacity(self.seen());
        let mut starts = vec![0];
        for i in order {
            let mut path = vec![*i];
            while let Some(before) = self.pieces[path[path.len() - 1]].before {
                path.push(before);
            }
            let tokens = path.iter().rev().map(|piece| places[*piece]);
            seen.extend(tokens.flat_map(|place| cu_seqlens[place]..cu_seqlens[place + 1]));
            starts.push(seen.len() as u32);
        }
        let last_pieces = self.rows.iter().map(|(_, last)| places[*last]).collect();
        Shared::new(starts, seen, last_pieces, cu_seqlens.last().copied().unwrap_or(0) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::example;

    /// A row that is supervised from a place on.
    fn row(ids: &[u32], from: usize) -> Example {
        let labels: Vec<i32> =
            ids.iter().enumerate().map(|(i, id)| if i < from { IGNORE_INDEX } else { *id as i32 }).collect();
        example(ids, &labels)
    }

    fn tree_of(rows: &[Example]) -> PackedBatch {
        let mut tree = Tree::new(true);
        rows.iter().enumerate().for_each(|(i, row)| tree.insert(i, row));
        let batch = tree.lay_out();
        assert_eq!(batch.check(rows), Ok(()));
        assert_eq!((batch.tokens(), batch.seen_keys()), (tree.tokens(), tree.seen()));
        batch
    }

    #[test]
    fn rows_share_their_beginnings_and_see_them_before_their_own_tokens() {
        let rows = [row(&[1, 2, 3, 4, 5, 6], 5), row(&[1, 2, 3, 4, 7, 8, 9], 5), row(&[6, 7], 1)];
        let batch = tree_of(&rows);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7]);
        assert_eq!(batch.position_ids, [0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1]);
        assert_eq!(batch.cu_seqlens, [0, 4, 6, 9, 11]);
        let shared = batch.shared.as_ref().unwrap();
        assert_eq!(shared.starts(), [0, 4, 10, 17, 19]);
        assert_eq!(shared.seen(), [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 6, 7, 8, 9, 10]);
        assert_eq!((batch.tokens(), batch.row_tokens(), batch.supervised()), (11, 15, 4));
        let of: Vec<Vec<u32>> = (0..3).map(|row| batch.row_places(row).collect()).collect();
        assert_eq!(of, [vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2, 3, 6, 7, 8], vec![9, 10]]);
        let (starts, copies) = shared.copies();
        let of_token = |i: usize| &copies[starts[i] as usize..starts[i + 1] as usize];
        assert_eq!((of_token(1), of_token(8), of_token(9)), (&[1, 5, 11][..], &[16][..], &[17][..]));
    }

    #[test]
    fn pieces_branch_again_where_some_rows_go_on_together() {
        let rows = [
            row(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 9),
            row(&[1, 2, 3, 4, 20, 21], 5),
            row(&[1, 2, 3, 4, 5, 6, 7, 8, 30, 31], 9),
            row(&[1, 2, 3, 4, 20, 22], 5),
        ];
        let batch = tree_of(&rows);
        // Of the second branch one token is in common, which is too little.
        assert_eq!(batch.tokens(), 4 + 4 + 2 + 2 + 2 + 2);
        assert_eq!((batch.cu_seqlens.len() - 1, batch.rows), (6, vec![0, 1, 2, 3]));
    }

    #[test]
    fn whatever_rows_there_are_nothing_is_lost_and_few_keys_are_seen() {
        let mut state = 1u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..300 {
            let mut rows: Vec<Example> = Vec::new();
            for _ in 0..1 + next(12) {
                // As an earlier row for a while, then otherwise.
                let earlier = rows.get(next(12) as usize).map_or(&[][..], |row| &row.input_ids);
                let mut ids = earlier[..next(earlier.len() as u32 + 1) as usize].to_vec();
                ids.extend((0..1 + next(9)).map(|_| next(3)));
                rows.push(row(&ids, next(ids.len() as u32 + 1) as usize));
            }
            let batch = tree_of(&rows);
            assert!(batch.seen_keys() <= 2 * batch.row_tokens(), "{batch:?}");
            assert!(batch.tokens() <= batch.row_tokens());
        }
    }

    #[test]
    fn rows_that_begin_alike_are_found_among_neighbours_and_far_apart() {
        let own = |i: u32| (0..10).map(move |j| 1000 + 10 * i + j);
        let all = |same: fn(u32) -> u32| -> Vec<Example> {
            let ids = |i: u32| (0..30).map(|j| 100_000 * same(i) + j).chain(own(i)).collect::<Vec<u32>>();
            (0..3000).map(|i| row(&ids(i), 35)).collect()
        };
        assert!(!begin_alike(&[]));
        assert!(begin_alike(&all(|_| 1)));
        assert!(begin_alike(&all(|i| 1 + i / 2)), "turns of one conversation");
        assert!(!begin_alike(&all(|i| 1 + i)));
    }

    #[test]
    fn few_tokens_in_common_are_not_shared() {
        let batch = tree_of(&[row(&[1, 2, 3, 4, 5], 4), row(&[1, 2, 3, 6, 7], 4)]);
        assert_eq!((batch.tokens(), batch.shared), (10, None));
    }

    #[test]
    fn what_two_rows_are_to_predict_is_not_shared() {
        // The same row twice: the answer's first token is predicted by the last one of the question.
        let batch = tree_of(&[row(&[1, 2, 3, 4, 5, 6, 7], 5), row(&[1, 2, 3, 4, 5, 6, 7], 5)]);
        assert_eq!(batch.cu_seqlens, [0, 4, 7, 10]);
        assert_eq!(batch.targets, [-100, -100, -100, -100, 6, 7, -100, 6, 7, -100]);
    }

    #[test]
    fn what_one_row_predicts_others_may_share() {
        // The turns of a conversation as rows of their own, each trained on its last answer.
        let mut second = row(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 8);
        second.weights = [[1.0; 8].as_slice(), &[0.5; 2]].concat();
        for rows in [[row(&[1, 2, 3, 4, 5, 6], 4), second.clone()], [second, row(&[1, 2, 3, 4, 5, 6], 4)]] {
            let batch = tree_of(&rows);
            assert_eq!((batch.tokens(), batch.row_tokens(), batch.supervised()), (10, 16, 4));
            assert_eq!(batch.weight(), 3.0);
            assert_eq!(batch.targets[..5], [-100, -100, -100, 5, 6]);
        }
    }

    #[test]
    fn a_row_may_end_where_others_go_on() {
        let rows = [row(&[1, 2, 3, 4, 5], 5), row(&[1, 2, 3, 4, 5, 6, 7], 6), row(&[1, 2, 3, 4, 5], 5)];
        let batch = tree_of(&rows);
        assert_eq!((batch.tokens(), batch.rows.len()), (5 + 2, 3));
    }

    #[test]
    fn known_faults_of_sharing_are_found() {
        let rows = [row(&[1, 2, 3, 4, 5, 6], 5), row(&[1, 2, 3, 4, 7, 8, 9], 5)];
        let fault = |mutate: fn(&mut PackedBatch)| {
            let mut batch = tree_of(&rows);
            mutate(&mut batch);
            batch.check(&rows).expect_err("a fault")
        };
        let said = fault(|batch| batch.shared = None);
        assert_eq!(said, "its parts have different lengths");
        let said = fault(|batch| batch.input_ids[2] = 9);
        assert_eq!(said, "row 0 does not stand where it is said to");
        let said = fault(|batch| batch.position_ids[4..].iter_mut().for_each(|p| *p -= 4));
        assert_eq!(said, "the positions of row 0 do not begin at 0");
        let said = fault(|batch| batch.targets[1] = 3);
        assert_eq!(
            said, "4 positions have a target, and 3 labels of its rows are one",
            "a target no row has"
        );
    }
}
