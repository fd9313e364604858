//! The elementwise part of attention on a tile of scores [keys, 64 lanes]: scale, cap, mask, softmax on-line and
//! its derivative.
//!
//! Everything is in powers of two: p = 2^(x − m) with x = score · log₂ e.

use super::panels::LANES;
use crate::simd::Simd;

/// A running maximum that is below every score, and finite, so that differences of maxima are never NaN.
pub(super) const LEAST: f32 = -1e30;

/// A block of keys as the lanes of a tile see it.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Position of the query in each lane.
    pub positions: &'a [f32],
    /// Position of the first key.
    pub start: usize,
    pub keys: usize,
    /// Lanes in use, up to a whole vector.
    pub columns: usize,
    /// Whether some lane does not see some key.
    pub masked: bool,
    /// Keys that a query sees at most; infinite without a window.
    pub window: f32,
}

/// Scores become cap · tanh(score · scale / cap).
#[inline(always)]
pub(super) fn cap<S: Simd>(s: S, block: Block<'_>, scores: &mut [f32], scale: f32, cap: f32) {
    for row in scores.chunks_exact_mut(LANES).take(block.keys) {
        for x in row[..block.columns].chunks_exact_mut(S::WIDTH) {
            let t = tanh(s, s.mul(s.load(x), s.splat(scale / cap)));
            s.store(s.mul(t, s.splat(cap)), x);
        }
    }
}

/// Scores become score · scale − slope · distance, `slopes` being those of the lanes.
#[inline(always)]
pub(super) fn tilt<S: Simd>(s: S, block: Block<'_>, scores: &mut [f32], scale: f32, slopes: &[f32]) {
    for (j, row) in scores.chunks_exact_mut(LANES).take(block.keys).enumerate() {
        let key = s.splat((block.start + j) as f32);
        for at in (0..block.columns).step_by(S::WIDTH) {
            let before = s.sub(key, s.load(&block.positions[at..]));
            let bias = s.mul(s.load(&slopes[at..]), before);
            let x = &mut row[at..];
            s.store(s.mul_add(s.load(x), s.splat(scale), bias), x);
        }
    }
}

/// tanh x = (1 − e)/(1 + e) with e = 2^(−2x·log₂ e), and Taylor's polynomial where that cancels.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    /// Below this the polynomial's remainder is under 3e-8 of tanh.
    const SMALL: f32 = 0.3;
    let square = s.mul(x, x);
    let mut series = s.splat(62.0 / 2835.0);
    for c in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
        series = s.mul_add(series, square, s.splat(c));
    }
    // The exponent is kept below 128, where tanh is −1 long since.
    let negative = s.mul(x, s.splat(-2.0 * std::f32::consts::LOG2_E));
    let limit = s.splat(-64.0);
    let exponent = s.sub(s.splat(0.0), s.max(limit, s.sub(s.splat(0.0), negative)));
    let e = s.exp2(exponent);
    let one = s.splat(1.0);
    let large = s.div(s.sub(one, e), s.add(one, e));
    s.keep_within(square, s.splat(SMALL * SMALL), s.mul(series, x), large)
}

/// What the softmax of a tile keeps from block to block, one value a lane.
pub(super) struct Running<'a> {
    /// The largest x so far.
    pub max: &'a mut [f32],
    /// Σ 2^(x − max) so far.
    pub sum: &'a mut [f32],
    /// 2^(max before − max now), by which sums of older blocks are to be multiplied.
    pub shrink: &'a mut [f32],
}

/// Scores · `scale` become p relative to the new maximum, in `scores` or, where words are pairs of keys, in `pairs`.
#[inline(always)]
pub(super) fn online<S: Simd>(
    s: S,
    block: Block<'_>,
    scale: f32,
    scores: &mut [f32],
    pairs: &mut [f32],
    running: &mut Running<'_>,
) {
    let mut at = 0;
    while at < block.columns {
        if at + 4 * S::WIDTH <= block.columns {
            online_columns::<S, 4>(s, block, scale, (scores, pairs), running, at);
            at += 4 * S::WIDTH;
        } else {
            online_columns::<S, 1>(s, block, scale, (scores, pairs), running, at);
            at += S::WIDTH;
        }
    }
    if S::PAIR == 2 {
        clear_up_to_block(pairs, LANES, block.keys.div_ceil(S::PAIR), S::BLOCK[2]);
    }
}

