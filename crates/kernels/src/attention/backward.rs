//! Backward: dq, dk and dv in one pass over tiles of queries and blocks of keys, each score computed once more.
//!
//! A task takes a part of the tiles of a row, at a key/value head, through the keys that they see, in chunks whose
//! panels and sums of dk and dv stay in the second-level cache. A long row has several parts; their sums of dk and dv
//! are kept apart and a second pass joins them in order, so that nobody waits for a sum and every sum has one order.
//! Sums are f32 and are rounded to the storage type once, at the end.

use std::ops::Range;

use super::panels::{
    LANES, ROWS, Widths, dimension_words, lane_words, padded, row_words, step_words, transpose, write_values,
};
use super::parts::{Join, Part, QUERIES_PER_PART, Task, multiply, parts, tasks};
use super::softmax::{Block, Pairs, Statistics, cap, derivative, tilt};
use super::tiling::{Heads, KEYS, Lanes, Row, Sight, key_rows};
use super::{AttentionParams, RowOffsets, share_out};
use crate::scratch::{Disjoint, Line, Pool, take, with_tile};
use crate::simd::product::{Left, Right, Size, Sum, product};
use crate::simd::{Job, Simd, run};
use crate::{Device, Element};

/// Keys of a chunk; a multiple of [`KEYS`].
const CHUNK: usize = 512;
/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / KEYS;
/// The arrays of a call.
pub(super) struct Call<'a, E> {
    pub params: &'a AttentionParams<'a>,
    pub rows: RowOffsets<'a>,
    pub heads: Heads,
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub dout: &'a [E],
    pub lse: &'a [f32],
    pub delta: &'a [f32],
    pub dq: Disjoint<'a, E>,
    pub dk: Disjoint<'a, E>,
    pub dv: Disjoint<'a, E>,
}

static SUMS: Pool<Line> = Pool::new();

/// Computes dq, dk and dv.
pub(super) fn backward<E: Element>(dev: &Device, call: &Call<'_, E>) {
    let (mut tasks, sums_len) = tasks(call);
    let mut sums = SUMS.values(sums_len);
    let sums = Disjoint::of(sums.as_mut_slice());
    share_out(dev, &tasks, |task| {
        let part = Part::of(call, task.row, task.part, task.parts);
        with_tile(Scratch::len(call.heads.width, slots(&part)), |scratch| {
            run::<E, _>(dev.isa(), Span { call, task, part, sums, scratch });
        });
    });
    tasks.retain(|task| task.parts > 1);
    share_out(dev, &tasks, |task| {
        with_tile(padded(call.heads.width), |scratch| {
            run::<E, _>(dev.isa(), Join { call, task, sums, scratch });
        });
    });
    let (dk, dv, row_len) = (call.dk, call.dv, call.heads.key * call.heads.width);
    for row in (0..call.rows.q.len() - 1).map(|r| Row::at(call.rows, r)).filter(|row| row.q_len == 0) {
        for gradient in [dk, dv] {
            // SAFETY: all tasks are done.
            unsafe { gradient.part(row.k_start * row_len, row.k_len * row_len) }.fill(E::from_f32(0.0));
        }
    }
}

/// Tiles of a part whose sums of dq are kept: where there are several chunks, all, and else the one at work.
fn slots(part: &Part) -> usize {
    1 + if part.is_chunked(CHUNK) { part.tiles.len() } else { 0 }
}

/// Bytes that sums take, in all threads, of so many queries and keys in rows of at most `longest` keys.
pub(super) fn scratch_bytes(
    heads: Heads,
    [queries, keys]: [usize; 2],
    longest: usize,
    threads: usize,
) -> usize {
    let (row_len, parts) = (padded(heads.width), parts(longest));
    // Rows of several parts have more queries than one.
    let keys = keys.min(queries / QUERIES_PER_PART * longest);
    // The keys of a part end with its last query: on the mean a part has half of them, and half a part's.
    let dk_and_dv = if parts > 1 { heads.key * keys * (parts + 1) * row_len } else { 0 };
    let tiles = (longest * heads.group()).div_ceil(LANES).div_ceil(parts);
    let dq = if longest > CHUNK { threads * (tiles + 1) * LANES * row_len } else { 0 };
    (dk_and_dv + dq) * size_of::<f32>()
}

