//! The thin products of a low-rank adapter (stages 9 and 11 of the walk).
//!
//! Formula (Hu et al., 2021), with x [N, C], A [R, C], B [O, R] and dy [N, O], the gradient of (s·x·Aᵀ)·Bᵀ:
//!
//! > xa = s·x·Aᵀ
//!
//! Derivative:
//!
//! > dxa = s·dy·B, dB = dyᵀ·xa, dA = dxaᵀ·x
//!
//! The wide products, xa·Bᵀ and dxa·A, are summed with those of the layer that carries the adapter
//! ([`Matmul::plus`](crate::matmul::Matmul::plus)).
//!
//! Operands f32 or bf16, sums in f32; xa and dxa are overwritten, gradients (f32) are added to. Saved for backward: x
//! and xa. On a CPU each is a [`Matmul`]. On a GPU, in bf16 with R a multiple of 8 up to 64 and widths that are whole 16
//! bytes, they are `lora.cu`'s: 2·N·R FLOP for each column of x or dy are far less than a card does while it reads
//! it, so x and dy are read once, dy for dxa and dB together, and x for all adapters that share it. Sums over rows are
//! sums of parts, whose number depends on shapes alone; other shapes and types are [`Matmul`]s there too.

use crate::matmul::Matmul;
use crate::{Device, View, ViewMut};

pub(crate) use on_cuda::SOURCE;

/// What [`down`] takes and makes of one adapter.
#[derive(Debug)]
pub struct Down<'a> {
    /// A: [R, C].
    pub a: View<'a>,
    /// s.
    pub scale: f32,
    /// [N, R], overwritten.
    pub xa: ViewMut<'a>,
}

impl Down<'_> {
    fn check(&self, x: View<'_>) {
        let [a, xa] = [self.a.shape(), self.xa.shape()];
        assert!(a.len() == 2 && a[1] == x.dim(1) && xa == [x.dim(0), a[0]], "lora: x, A and xa");
    }

    fn multiply(self, dev: &Device, x: View<'_>) {
        Matmul::x_wt(x, self.a, self.xa).alpha(self.scale).run(dev);
    }
}

/// xa = s·x·Aᵀ for adapters of one x [N, C].
///
/// # Panics
/// If shapes do not fit.
pub fn down<'a>(dev: &Device, x: View<'_>, adapters: impl IntoIterator<Item = Down<'a>>) {
    let adapters = adapters.into_iter().inspect(|adapter| adapter.check(x));
    let Some(cuda) = dev.cuda() else {
        return adapters.for_each(|adapter| adapter.multiply(dev, x));
    };
    let mut adapters: Vec<_> = adapters.collect();
    if adapters.is_empty() {
        return;
    }
    if !on_cuda::takes_down(x, &mut adapters) {
        return adapters.into_iter().for_each(|adapter| adapter.multiply(dev, x));
    }
    let _timed = timed(dev, "lora x·Aᵀ", x, adapters.iter().map(|adapter| adapter.a.dim(0)).sum());
    on_cuda::down(cuda, x, &mut adapters);
}

/// What [`backward_output`] takes and makes.
#[derive(Debug)]
pub struct BackwardOutput<'a> {
    /// [N, O].
    pub dy: View<'a>,
    /// B: [O, R].
    pub b: View<'a>,
    /// [N, R], from [`down`].
    pub xa: View<'a>,
    /// s.
    pub scale: f32,
    /// [N, R], overwritten.
    pub dxa: ViewMut<'a>,
    /// f32 [O, R], added to, if B is trained.
    pub db: Option<ViewMut<'a>>,
}

