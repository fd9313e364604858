//! Forward: each task takes up to four tiles of queries through the keys that they see, softmax on-line.
//!
//! Where all queries of a row fit into one task, as in decoding, the keys are shared out among tasks as well,
//! and a second pass joins their parts in order.

use super::panels::{
    LANES, ROWS, Widths, dimension_words, lane_words, padded, row_words, transpose, write_values,
};
use super::softmax::{Block, LEAST, Running, cap, online, tilt};
use super::tiling::{Heads, KEYS, Lanes, Row, key_rows};
use super::{AttentionParams, RowOffsets, share_out};
use crate::scratch::{Borrowed, Disjoint, Line, Pool, take, with_tile};
use crate::simd::product::{Left, Right, Size, Sum, product};
use crate::simd::{Job, Simd, prefetch, run};
use crate::{Device, Element};

/// Tiles of a task: they share the packed keys and values.
const TILES: usize = 8;
/// Blocks of keys that are packed before the tiles go through them one by one.
const BLOCKS: usize = 4;
/// Keys of a task where keys are shared out; a multiple of [`KEYS`].
const KEYS_PER_PART: usize = 1024;

/// The arrays of a call.
pub(super) struct Call<'a, E> {
    pub params: &'a AttentionParams<'a>,
    pub rows: RowOffsets<'a>,
    pub heads: Heads,
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub out: Disjoint<'a, E>,
    pub lse: Option<Disjoint<'a, f32>>,
}

/// Some tiles of a row at one key/value head, and the keys to take them through.
#[derive(Clone, Copy)]
struct Task {
    row: Row,
    head: usize,
    first_lane: usize,
    tiles: usize,
    /// First key and the one after the last.
    keys: (usize, usize),
    /// How many tasks share the keys, and which of them this is.
    parts: usize,
    part: usize,
    /// Where this one's states begin if there are more than one.
    part_at: usize,
}

static TASKS: Pool<Task> = Pool::new();
static PARTS: Pool<Line> = Pool::new();

/// Computes out and lse.
pub(super) fn forward<E: Element>(dev: &Device, call: &Call<'_, E>) {
    let state = State::len(call.heads.width);
    let (mut tasks, parts_len) = tasks(call, state);
    let mut parts = PARTS.values(parts_len);
    let parts = Disjoint::of(parts.as_mut_slice());
    tasks.sort_unstable_by_key(|task| {
        let cost = task.tiles * (task.keys.1 - task.keys.0);
        (std::cmp::Reverse(cost), task.row.q_start, task.head, task.first_lane, task.keys.0)
    });
    share_out(dev, &tasks, |task| {
        let scratch_len = Scratch::len(call.heads.width, state);
        with_tile(scratch_len, |scratch| run::<E, _>(dev.isa(), Chunk { call, task, parts, scratch }));
    });
    if parts_len == 0 {
        return;
    }
    tasks.retain(|task| task.parts > 1 && task.part == 0);
    share_out(dev, &tasks, |task| {
        let scratch_len = LANES * padded(call.heads.width);
        with_tile(scratch_len, |scratch| run::<E, _>(dev.isa(), Join { call, task, parts, scratch }));
    });
}

/// All tasks of a call, and how many values the parts of shared keys take.
fn tasks<E>(call: &Call<'_, E>, state: usize) -> (Borrowed<'static, Task>, usize) {
    let mut tasks = TASKS.borrow();
    tasks.clear();
    let mut part_at = 0;
    for (_, row) in Row::all(call.rows) {
        let tiles = row.tiles(call.heads);
        for head in 0..call.heads.key {
            for tile in (0..tiles).step_by(TILES) {
                let taken = TILES.min(tiles - tile);
                let first_lane = tile * LANES;
                let last_lane = ((tile + taken) * LANES).min(row.lanes(call.heads)) - 1;
                let window = call.params.window.unwrap_or(usize::MAX);
                let first = (row.position(call.heads, first_lane) + 1).saturating_sub(window);
                let end = row.position(call.heads, last_lane) + 1;
                let first = first / KEYS * KEYS;
                // Only where the row has no other tasks at this head: a rule of the row alone.
                let shared = tiles <= TILES && end - first > KEYS_PER_PART;
                let share = if shared { KEYS_PER_PART } else { end - first };
                let parts = (end - first).div_ceil(share);
                for (part, from) in (first..end).step_by(share).enumerate() {
                    let keys = (from, end.min(from + share));
                    tasks.push(Task { row, head, first_lane, tiles: taken, keys, parts, part, part_at });
                    part_at += if parts > 1 { taken * state } else { 0 };
                }
            }
        }
    }
    (tasks, part_at)
}

/// What a tile carries from block to block.
struct State<'a> {
    /// Σ p·v, transposed: [D padded, 64].
    out: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> State<'a> {
    fn len(width: usize) -> usize {
        (padded(width) + 2) * LANES
    }

    #[inline(always)]
    fn of(values: &'a mut [f32]) -> Self {
        let (out, rest) = values.split_at_mut(values.len() - 2 * LANES);
        let (max, sum) = rest.split_at_mut(LANES);
        Self { out, max, sum }
    }
}

