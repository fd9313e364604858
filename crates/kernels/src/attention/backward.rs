//! Backward: dq, dk and dv in one pass over the pairs of query and key blocks, each score computed once more.
//!
//! A task takes a span of queries against a span of keys and adds to the gradients of both. Tasks run in waves:
//! in a wave no two tasks of a row and head share a span of either kind, so nobody waits for a sum and every sum
//! has one order, that of the waves. Sums are f32 and are rounded to the storage type once, at the end.

use super::panels::{
    LANES, ROWS, WIDEST, Widths, dimension_words, lane_words, padded, row_words, step_words, transpose,
    write_values,
};
use super::product::{Left, Right, Size, Sum, product};
use super::scratch::{Borrowed, Disjoint, Line, Pool, take, with_tile};
use super::simd::{Job, Simd, run};
use super::softmax::{Block, Pairs, Statistics, cap, derivative};
use super::tiling::{Heads, KEYS, Lanes, Row, Sight, key_rows};
use super::{AttentionParams, RowOffsets, share_out};
use crate::isa::per_isa;
use crate::{Device, Element};

/// Query positions, and keys, of a task; a multiple of [`KEYS`] and of [`LANES`].
const SPAN: usize = 128;
/// Blocks of keys in a span.
const BLOCKS: usize = SPAN / KEYS;
/// Keys of which one task writes the gradients.
const KEYS_PER_WRITE: usize = 16;
/// Values that one task sets to zero.
const ZEROS_PER_TASK: usize = 64 * 1024;

/// The arrays of a call.
pub(super) struct Call<'a, E> {
    pub params: &'a AttentionParams,
    pub rows: RowOffsets<'a>,
    pub heads: Heads,
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub dout: &'a [E],
    pub lse: &'a [f32],
    pub delta: &'a [f32],
}

/// The gradients.
pub(super) struct Gradients<'a, E> {
    pub dq: &'a mut [E],
    pub dk: &'a mut [E],
    pub dv: &'a mut [E],
}

/// A span of queries against a span of keys, at a row and a key/value head.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    wave: u32,
    row: u32,
    head: u32,
    queries: u32,
    keys: u32,
}

static TASKS: Pool<Task> = Pool::new();
static SUMS: Pool<Line> = Pool::new();

/// Computes dq, dk and dv.
pub(super) fn backward<E: Element>(dev: &Device, call: &Call<'_, E>, gradients: Gradients<'_, E>) {
    let queries = call.q.len() / (call.heads.query * call.heads.width);
    let keys = call.k.len() / (call.heads.key * call.heads.width);
    let layout = SumLayout::of(call.heads, call.rows.q.len() - 1, queries, keys);
    let mut memory = SUMS.values(layout.len());
    let memory = memory.as_mut_slice();
    dev.for_each_chunk(memory, ZEROS_PER_TASK, |_, chunk| chunk.fill(0.0));
    let sums = Disjoint::of(memory);
    let mut tasks = tasks(call);
    for wave in tasks.chunk_by(|a, b| a.wave == b.wave) {
        share_out(dev, wave, |task| {
            with_tile(Scratch::len(call.heads.width), |scratch| {
                run::<E, _>(dev.isa(), SpanPair { call, task, layout, sums, scratch });
            });
        });
    }
    // Once for each span of queries: at the keys that lie at its end.
    tasks.retain(|task| {
        let row = Row::at(call.rows, task.row as usize);
        let end = row.q_len.min((task.queries as usize + 1) * SPAN);
        (row.k_len - row.q_len + end - 1) / SPAN == task.keys as usize
    });
    let dq = Disjoint::of(gradients.dq);
    let sums = &*memory;
    share_out(dev, &tasks, |task| {
        with_tile(layout.tile_len(), |scratch| {
            run::<E, _>(dev.isa(), WriteQueries { call, task, layout, sums, dq, scratch });
        });
    });
    write_keys(dev, call, layout, sums, (gradients.dk, gradients.dv));
}

