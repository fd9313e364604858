//! Moving rows: embedding, gathering the supervised positions, and sums of tensors (stages 9 to 11 of the walk).
//!
//! > gather: y[i] = scale · x[index[i]],  scatter-add: dx[index[i]] += scale · dy[i],  add: y += x,
//! > sum: y = a + scale · b,  scale: y = scale · x,  scale_each: x[i] = scale[i] · x[i]
//!
//! The embedding is `gather` from its weight; its weight's gradient is `scatter_add` into f32, in token order within
//! a column, so that equal ids add up in a fixed order. Memory-bound: each row is read and written once.

use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, with_dtype};

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
    with_dtype!(y.dtype(), E => {
        let x = x.as_slice::<E>();
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| scaled(dev.isa(), &x[i * CHUNK..], scale, y));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::testing::{Random, assert_close, devices, to_f64};

    #[test]
    fn scatter_add_is_the_transpose_of_gather() {
        // ⟨gather(x), dy⟩ = ⟨x, scatter(dy)⟩ for every x and dy is what makes it the derivative.
        for dev in devices() {
            for dtype in [DType::F32, DType::BF16] {
                let mut random = Random::new(2);
                let (x, dy) = (random.tensor(dtype, &[7, 130]), random.tensor(dtype, &[5, 130]));
                let index = [6, 0, 3, 3, 6];
                let mut y = Tensor::zeros(DType::F32, &[5, 130]);
                gather(&dev, x.view(), &index, 0.5, y.view_mut());
                let mut dx = Tensor::zeros(DType::F32, &[7, 130]);
                scatter_add(&dev, dy.view(), &index, 0.5, dx.view_mut());
                let inner = |a: &Tensor, b: &Tensor| -> f64 {
                    to_f64(a).iter().zip(to_f64(b)).map(|(a, b)| a * b).sum()
                };
                assert_close("inner product", &[inner(&y, &dy)], &[inner(&x, &dx)], 1e-5);
                assert_eq!(dx.to_f32_vec()[130..260], [0.0; 130], "a row nobody gathered");
            }
        }
    }

    #[test]
    fn place_puts_gathered_rows_back() {
        for dev in devices() {
            let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
            let mut y = Tensor::from_slice(&[9.0f32; 8], &[4, 2]);
            place(&dev, x.view(), &[1, 3], y.view_mut());
            assert_eq!(y.to_f32_vec(), [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn sums_add_every_row_and_every_element() {
        for dev in devices() {
            let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
            let mut y = Tensor::from_slice(&[0.5f32; 4], &[2, 2]).to_dtype(DType::BF16);
            add(&dev, x.view(), y.view_mut());
            assert_eq!(y.to_f32_vec(), [1.5, 2.5, 3.5, 4.5]);
            let mut z = Tensor::zeros(DType::F32, &[2, 2]);
            sum(&dev, x.view(), (0.5, x.view()), z.view_mut());
            assert_eq!(z.to_f32_vec(), [1.5, 3.0, 4.5, 6.0]);
            scale(&dev, x.view(), -2.0, z.view_mut());
            assert_eq!(z.to_f32_vec(), [-2.0, -4.0, -6.0, -8.0]);
            scale_each(&dev, View::of(&[0.5f32, 2.0], &[2]), z.view_mut());
            assert_eq!(z.to_f32_vec(), [-1.0, -2.0, -12.0, -16.0]);
            let mut db = Tensor::from_slice(&[10.0f32, 20.0], &[2]);
            sum_rows(&dev, y.view(), db.view_mut());
            assert_eq!(db.to_f32_vec(), [15.0, 27.0]);
        }
    }
}
