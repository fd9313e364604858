//! Splitting the output of one product into several tensors, and joining them again (stages 9 and 11 of the walk).
//!
//! > split: y_p[r] = columns of x[r] that belong to part p, join: x[r] = y₀[r] ‖ y₁[r] ‖ …, take and put: one part alone
//!
//! x is [R, Σ widths], part p is [R, width of p]. Each is the other's inverse and its derivative. A fused projection
//! of N tokens whose parts repeat G times in its output, as queries, keys and values do once for each key/value head,
//! is the same matrix with R = N·G.
//!
//! One type for all. Nothing is saved; outputs are overwritten; every element is read and written once.

use rayon::prelude::*;

use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task moves, about.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// The columns of `x` in turn: the first into the first part, and so on.
///
/// # Panics
/// If shapes or types do not fit.
pub fn split<const P: usize>(dev: &Device, x: View<'_>, parts: [ViewMut<'_>; P]) {
    let _timed = dev.pass("split columns", 2 * x.byte_len());
    let widths = widths(x.dim(0), x.dim(1), parts.each_ref().map(ViewMut::as_view));
    if x.elements() == 0 {
        return;
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::split(cuda, x, 0, parts);
    }
    with_dtype!(x.dtype(), E => {
        let mut first = 0;
        for (part, width) in parts.into_iter().zip(widths) {
            copy::<E>(dev, (x.as_slice(), first, x.dim(1)), (part.as_mut_slice(), 0, width), width);
            first += width;
        }
    });
}

/// The parts side by side in `x`.
///
/// # Panics
/// If shapes or types do not fit.
pub fn join<const P: usize>(dev: &Device, parts: [View<'_>; P], mut x: ViewMut<'_>) {
    let _timed = dev.pass("join columns", 2 * x.byte_len());
    let columns = x.dim(1);
    let widths = widths(x.dim(0), columns, parts);
    if x.elements() == 0 {
        return;
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::join(cuda, parts, x, 0);
    }
    with_dtype!(x.as_view().dtype(), E => {
        let mut first = 0;
        for (part, width) in parts.into_iter().zip(widths) {
            copy::<E>(dev, (part.as_slice(), 0, width), (x.reborrow().as_mut_slice(), first, columns), width);
            first += width;
        }
    });
}

/// The columns of `x` from the `first` on, as many as `part` has.
///
/// # Panics
/// If shapes or types do not fit.
pub fn take(dev: &Device, x: View<'_>, first: usize, part: ViewMut<'_>) {
    let _timed = dev.pass("take columns", 2 * part.byte_len());
    let (columns, width) = (x.dim(1), part.dim(1));
    assert_eq!(x.dim(0), part.dim(0), "columns: rows of a part");
    assert!(first + width <= columns, "columns: {width} from {first} on of {columns}");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::split(cuda, x, first, [part]);
    }
    with_dtype!(x.dtype(), E => copy::<E>(dev, (x.as_slice(), first, columns), (part.as_mut_slice(), 0, width), width));
}

/// Writes `part` over the columns of `x` from the `first` on.
///
/// # Panics
/// If shapes or types do not fit.
pub fn put(dev: &Device, part: View<'_>, x: ViewMut<'_>, first: usize) {
    let _timed = dev.pass("put columns", 2 * part.byte_len());
    let (columns, width) = (x.dim(1), part.dim(1));
    assert_eq!(x.dim(0), part.dim(0), "columns: rows of a part");
    assert!(first + width <= columns, "columns: {width} from {first} on of {columns}");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::join(cuda, [part], x, first);
    }
    with_dtype!(part.dtype(), E => copy::<E>(dev, (part.as_slice(), 0, width), (x.as_mut_slice(), first, columns), width));
}

