//! How the queries of a row are laid out in tiles, and which keys a tile sees.
//!
//! The queries of all G = H/K heads that share a key/value head stand side by side: lane `i · G + g` of a row is
//! query i of head g of the group. They are cut into tiles of 64 lanes, the keys into blocks of 64, both
//! counted from the row's beginning, so that a row is computed alike wherever it lies.

use std::ops::Range;

use super::panels::LANES;
use super::{AttentionParams, RowOffsets};

/// Keys of a block.
pub(super) const KEYS: usize = 64;

/// Numbers of heads and their width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// H.
    pub query: usize,
    /// K.
    pub key: usize,
    /// D.
    pub width: usize,
}

impl Heads {
    /// G: query heads that share a key/value head.
    pub fn group(self) -> usize {
        self.query / self.key
    }
}

/// A row of the micro-batch and the key/value head that is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

impl Row {
    /// The rows that have queries.
    pub fn all(rows: RowOffsets<'_>) -> impl Iterator<Item = (usize, Row)> {
        (0..rows.q.len() - 1).map(move |r| (r, Row::at(rows, r))).filter(|(_, row)| row.q_len > 0)
    }

    /// Row `r`.
    pub fn at(rows: RowOffsets<'_>, r: usize) -> Row {
        let (q, k) = (rows.q[r] as usize, rows.k[r] as usize);
        Row { q_start: q, q_len: rows.q[r + 1] as usize - q, k_start: k, k_len: rows.k[r + 1] as usize - k }
    }

    /// Number of lanes.
    pub fn lanes(self, heads: Heads) -> usize {
        self.q_len * heads.group()
    }

    /// Number of tiles.
    pub fn tiles(self, heads: Heads) -> usize {
        self.lanes(heads).div_ceil(LANES)
    }

    /// Key position of the query in a lane.
    pub fn position(self, heads: Heads, lane: usize) -> usize {
        self.k_len - self.q_len + lane / heads.group()
    }
}

/// Some lanes of a row, at one key/value head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    pub row: Row,
    pub heads: Heads,
    /// The key/value head.
    pub head: usize,
    pub first: usize,
    pub len: usize,
}

impl Lanes {
    /// The tile that begins at lane `first`.
    pub fn tile(row: Row, heads: Heads, head: usize, first: usize) -> Self {
        let len = (row.lanes(heads) - first).min(LANES);
        Self { row, heads, head, first, len }
    }

    /// For each lane, its query's token and head as an index in [Nq, H].
    #[inline(always)]
    pub fn indices(self) -> impl ExactSizeIterator<Item = usize> + Clone {
        let group = self.heads.group();
        let mut member = self.first % group;
        let token = self.row.q_start + self.first / group;
        let mut index = token * self.heads.query + self.head * group + member;
        (0..self.len).map(move |_| {
            let this = index;
            member += 1;
            index += 1;
            if member == group {
                member = 0;
                index += self.heads.query - group;
            }
            this
        })
    }

    /// The lanes' rows of a tensor [Nq, H, D].
    #[inline(always)]
    pub fn rows<E>(self, values: &[E]) -> impl ExactSizeIterator<Item = &[E]> {
        let width = self.heads.width;
        self.indices().map(move |i| &values[i * width..(i + 1) * width])
    }

    /// Writes the lanes' positions; what is beyond them gets the last.
    #[inline(always)]
    pub fn write_positions(self, to: &mut [f32]) {
        let group = self.heads.group();
        let mut member = self.first % group;
        let mut position = self.row.position(self.heads, self.first);
        let (to, rest) = to.split_at_mut(self.len);
        for to in to {
            *to = position as f32;
            member += 1;
            if member == group {
                member = 0;
                position += 1;
            }
        }
        rest.fill(self.row.position(self.heads, self.first + self.len - 1) as f32);
    }

    /// Writes the slopes of the lanes' heads; what is beyond them gets 0.
    #[inline(always)]
    pub fn write_slopes(self, slopes: &[f32], to: &mut [f32]) {
        to.fill(0.0);
        for (to, index) in to.iter_mut().zip(self.indices()) {
            *to = slopes[index % self.heads.query];
        }
    }

    /// From the first key that one of these lanes sees to the last.
    pub fn keys(self, params: &AttentionParams<'_>) -> Range<usize> {
        let first = self.row.position(self.heads, self.first);
        let last = self.row.position(self.heads, self.first + self.len - 1);
        (first + 1).saturating_sub(params.window.unwrap_or(usize::MAX))..last + 1
    }

    /// What these lanes see of the `len` keys from `start` on.
    pub fn sight(self, params: &AttentionParams<'_>, start: usize, len: usize) -> Sight {
        let first = self.row.position(self.heads, self.first);
        let last = self.row.position(self.heads, self.first + self.len - 1);
        let window = params.window.unwrap_or(usize::MAX);
        let unseen = start > last || (start + len).saturating_add(window) <= first + 1;
        Sight {
            keys: if unseen { 0 } else { len.min(last + 1 - start) },
            masked: start + len > first + 1 || start.saturating_add(window) <= last,
        }
    }
}

/// What the lanes of a tile see of a block of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// Keys to compute: the rest of the block is seen by no lane.
    pub keys: usize,
    /// Whether some lane does not see one of them.
    pub masked: bool,
}

/// Rows of the `len` keys from `start` on of a tensor [Nk, K, D], at one head.
#[inline(always)]
pub(super) fn key_rows<E>(
    values: &[E],
    row: Row,
    (heads, head): (Heads, usize),
    (start, len): (usize, usize),
) -> impl ExactSizeIterator<Item = &[E]> {
    (0..len).map(move |j| {
        let at = ((row.k_start + start + j) * heads.key + head) * heads.width;
        &values[at..at + heads.width]
    })
}