/// All pairs of spans of which a query sees a key, in waves.
fn tasks<E>(call: &Call<'_, E>) -> Borrowed<'static, Task> {
    let mut tasks = TASKS.borrow();
    tasks.clear();
    for (r, row) in Row::all(call.rows) {
        let (spans_q, spans_k) = (row.q_len.div_ceil(SPAN), row.k_len.div_ceil(SPAN));
        let waves = spans_q.max(spans_k);
        for (queries, keys) in (0..spans_q).flat_map(|i| (0..spans_k).map(move |j| (i, j))) {
            let first = row.k_len - row.q_len + queries * SPAN;
            let last = row.k_len - row.q_len + (row.q_len.min((queries + 1) * SPAN) - 1);
            let window = call.params.window.unwrap_or(usize::MAX);
            let seen = keys * SPAN <= last && ((keys + 1) * SPAN).saturating_add(window) > first + 1;
            if !seen {
                continue;
            }
            // A Latin square: in a wave each span of queries meets another span of keys.
            let wave = (queries + waves - keys) % waves;
            for head in 0..call.heads.key {
                let [wave, row, head, queries, keys] = [wave, r, head, queries, keys].map(|x| x as u32);
                tasks.push(Task { wave, row, head, queries, keys });
            }
        }
    }
    tasks.sort_unstable();
    tasks
}

/// The tiles of a span of queries.
fn query_tiles(row: Row, heads: Heads, span: usize) -> std::ops::Range<usize> {
    let in_span = SPAN / LANES * heads.group();
    span * in_span..row.tiles(heads).min((span + 1) * in_span)
}

/// Where the sums lie: dq transposed by tiles, [K, tiles, D padded, 64], then dk and dv, [K, keys, D padded].
///
/// Products write whole registers: each row of the micro-batch has tiles of its own, and keys up to a register.
#[derive(Clone, Copy)]
pub(super) struct SumLayout {
    heads: Heads,
    tiles: usize,
    keys: usize,
    padded: usize,
}

impl SumLayout {
    pub fn of(heads: Heads, rows: usize, queries: usize, keys: usize) -> Self {
        let tiles = queries * heads.group() / LANES + rows;
        let keys = (keys / WIDEST + rows) * WIDEST;
        Self { heads, tiles, keys, padded: padded(heads.width) }
    }

    fn tile_len(self) -> usize {
        self.padded * LANES
    }

    /// Each row's last tile may be cut short, so that row r has `r` tiles more before it than its lanes fill.
    fn dq(self, head: usize, r: usize, row: Row, tile: usize) -> usize {
        let before = row.q_start * self.heads.group() / LANES + r;
        (head * self.tiles + before + tile) * self.tile_len()
    }

    /// Of key `j` of row r; the same for dv, which lies [`SumLayout::keys_len`] further on.
    fn dk(self, head: usize, r: usize, k_start: usize, j: usize) -> usize {
        let before = (k_start / WIDEST + r) * WIDEST;
        self.heads.key * self.tiles * self.tile_len() + (head * self.keys + before + j) * self.padded
    }

    /// Number of values of dk.
    fn keys_len(self) -> usize {
        self.heads.key * self.keys * self.padded
    }

    /// Number of values.
    pub fn len(self) -> usize {
        self.heads.key * self.tiles * self.tile_len() + 2 * self.keys_len()
    }
}

/// The working memory of a task.
struct Scratch<'a> {
    /// For each block: row words of k, row words of v, dimension words of k.
    keys: &'a mut [f32],
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
    /// Positions, lse and delta of the lanes.
    lanes: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lens(width: usize) -> [usize; 12] {
        let tile = ROWS * padded(width);
        let square = KEYS * LANES;
        let [keys, lanes] = [3 * BLOCKS * tile, 3 * LANES];
        [keys, tile, tile, tile, tile, tile, square, square, square / 2, square / 2, square / 2, lanes]
    }

    fn len(width: usize) -> usize {
        Self::lens(width).iter().sum()
    }

    #[inline(always)]
    fn of(mut values: &'a mut [f32], width: usize) -> Self {
        let lens = Self::lens(width).map(|len| take(&mut values, len));
        let [
            keys,
            q_lanes,
            dout_lanes,
            q_steps,
            dout_steps,
            rows,
            scores,
            dp,
            p_pairs,
            ds_pairs,
            ds_by_key,
            lanes,
        ] = lens;
        #[rustfmt::skip]
        let all = Self {
            keys, q_lanes, dout_lanes, q_steps, dout_steps, rows, scores, dp, p_pairs, ds_pairs, ds_by_key, lanes,
        };
        all
    }
}