/// The working memory of a task.
struct Scratch<'a> {
    /// For each block: row words of k, row words of v, dimension words of k.
    keys: &'a mut [f32],
    /// Sums of dk and dv of the chunk.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Sums of dq, transposed, for each slot.
    dq: &'a mut [f32],
    q_lanes: &'a mut [f32],
    dout_lanes: &'a mut [f32],
    q_steps: &'a mut [f32],
    dout_steps: &'a mut [f32],
    rows: &'a mut [f32],
    scores: &'a mut [f32],
    dp: &'a mut [f32],
    p_pairs: &'a mut [f32],
    ds_pairs: &'a mut [f32],
    ds_by_key: &'a mut [f32],
    /// Positions, lse, delta and slopes of the lanes.
    lanes: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lens(width: usize, slots: usize) -> [usize; 15] {
        let tile = ROWS * padded(width);
        let [square, half] = [KEYS * LANES, KEYS * LANES / 2];
        let [keys, sums, dq, lanes] = [3 * BLOCKS * tile, BLOCKS * tile, slots * tile, 4 * LANES];
        [keys, sums, sums, dq, tile, tile, tile, tile, tile, square, square, half, half, half, lanes]
    }

    fn len(width: usize, slots: usize) -> usize {
        Self::lens(width, slots).iter().sum()
    }

    #[inline(always)]
    #[rustfmt::skip]
    fn of(mut values: &'a mut [f32], width: usize, slots: usize) -> Self {
        let [
            keys, dk, dv, dq, q_lanes, dout_lanes, q_steps, dout_steps, rows, scores, dp, p_pairs, ds_pairs,
            ds_by_key, lanes,
        ] = Self::lens(width, slots).map(|len| take(&mut values, len));
        Self {
            keys, dk, dv, dq, q_lanes, dout_lanes, q_steps, dout_steps, rows, scores, dp, p_pairs, ds_pairs,
            ds_by_key, lanes,
        }
    }
}

struct Span<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    part: Part,
    sums: Disjoint<'a, f32>,
    scratch: &'a mut [f32],
}

impl<E: Element> Job for Span<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, part, sums, scratch } = self;
        let (row, heads) = (task.row, call.heads);
        let widths = Widths::of(s, heads.width);
        let work = Work { call, task, widths };
        let mut scratch = Scratch::of(scratch, heads.width, slots(&part));
        if task.parts == 1 {
            write_zeros(call, task, 0..part.keys.start);
        }
        for chunk in (part.keys.start / CHUNK * CHUNK..part.keys.end).step_by(CHUNK) {
            let keys = chunk.max(part.keys.start)..part.keys.end.min(chunk + CHUNK);
            begin_chunk(s, &work, keys.clone(), &mut scratch);
            for tile in part.tiles.clone() {
                let lanes = Lanes::tile(row, heads, task.head, tile * LANES);
                let seen = lanes.keys(call.params);
                if seen.end <= keys.start || keys.end <= seen.start {
                    continue;
                }
                let (mut begun, done) = (seen.start < keys.start, seen.end <= keys.end);
                let slot = if begun || !done { 1 + tile - part.tiles.start } else { 0 };
                pack_queries(s, call, lanes, widths, &mut scratch);
                for (block, start) in keys.clone().step_by(KEYS).enumerate() {
                    let sight = lanes.sight(call.params, start, KEYS.min(keys.end - start));
                    if sight.keys > 0 {
                        let columns = lanes.len.next_multiple_of(S::PAIR * S::WIDTH);
                        let at = Place { block, start, sight, columns, slot, begun };
                        differentiate(s, call.params, at, widths, &mut scratch);
                        begun = true;
                    }
                }
                if done {
                    write_queries(s, &work, lanes, slot, &mut scratch);
                }
            }
            if task.parts == 1 {
                write_keys(s, &work, keys, &mut scratch);
            } else {
                let at = task.own_sums_at(call) + (keys.start - part.keys.start) * widths.padded;
                let len = keys.len() * widths.padded;
                for (at, from) in [(at, &*scratch.dk), (at + part.sums_len(heads.width), &*scratch.dv)] {
                    // SAFETY: every part of a row and head has sums of its own.
                    unsafe { sums.part(at, len) }.copy_from_slice(&from[..len]);
                }
            }
        }
    }
}

