//! Attention on a GPU: `hopper.cu` for bf16 with heads of 64 or 128 columns on cards of compute capability 9.0,
//! `attention.cu` for bf16 whose heads are whole 16 bytes, `plain.cu` for all else.
//!
//! The environment variable `SFT_ATTENTION=mma` leaves `hopper.cu` out, so that the two can be compared.

use std::cmp::Reverse;
use std::sync::OnceLock;

use super::{AttentionParams, Backward, Forward, Heads, RowOffsets};
use crate::DType;
use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};

/// Kernels of tensor cores for heads of up to `width` columns, and their tiles.
struct Kernels {
    width: usize,
    forward: Tiling,
    dq: Tiling,
    dkdv: Tiling,
    /// Without and with a cap or slopes, which cost registers.
    sources: [Source; 2],
}

/// What a block has in shared memory: queries and keys.
#[derive(Clone, Copy)]
struct Tiling {
    queries: usize,
    keys: usize,
    warps: usize,
}

/// The one place where tiles are chosen. Bands are 16 rows that a warp owns; forward and dq have four warps. `share`
/// warps own the same keys and a part of their columns each. Sums and scores of a warp have to fit into the 255
/// registers of a thread, tiles into the 99 KiB that a block has on cards from 8.6 on.
macro_rules! kernels {
    ($width:literal, forward: $forward_bands:literal $forward_keys:literal, dq: $dq_bands:literal $dq_keys:literal,
     dkdv: $warps:literal $share:literal $bands:literal $queries:literal) => {
        Kernels {
            width: $width,
            forward: Tiling { queries: 64 * $forward_bands, keys: $forward_keys, warps: 4 },
            dq: Tiling { queries: 64 * $dq_bands, keys: $dq_keys, warps: 4 },
            dkdv: Tiling { queries: $queries, keys: $warps / $share * 16 * $bands, warps: $warps },
            sources: [
                kernels!(source "", 0, $width $forward_bands $forward_keys $dq_bands $dq_keys $warps $share $bands $queries),
                kernels!(source "_shaped", 1, $width $forward_bands $forward_keys $dq_bands $dq_keys $warps $share $bands $queries),
            ],
        }
    };
    (source $suffix:literal, $shaped:literal, $width:literal $forward_bands:literal $forward_keys:literal
     $dq_bands:literal $dq_keys:literal $warps:literal $share:literal $bands:literal $queries:literal) => {
        Source::new(
            concat!("attention_", $width, $suffix),
            concat!(
                "#define WIDTH ", $width, "\n#define SHAPED ", $shaped,
                "\n#define FORWARD_BANDS ", $forward_bands, "\n#define FORWARD_KEYS ", $forward_keys,
                "\n#define DQ_BANDS ", $dq_bands, "\n#define DQ_KEYS ", $dq_keys,
                "\n#define DKDV_WARPS ", $warps, "\n#define DKDV_SHARE ", $share,
                "\n#define DKDV_BANDS ", $bands, "\n#define DKDV_QUERIES ", $queries,
                "\n", include_str!("arguments.cuh"),
                "\n#line 1 \"attention.cu\"\n", include_str!("attention.cu")
            ),
        )
    };
}

static KERNELS: [Kernels; 4] = [
    kernels!(64, forward: 2 64, dq: 2 64, dkdv: 4 1 2 32),
    kernels!(96, forward: 2 64, dq: 2 32, dkdv: 8 1 1 64),
    kernels!(128, forward: 2 64, dq: 2 32, dkdv: 8 1 1 64),
    kernels!(256, forward: 1 64, dq: 1 32, dkdv: 8 2 1 32),
];

/// Hopper's kernels for heads of exactly `width` columns, and how many warpgroups of a block compute: each owns 64 rows.
struct Hopper {
    width: usize,
    forward: usize,
    dq: usize,
    dkdv: usize,
    source: Source,
}