/// dxa = s·dy·B, dB += dyᵀ·xa.
///
/// # Panics
/// If shapes do not fit.
pub fn backward_output(dev: &Device, mut io: BackwardOutput<'_>) {
    let (thin, b) = ([io.dy.dim(0), io.b.dim(1)], [io.dy.dim(1), io.b.dim(1)]);
    assert_eq!(
        (io.xa.shape(), io.dxa.shape(), io.b.shape()),
        (&thin[..], &thin[..], &b[..]),
        "lora: dy and B"
    );
    assert!(io.db.as_ref().is_none_or(|db| db.shape() == b), "lora: B and dB");
    if let Some(cuda) = dev.cuda()
        && on_cuda::takes_backward_output(&mut io)
    {
        let _timed = timed(dev, "lora dy·B, dyᵀ·xa", io.dy, b[1] * (1 + usize::from(io.db.is_some())));
        return on_cuda::backward_output(cuda, io);
    }
    Matmul::dy_w(io.dy, io.b, io.dxa).alpha(io.scale).run(dev);
    if let Some(db) = io.db {
        Matmul::dyt_x(io.dy, io.xa, db).accumulate().run(dev);
    }
}

/// What [`backward_input`] takes and makes of one adapter.
#[derive(Debug)]
pub struct BackwardInput<'a> {
    /// [N, R], from [`backward_output`].
    pub dxa: View<'a>,
    /// f32 [R, C], added to.
    pub da: ViewMut<'a>,
}

impl BackwardInput<'_> {
    fn check(&self, x: View<'_>) {
        let [dxa, da] = [self.dxa.shape(), self.da.shape()];
        assert!(dxa.len() == 2 && dxa[0] == x.dim(0) && da == [dxa[1], x.dim(1)], "lora: x, dxa and dA");
    }

    fn multiply(self, dev: &Device, x: View<'_>) {
        Matmul::dyt_x(self.dxa, x, self.da).accumulate().run(dev);
    }
}

/// dA += dxaᵀ·x for adapters of one x [N, C].
///
/// # Panics
/// If shapes do not fit.
pub fn backward_input<'a>(dev: &Device, x: View<'_>, adapters: impl IntoIterator<Item = BackwardInput<'a>>) {
    let adapters = adapters.into_iter().inspect(|adapter| adapter.check(x));
    let Some(cuda) = dev.cuda() else {
        return adapters.for_each(|adapter| adapter.multiply(dev, x));
    };
    let mut adapters: Vec<_> = adapters.collect();
    if adapters.is_empty() {
        return;
    }
    if !on_cuda::takes_backward_input(x, &mut adapters) {
        return adapters.into_iter().for_each(|adapter| adapter.multiply(dev, x));
    }
    let _timed = timed(dev, "lora dxaᵀ·x", x, adapters.iter().map(|adapter| adapter.dxa.dim(1)).sum());
    on_cuda::backward_input(cuda, x, &mut adapters);
}

/// Times products of `wide` with `ranks` columns in all.
fn timed<'a>(
    dev: &'a Device,
    name: &'static str,
    wide: View<'_>,
    ranks: usize,
) -> Option<crate::profile::Timed<'a>> {
    dev.op(name, [ranks, wide.dim(1)], || [2 * wide.elements() * ranks, wide.byte_len()])
}

mod on_cuda {
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::lora::{BackwardInput, BackwardOutput, Down};
    use crate::{DType, View};

    pub(crate) static SOURCE: Source = Source::new("lora", include_str!("lora.cu"));

    /// Columns of a tile of rank.
    const TILE: usize = 8;
    /// `MOST_TILES` and `MOST_SUMS` of lora.cu.
    const MOST_TILES: usize = 8;
    const MOST_SUMS: usize = 4;
    /// Blocks that fill the largest cards, of which each multiprocessor has two. A constant, so that the order of sums
    /// is the same on all.
    const BLOCKS: usize = 264;
    /// So many that the last ones to run are a small share.
    const MANY_BLOCKS: usize = 512;

    /// Whether a matrix is of whole 16 bytes of bf16.
    fn is_whole((shape, dtype, start): (&[usize], DType, DevicePtr)) -> bool {
        dtype == DType::BF16 && shape[1].is_multiple_of(8) && start.address().is_multiple_of(16)
    }