/// What all steps of a task need.
struct Work<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    widths: Widths,
}

/// Panels of a chunk of keys; its sums are zero.
#[inline(always)]
fn begin_chunk<S: Simd, E: Element>(s: S, work: &Work<'_, E>, keys: Range<usize>, scratch: &mut Scratch<'_>) {
    let Work { call, task, widths } = *work;
    let sums = keys.len().next_multiple_of(ROWS) * widths.padded;
    scratch.dk[..sums].fill(0.0);
    scratch.dv[..sums].fill(0.0);
    let panel = ROWS * widths.padded_words;
    for (start, panels) in keys.clone().step_by(KEYS).zip(scratch.keys.chunks_exact_mut(3 * panel)) {
        let (k, rest) = panels.split_at_mut(panel);
        let (v, k_dimensions) = rest.split_at_mut(panel);
        let len = KEYS.min(keys.end - start);
        let rows = |values| key_rows(values, task.row, (call.heads, task.head), (start, len));
        row_words(s, rows(call.k), widths, k);
        row_words(s, rows(call.v), widths, v);
        dimension_words(s, k, widths, scratch.rows, k_dimensions);
    }
}

/// Panels and statistics of a tile of queries.
#[inline(always)]
fn pack_queries<S: Simd, E: Element>(
    s: S,
    call: &Call<'_, E>,
    lanes: Lanes,
    widths: Widths,
    scratch: &mut Scratch<'_>,
) {
    row_words(s, lanes.rows(call.q), widths, scratch.rows);
    lane_words(s, scratch.rows, widths, scratch.q_lanes);
    step_words(s, scratch.rows, widths, scratch.q_steps);
    row_words(s, lanes.rows(call.dout), widths, scratch.rows);
    lane_words(s, scratch.rows, widths, scratch.dout_lanes);
    step_words(s, scratch.rows, widths, scratch.dout_steps);
    let (positions, rest) = scratch.lanes.split_at_mut(LANES);
    let (lse, rest) = rest.split_at_mut(LANES);
    let (delta, slopes) = rest.split_at_mut(LANES);
    lanes.write_positions(positions);
    if let Some(all) = call.params.slopes {
        lanes.write_slopes(all, slopes);
    }
    lse.fill(f32::INFINITY);
    delta.fill(0.0);
    for (lane, index) in lanes.indices().enumerate() {
        lse[lane] = call.lse[index] * std::f32::consts::LOG2_E;
        delta[lane] = call.delta[index];
    }
}

/// A block of keys in a task.
#[derive(Clone, Copy)]
struct Place {
    /// Its number in the chunk.
    block: usize,
    /// Its first key.
    start: usize,
    sight: Sight,
    /// Lanes in use, up to a whole vector of words.
    columns: usize,
    /// Where the sums of dq lie.
    slot: usize,
    /// Whether there is something in them.
    begun: bool,
}