/// The working memory of a chunk.
struct Scratch<'a> {
    /// For each block: row words of k and dimension words of v.
    keys: &'a mut [f32],
    scores: &'a mut [f32],
    pairs: &'a mut [f32],
    shrink: &'a mut [f32],
    rows: &'a mut [f32],
    steps: &'a mut [f32],
    /// For each tile: lane words of q, positions and slopes.
    queries: &'a mut [f32],
    states: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lens(width: usize, state: usize) -> [usize; 8] {
        let panel = ROWS * padded(width);
        let square = KEYS * LANES;
        [
            2 * BLOCKS * panel,
            square,
            square / 2,
            LANES,
            panel,
            panel,
            TILES * (panel + 2 * LANES),
            TILES * state,
        ]
    }

    fn len(width: usize, state: usize) -> usize {
        Self::lens(width, state).iter().sum()
    }

    #[inline(always)]
    fn of(mut values: &'a mut [f32], width: usize, state: usize) -> Self {
        let [keys, scores, pairs, shrink, rows, steps, queries, states] =
            Self::lens(width, state).map(|len| take(&mut values, len));
        Self { keys, scores, pairs, shrink, rows, steps, queries, states }
    }
}

struct Chunk<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    parts: Disjoint<'a, f32>,
    scratch: &'a mut [f32],
}

impl<E: Element> Job for Chunk<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, parts, scratch } = self;
        let widths = Widths::of(s, call.heads.width);
        let state_len = State::len(widths.values);
        let mut scratch = Scratch::of(scratch, widths.values, state_len);
        if task.parts > 1 {
            // SAFETY: every task has its own part.
            scratch.states = unsafe { parts.part(task.part_at, task.tiles * state_len) };
        }
        let tile = |t: usize| Lanes::tile(task.row, call.heads, task.head, task.first_lane + t * LANES);
        let (words_len, query_len) = (LANES * widths.padded, LANES * (widths.padded + 2));
        for t in 0..task.tiles {
            let (words, rest) = scratch.queries[t * query_len..][..query_len].split_at_mut(words_len);
            let (positions, slopes) = rest.split_at_mut(LANES);
            row_words(s, tile(t).rows(call.q), widths, scratch.rows);
            lane_words(s, scratch.rows, widths, words);
            tile(t).write_positions(positions);
            if let Some(all) = call.params.slopes {
                tile(t).write_slopes(all, slopes);
            }
            let state = State::of(&mut scratch.states[t * state_len..][..state_len]);
            state.max.fill(LEAST);
            state.sum.fill(0.0);
        }
        let mut begun = [false; TILES];
        let panel = ROWS * widths.padded_words;
        for chunk in (task.keys.0..task.keys.1).step_by(BLOCKS * KEYS) {
            let blocks = (chunk..task.keys.1.min(chunk + BLOCKS * KEYS)).step_by(KEYS);
            let len = |start: usize| KEYS.min(task.keys.1 - start);
            for (start, panels) in blocks.clone().zip(scratch.keys.chunks_exact_mut(2 * panel)) {
                let heads = (call.heads, task.head);
                // The rows of a head are too far apart for the hardware to foresee, and in decoding they come from memory.
                let next = (start + len(start), len(start + len(start)));
                for values in [call.k, call.v] {
                    key_rows(values, task.row, heads, next).for_each(prefetch);
                }
                let (k, v) = panels.split_at_mut(panel);
                row_words(s, key_rows(call.k, task.row, heads, (start, len(start))), widths, k);
                row_words(s, key_rows(call.v, task.row, heads, (start, len(start))), widths, scratch.rows);
                dimension_words(s, scratch.rows, widths, scratch.steps, v);
            }
            for (t, begun) in begun.iter_mut().enumerate().take(task.tiles) {
                let (q, rest) = scratch.queries[t * query_len..][..query_len].split_at(words_len);
                let (positions, slopes) = rest.split_at(LANES);
                for (start, panels) in blocks.clone().zip(scratch.keys.chunks_exact(2 * panel)) {
                    let sight = tile(t).sight(call.params, start, len(start));
                    if sight.keys == 0 {
                        continue;
                    }
                    let block = Block {
                        positions,
                        start,
                        keys: sight.keys,
                        columns: tile(t).len.next_multiple_of(S::WIDTH),
                        masked: sight.masked,
                        window: call.params.window.map_or(f32::INFINITY, |w| w as f32),
                    };
                    let state = State::of(&mut scratch.states[t * state_len..][..state_len]);
                    let (k, v) = panels.split_at(panel);
                    let memory = (&mut *scratch.scores, &mut *scratch.pairs, &mut *scratch.shrink);
                    attend(
                        s,
                        call.params,
                        block,
                        widths,
                        Factors { q, k, v, slopes },
                        memory,
                        (state, *begun),
                    );
                    *begun = true;
                }
            }
        }
        for t in (0..task.tiles).filter(|t| !begun[*t]) {
            State::of(&mut scratch.states[t * state_len..][..state_len]).out.fill(0.0);
        }
        if task.parts == 1 {
            for t in 0..task.tiles {
                let state = State::of(&mut scratch.states[t * state_len..][..state_len]);
                finish(s, call, tile(t), state, scratch.rows);
            }
        }
    }
}