struct SpanPair<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    layout: SumLayout,
    sums: Disjoint<'a, f32>,
    scratch: &'a mut [f32],
}

impl<E: Element> Job for SpanPair<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, layout, sums, scratch } = self;
        let widths = Widths::of(s, call.heads.width);
        let mut scratch = Scratch::of(scratch, widths.values);
        let [r, head, queries, span] = [task.row, task.head, task.queries, task.keys].map(|x| x as usize);
        let row = Row::at(call.rows, r);
        let blocks = (span * SPAN..row.k_len.min((span + 1) * SPAN)).step_by(KEYS);
        let block_len = ROWS * widths.padded;
        let len = |start: usize| KEYS.min(row.k_len - start);
        let keys_end = row.k_len.next_multiple_of(WIDEST);
        for (b, start) in blocks.clone().enumerate() {
            let (k, rest) = scratch.keys[3 * b * block_len..].split_at_mut(block_len);
            let (v, k_dimensions) = rest.split_at_mut(block_len);
            let rows = |values| key_rows(values, row, (call.heads, head), (start, len(start)));
            row_words(s, rows(call.k), widths, k);
            row_words(s, rows(call.v), widths, v);
            dimension_words(s, k, widths, scratch.rows, k_dimensions);
        }
        for tile in query_tiles(row, call.heads, queries) {
            let lanes = Lanes::tile(row, call.heads, head, tile * LANES);
            let sight = |start| lanes.sight(call.params, start, len(start));
            if blocks.clone().all(|start| sight(start).keys == 0) {
                continue;
            }
            pack_queries(s, call, lanes, widths, &mut scratch);
            // SAFETY: in a wave this span of queries belongs to this task.
            let dq = unsafe { sums.part(layout.dq(head, r, row, tile), layout.tile_len()) };
            for (b, start) in blocks.clone().enumerate() {
                let sight = sight(start);
                if sight.keys == 0 {
                    continue;
                }
                let (dk, len) =
                    (layout.dk(head, r, row.k_start, start), KEYS.min(keys_end - start) * widths.padded);
                // SAFETY: in a wave this span of keys belongs to this task; dk and dv lie apart.
                let [dk, dv] = unsafe { [dk, dk + layout.keys_len()].map(|at| sums.part(at, len)) };
                let at =
                    Place { block: b, start, sight, columns: lanes.len.next_multiple_of(S::PAIR * S::WIDTH) };
                differentiate(s, call.params, at, widths, &mut scratch, [dq, dk, dv]);
            }
        }
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
    let (lse, delta) = rest.split_at_mut(LANES);
    lanes.write_positions(positions);
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
    /// Its number in the span.
    block: usize,
    /// Its first key.
    start: usize,
    sight: Sight,
    /// Lanes in use, up to a whole vector of words.
    columns: usize,
}