/// `N` vectors of lanes from lane `at` on.
#[inline(always)]
fn online_columns<S: Simd, const N: usize>(
    s: S,
    block: Block<'_>,
    scale: f32,
    (scores, pairs): (&mut [f32], &mut [f32]),
    running: &mut Running<'_>,
    at: usize,
) {
    let lane = |i: usize| at + i * S::WIDTH;
    let none = s.splat(f32::NEG_INFINITY);
    let window = s.splat(block.window);
    let mut max = [none; N];
    let mut distances = [none; N];
    for (i, distance) in distances.iter_mut().enumerate() {
        *distance = s.sub(s.load(&block.positions[lane(i)..]), s.splat(block.start as f32));
    }
    for (j, row) in scores.chunks_exact_mut(LANES).take(block.keys).enumerate() {
        for i in 0..N {
            let mut x = s.load(&row[lane(i)..]);
            if block.masked {
                x = s.keep_within(s.sub(distances[i], s.splat(j as f32)), window, x, none);
                s.store(x, &mut row[lane(i)..]);
            }
            max[i] = s.max(x, max[i]);
        }
    }
    let scale = s.splat(scale);
    let mut sum = [none; N];
    let mut offset = [none; N];
    for i in 0..N {
        let before = s.load(&running.max[lane(i)..]);
        let max = s.max(s.mul(max[i], scale), before);
        let shrink = s.exp2(s.sub(before, max));
        offset[i] = s.sub(s.splat(0.0), max);
        sum[i] = s.mul(s.load(&running.sum[lane(i)..]), shrink);
        s.store(max, &mut running.max[lane(i)..]);
        s.store(shrink, &mut running.shrink[lane(i)..]);
    }
    let mut rows = scores.chunks_exact_mut(LANES).take(block.keys);
    let mut words = pairs.chunks_exact_mut(LANES);
    while let Some(row) = rows.next() {
        let second = if S::PAIR == 2 { rows.next() } else { None };
        let mut words = if S::PAIR == 2 { words.next() } else { None };
        for i in 0..N {
            let first = power(s, &row[lane(i)..], scale, offset[i]);
            sum[i] = s.add(sum[i], first);
            let Some(words) = &mut words else {
                s.store(first, &mut row[lane(i)..]);
                continue;
            };
            let mut other = s.splat(0.0);
            if let Some(second) = &second {
                other = power(s, &second[lane(i)..], scale, offset[i]);
                sum[i] = s.add(sum[i], other);
            }
            s.store(s.pair(first, other), &mut words[lane(i)..]);
        }
    }
    for (i, sum) in sum.into_iter().enumerate() {
        s.store(sum, &mut running.sum[lane(i)..]);
    }
}

/// 2^(score · scale + offset).
// Not a closure, which would be compiled for other instructions where it is not inlined.
#[inline(always)]
fn power<S: Simd>(s: S, score: &[f32], scale: S::V, offset: S::V) -> S::V {
    s.exp2(s.mul_add(s.load(score), scale, offset))
}

/// Sets the rows from `used` on up to a multiple of `block` to zero.
#[inline(always)]
fn clear_up_to_block(words: &mut [f32], row: usize, used: usize, block: usize) {
    words[used * row..used.next_multiple_of(block) * row].fill(0.0);
}

/// What the derivative needs of each lane.
#[derive(Clone, Copy)]
pub(super) struct Statistics<'a> {
    /// log₂ Σ 2ˣ, infinite where there is no query.
    pub lse: &'a [f32],
    /// dout·out.
    pub delta: &'a [f32],
}

/// Where p and ds go where words are pairs (in place otherwise).
pub(super) struct Pairs<'a> {
    /// p, pairs of lanes in a word: [keys, 32].
    pub p: &'a mut [f32],
    /// ds likewise.
    pub ds: &'a mut [f32],
    /// ds, pairs of keys in a word: [⌈keys/2⌉, 64].
    pub ds_by_key: &'a mut [f32],
}

