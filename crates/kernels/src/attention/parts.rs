//! How backward divides a row: into parts of its tiles, each a task with sums of dk and dv of its own, and the pass that
//! adds these sums up.
//!
//! In: the rows of a call. Out: tasks, the most expensive first, and at the end dk and dv of rows of several parts.

use std::cmp::Reverse;
use std::ops::Range;

use super::backward::Call;
use super::panels::{LANES, padded, write_values};
use super::tiling::{Heads, KEYS, Row};
use crate::Element;
use crate::scratch::{Borrowed, Disjoint, Pool};
use crate::simd::{Job, Simd};

/// Queries of a part at least, if there is another one.
pub(super) const QUERIES_PER_PART: usize = 512;
/// Parts of a row at most: each has sums of its own.
const MOST_PARTS: usize = 8;

/// A part of a row at a key/value head.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub row: Row,
    pub head: usize,
    pub part: usize,
    pub parts: usize,
    /// Where the sums of the row's first part begin if there are several.
    pub sums_at: usize,
}

/// Tiles of a part, and the keys that they see, from the beginning of a block on.
pub(super) struct Part {
    pub tiles: Range<usize>,
    pub keys: Range<usize>,
}

impl Part {
    pub fn of<E>(call: &Call<'_, E>, row: Row, part: usize, parts: usize) -> Self {
        let all = row.tiles(call.heads);
        let tiles = all * part / parts..all * (part + 1) / parts;
        let last_lane = (tiles.end * LANES).min(row.lanes(call.heads)) - 1;
        let window = call.params.window.unwrap_or(usize::MAX);
        let first = (row.position(call.heads, tiles.start * LANES) + 1).saturating_sub(window);
        Self { tiles, keys: first / KEYS * KEYS..row.position(call.heads, last_lane) + 1 }
    }

    /// Whether the keys are in several chunks of `len`.
    pub fn is_chunked(&self, len: usize) -> bool {
        (self.keys.end - 1) / len > self.keys.start / len
    }

    /// Values of its sums of dk; those of dv follow.
    pub fn sums_len(&self, width: usize) -> usize {
        self.keys.len() * padded(width)
    }
}

impl Task {
    /// Where the sums of this part's dk begin.
    pub fn own_sums_at<E>(&self, call: &Call<'_, E>) -> usize {
        let before = |p: usize| 2 * Part::of(call, self.row, p, self.parts).sums_len(call.heads.width);
        self.sums_at + (0..self.part).map(before).sum::<usize>()
    }

    /// Where a key's values begin in [Nk, K, D].
    #[inline(always)]
    pub fn key_index(&self, heads: Heads, key: usize) -> usize {
        ((self.row.k_start + key) * heads.key + self.head) * heads.width
    }
}

static TASKS: Pool<Task> = Pool::new();
/// All tasks of a call, and how many values the sums of rows of several parts take.
pub(super) fn tasks<E>(call: &Call<'_, E>) -> (Borrowed<'static, Task>, usize) {
    let mut tasks = TASKS.borrow();
    tasks.clear();
    let mut sums_at = 0;
    for (_, row) in Row::all(call.rows) {
        let parts = parts(row.q_len);
        for head in 0..call.heads.key {
            tasks.extend((0..parts).map(|part| Task { row, head, part, parts, sums_at }));
            if parts > 1 {
                let lens = (0..parts).map(|p| 2 * Part::of(call, row, p, parts).sums_len(call.heads.width));
                sums_at += lens.sum::<usize>();
            }
        }
    }
    // No two keys are equal; a cached or a stable sort would allocate.
    tasks.sort_unstable_by_key(|task| {
        let part = Part::of(call, task.row, task.part, task.parts);
        let cost = part.tiles.len() * part.keys.len();
        (Reverse(cost), task.row.q_start, task.head, task.part)
    });
    (tasks, sums_at)
}

/// Parts of a row: a rule of the row alone.
pub(super) fn parts(queries: usize) -> usize {
    queries.div_ceil(QUERIES_PER_PART).clamp(1, MOST_PARTS)
}

/// values · factor, in whole vectors.
#[inline(always)]
pub(super) fn multiply<S: Simd>(s: S, values: &mut [f32], factor: f32) {
    for x in values.chunks_exact_mut(S::WIDTH) {
        s.store(s.mul(s.load(x), s.splat(factor)), x);
    }
}

/// Adds up the parts' sums of dk and dv, for a share of the row's keys; a vector of D values of scratch.
pub(super) struct Join<'a, E> {
    pub call: &'a Call<'a, E>,
    pub task: &'a Task,
    pub sums: Disjoint<'a, f32>,
    pub scratch: &'a mut [f32],
}

impl<E: Element> Job for Join<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, sums, scratch } = self;
        let Task { row, part, parts, .. } = *task;
        let width = call.heads.width;
        let padded = padded(width);
        for key in row.k_len * part / parts..row.k_len * (part + 1) / parts {
            let at = task.key_index(call.heads, key);
            for (second, gradient, scale) in [(0, call.dk, call.params.scale), (1, call.dv, 1.0)] {
                scratch.fill(0.0);
                let mut start = task.sums_at;
                for p in 0..parts {
                    let part = Part::of(call, row, p, parts);
                    let len = part.sums_len(width);
                    if part.keys.contains(&key) {
                        let from = start + second * len + (key - part.keys.start) * padded;
                        // SAFETY: the sums are complete and only read from now on.
                        let from = unsafe { sums.part(from, padded) };
                        for (sum, x) in scratch.chunks_exact_mut(S::WIDTH).zip(from.chunks_exact(S::WIDTH)) {
                            s.store(s.add(s.load(sum), s.load(x)), sum);
                        }
                    }
                    start += 2 * len;
                }
                multiply(s, scratch, scale);
                // SAFETY: a key and head belong to one share.
                write_values(s, scratch, unsafe { gradient.part(at, width) });
            }
        }
    }
}