/// Adds what a tile and a block give to dq (transposed), dk and dv, but for the score's scale.
#[inline(always)]
fn differentiate<S: Simd>(
    s: S,
    params: &AttentionParams,
    at: Place,
    widths: Widths,
    scratch: &mut Scratch<'_>,
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let (keys, columns, padded) = (at.sight.keys, at.columns, widths.padded);
    let block_len = ROWS * padded;
    let (k, rest) = scratch.keys[3 * at.block * block_len..].split_at(block_len);
    let (v, k_dimensions) = rest.split_at(block_len);
    let tile = Size { rows: keys, columns, steps: widths.words };
    for (left, right, to) in
        [(k, &*scratch.q_lanes, &mut *scratch.scores), (v, &*scratch.dout_lanes, &mut *scratch.dp)]
    {
        let left = Left { words: left, row: widths.padded_words };
        let to = Sum { values: to, row: LANES, accumulate: false };
        product(s, tile, left, Right { words: right, step: LANES }, to);
    }
    let (positions, rest) = scratch.lanes.split_at(LANES);
    let (lse, delta) = rest.split_at(LANES);
    let window = params.window.map_or(f32::INFINITY, |w| w as f32);
    let block = Block { positions, start: at.start, keys, columns, masked: at.sight.masked, window };
    let mut scale = params.scale;
    if let Some(limit) = params.softcap {
        cap(s, block, scratch.scores, scale, limit);
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
        let left = Left { words: left, row: LANES / S::PAIR };
        let to = Sum { values: to, row: padded, accumulate: true };
        product(s, over_lanes, left, Right { words: right, step: padded }, to);
    }
    product(
        s,
        Size { rows: widths.values, columns, steps: keys.div_ceil(S::PAIR) },
        Left { words: k_dimensions, row: ROWS / S::PAIR },
        Right { words: ds_by_key, step: LANES },
        Sum { values: dq, row: LANES, accumulate: true },
    );
}

/// A span of queries, whose dq is complete.
struct WriteQueries<'a, E> {
    call: &'a Call<'a, E>,
    task: &'a Task,
    layout: SumLayout,
    sums: &'a [f32],
    dq: Disjoint<'a, E>,
    scratch: &'a mut [f32],
}

impl<E: Element> Job for WriteQueries<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, layout, sums, dq, scratch } = self;
        let (heads, width, padded) = (call.heads, call.heads.width, layout.padded);
        let row = Row::at(call.rows, task.row as usize);
        for tile in query_tiles(row, heads, task.queries as usize) {
            let lanes = Lanes::tile(row, heads, task.head as usize, tile * LANES);
            let sums = &sums[layout.dq(lanes.head, task.row as usize, row, tile)..][..layout.tile_len()];
            transpose(s, sums, padded, LANES, scratch);
            for (from, index) in scratch.chunks_exact_mut(padded).zip(lanes.indices()) {
                // SAFETY: a query and head belong to one lane of one task.
                let to = unsafe { dq.part(index * width, width) };
                for x in from.chunks_exact_mut(S::WIDTH) {
                    s.store(s.mul(s.load(x), s.splat(call.params.scale)), x);
                }
                write_values(s, from, to);
            }
        }
    }
}

/// Rounds the sums of dk and dv to the storage type, with the score's scale on dk.
fn write_keys<E: Element>(
    dev: &Device,
    call: &Call<'_, E>,
    layout: SumLayout,
    sums: &[f32],
    (dk, dv): (&mut [E], &mut [E]),
) {
    let (heads, width, scale) = (call.heads.key, call.heads.width, call.params.scale);
    let len = KEYS_PER_WRITE * heads * width;
    dev.for_each_chunk_pair((dk, len), (dv, len), |task, dk, dv| {
        let rows = dk.chunks_exact_mut(width).zip(dv.chunks_exact_mut(width));
        for (i, (dk, dv)) in rows.enumerate() {
            let (key, head) = (task * KEYS_PER_WRITE + i / heads, i % heads);
            let r = call.rows.k.partition_point(|start| *start as usize <= key) - 1;
            let k_start = call.rows.k[r] as usize;
            let from = layout.dk(head, r, k_start, key - k_start);
            scaled(dev.isa(), &sums[from..], scale, dk);
            scaled(dev.isa(), &sums[from + layout.keys_len()..], 1.0, dv);
        }
    });
}

per_isa! {
    fn scaled<E: Element>(from: &[f32], scale: f32, to: &mut [E]) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = E::from_f32(x * scale));
    }
}
