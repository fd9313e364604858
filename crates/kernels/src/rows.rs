//! Moving rows: embedding, gathering the supervised positions, and sums of tensors (stages 9 to 11 of the walk).
//!
//! > gather: y[i] = scale · x[index[i]],  scatter-add: dx[index[i]] += scale · dy[i],  add: y += x,
//! > sum: y = a + scale · b,  scale: y = scale · x,  also in place,  scale_each: x[i] = scale[i] · x[i]
//!
//! The embedding is `gather` from its weight; its weight's gradient is `scatter_add` into f32, in token order within
//! a column, so that equal ids add up in a fixed order. Memory-bound: each row is read and written once.

use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::{SOURCE, add_parts};

/// Elements that one task of `add` handles.
const CHUNK: usize = 8192;
/// Columns that one task of `scatter_add` handles.
const COLUMNS_PER_TASK: usize = 64;

/// y[i] = scale · x[index[i]]; x is [rows, C], y is [index.len(), C]; types may differ.
///
/// # Panics
/// If an index is outside, or shapes do not fit.
pub fn gather(dev: &Device, x: View<'_>, index: &[u32], scale: f32, y: ViewMut<'_>) {
    let _timed = dev.pass("gather rows", 2 * y.byte_len());
    let c = x.dim(1);
    assert_eq!(y.shape(), [index.len(), c], "gather: y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::gather(cuda, x, index, scale, y);
    }
    with_dtype!(x.dtype(), X => with_dtype!(y.dtype(), Y => {
        let x = x.as_slice::<X>();
        dev.for_each_chunk(y.as_mut_slice::<Y>(), c, |i, y| {
            let x = &x[index[i] as usize * c..][..c];
            scaled(dev.isa(), x, scale, y);
        });
    }));
}

/// dx[index[i]] += scale · dy[i]; dx is f32 [rows, C], dy is [index.len(), C].
///
/// # Panics
/// If an index is outside, or shapes do not fit.
pub fn scatter_add(dev: &Device, dy: View<'_>, index: &[u32], scale: f32, dx: ViewMut<'_>) {
    let _timed = dev.pass("scatter rows", 3 * dy.byte_len());
    let c = dx.dim(1);
    assert_eq!(dy.shape(), [index.len(), c], "scatter_add: dy");
    assert_eq!(dx.dtype(), DType::F32, "scatter_add: sums are float32");
    let rows = dx.dim(0);
    assert!(index.iter().all(|row| (*row as usize) < rows), "scatter_add: index outside of {rows} rows");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::scatter_add(cuda, dy, index, scale, dx);
    }
    let dx = Columns { start: dx.as_mut_slice::<f32>().as_mut_ptr(), width: c };
    with_dtype!(dy.dtype(), Y => {
        let dy = dy.as_slice::<Y>();
        dev.for_each(c.div_ceil(COLUMNS_PER_TASK), |task| {
            let columns = task * COLUMNS_PER_TASK..((task + 1) * COLUMNS_PER_TASK).min(c);
            for (row, dy) in index.iter().zip(dy.chunks_exact(c)) {
                // SAFETY: rows are inside (asserted above) and tasks have disjoint columns.
                let dx = unsafe { dx.of_row(*row as usize, columns.clone()) };
                scaled_and_added(dev.isa(), &dy[columns.clone()], scale, dx);
            }
        });
    });
}

/// A matrix whose columns are written by different threads.
#[derive(Clone, Copy)]
struct Columns {
    start: *mut f32,
    width: usize,
}

// SAFETY: `of_row` leaves it to the caller that no two threads take the same columns.
unsafe impl Sync for Columns {}

impl Columns {
    /// # Safety
    /// The row is inside the matrix, and no one else has these columns of it at the same time.
    unsafe fn of_row<'a>(self, row: usize, columns: std::ops::Range<usize>) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.width + columns.start), columns.len())
        }
    }
}

/// Writes rows back to where they were gathered from: y[index[i]] = x[i]; all other rows of y become zero.
/// Types are equal, and an index stands at most once, in ascending order.
///
/// # Panics
/// If indices are not ascending or outside, or shapes do not fit.
pub fn place(dev: &Device, x: View<'_>, index: &[u32], y: ViewMut<'_>) {
    let _timed = dev.pass("place rows", x.byte_len() + y.byte_len());
    let c = y.dim(1);
    assert_eq!(x.shape(), [index.len(), c], "place: x");
    assert!(index.is_sorted_by(|a, b| a < b), "place: ascending rows");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::place(cuda, x, index, y);
    }
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), c, |row, y| match index.binary_search(&(row as u32)) {
            Ok(i) => y.copy_from_slice(&x[i * c..(i + 1) * c]),
            Err(_) => y.fill(E::default()),
        });
    });
}