/// Width of each part of a matrix [rows, columns].
fn widths<const P: usize>(rows: usize, columns: usize, parts: [View<'_>; P]) -> [usize; P] {
    parts.iter().for_each(|part| assert_eq!(part.dim(0), rows, "columns: rows of a part"));
    let widths = parts.map(|part| part.dim(1));
    assert_eq!(widths.iter().sum::<usize>(), columns, "columns: {widths:?} of {columns}");
    widths
}

/// Copies `width` columns from one matrix to another; each is (values, first column, row length).
fn copy<E: Element>(
    dev: &Device,
    (from, from_first, from_len): (&[E], usize, usize),
    (to, to_first, to_len): (&mut [E], usize, usize),
    width: usize,
) {
    if width == 0 || from.is_empty() {
        return;
    }
    let rows = (ELEMENTS_PER_TASK / width).max(1);
    let tasks = from.par_chunks(rows * from_len).zip(to.par_chunks_mut(rows * to_len));
    dev.for_each_item(tasks, |(from, to)| {
        // Two parts that take turns, element by element: a length that the compiler knows.
        match (from_len, to_len) {
            (2, 1) => {
                for (from, to) in from.as_chunks::<2>().0.iter().zip(to) {
                    *to = from[from_first];
                }
                return;
            }
            (1, 2) => {
                for (from, to) in from.iter().zip(to.as_chunks_mut::<2>().0) {
                    to[to_first] = *from;
                }
                return;
            }
            _ => {}
        }
        for (from, to) in from.chunks_exact(from_len).zip(to.chunks_exact_mut(to_len)) {
            to[to_first..to_first + width].copy_from_slice(&from[from_first..from_first + width]);
        }
    });
}

mod on_cuda {
    //! The same on a GPU: `columns.cu`.

    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("columns", include_str!("columns.cu"));

    /// Parts that one launch copies, at most.
    const PARTS: usize = 4;
    /// Threads of a block, at most.
    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Columns {
        x: DevicePtr,
        parts: [DevicePtr; PARTS],
        first: [u64; PARTS],
        width: [u64; PARTS],
        row_bytes: u64,
        unit: u32,
    }

    // SAFETY: the struct of the kernel; shapes were checked.
    unsafe impl Params for Columns {}

    pub fn split<const P: usize>(cuda: &Cuda, x: View<'_>, first: usize, mut parts: [ViewMut<'_>; P]) {
        parts.iter().for_each(|part| assert_eq!(part.dtype(), x.dtype(), "columns: one type"));
        let parts = parts.each_mut().map(|part| (part.device(), part.dim(1)));
        copy(cuda, "columns_split", x, first, &parts);
    }

    pub fn join<const P: usize>(cuda: &Cuda, parts: [View<'_>; P], x: ViewMut<'_>, first: usize) {
        parts.iter().for_each(|part| assert_eq!(part.dtype(), x.dtype(), "columns: one type"));
        let parts = parts.map(|part| (part.device(), part.dim(1)));
        copy(cuda, "columns_join", x.as_view(), first, &parts);
    }

    /// Copies between `x` from column `first` on and parts, each of an address and a width.
    fn copy(cuda: &Cuda, name: &'static str, x: View<'_>, first: usize, parts: &[(DevicePtr, usize)]) {
        let (rows, element) = (x.dim(0), x.dtype().bytes());
        let mut first = first * element;
        let mut placed = Vec::with_capacity(parts.len());
        for (part, width) in parts {
            let width = width * element;
            if width > 0 {
                placed.push((*part, first, width));
            }
            first += width;
        }
        let row_bytes = x.dim(1) * element;
        for parts in placed.chunks(PARTS) {
            let sizes =
                parts.iter().flat_map(|(part, first, width)| [part.address(), *first as u64, *width as u64]);
            let all_bits = sizes.fold(x.device().address() | row_bytes as u64, |bits, size| bits | size);
            let unit = [16, 4].into_iter().find(|unit| all_bits.is_multiple_of(*unit)).unwrap_or(2);
            let of = |i: usize| parts.get(i).copied().unwrap_or((DevicePtr::NULL, 0, 0));
            let params = Columns {
                x: x.device(),
                parts: std::array::from_fn(|i| of(i).0),
                first: std::array::from_fn(|i| of(i).1 as u64),
                width: std::array::from_fn(|i| of(i).2 as u64),
                row_bytes: row_bytes as u64,
                unit: unit as u32,
            };
            let widest = parts.iter().map(|(_, _, width)| width / unit as usize).max().unwrap_or(0);
            let mut grid = Grid::new(rows, widest.clamp(1, THREADS).next_multiple_of(32));
            grid.blocks[1] = parts.len() as u32;
            cuda.launch(&SOURCE, name, &[], grid, params);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, devices, to_f64};
    use crate::{DType, Tensor};

    /// By the definition: the columns of part p of x.
    fn part(x: &[f64], columns: usize, range: std::ops::Range<usize>) -> Vec<f64> {
        x.chunks(columns).flat_map(|row| row[range.clone()].to_vec()).collect()
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for dtype in [DType::F32, DType::BF16] {
                for (rows, [a, b, c]) in [(1, [1, 1, 1]), (5, [3, 0, 7]), (700, [64, 16, 16]), (3, [2, 4, 6])]
                {
                    let x = Random::new(4).tensor(dtype, &[rows, a + b + c]).on(&dev);
                    let [mut p, mut q, mut r] = [a, b, c].map(|width| dev.zeros(dtype, &[rows, width]));
                    split(&dev, x.view(), [p.view_mut(), q.view_mut(), r.view_mut()]);
                    let values = to_f64(&x);
                    for (found, range) in [(&p, 0..a), (&q, a..a + b), (&r, a + b..a + b + c)] {
                        assert_eq!(to_f64(found), part(&values, a + b + c, range), "{}", dev.isa());
                    }
                    let mut again = dev.zeros(dtype, &[rows, a + b + c]);
                    join(&dev, [p.view(), q.view(), r.view()], again.view_mut());
                    assert_eq!(again.to_f32_vec(), x.to_f32_vec());
                }
            }
        }
    }

    #[test]
    fn parts_that_repeat_in_each_row_are_rows_of_a_narrower_matrix() {
        // Two tokens of two groups, each of two query columns and one of keys.
        for dev in devices() {
            let x =
                Tensor::from_slice(&[1f32, 2., 9., 3., 4., 8., 5., 6., 7., 10., 11., 12.], &[2, 6]).on(&dev);
            let [mut q, mut k] = [2, 1].map(|width| dev.zeros(DType::F32, &[2, 2 * width]));
            split(
                &dev,
                x.view().reshape(&[4, 3]),
                [q.view_mut().reshape(&[4, 2]), k.view_mut().reshape(&[4, 1])],
            );
            assert_eq!(q.to_f32_vec(), [1., 2., 3., 4., 5., 6., 10., 11.]);
            assert_eq!(k.to_f32_vec(), [9., 8., 7., 12.]);
        }
    }

    #[test]
    fn columns_that_are_taken_can_be_put_back() {
        for dev in devices() {
            let x = Random::new(4).tensor(DType::F32, &[70, 9]).on(&dev);
            let mut part = dev.zeros(DType::F32, &[70, 4]);
            take(&dev, x.view(), 3, part.view_mut());
            assert_eq!(to_f64(&part), super::tests::part(&to_f64(&x), 9, 3..7));
            let mut again = x.to_dtype(DType::F32);
            put(&dev, part.view(), again.view_mut(), 0);
            put(&dev, part.view(), again.view_mut(), 3);
            take(&dev, again.view(), 4, part.view_mut());
            assert_eq!(to_f64(&part), super::tests::part(&to_f64(&x), 9, 4..8));
        }
    }

    #[test]
    fn edges_no_row() {
        for dev in devices() {
            let x = dev.zeros(DType::F32, &[0, 3]);
            let [mut a, mut b] = [1, 2].map(|width| dev.zeros(DType::F32, &[0, width]));
            split(&dev, x.view(), [a.view_mut(), b.view_mut()]);
            let mut x = x;
            join(&dev, [a.view(), b.view()], x.view_mut());
        }
    }
}