/// Adds what a tile and a block give to dq (transposed), dk and dv, but for the score's scale.
#[inline(always)]
fn differentiate<S: Simd>(
    s: S,
    params: &AttentionParams<'_>,
    at: Place,
    widths: Widths,
    scratch: &mut Scratch<'_>,
) {
    let (keys, columns, padded) = (at.sight.keys, at.columns, widths.padded);
    let panel = ROWS * widths.padded_words;
    let (k, rest) = scratch.keys[3 * at.block * panel..].split_at(panel);
    let (v, k_dimensions) = rest.split_at(panel);
    let tile = Size { rows: keys, columns, steps: widths.words };
    for (left, right, to) in
        [(k, &*scratch.q_lanes, &mut *scratch.scores), (v, &*scratch.dout_lanes, &mut *scratch.dp)]
    {
        let left = Left { words: left, row: widths.padded_words, step: 1 };
        let to = Sum { values: to, row: LANES, accumulate: false };
        product(s, tile, left, Right { words: right, step: LANES }, to);
    }
    let sums = at.block * ROWS * padded;
    let (dk, dv) = (&mut scratch.dk[sums..][..ROWS * padded], &mut scratch.dv[sums..][..ROWS * padded]);
    let (positions, rest) = scratch.lanes.split_at(LANES);
    let (lse, rest) = rest.split_at(LANES);
    let (delta, slopes) = rest.split_at(LANES);
    let window = params.window.map_or(f32::INFINITY, |w| w as f32);
    let block = Block { positions, start: at.start, keys, columns, masked: at.sight.masked, window };
    let mut scale = params.scale;
    if let Some(limit) = params.softcap {
        cap(s, block, scratch.scores, scale, limit);
        scale = 1.0;
    }
    if params.slopes.is_some() {
        tilt(s, block, scratch.scores, scale, slopes);
        scale = 1.0;
    }
    derivative(
        s,
        block,
        (scale * std::f32::consts::LOG2_E, params.softcap),
        Statistics { lse, delta },
        (scratch.scores, scratch.dp),
        &mut Pairs { p: scratch.p_pairs, ds: scratch.ds_pairs, ds_by_key: scratch.ds_by_key },
    );
    let (p, ds, ds_by_key) = if S::PAIR == 1 {
        (&*scratch.scores, &*scratch.dp, &*scratch.dp)
    } else {
        (&*scratch.p_pairs, &*scratch.ds_pairs, &*scratch.ds_by_key)
    };
    let over_lanes = Size { rows: keys, columns: widths.values, steps: columns / S::PAIR };
    for (left, right, to) in [(p, &*scratch.dout_steps, dv), (ds, &*scratch.q_steps, dk)] {
        let left = Left { words: left, row: LANES / S::PAIR, step: 1 };
        let to = Sum { values: to, row: padded, accumulate: true };
        product(s, over_lanes, left, Right { words: right, step: padded }, to);
    }
    product(
        s,
        Size { rows: widths.values, columns, steps: keys.div_ceil(S::PAIR) },
        Left { words: k_dimensions, row: ROWS / S::PAIR, step: 1 },
        Right { words: ds_by_key, step: LANES },
        Sum { values: &mut scratch.dq[at.slot * LANES * padded..], row: LANES, accumulate: at.begun },
    );
}

/// Rounds the sums of a tile's dq to the storage type, with the score's scale.
#[inline(always)]
fn write_queries<S: Simd, E: Element>(
    s: S,
    work: &Work<'_, E>,
    lanes: Lanes,
    slot: usize,
    scratch: &mut Scratch<'_>,
) {
    let Work { call, widths, .. } = *work;
    let (width, padded) = (widths.values, widths.padded);
    let sums = &scratch.dq[slot * LANES * padded..][..LANES * padded];
    transpose(s, sums, padded, LANES, scratch.rows);
    for (from, index) in scratch.rows.chunks_exact_mut(padded).zip(lanes.indices()) {
        multiply(s, from, call.params.scale);
        // SAFETY: a query and head belong to one lane of one task.
        write_values(s, from, unsafe { call.dq.part(index * width, width) });
    }
}

/// Rounds the sums of dk and dv of a chunk.
#[inline(always)]
fn write_keys<S: Simd, E: Element>(s: S, work: &Work<'_, E>, keys: Range<usize>, scratch: &mut Scratch<'_>) {
    let Work { call, task, widths } = *work;
    let sums = scratch.dk.chunks_exact_mut(widths.padded).zip(scratch.dv.chunks_exact(widths.padded));
    for (key, (dk, dv)) in keys.zip(sums) {
        multiply(s, dk, call.params.scale);
        let at = task.key_index(call.heads, key);
        // SAFETY: a key and head belong to one task where a row is one part.
        unsafe {
            write_values(s, dk, call.dk.part(at, widths.values));
            write_values(s, dv, call.dv.part(at, widths.values));
        }
    }
}

/// Keys that no query sees have no gradient.
fn write_zeros<E: Element>(call: &Call<'_, E>, task: &Task, keys: Range<usize>) {
    for key in keys {
        let at = task.key_index(call.heads, key);
        for gradient in [call.dk, call.dv] {
            // SAFETY: a key and head belong to one task where a row is one part.
            unsafe { gradient.part(at, call.heads.width) }.fill(E::from_f32(0.0));
        }
    }
}