/// y += x; types may differ.
///
/// # Panics
/// If shapes do not fit.
pub fn add(dev: &Device, x: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("add", x.byte_len() + 2 * y.byte_len());
    assert_eq!(x.elements(), y.elements(), "add: x and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::add(cuda, x, y);
    }
    with_dtype!(x.dtype(), X => with_dtype!(y.dtype(), Y => {
        let x = x.as_slice::<X>();
        dev.for_each_chunk(y.as_mut_slice::<Y>(), CHUNK, |i, y| {
            added(dev.isa(), &x[i * CHUNK..], y);
        });
    }));
}

/// y = a + scale · b, all of one type.
///
/// # Panics
/// If shapes or types do not fit.
pub fn sum(dev: &Device, a: View<'_>, (scale, b): (f32, View<'_>), y: ViewMut<'_>) {
    let _timed = dev.pass("sum", 3 * a.byte_len());
    assert_eq!((a.elements(), b.elements()), (y.elements(), y.elements()), "sum: a, b and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::sum(cuda, a, (scale, b), y);
    }
    with_dtype!(y.dtype(), E => {
        let (a, b) = (a.as_slice::<E>(), b.as_slice::<E>());
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            sums(dev.isa(), &a[i * CHUNK..], scale, &b[i * CHUNK..], y);
        });
    });
}

/// y = scale · x, both of one type.
///
/// # Panics
/// If shapes or types do not fit.
pub fn scale(dev: &Device, x: View<'_>, scale: f32, y: ViewMut<'_>) {
    let _timed = dev.pass("scale", 2 * x.byte_len());
    assert_eq!(x.elements(), y.elements(), "scale: x and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::scale(cuda, x, scale, y);
    }
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| scaled(dev.isa(), &x[i * CHUNK..], scale, y));
    });
}

/// x = scale · x, and so its own derivative.
pub fn scale_in_place(dev: &Device, scale: f32, x: ViewMut<'_>) {
    let _timed = dev.pass("scale", 2 * x.byte_len());
    if let Some(cuda) = dev.cuda() {
        return on_cuda::scale_in_place(cuda, scale, x);
    }
    with_dtype!(x.dtype(), E => {
        dev.for_each_chunk(x.as_mut_slice::<E>(), CHUNK, |_, x| scaled_in_place(dev.isa(), scale, x));
    });
}

/// x[i] = scale[i] · x[i], in place, and so its own derivative; x is [rows, …], scale is f32 [rows].
///
/// # Panics
/// If shapes do not fit.
pub fn scale_each(dev: &Device, scale: View<'_>, x: ViewMut<'_>) {
    let _timed = dev.pass("scale rows", 2 * x.byte_len());
    let rows = x.dim(0);
    assert_eq!(scale.shape(), [rows], "scale_each: scale");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::scale_each(cuda, scale, x);
    }
    let (scale, c) = (scale.as_slice::<f32>(), x.elements() / rows.max(1));
    with_dtype!(x.as_view().dtype(), E => {
        dev.for_each_chunk(x.as_mut_slice::<E>(), c, |i, x| {
            x.iter_mut().for_each(|x| *x = E::from_f32(x.to_f32() * scale[i]));
        });
    });
}

/// db += Σ_rows dy: the gradient of a bias. db is f32 [C], dy is [rows, C].
///
/// # Panics
/// If shapes do not fit.
pub fn sum_rows(dev: &Device, dy: View<'_>, db: ViewMut<'_>) {
    let _timed = dev.pass("sum of rows", dy.byte_len());
    let c = db.elements();
    assert_eq!(dy.elements() % c.max(1), 0, "sum_rows: {dy:?} into {c} columns");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::sum_rows(cuda, dy, db);
    }
    with_dtype!(dy.dtype(), Y => {
        let dy = dy.as_slice::<Y>();
        dev.for_each_chunk(db.as_mut_slice::<f32>(), COLUMNS_PER_TASK, |task, db| {
            let first = task * COLUMNS_PER_TASK;
            for row in dy.chunks_exact(c) {
                added(dev.isa(), &row[first..first + db.len()], db);
            }
        });
    });
}