macro_rules! hopper {
    ($width:literal, forward: $forward:literal, dq: $dq:literal, dkdv: $dkdv:literal) => {
        Hopper {
            width: $width,
            forward: $forward,
            dq: $dq,
            dkdv: $dkdv,
            source: Source::new(
                concat!("attention_hopper_", $width),
                concat!(
                    "#define WIDTH ",
                    $width,
                    "\n#define FORWARD_GROUPS ",
                    $forward,
                    "\n#define DQ_GROUPS ",
                    $dq,
                    "\n#define DKDV_GROUPS ",
                    $dkdv,
                    "\n",
                    include_str!("arguments.cuh"),
                    "\n#line 1 \"hopper.cu\"\n",
                    include_str!("hopper.cu")
                ),
            )
            .only_for(HOPPER),
        }
    };
}

const HOPPER: (u32, u32) = (9, 0);
static HOPPER_KERNELS: [Hopper; 2] =
    [hopper!(64, forward: 2, dq: 2, dkdv: 2), hopper!(128, forward: 2, dq: 2, dkdv: 2)];

/// Rows that a warpgroup owns.
const GROUP_ROWS: usize = 64;
/// Rows in shared memory of the tiles that forward goes through: two of k and v each, of 128 keys.
const FORWARD_STAGES: usize = 2 * 2 * 128;
/// The same of backward: four of k and v, or of q and dout.
const BACKWARD_STAGES: usize = 4 * 2 * 64;
/// Of all that they wait for in shared memory.
const BARRIER_BYTES: usize = 128;

impl Hopper {
    /// Those for this problem, if there are some and the card has what they need.
    fn of(cuda: &Cuda, params: &AttentionParams<'_>, dtype: DType, width: usize) -> Option<&'static Self> {
        static LEFT_OUT: OnceLock<bool> = OnceLock::new();
        let left_out =
            || *LEFT_OUT.get_or_init(|| std::env::var_os("SFT_ATTENTION").is_some_and(|v| v == "mma"));
        let plain = params.softcap.is_none() && params.slopes.is_none();
        let fits = dtype == DType::BF16 && plain && cuda.properties().capability == HOPPER && !left_out();
        HOPPER_KERNELS.iter().find(|kernels| fits && width == kernels.width)
    }

    /// A grid whose blocks have this many warpgroups that compute, beside one that copies, and rows of tiles in shared
    /// memory, which begin at a multiple of 1024 bytes.
    fn grid(&self, blocks: usize, groups: usize, rows_in_shared: usize, other_bytes: usize) -> Grid {
        let shared = 1024 + rows_in_shared * self.width * DType::BF16.bytes() + other_bytes + BARRIER_BYTES;
        Grid::new(blocks, 128 * (1 + groups)).shared(shared)
    }
}

static PLAIN: Source = Source::new("attention_plain", include_str!("plain.cu"));
const PLAIN_WARPS: usize = 4;

/// All files of kernels.
pub(crate) fn sources() -> impl Iterator<Item = &'static Source> {
    let hopper = HOPPER_KERNELS.iter().map(|kernels| &kernels.source);
    KERNELS.iter().flat_map(|kernels| &kernels.sources).chain(hopper).chain([&PLAIN])
}