    fn of<'a>(view: &'a View<'_>) -> (&'a [usize], DType, DevicePtr) {
        (view.shape(), view.dtype(), view.device())
    }

    /// Whether an activation [N, C] is one for these kernels, and a rank.
    fn takes(wide: View<'_>, rank: usize) -> bool {
        let sizes = wide.shape().iter().all(|size| (1..=1 << 30).contains(size));
        sizes && is_whole(of(&wide)) && rank.is_multiple_of(TILE) && (1..=MOST_TILES * TILE).contains(&rank)
    }

    pub fn takes_down(x: View<'_>, adapters: &mut [Down<'_>]) -> bool {
        adapters.iter_mut().all(|Down { a, xa, .. }| {
            let xa_start = xa.device();
            takes(x, a.dim(0)) && is_whole(of(a)) && is_whole((xa.shape(), xa.as_view().dtype(), xa_start))
        })
    }

    pub fn takes_backward_output(io: &mut BackwardOutput<'_>) -> bool {
        let dxa = io.dxa.device();
        let gradient = io.db.as_mut().is_none_or(|db| is_gradient(db.as_view().dtype(), db.device()));
        takes(io.dy, io.b.dim(1))
            && [io.b, io.xa].iter().all(|view| is_whole(of(view)))
            && is_whole((io.dxa.shape(), io.dxa.as_view().dtype(), dxa))
            && gradient
    }

    pub fn takes_backward_input(x: View<'_>, adapters: &mut [BackwardInput<'_>]) -> bool {
        adapters.iter_mut().all(|BackwardInput { dxa, da }| {
            takes(x, dxa.dim(1)) && is_whole(of(dxa)) && is_gradient(da.as_view().dtype(), da.device())
        })
    }

    fn is_gradient(dtype: DType, start: DevicePtr) -> bool {
        dtype == DType::F32 && start.address().is_multiple_of(16)
    }

    /// The adapters in groups that one launch takes.
    fn groups<T>(mut adapters: &mut [T], rank: impl Fn(&T) -> usize) -> impl Iterator<Item = &mut [T]> {
        std::iter::from_fn(move || {
            let mut tiles = 0;
            let fits = |adapter: &&T| {
                tiles += rank(adapter) / TILE;
                tiles <= MOST_TILES
            };
            let count = adapters.iter().take(MOST_SUMS).take_while(fits).count();
            let (group, rest) = std::mem::take(&mut adapters).split_at_mut(count);
            adapters = rest;
            (!group.is_empty()).then_some(group)
        })
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DownTile {
        a: DevicePtr,
        xa: DevicePtr,
        rank: u32,
        scale: f32,
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LoraDown {
        x: DevicePtr,
        rows: u32,
        columns: u32,
        tiles: [DownTile; MOST_TILES],
    }
    // SAFETY: `LoraDown` of lora.cu; shapes were checked.
    unsafe impl Params for LoraDown {}

    pub fn down(cuda: &Cuda, x: View<'_>, adapters: &mut [Down<'_>]) {
        const NAMES: [[&str; 4]; 2] = [
            ["lora_down_1_1", "lora_down_1_2", "lora_down_1_3", "lora_down_1_4"],
            ["lora_down_2_1", "lora_down_2_2", "lora_down_2_3", "lora_down_2_4"],
        ];
        let (rows, columns) = (x.dim(0), x.dim(1));
        // Two bands of 16 rows for a block once that still makes a block for half of the multiprocessors.
        let bands = if rows > BLOCKS / 4 * 32 { 2 } else { 1 };
        for group in groups(adapters, |adapter| adapter.a.dim(0)) {
            // What is too many makes what no one wants.
            let idle = DownTile { a: group[0].a.device(), xa: DevicePtr::NULL, rank: 0, scale: 0.0 };
            let (mut tiles, mut count) = ([idle; MOST_TILES], 0);
            for Down { a, scale, xa } in group {
                let rank = a.dim(0);
                for first in (0..rank).step_by(TILE) {
                    tiles[count] = DownTile {
                        a: a.device().offset(first * columns * DType::BF16.bytes()),
                        xa: xa.device().offset(first * DType::BF16.bytes()),
                        rank: rank as u32,
                        scale: *scale,
                    };
                    count += 1;
                }
            }
            let params = LoraDown { x: x.device(), rows: rows as u32, columns: columns as u32, tiles };
            let grid = Grid::new(rows.div_ceil(16 * bands), 512);
            cuda.launch(&SOURCE, NAMES[bands - 1][count.div_ceil(2) - 1], &[DType::BF16], grid, params);
        }
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LoraBackwardOutput {
        dy: DevicePtr,
        b: DevicePtr,
        xa: DevicePtr,
        dxa_parts: DevicePtr,
        db_parts: DevicePtr,
        rows: u32,
        columns: u32,
        rank: u32,
        rows_per_range: u32,
    }
    // SAFETY: `LoraBackwardOutput` of lora.cu; shapes were checked, and there is scratch for all parts.
    unsafe impl Params for LoraBackwardOutput {}

    pub fn backward_output(cuda: &Cuda, mut io: BackwardOutput<'_>) {
        /// Rows and columns of a tile of dy.
        const SIDE: usize = 64;
        /// Tiles in shared memory.
        const STAGES: usize = 4;
        let (rows, columns, rank) = (io.dy.dim(0), io.dy.dim(1), io.b.dim(1));
        let pairs = rank.div_ceil(2 * TILE).next_power_of_two();
        let (name, sides) = match (pairs, columns >= 4096) {
            (1, false) => ("lora_backward_output_1_2", 2),
            (1, true) => ("lora_backward_output_1_4", 4),
            (2, false) => ("lora_backward_output_2_2", 2),
            (2, true) => ("lora_backward_output_2_4", 4),
            _ => ("lora_backward_output_4_2", 2),
        };
        let across = columns.div_ceil(sides * SIDE);
        let wanted = (BLOCKS / across).clamp(1, rows.div_ceil(SIDE));
        let rows_per_range = rows.div_ceil(wanted).next_multiple_of(SIDE);
        let ranges = rows.div_ceil(rows_per_range);
        let (dxa_elements, db_elements) = (rows * rank, columns * rank);
        let bytes = |elements: usize| elements * DType::F32.bytes();
        let scratch = cuda.scratch(bytes(across * dxa_elements + ranges * db_elements));
        let dxa_parts = scratch.start();
        let db_parts = dxa_parts.offset(bytes(across * dxa_elements));
        let params = LoraBackwardOutput {
            dy: io.dy.device(),
            b: io.b.device(),
            xa: io.xa.device(),
            dxa_parts,
            db_parts: if io.db.is_some() { db_parts } else { DevicePtr::NULL },
            rows: rows as u32,
            columns: columns as u32,
            rank: rank as u32,
            rows_per_range: rows_per_range as u32,
        };
        let thin = 2 * TILE * pairs + 8;
        let in_shared = STAGES * SIDE * (SIDE + 8) + (STAGES + sides) * SIDE * thin;
        let mut grid = Grid::new(across, 128).shared(in_shared * DType::BF16.bytes());
        grid.blocks[1] = ranges as u32;
        cuda.launch(&SOURCE, name, &[DType::BF16], grid, params);
        let dxa = Sum {
            parts: dxa_parts,
            to: io.dxa.device(),
            elements: dxa_elements as u64,
            stride: dxa_elements as u64,
            count: across as u32,
            rounded: 1,
            scale: io.scale,
        };
        let db = io.db.map(|mut db| Sum {
            parts: db_parts,
            to: db.device(),
            elements: db_elements as u64,
            stride: db_elements as u64,
            count: ranges as u32,
            rounded: 0,
            scale: 1.0,
        });
        add_parts(cuda, [dxa].into_iter().chain(db));
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct DxaTile {
        dxa: DevicePtr,
        rank: u32,
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LoraBackwardInput {
        x: DevicePtr,
        parts: DevicePtr,
        rows: u32,
        columns: u32,
        rows_per_range: u32,
        ranks: u32,
        tiles: [DxaTile; MOST_TILES],
    }
    // SAFETY: `LoraBackwardInput` of lora.cu; shapes were checked, and there is scratch for all parts.
    unsafe impl Params for LoraBackwardInput {}

    pub fn backward_input(cuda: &Cuda, x: View<'_>, adapters: &mut [BackwardInput<'_>]) {
        const NAMES: [&str; 4] = [
            "lora_backward_input_1",
            "lora_backward_input_2",
            "lora_backward_input_3",
            "lora_backward_input_4",
        ];
        let (rows, columns) = (x.dim(0), x.dim(1));
        let across = columns.div_ceil(64);
        // Ranges as long as there are many blocks, since each of them leaves a part.
        let is_enough = |length: &usize| across * rows.div_ceil(*length) >= MANY_BLOCKS;
        let rows_per_range = [2048, 1024, 512].into_iter().find(is_enough).unwrap_or(256);
        let ranges = rows.div_ceil(rows_per_range);
        for group in groups(adapters, |adapter| adapter.dxa.dim(1)) {
            let (mut tiles, mut count) = ([DxaTile { dxa: DevicePtr::NULL, rank: 0 }; MOST_TILES], 0);
            for BackwardInput { dxa, .. } in &*group {
                let rank = dxa.dim(1);
                for first in (0..rank).step_by(TILE) {
                    let dxa = dxa.device().offset(first * DType::BF16.bytes());
                    tiles[count] = DxaTile { dxa, rank: rank as u32 };
                    count += 1;
                }
            }
            let part = TILE * count * columns;
            let scratch = cuda.scratch(ranges * part * DType::F32.bytes());
            let params = LoraBackwardInput {
                x: x.device(),
                parts: scratch.start(),
                rows: rows as u32,
                columns: columns as u32,
                rows_per_range: rows_per_range as u32,
                ranks: (TILE * count) as u32,
                tiles,
            };
            let mut grid = Grid::new(across, 256);
            grid.blocks[1] = ranges as u32;
            cuda.launch(&SOURCE, NAMES[count.div_ceil(2) - 1], &[DType::BF16], grid, params);
            let mut parts = scratch.start();
            let sums = group.iter_mut().map(|BackwardInput { da, .. }| {
                let elements = da.as_view().elements();
                let sum = Sum {
                    parts,
                    to: da.device(),
                    elements: elements as u64,
                    stride: part as u64,
                    count: ranges as u32,
                    rounded: 0,
                    scale: 1.0,
                };
                parts = parts.offset(elements * DType::F32.bytes());
                sum
            });
            add_parts(cuda, sums);
        }
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Sum {
        parts: DevicePtr,
        to: DevicePtr,
        elements: u64,
        stride: u64,
        count: u32,
        rounded: u32,
        scale: f32,
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Sums([Sum; MOST_SUMS]);
    // SAFETY: `LoraSums` of lora.cu, whose callers hold the scratch that parts are in.
    unsafe impl Params for Sums {}

    fn add_parts(cuda: &Cuda, sums: impl Iterator<Item = Sum>) {
        let none = Sum {
            parts: DevicePtr::NULL,
            to: DevicePtr::NULL,
            elements: 0,
            stride: 0,
            count: 0,
            rounded: 0,
            scale: 0.0,
        };
        let mut all = [none; MOST_SUMS];
        all.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum);
        let blocks = all.iter().map(|sum| (sum.elements as usize).div_ceil(128)).sum();
        cuda.launch(&SOURCE, "lora_add_parts", &[], Grid::new(blocks, 256), Sums(all));
    }
}

#[cfg(test)]
mod reference {
    //! The definition: plain loops, x [n, c], A [r, c], B [o, r].

    fn product(
        n: usize,
        k: usize,
        m: usize,
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        let of = |i, j| (0..k).map(|k| a(i, k) * b(k, j)).sum();
        (0..n).flat_map(|i| (0..m).map(move |j| (i, j))).map(|(i, j)| of(i, j)).collect()
    }

    pub fn down(x: &[f64], a: &[f64], scale: f64, [n, c, r]: [usize; 3]) -> Vec<f64> {
        product(n, c, r, |i, k| scale * x[i * c + k], |k, j| a[j * c + k])
    }

    /// dxa, and what comes to dB.
    pub fn backward_output(
        dy: &[f64],
        b: &[f64],
        xa: &[f64],
        scale: f64,
        [n, o, r]: [usize; 3],
    ) -> [Vec<f64>; 2] {
        let dxa = product(n, o, r, |i, k| scale * dy[i * o + k], |k, j| b[k * r + j]);
        [dxa, product(o, n, r, |i, k| dy[k * o + i], |k, j| xa[k * r + j])]
    }

    /// What comes to dA.
    pub fn backward_input(dxa: &[f64], x: &[f64], [n, c, r]: [usize; 3]) -> Vec<f64> {
        product(r, n, c, |i, k| dxa[k * r + i], |k, j| x[k * c + j])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};
    use crate::{DType, Tensor};

    /// The loss is Σ dy·(s·x·Aᵀ)·Bᵀ.
    #[test]
    fn gradcheck_of_a_and_b() {
        let ([n, c, o, r], scale) = ([3, 5, 4, 2], 0.7);
        let mut random = Random::new(1);
        let [x, a, b, dy] = [n * c, r * c, o * r, n * o].map(|n| random.f64s(n));
        let loss = |a: &[f64], b: &[f64]| -> f64 {
            let xa = reference::down(&x, a, scale, [n, c, r]);
            let y = |i: usize, j: usize| (0..r).map(|k| xa[i * r + k] * b[j * r + k]).sum::<f64>();
            (0..n * o).map(|at| dy[at] * y(at / o, at % o)).sum()
        };
        let xa = reference::down(&x, &a, scale, [n, c, r]);
        let [dxa, db] = reference::backward_output(&dy, &b, &xa, scale, [n, o, r]);
        gradcheck(|b| loss(&a, b), &b, &db);
        gradcheck(|a| loss(a, &b), &a, &reference::backward_input(&dxa, &x, [n, c, r]));
    }

    /// All three, for adapters of these ranks on one x.
    fn matches_reference(dev: &Device, dtype: DType, [n, c, o]: [usize; 3], ranks: &[usize]) {
        let mut random = Random::new((n + c + o + ranks[0]) as u64);
        let (scale, tolerance) = (0.375, if dtype == DType::F32 { 1e-5 } else { 6e-3 });
        let mut tensor = |dtype, shape: &[usize]| random.tensor(dtype, shape).on(dev);
        let (x, dy) = (tensor(dtype, &[n, c]), tensor(dtype, &[n, o]));
        let weights: Vec<[Tensor; 4]> = ranks
            .iter()
            .map(|r| {
                let [a, b] = [tensor(dtype, &[*r, c]), tensor(dtype, &[o, *r])];
                [a, b, tensor(DType::F32, &[*r, c]), tensor(DType::F32, &[o, *r])]
            })
            .collect();
        let thin = || -> Vec<Tensor> { ranks.iter().map(|r| dev.zeros(dtype, &[n, *r])).collect() };
        let (mut xa, mut dxa) = (thin(), thin());

        let adapters = weights.iter().zip(&mut xa);
        down(dev, x.view(), adapters.map(|([a, ..], xa)| Down { a: a.view(), scale, xa: xa.view_mut() }));
        let mut weights_after: Vec<[Tensor; 2]> =
            weights.iter().map(|[_, _, da, db]| [da, db].map(|d| d.to_dtype(DType::F32))).collect();
        for (i, [_, b, ..]) in weights.iter().enumerate() {
            let db = weights_after[i][1].view_mut();
            let (b, xa, dxa) = (b.view(), xa[i].view(), dxa[i].view_mut());
            backward_output(dev, BackwardOutput { dy: dy.view(), b, xa, scale, dxa, db: Some(db) });
        }
        let adapters = dxa.iter().zip(&mut weights_after);
        let adapters = adapters.map(|(dxa, [da, _])| BackwardInput { dxa: dxa.view(), da: da.view_mut() });
        backward_input(dev, x.view(), adapters);

        for (i, r) in ranks.iter().copied().enumerate() {
            let name = |what: &str| format!("{what} of {dtype:?} [{n}, {c}, {o}], rank {r}");
            let [a, b, da, db] = weights[i].each_ref().map(to_f64);
            let (x, dy, scale) = (to_f64(&x), to_f64(&dy), f64::from(scale));
            let plus = |x: Vec<f64>, y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x + y).collect() };
            let expected = reference::down(&x, &a, scale, [n, c, r]);
            assert_close(&name("xa"), &to_f64(&xa[i]), &expected, tolerance);
            let [of_dxa, of_db] = reference::backward_output(&dy, &b, &to_f64(&xa[i]), scale, [n, o, r]);
            assert_close(&name("dxa"), &to_f64(&dxa[i]), &of_dxa, tolerance);
            assert_close(&name("dB"), &to_f64(&weights_after[i][1]), &plus(of_db, &db), 1e-4);
            let of_da = reference::backward_input(&to_f64(&dxa[i]), &x, [n, c, r]);
            assert_close(&name("dA"), &to_f64(&weights_after[i][0]), &plus(of_da, &da), 1e-4);
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for n in [1, 17, 300] {
                for rank in [8, 16, 24, 64] {
                    matches_reference(&dev, DType::BF16, [n, 136, 72], &[rank]);
                }
            }
            matches_reference(&dev, DType::F32, [17, 24, 40], &[8]);
        }
    }

    #[test]
    fn many_rows_and_columns() {
        for dev in devices() {
            matches_reference(&dev, DType::BF16, [2200, 72, 64], &[16]);
            matches_reference(&dev, DType::BF16, [2200, 40, 72], &[16, 8, 16]);
            matches_reference(&dev, DType::BF16, [70, 1032, 4104], &[16]);
            matches_reference(&dev, DType::BF16, [70, 520, 4104], &[32]);
        }
    }

    #[test]
    fn adapters_of_one_input() {
        for dev in devices() {
            matches_reference(&dev, DType::BF16, [100, 136, 64], &[16, 16, 16]);
            matches_reference(&dev, DType::BF16, [100, 136, 64], &[8, 32]);
            matches_reference(&dev, DType::BF16, [33, 64, 64], &[64, 8, 64, 8, 8, 8, 8, 8]);
        }
    }

    #[test]
    fn edges_odd_sizes_and_no_row() {
        for dev in devices() {
            matches_reference(&dev, DType::BF16, [5, 12, 8], &[8]);
            matches_reference(&dev, DType::BF16, [5, 16, 9], &[8]);
            matches_reference(&dev, DType::BF16, [5, 16, 24], &[3]);
            matches_reference(&dev, DType::BF16, [5, 16, 24], &[72]);
            matches_reference(&dev, DType::BF16, [0, 16, 24], &[8]);
        }
    }

    #[test]
    fn without_a_gradient_of_b() {
        for dev in devices() {
            let mut random = Random::new(4);
            let [dy, b, xa] =
                [[50, 72], [72, 16], [50, 16]].map(|shape| random.tensor(DType::BF16, &shape).on(&dev));
            let mut db = dev.zeros(DType::F32, &[72, 16]);
            let [mut with, mut without] = [0; 2].map(|_| dev.zeros(DType::BF16, &[50, 16]));
            for (dxa, db) in [(&mut with, Some(db.view_mut())), (&mut without, None)] {
                let (dy, b, xa, dxa) = (dy.view(), b.view(), xa.view(), dxa.view_mut());
                backward_output(&dev, BackwardOutput { dy, b, xa, scale: 2.0, dxa, db });
            }
            assert_eq!(to_f64(&with), to_f64(&without));
        }
    }
}