per_isa! {
    fn scaled<X: Element, Y: Element>(x: &[X], scale: f32, y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::from_f32(x.to_f32() * scale));
    }

    fn scaled_in_place<X: Element>(scale: f32, x: &mut [X]) {
        x.iter_mut().for_each(|x| *x = X::from_f32(x.to_f32() * scale));
    }

    fn scaled_and_added<X: Element>(x: &[X], scale: f32, y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x.to_f32() * scale);
    }

    fn added<X: Element, Y: Element>(x: &[X], y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::from_f32(y.to_f32() + x.to_f32()));
    }

    fn sums<E: Element>(a: &[E], scale: f32, b: &[E], y: &mut [E]) {
        let pairs = a.iter().zip(b);
        y.iter_mut().zip(pairs).for_each(|(y, (a, b))| *y = E::from_f32(a.to_f32() + scale * b.to_f32()));
    }
}

mod on_cuda {
    //! The same on a GPU: `rows.cu`. Blocks and their order of sums depend on shapes alone.

    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("rows", include_str!("rows.cu"));

    /// Threads of a block, at most.
    const THREADS: usize = 256;
    /// Blocks in the second direction of a grid, at most.
    const MOST_BLOCKS: usize = 65_535;

    /// Blocks for each row, whose threads take `together` columns each.
    fn by_rows(rows: usize, columns: usize, together: usize) -> Grid {
        let wanted = columns.div_ceil(together).max(1);
        let threads = wanted.min(THREADS).next_multiple_of(32);
        let mut grid = Grid::new(rows, threads);
        grid.blocks[1] = wanted.div_ceil(threads).min(MOST_BLOCKS) as u32;
        grid
    }