impl Kernels {
    /// Those for this width, if there are some.
    fn of(dtype: DType, width: usize) -> Option<&'static Self> {
        let fits = dtype == DType::BF16 && width.is_multiple_of(8);
        KERNELS.iter().find(|kernels| fits && width <= kernels.width)
    }

    fn source(&'static self, params: &AttentionParams<'_>) -> &'static Source {
        &self.sources[usize::from(params.softcap.is_some() || params.slopes.is_some())]
    }

    fn grid(&self, blocks: usize, tiling: Tiling, rows_in_shared: usize, other_bytes: usize) -> Grid {
        let shared = rows_in_shared * self.width * DType::BF16.bytes() + other_bytes;
        Grid::new(blocks, 32 * tiling.warps).shared(shared)
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Scores {
    slopes: DevicePtr,
    scale: f32,
    softcap: f32,
    window: i32,
}

impl Scores {
    fn of(cuda: &Cuda, params: &AttentionParams<'_>) -> Self {
        Self {
            slopes: params.slopes.map_or(DevicePtr::NULL, |slopes| cuda.values(slopes)),
            scale: params.scale,
            softcap: params.softcap.unwrap_or(0.0),
            // So that kernels can add positions to it.
            window: window(params) as i32,
        }
    }
}

fn window(params: &AttentionParams<'_>) -> usize {
    params.window.unwrap_or(usize::MAX).min(1 << 30)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct TiledForward {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    out: DevicePtr,
    lse: DevicePtr,
    query_tiles: DevicePtr,
    scores: Scores,
    heads: i32,
    group: i32,
    width: i32,
    query_tile_count: i32,
}

// SAFETY: `AttentionForward` of arguments.cuh; shapes and offsets were checked.
unsafe impl Params for TiledForward {}

#[derive(Clone, Copy)]
#[repr(C)]
struct TiledBackward {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    out: DevicePtr,
    dout: DevicePtr,
    lse: DevicePtr,
    delta: DevicePtr,
    dq: DevicePtr,
    dk: DevicePtr,
    dv: DevicePtr,
    query_tiles: DevicePtr,
    key_tiles: DevicePtr,
    partial: DevicePtr,
    scores: Scores,
    heads: i32,
    group: i32,
    width: i32,
    queries: i32,
    keys: i32,
    parts: i32,
    query_tile_count: i32,
}

// SAFETY: `AttentionBackward` of arguments.cuh; shapes and offsets were checked.
unsafe impl Params for TiledBackward {}

#[derive(Clone, Copy)]
#[repr(C)]
struct PlainForward {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    out: DevicePtr,
    lse: DevicePtr,
    q_offsets: DevicePtr,
    k_offsets: DevicePtr,
    scores: Scores,
    rows: i32,
    heads: i32,
    group: i32,
    width: i32,
    queries: i32,
}

// SAFETY: `AttentionForward` of plain.cu; shapes and offsets were checked.
unsafe impl Params for PlainForward {}

#[derive(Clone, Copy)]
#[repr(C)]
struct PlainBackward {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    out: DevicePtr,
    dout: DevicePtr,
    lse: DevicePtr,
    delta: DevicePtr,
    dq: DevicePtr,
    dk: DevicePtr,
    dv: DevicePtr,
    q_offsets: DevicePtr,
    k_offsets: DevicePtr,
    scores: Scores,
    rows: i32,
    heads: i32,
    group: i32,
    width: i32,
    queries: i32,
    keys: i32,
}

// SAFETY: `AttentionBackward` of plain.cu; shapes and offsets were checked.
unsafe impl Params for PlainBackward {}

pub(super) fn forward(
    cuda: &Cuda,
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    heads: Heads,
    mut io: Forward<'_>,
) {
    let queries = io.q.dim(0);
    let group = (heads.query / heads.key) as i32;
    let lse = io.lse.as_mut().map_or(DevicePtr::NULL, |lse| lse.device());
    let (q, k, v, out) = (io.q.device(), io.k.device(), io.v.device(), io.out.device());
    let scores = Scores::of(cuda, params);
    let [query_heads, width] = [heads.query as i32, heads.width as i32];
    let tiled = |tiles: &[Tile]| TiledForward {
        q,
        k,
        v,
        out,
        lse,
        query_tiles: cuda.indices(tiles.as_flattened()),
        scores,
        heads: query_heads,
        group,
        width,
        query_tile_count: tiles.len() as i32,
    };
    if let Some(kernels) = Hopper::of(cuda, params, io.q.dtype(), heads.width) {
        let queries = GROUP_ROWS * kernels.forward;
        let tiles = query_tiles(params, rows, queries);
        let blocks = cuda.properties().multiprocessors.min(tiles.len() * heads.query);
        let grid = kernels.grid(blocks, kernels.forward, 2 * queries + FORWARD_STAGES, 0);
        cuda.launch(&kernels.source, "attention_forward", &[DType::BF16], grid, tiled(&tiles));
        return;
    }
    if let Some(kernels) = Kernels::of(io.q.dtype(), heads.width) {
        let Tiling { queries, keys, .. } = kernels.forward;
        let tiles = query_tiles(params, rows, queries);
        let grid = kernels.grid(tiles.len() * heads.query, kernels.forward, queries + 2 * keys, 0);
        let source = kernels.source(params);
        cuda.launch(source, "attention_forward", &[DType::BF16], grid, tiled(&tiles));
        return;
    }
    let [name, ..] = plain_names(heads.width);
    let plain = PlainForward {
        q,
        k,
        v,
        out,
        lse,
        q_offsets: cuda.indices(rows.q),
        k_offsets: cuda.indices(rows.k),
        scores,
        rows: rows.q.len() as i32 - 1,
        heads: query_heads,
        group,
        width,
        queries: queries as i32,
    };
    cuda.launch(&PLAIN, name, &[io.q.dtype()], plain_grid(queries * heads.query), plain);
}

pub(super) fn backward(
    cuda: &Cuda,
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    heads: Heads,
    mut io: Backward<'_>,
) {
    let (queries, keys, dtype) = (io.q.dim(0), io.k.dim(0), io.q.dtype());
    let group = (heads.query / heads.key) as i32;
    let (q, k, v, out) = (io.q.device(), io.k.device(), io.v.device(), io.out.device());
    let (dout, lse, delta) = (io.dout.device(), io.lse.device(), io.delta.device());
    let (dq, dk, dv) = (io.dq.device(), io.dk.device(), io.dv.device());
    let scores = Scores::of(cuda, params);
    let [query_heads, width] = [heads.query as i32, heads.width as i32];
    if let Some(kernels) = Kernels::of(dtype, heads.width) {
        let hopper = Hopper::of(cuda, params, dtype, heads.width);
        let (query_rows, key_rows) = match hopper {
            Some(hopper) => (GROUP_ROWS * hopper.dq, GROUP_ROWS * hopper.dkdv),
            None => (kernels.dq.queries, kernels.dkdv.keys),
        };
        let query_tiles = query_tiles(params, rows, query_rows);
        let key_tiles = key_tiles(params, rows, key_rows);
        let parts = parts(heads);
        let (dq_blocks, dkdv_blocks) = (query_tiles.len() * heads.query, key_tiles.len() * heads.key * parts);
        let partial = cuda.scratch(backward_scratch_bytes(heads, keys));
        let tiled = TiledBackward {
            q,
            k,
            v,
            out,
            dout,
            lse,
            delta,
            dq,
            dk,
            dv,
            query_tiles: cuda.indices(query_tiles.as_flattened()),
            key_tiles: cuda.indices(key_tiles.as_flattened()),
            partial: partial.start(),
            scores,
            heads: query_heads,
            group,
            width,
            queries: queries as i32,
            keys: keys as i32,
            parts: parts as i32,
            query_tile_count: query_tiles.len() as i32,
        };
        // Eight lanes for each sum.
        let delta_grid = Grid::new((queries * heads.query).div_ceil(256 / 8), 256);
        cuda.launch(kernels.source(params), "attention_delta", &[dtype], delta_grid, tiled);
        // lse and delta of a tile of queries.
        let statistics = |queries: usize| 2 * queries * DType::F32.bytes();
        let (source, dkdv_grid, dq_grid) = if let Some(hopper) = hopper {
            let in_shared = 2 * key_rows + BACKWARD_STAGES;
            let dkdv_grid = hopper.grid(dkdv_blocks, hopper.dkdv, in_shared, 4 * statistics(64));
            let dq_blocks = cuda.properties().multiprocessors.min(dq_blocks);
            let in_shared = 3 * query_rows + BACKWARD_STAGES;
            let dq_grid = hopper.grid(dq_blocks, hopper.dq, in_shared, statistics(query_rows));
            (&hopper.source, dkdv_grid, dq_grid)
        } else {
            let Kernels { dq, dkdv, .. } = kernels;
            let in_shared = 2 * (dkdv.queries + dkdv.keys);
            let dkdv_grid = kernels.grid(dkdv_blocks, *dkdv, in_shared, statistics(dkdv.queries));
            let dq_grid = kernels.grid(dq_blocks, *dq, 2 * (dq.queries + dq.keys), 0);
            (kernels.source(params), dkdv_grid, dq_grid)
        };
        cuda.launch(source, "attention_dkdv", &[dtype], dkdv_grid, tiled);
        if parts > 1 {
            let grid = Grid::new((keys * heads.key * heads.width).div_ceil(8 * 256), 256);
            cuda.launch(kernels.source(params), "attention_sum_parts", &[dtype], grid, tiled);
        }
        cuda.launch(source, "attention_dq", &[dtype], dq_grid, tiled);
        return;
    }
    let [_, dq_name, dkdv_name] = plain_names(heads.width);
    let plain = PlainBackward {
        q,
        k,
        v,
        out,
        dout,
        lse,
        delta,
        dq,
        dk,
        dv,
        q_offsets: cuda.indices(rows.q),
        k_offsets: cuda.indices(rows.k),
        scores,
        rows: rows.q.len() as i32 - 1,
        heads: query_heads,
        group,
        width,
        queries: queries as i32,
        keys: keys as i32,
    };
    cuda.launch(&PLAIN, dq_name, &[dtype], plain_grid(queries * heads.query), plain);
    cuda.launch(&PLAIN, dkdv_name, &[dtype], plain_grid(keys * heads.key), plain);
}

/// In how many parts the query heads of a key head are shared out for dk and dv. Parts cost a pass over their sums, so
/// there are some only where few key heads with large groups would leave most of a card idle. It depends on nothing but
/// the model, so that a row's bits do not depend on what lies beside it.
fn parts(heads: Heads) -> usize {
    /// Of a tile of keys: with this many, two rows of 2,048 tokens are three blocks for each of 132 multiprocessors.
    const BLOCKS: usize = 12;
    /// With more key heads than this, theirs are enough.
    const FEW: usize = 4;
    if heads.key > FEW { 1 } else { (BLOCKS / heads.key).min(heads.query / heads.key) }
}

/// Bytes of the parts' sums of dk and dv.
pub(super) fn backward_scratch_bytes(heads: Heads, keys: usize) -> usize {
    let parts = parts(heads);
    if parts > 1 { 2 * parts * keys * heads.key * heads.width * DType::F32.bytes() } else { 0 }
}

/// Entries of `plain.cu`: forward, dq, dk and dv.
fn plain_names(width: usize) -> [&'static str; 3] {
    let most = super::MOST_COLUMNS_ON_GPU;
    assert!(width <= most, "attention on a GPU: heads of {width} columns, and {most} is the limit");
    if width <= 128 {
        ["attention_plain_forward_128", "attention_plain_dq_128", "attention_plain_dkdv_128"]
    } else {
        ["attention_plain_forward_512", "attention_plain_dq_512", "attention_plain_dkdv_512"]
    }
}

fn plain_grid(sums: usize) -> Grid {
    Grid::new(sums.div_ceil(PLAIN_WARPS), 32 * PLAIN_WARPS)
}

/// First query, number of queries, first key, number of keys of a row, and where the tile begins in it.
type Tile = [u32; 5];

/// Tiles of `size` queries, those that see the most keys first, since what starts last should be short.
fn query_tiles(params: &AttentionParams<'_>, rows: RowOffsets<'_>, size: usize) -> Vec<Tile> {
    let window = window(params);
    tiles(rows, |[_, queries, _, keys]| {
        let starts = (0..queries).step_by(size);
        starts.map(move |start| {
            let position = keys - queries + start;
            (start, (position + size).min(keys) - (position + 1).saturating_sub(window))
        })
    })
}

/// Tiles of `size` keys, those that the most queries see first.
fn key_tiles(params: &AttentionParams<'_>, rows: RowOffsets<'_>, size: usize) -> Vec<Tile> {
    let window = window(params);
    tiles(rows, |[_, queries, _, keys]| {
        let starts = (0..keys).step_by(size);
        starts.map(move |start| {
            let before = keys - queries;
            let end = ((start + size).min(keys) - 1 + window).saturating_sub(before).min(queries);
            (start, end.saturating_sub(start.saturating_sub(before)))
        })
    })
}

/// The tiles of all rows by falling length; `of_row` tells where they begin and how long they are.
fn tiles<I: Iterator<Item = (usize, usize)>>(
    rows: RowOffsets<'_>,
    of_row: impl Fn([usize; 4]) -> I,
) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (q, k) in rows.q.windows(2).zip(rows.k.windows(2)) {
        let row = [q[0], q[1] - q[0], k[0], k[1] - k[0]];
        let [first_query, queries, first_key, keys] = row;
        let of_row = of_row(row.map(|x| x as usize));
        tiles.extend(
            of_row.map(|(start, length)| {
                (Reverse(length), [first_query, queries, first_key, keys, start as u32])
            }),
        );
    }
    tiles.sort_by_key(|(length, _)| *length);
    tiles.into_iter().map(|(_, tile)| tile).collect()
}