/// From scores s and dp to p = 2^(s · `scale` − lse) and ds = p · (dp − delta) · (1 − (s / cap)²).
///
/// In place, or in `pairs`. The score's own scale is left to the caller.
#[inline(always)]
pub(super) fn derivative<S: Simd>(
    s: S,
    block: Block<'_>,
    (scale, cap): (f32, Option<f32>),
    lanes: Statistics<'_>,
    (scores, dp): (&mut [f32], &mut [f32]),
    pairs: &mut Pairs<'_>,
) {
    if S::PAIR == 1 {
        for at in (0..block.columns).step_by(S::WIDTH) {
            let column = Column::of(s, block, (scale, cap), lanes, at);
            let rows = scores.chunks_exact_mut(LANES).zip(dp.chunks_exact_mut(LANES));
            for (j, (score, dp)) in rows.take(block.keys).enumerate() {
                let (p, ds) = column.at(s, j, s.load(&score[at..]), s.load(&dp[at..]));
                s.store(p, &mut score[at..]);
                s.store(ds, &mut dp[at..]);
            }
        }
        return;
    }
    for at in (0..block.columns).step_by(2 * S::WIDTH) {
        let low = Column::of(s, block, (scale, cap), lanes, at);
        let high = Column::of(s, block, (scale, cap), lanes, at + S::WIDTH);
        for j in (0..block.keys).step_by(2) {
            let mut by_lane = [[s.splat(0.0); 2]; 2];
            for (i, by_lane) in by_lane.iter_mut().enumerate().take(block.keys - j) {
                let key = (j + i) * LANES + at;
                let (p, ds) = low.at(s, j + i, s.load(&scores[key..]), s.load(&dp[key..]));
                let next = key + S::WIDTH;
                let (p_high, ds_high) = high.at(s, j + i, s.load(&scores[next..]), s.load(&dp[next..]));
                s.store(s.narrow(p, p_high), &mut pairs.p[key / 2..]);
                s.store(s.narrow(ds, ds_high), &mut pairs.ds[key / 2..]);
                *by_lane = [ds, ds_high];
            }
            for (i, (first, second)) in by_lane[0].into_iter().zip(by_lane[1]).enumerate() {
                let words = s.pair(first, second);
                s.store(words, &mut pairs.ds_by_key[j / 2 * LANES + at + i * S::WIDTH..]);
            }
        }
    }
    let [rows, _, steps] = S::BLOCK;
    clear_up_to_block(pairs.p, LANES / 2, block.keys, rows);
    clear_up_to_block(pairs.ds, LANES / 2, block.keys, rows);
    clear_up_to_block(pairs.ds_by_key, LANES, block.keys.div_ceil(2), steps);
}

/// A vector of lanes in [`derivative`].
struct Column<S: Simd> {
    scale: S::V,
    /// −1/cap².
    over_cap: Option<f32>,
    /// −lse.
    lse: S::V,
    delta: S::V,
    /// From the block's first key to the query.
    distance: S::V,
    window: S::V,
    masked: bool,
}

impl<S: Simd> Column<S> {
    #[inline(always)]
    fn of(
        s: S,
        block: Block<'_>,
        (scale, cap): (f32, Option<f32>),
        lanes: Statistics<'_>,
        at: usize,
    ) -> Self {
        Self {
            scale: s.splat(scale),
            over_cap: cap.map(|cap| -1.0 / (cap * cap)),
            lse: s.sub(s.splat(0.0), s.load(&lanes.lse[at..])),
            delta: s.load(&lanes.delta[at..]),
            distance: s.sub(s.load(&block.positions[at..]), s.splat(block.start as f32)),
            window: s.splat(block.window),
            masked: block.masked,
        }
    }

    /// p and ds of key `j`.
    #[inline(always)]
    fn at(&self, s: S, j: usize, score: S::V, dp: S::V) -> (S::V, S::V) {
        let mut x = s.mul_add(score, self.scale, self.lse);
        if self.masked {
            let distance = s.sub(self.distance, s.splat(j as f32));
            x = s.keep_within(distance, self.window, x, s.splat(f32::NEG_INFINITY));
        }
        let p = s.exp2(x);
        let mut ds = s.mul(p, s.sub(dp, self.delta));
        if let Some(over_cap) = self.over_cap {
            ds = s.mul(ds, s.mul_add(s.mul(score, score), s.splat(over_cap), s.splat(1.0)));
        }
        (p, ds)
    }
}