/// Panels of a tile and a block.
#[derive(Clone, Copy)]
struct Factors<'a> {
    /// Lane words of the queries.
    q: &'a [f32],
    /// Row words of the keys.
    k: &'a [f32],
    /// Dimension words of the values.
    v: &'a [f32],
    /// Of the queries' heads, if there are any.
    slopes: &'a [f32],
}

/// Takes a tile through a block of keys; if it is not the first, `state.out` has `begun`.
#[inline(always)]
fn attend<S: Simd>(
    s: S,
    params: &AttentionParams<'_>,
    block: Block<'_>,
    widths: Widths,
    panels: Factors<'_>,
    (scores, pairs, shrink): (&mut [f32], &mut [f32], &mut [f32]),
    (state, begun): (State<'_>, bool),
) {
    let columns = block.columns;
    product(
        s,
        Size { rows: block.keys, columns, steps: widths.words },
        Left { words: panels.k, row: widths.padded_words, step: 1 },
        Right { words: panels.q, step: LANES },
        Sum { values: scores, row: LANES, accumulate: false },
    );
    let mut scale = params.scale;
    if let Some(limit) = params.softcap {
        cap(s, block, scores, scale, limit);
        scale = 1.0;
    }
    if params.slopes.is_some() {
        tilt(s, block, scores, scale, panels.slopes);
        scale = 1.0;
    }
    let mut running = Running { max: state.max, sum: state.sum, shrink };
    online(s, block, scale * std::f32::consts::LOG2_E, scores, pairs, &mut running);
    if begun && shrink[..columns].iter().any(|shrink| *shrink != 1.0) {
        for row in state.out[..widths.values * LANES].chunks_exact_mut(LANES) {
            for (x, shrink) in row.iter_mut().zip(&*shrink) {
                *x *= shrink;
            }
        }
    }
    product(
        s,
        Size { rows: widths.values, columns, steps: block.keys.div_ceil(S::PAIR) },
        Left { words: panels.v, row: ROWS / S::PAIR, step: 1 },
        Right { words: if S::PAIR == 1 { scores } else { pairs }, step: LANES },
        Sum { values: state.out, row: LANES, accumulate: begun },
    );
}

/// Divides by the sums and writes out and lse.
#[inline(always)]
fn finish<S: Simd, E: Element>(s: S, call: &Call<'_, E>, lanes: Lanes, state: State<'_>, rows: &mut [f32]) {
    let width = call.heads.width;
    let padded = padded(width);
    for at in (0..LANES).step_by(S::WIDTH) {
        let over_sum = s.div(s.splat(1.0), s.load(&state.sum[at..]));
        for row in state.out.chunks_exact_mut(LANES) {
            s.store(s.mul(s.load(&row[at..]), over_sum), &mut row[at..]);
        }
    }
    transpose(s, state.out, padded, LANES, rows);
    for (lane, index) in lanes.indices().enumerate() {
        // SAFETY: a query and head belong to one lane of one task.
        let out = unsafe { call.out.part(index * width, width) };
        write_values(s, &rows[lane * padded..], out);
    }
    if let Some(lse) = &call.lse {
        for (lane, index) in lanes.indices().enumerate() {
            // SAFETY: as above.
            let lse = unsafe { lse.part(index, 1) };
            lse[0] = state.max[lane] * std::f32::consts::LN_2 + state.sum[lane].ln();
        }
    }
}

/// Joins the parts of which `task` is the first.
struct Join<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    parts: Disjoint<'a, f32>,
    scratch: &'a mut [f32],
}

impl<E: Element> Job for Join<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, parts, scratch } = self;
        let state_len = State::len(call.heads.width);
        let part_len = task.tiles * state_len;
        for t in 0..task.tiles {
            let lanes = Lanes::tile(task.row, call.heads, task.head, task.first_lane + t * LANES);
            // SAFETY: the parts of this row and head are this task's alone, and no two of them overlap.
            let part =
                |p: usize| unsafe { parts.part(task.part_at + p * part_len + t * state_len, state_len) };
            let all = State::of(part(0));
            for p in 1..task.parts {
                let part = State::of(part(p));
                for at in (0..LANES).step_by(S::WIDTH) {
                    let (a, b) = (s.load(&all.max[at..]), s.load(&part.max[at..]));
                    let max = s.max(a, b);
                    let (a, b) = (s.exp2(s.sub(a, max)), s.exp2(s.sub(b, max)));
                    let rows = all.out.chunks_exact_mut(LANES).zip(part.out.chunks_exact(LANES));
                    for (x, y) in rows.chain(std::iter::once((&mut *all.sum, &*part.sum))) {
                        let sum = s.mul_add(s.load(&x[at..]), a, s.mul(s.load(&y[at..]), b));
                        s.store(sum, &mut x[at..]);
                    }
                    s.store(max, &mut all.max[at..]);
                }
            }
            finish(s, call, lanes, all, scratch);
        }
    }
}