    /// Elements of the wider of two types in 16 bytes.
    fn together(a: DType, b: DType) -> usize {
        16 / a.bytes().max(b.bytes())
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsGather {
        x: DevicePtr,
        y: DevicePtr,
        index: DevicePtr,
        columns: u64,
        scale: f32,
    }

    // SAFETY: the struct of the kernel; shapes were checked, and indices are inside.
    unsafe impl Params for RowsGather {}

    pub fn gather(cuda: &Cuda, x: View<'_>, index: &[u32], scale: f32, mut y: ViewMut<'_>) {
        let (rows, columns) = (x.dim(0), x.dim(1));
        assert!(index.iter().all(|row| (*row as usize) < rows), "gather: index outside of {rows} rows");
        let params = RowsGather {
            x: x.device(),
            y: y.device(),
            index: cuda.indices(index),
            columns: columns as u64,
            scale,
        };
        let grid = by_rows(index.len(), columns, together(x.dtype(), y.dtype()));
        cuda.launch(&SOURCE, "rows_gather", &[x.dtype(), y.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsScatterAdd {
        dy: DevicePtr,
        dx: DevicePtr,
        starts: DevicePtr,
        rows: DevicePtr,
        order: DevicePtr,
        columns: u64,
        scale: f32,
    }

    // SAFETY: the struct of the kernel; shapes were checked, and indices are inside.
    unsafe impl Params for RowsScatterAdd {}

    /// Positions in the order of their rows, where equal ones stay in order; where each row's begin, and the end; and
    /// the rows.
    fn segments(index: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|i| index[*i as usize]);
        let (mut starts, mut rows) = (Vec::new(), Vec::new());
        for (place, i) in order.iter().enumerate() {
            let row = index[*i as usize];
            if rows.last() != Some(&row) {
                starts.push(place as u32);
                rows.push(row);
            }
        }
        starts.push(order.len() as u32);
        (order, starts, rows)
    }

    pub fn scatter_add(cuda: &Cuda, dy: View<'_>, index: &[u32], scale: f32, mut dx: ViewMut<'_>) {
        let (order, starts, rows) = segments(index);
        let (count, columns) = (rows.len(), dx.dim(1));
        let table = cuda.indices(&[starts, rows, order].concat());
        let word = size_of::<u32>();
        let params = RowsScatterAdd {
            dy: dy.device(),
            dx: dx.device(),
            starts: table,
            rows: table.offset((count + 1) * word),
            order: table.offset((2 * count + 1) * word),
            columns: columns as u64,
            scale,
        };
        let grid = by_rows(count, columns, together(dy.dtype(), DType::F32));
        cuda.launch(&SOURCE, "rows_scatter_add", &[dy.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsPlace {
        x: DevicePtr,
        y: DevicePtr,
        index: DevicePtr,
        count: u32,
        columns: u64,
    }

    // SAFETY: the struct of the kernel; shapes were checked.
    unsafe impl Params for RowsPlace {}

    pub fn place(cuda: &Cuda, x: View<'_>, index: &[u32], mut y: ViewMut<'_>) {
        assert_eq!(x.dtype(), y.dtype(), "place: one type");
        let (rows, columns, dtype) = (y.dim(0), y.dim(1), y.dtype());
        assert!(index.last().is_none_or(|row| (*row as usize) < rows), "place: index outside of {rows} rows");
        let params = RowsPlace {
            x: x.device(),
            y: y.device(),
            index: cuda.indices(index),
            count: index.len() as u32,
            columns: columns as u64,
        };
        // One block for a row, which looks for its place once.
        let mut grid = by_rows(rows, columns, together(dtype, dtype));
        grid.blocks[1] = 1;
        cuda.launch(&SOURCE, "rows_place", &[dtype], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsSum {
        a: DevicePtr,
        b: DevicePtr,
        y: DevicePtr,
        elements: u64,
        scale: f32,
    }

    // SAFETY: the struct of the kernel; shapes were checked.
    unsafe impl Params for RowsSum {}

    /// y = a + scale · b, where `a` has the type of `y`.
    fn sum_into(cuda: &Cuda, a: DevicePtr, (scale, b): (f32, View<'_>), mut y: ViewMut<'_>) {
        let params = RowsSum { a, b: b.device(), y: y.device(), elements: y.elements() as u64, scale };
        let grid = Grid::new(y.elements().div_ceil(THREADS * together(b.dtype(), y.dtype())), THREADS);
        cuda.launch(&SOURCE, "rows_sum", &[b.dtype(), y.dtype()], grid, params);
    }

    pub fn add(cuda: &Cuda, x: View<'_>, mut y: ViewMut<'_>) {
        sum_into(cuda, y.device(), (1.0, x), y);
    }

    pub fn sum(cuda: &Cuda, a: View<'_>, (scale, b): (f32, View<'_>), y: ViewMut<'_>) {
        assert_eq!((a.dtype(), b.dtype()), (y.dtype(), y.dtype()), "sum: one type");
        sum_into(cuda, a.device(), (scale, b), y);
    }

    pub fn scale(cuda: &Cuda, x: View<'_>, scale: f32, y: ViewMut<'_>) {
        assert_eq!(x.dtype(), y.dtype(), "scale: one type");
        sum_into(cuda, DevicePtr::NULL, (scale, x), y);
    }

    pub fn scale_in_place(cuda: &Cuda, scale: f32, mut x: ViewMut<'_>) {
        let (at, elements, dtype) = (x.device(), x.elements(), x.dtype());
        let params = RowsSum { a: DevicePtr::NULL, b: at, y: at, elements: elements as u64, scale };
        let grid = Grid::new(elements.div_ceil(THREADS * together(dtype, dtype)), THREADS);
        cuda.launch(&SOURCE, "rows_sum", &[dtype, dtype], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsScaleEach {
        scale: DevicePtr,
        x: DevicePtr,
        columns: u64,
    }

    // SAFETY: the struct of the kernel; shapes were checked.
    unsafe impl Params for RowsScaleEach {}

    pub fn scale_each(cuda: &Cuda, scale: View<'_>, mut x: ViewMut<'_>) {
        assert_eq!(scale.dtype(), DType::F32, "scale_each: scale is float32");
        let (rows, dtype) = (x.dim(0), x.dtype());
        let columns = x.elements() / rows.max(1);
        let params = RowsScaleEach { scale: scale.device(), x: x.device(), columns: columns as u64 };
        cuda.launch(
            &SOURCE,
            "rows_scale_each",
            &[dtype],
            by_rows(rows, columns, together(dtype, dtype)),
            params,
        );
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsSumRows {
        dy: DevicePtr,
        partial: DevicePtr,
        rows: u64,
        columns: u64,
        rows_per_part: u64,
    }

    // SAFETY: the struct of the kernel; shapes were checked, and the scratch is as large as the parts.
    unsafe impl Params for RowsSumRows {}

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowsAddParts {
        partial: DevicePtr,
        sums: DevicePtr,
        columns: u64,
        parts: u32,
    }

    // SAFETY: as above.
    unsafe impl Params for RowsAddParts {}

    /// Rows that a block adds up, at least: four of each warp.
    const ROWS_PER_PART: usize = 32;
    /// Blocks that add rows up, about: enough for the largest card, whatever the card, so that sums have one order.
    const SUMMING_BLOCKS: usize = 1024;
    /// Columns of a block of `rows_add_parts`, and its threads.
    const COLUMNS_OF_BLOCK: usize = 32;
    const ADDING_THREADS: usize = 1024;

    /// sums += Σ of so many parts, f32 [parts, elements of `sums`].
    pub(crate) fn add_parts(cuda: &Cuda, partial: DevicePtr, parts: usize, mut sums: ViewMut<'_>) {
        assert_eq!(sums.dtype(), DType::F32, "sums of parts are float32");
        let columns = sums.elements();
        let params =
            RowsAddParts { partial, sums: sums.device(), columns: columns as u64, parts: parts as u32 };
        let grid = Grid::new(columns.div_ceil(COLUMNS_OF_BLOCK), ADDING_THREADS);
        cuda.launch(&SOURCE, "rows_add_parts", &[], grid, params);
    }

    pub fn sum_rows(cuda: &Cuda, dy: View<'_>, db: ViewMut<'_>) {
        let columns = db.elements();
        let rows = dy.elements() / columns.max(1);
        if rows == 0 {
            return;
        }
        let tiles = columns.div_ceil(32 * together(dy.dtype(), dy.dtype()));
        let rows_per_part = rows.div_ceil((SUMMING_BLOCKS / tiles).max(1)).max(ROWS_PER_PART);
        let parts = rows.div_ceil(rows_per_part);
        let scratch = cuda.scratch(parts * columns * size_of::<f32>());
        let partial = scratch.start();
        let params = RowsSumRows {
            dy: dy.device(),
            partial,
            rows: rows as u64,
            columns: columns as u64,
            rows_per_part: rows_per_part as u64,
        };
        let mut grid = Grid::new(tiles, THREADS);
        grid.blocks[1] = parts as u32;
        cuda.launch(&SOURCE, "rows_sum_rows", &[dy.dtype()], grid, params);
        add_parts(cuda, partial, parts, db);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::testing::{Random, assert_close, devices, to_f64};

    const TYPES: [DType; 2] = [DType::F32, DType::BF16];

    #[test]
    fn scatter_add_is_the_transpose_of_gather() {
        // ⟨gather(x), dy⟩ = ⟨x, scatter(dy)⟩ for every x and dy is what makes it the derivative.
        for dev in devices() {
            for dtype in TYPES {
                for c in [130, 7, 1024] {
                    let mut random = Random::new(2);
                    let x = random.tensor(dtype, &[7, c]).on(&dev);
                    let dy = random.tensor(dtype, &[5, c]).on(&dev);
                    let index = [6, 0, 3, 3, 6];
                    let mut y = dev.zeros(DType::F32, &[5, c]);
                    gather(&dev, x.view(), &index, 0.5, y.view_mut());
                    let mut dx = dev.zeros(DType::F32, &[7, c]);
                    scatter_add(&dev, dy.view(), &index, 0.5, dx.view_mut());
                    let inner = |a: &Tensor, b: &Tensor| -> f64 {
                        to_f64(a).iter().zip(to_f64(b)).map(|(a, b)| a * b).sum()
                    };
                    assert_close("inner product", &[inner(&y, &dy)], &[inner(&x, &dx)], 1e-5);
                    assert!(dx.to_f32_vec()[c..2 * c].iter().all(|x| *x == 0.0), "a row nobody gathered");
                }
            }
        }
    }

    #[test]
    fn gather_copies_rows_between_all_types() {
        for dev in devices() {
            for (from, to) in TYPES.into_iter().flat_map(|from| TYPES.map(|to| (from, to))) {
                for c in [1, 24, 4096] {
                    let x = Random::new(3).tensor(from, &[9, c]);
                    let index = [8, 8, 0, 5];
                    let rows = index.iter().flat_map(|row| to_f64(&x)[*row as usize * c..][..c].to_vec());
                    let expected: Vec<f64> = rows.map(|x| 2.0 * x).collect();
                    let mut y = dev.zeros(to, &[4, c]);
                    gather(&dev, x.on(&dev).view(), &index, 2.0, y.view_mut());
                    let tolerance = if to == DType::F32 { 0.0 } else { 1.0 / 256.0 };
                    assert_close("gathered", &to_f64(&y), &expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn place_puts_gathered_rows_back() {
        for dev in devices() {
            let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).on(&dev);
            let mut y = Tensor::from_slice(&[9.0f32; 8], &[4, 2]).on(&dev);
            place(&dev, x.view(), &[1, 3], y.view_mut());
            assert_eq!(y.to_f32_vec(), [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
            place(&dev, x.view().rows(0..0), &[], y.view_mut());
            assert_eq!(y.to_f32_vec(), [0.0; 8]);
            // Wide enough for vectors.
            let (x, index) = (Random::new(5).tensor(DType::BF16, &[3, 2304]).on(&dev), [0, 4, 5]);
            let mut y = Random::new(6).tensor(DType::BF16, &[7, 2304]).on(&dev);
            place(&dev, x.view(), &index, y.view_mut());
            let mut again = dev.zeros(DType::BF16, &[3, 2304]);
            gather(&dev, y.view(), &index, 1.0, again.view_mut());
            assert_eq!(again.to_f32_vec(), x.to_f32_vec());
            assert_eq!(to_f64(&y).iter().filter(|y| **y != 0.0).count(), 3 * 2304);
        }
    }

    #[test]
    fn sums_add_every_row_and_every_element() {
        for dev in devices() {
            let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).on(&dev);
            let mut y = Tensor::from_slice(&[0.5f32; 4], &[2, 2]).to_dtype(DType::BF16).on(&dev);
            add(&dev, x.view(), y.view_mut());
            assert_eq!(y.to_f32_vec(), [1.5, 2.5, 3.5, 4.5]);
            let mut z = dev.zeros(DType::F32, &[2, 2]);
            sum(&dev, x.view(), (0.5, x.view()), z.view_mut());
            assert_eq!(z.to_f32_vec(), [1.5, 3.0, 4.5, 6.0]);
            scale(&dev, x.view(), -2.0, z.view_mut());
            assert_eq!(z.to_f32_vec(), [-2.0, -4.0, -6.0, -8.0]);
            let factors = Tensor::from_slice(&[0.5f32, 2.0], &[2]).on(&dev);
            scale_each(&dev, factors.view(), z.view_mut());
            assert_eq!(z.to_f32_vec(), [-1.0, -2.0, -12.0, -16.0]);
            scale_in_place(&dev, 0.5, z.view_mut());
            assert_eq!(z.to_f32_vec(), [-0.5, -1.0, -6.0, -8.0]);
            let mut db = Tensor::from_slice(&[10.0f32, 20.0], &[2]).on(&dev);
            sum_rows(&dev, y.view(), db.view_mut());
            assert_eq!(db.to_f32_vec(), [15.0, 27.0]);
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (x_type, y_type) in TYPES.into_iter().flat_map(|x| TYPES.map(|y| (x, y))) {
                for (rows, c) in [(1, 1), (3, 5), (300, 72), (1000, 264)] {
                    let mut random = Random::new(7);
                    let x = random.tensor(x_type, &[rows, c]).on(&dev);
                    let mut y = random.tensor(y_type, &[rows, c]).on(&dev);
                    let (xs, ys) = (to_f64(&x), to_f64(&y));
                    let mut db = dev.zeros(DType::F32, &[c]);
                    sum_rows(&dev, x.view(), db.view_mut());
                    let of_column = |j: usize| xs.iter().skip(j).step_by(c).sum::<f64>();
                    assert_close("db", &to_f64(&db), &(0..c).map(of_column).collect::<Vec<_>>(), 1e-5);
                    let expected: Vec<f64> = xs.iter().zip(&ys).map(|(x, y)| x + y).collect();
                    add(&dev, x.view(), y.view_mut());
                    let tolerance = if y_type == DType::F32 { 1e-6 } else { 1.0 / 256.0 };
                    assert_close("sum", &to_f64(&y), &expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn edges_nothing() {
        for dev in devices() {
            let none = dev.zeros(DType::F32, &[0, 3]);
            let (mut some, mut db) = (dev.zeros(DType::F32, &[2, 3]), dev.zeros(DType::F32, &[3]));
            gather(&dev, some.view(), &[], 1.0, dev.zeros(DType::F32, &[0, 3]).view_mut());
            scatter_add(&dev, none.view(), &[], 1.0, some.view_mut());
            add(&dev, none.view(), dev.zeros(DType::F32, &[0, 3]).view_mut());
            sum_rows(&dev, none.view(), db.view_mut());
            assert_eq!((some.to_f32_vec(), db.to_f32_vec()), (vec![0.0; 6], vec![0.0; 3]));
        }
    }
}
