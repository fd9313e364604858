//! Rows that were copied to several places, and the gradient that comes back from all of them (stages 9 and 11 of the walk).
//!
//! > spread: y[j] = x[index[j]],  collect: dx[i] = Σ dy[j] over the places j that have a copy of row i, in ascending order
//!
//! x and dx are [N, C], y and dy [M, C], all of one type; sums are f32. A row without a copy has the gradient 0. Each is the
//! other's transpose. Memory-bound: each row of y or dy is read and written once.

use crate::isa::per_isa;
use crate::{Device, Element, View, ViewMut, rows, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Rows of dx that one task collects.
const ROWS_PER_TASK: usize = 64;
/// Columns whose sums are in work at a time.
const COLUMNS: usize = 64;

/// Where copies are: row i is at the places `places[starts[i]..starts[i + 1]]` of what was spread.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// [N + 1].
    pub starts: &'a [u32],
    /// [M].
    pub places: &'a [u32],
}

impl Places<'_> {
    fn of_row(&self, row: usize) -> &[u32] {
        &self.places[self.starts[row] as usize..self.starts[row + 1] as usize]
    }
}

/// y[j] = x[index[j]].
///
/// # Panics
/// If an index is outside, or shapes do not fit.
pub fn spread(dev: &Device, x: View<'_>, index: &[u32], y: ViewMut<'_>) {
    rows::gather(dev, x, index, 1.0, y);
}

/// dx[i] = Σ dy[j] over the places of row i.
///
/// # Panics
/// If a place is outside, or shapes or types do not fit.
pub fn collect(dev: &Device, dy: View<'_>, places: Places<'_>, dx: ViewMut<'_>) {
    let _timed = dev.pass("collect copies", dy.byte_len() + dx.byte_len());
    let (n, c) = (dx.dim(0), dx.dim(1));
    assert_eq!(dy.dtype(), dx.dtype(), "collect: one type");
    assert_eq!(dy.dim(1), c, "collect: columns");
    assert_eq!(places.starts.len(), n + 1, "collect: places of {n} rows");
    assert_eq!(places.places.len(), places.starts[n] as usize, "collect: places");
    let copies = dy.dim(0);
    assert!(
        places.places.iter().all(|place| (*place as usize) < copies),
        "collect: a place outside of {copies}"
    );
    if let Some(cuda) = dev.cuda() {
        return on_cuda::collect(cuda, dy, places, dx);
    }
    with_dtype!(dy.dtype(), E => {
        let dy = dy.as_slice::<E>();
        dev.for_each_chunk(dx.as_mut_slice::<E>(), ROWS_PER_TASK * c, |task, dx| {
            collected(dev.isa(), dy, places, task * ROWS_PER_TASK, c, dx);
        });
    });
}

per_isa! {
    /// The rows of dx from the `first` on.
    fn collected<E: Element>(dy: &[E], places: Places<'_>, first: usize, c: usize, dx: &mut [E]) {
        for (i, dx) in dx.chunks_exact_mut(c).enumerate() {
            let of_row = places.of_row(first + i);
            if let [place] = of_row {
                dx.copy_from_slice(&dy[*place as usize * c..][..c]);
                continue;
            }
            for (block, dx) in dx.chunks_mut(COLUMNS).enumerate() {
                let mut sums = [0.0f32; COLUMNS];
                let sums = &mut sums[..dx.len()];
                for place in of_row {
                    let dy = &dy[*place as usize * c + block * COLUMNS..][..dx.len()];
                    for (sum, dy) in sums.iter_mut().zip(dy) {
                        *sum += dy.to_f32();
                    }
                }
                for (dx, sum) in dx.iter_mut().zip(sums) {
                    *dx = E::from_f32(*sum);
                }
            }
        }
    }
}

mod on_cuda {
    //! The same on a GPU: `copies.cu`.

    use super::Places;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("copies", include_str!("copies.cu"));

    /// Threads of a block, at most.
    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct CopiesCollect {
        dy: DevicePtr,
        dx: DevicePtr,
        starts: DevicePtr,
        places: DevicePtr,
        columns: u64,
    }

    // SAFETY: the struct of the kernel; shapes were checked, and places are inside.
    unsafe impl Params for CopiesCollect {}

    pub fn collect(cuda: &Cuda, dy: View<'_>, places: Places<'_>, mut dx: ViewMut<'_>) {
        let (rows, columns, dtype) = (dx.dim(0), dx.dim(1), dx.dtype());
        let params = CopiesCollect {
            dy: dy.device(),
            dx: dx.device(),
            starts: cuda.indices(places.starts),
            places: cuda.indices(places.places),
            columns: columns as u64,
        };
        let threads = columns.div_ceil(16 / dtype.bytes()).clamp(1, THREADS).next_multiple_of(32);
        cuda.launch(&SOURCE, "copies_collect", &[dtype], Grid::new(rows, threads), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, to_f64};
    use crate::{DType, Tensor};

    /// Row 1 has no copy, row 3 has three; the last row stands before the others.
    const INDEX: [u32; 7] = [4, 0, 3, 2, 3, 3, 0];
    const STARTS: [u32; 6] = [0, 2, 2, 3, 6, 7];
    const PLACES: [u32; 7] = [1, 6, 3, 2, 4, 5, 0];

    fn places() -> Places<'static> {
        Places { starts: &STARTS, places: &PLACES }
    }

    /// The definition, in f64.
    fn reference(dy: &[f64], c: usize) -> Vec<f64> {
        let mut dx = vec![0.0; 5 * c];
        for (row, dy) in INDEX.iter().zip(dy.chunks_exact(c)) {
            dx[*row as usize * c..][..c].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
        }
        dx
    }

    #[test]
    fn collect_is_the_transpose_of_spread() {
        // ⟨spread(x), dy⟩ = ⟨x, collect(dy)⟩ for every x and dy is what makes it the derivative.
        for dev in devices() {
            for c in [1, 7, 130] {
                let mut random = Random::new(2);
                let x = random.tensor(DType::F32, &[5, c]).on(&dev);
                let dy = random.tensor(DType::F32, &[7, c]).on(&dev);
                let (mut y, mut dx) = (dev.zeros(DType::F32, &[7, c]), dev.zeros(DType::F32, &[5, c]));
                spread(&dev, x.view(), &INDEX, y.view_mut());
                collect(&dev, dy.view(), places(), dx.view_mut());
                let inner = |a: &Tensor, b: &Tensor| -> f64 {
                    to_f64(a).iter().zip(to_f64(b)).map(|(a, b)| a * b).sum()
                };
                assert_close("inner product", &[inner(&y, &dy)], &[inner(&x, &dx)], 1e-5);
            }
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1.0 / 256.0)] {
                for c in [1, 5, 64, 192, 1032] {
                    let dy = Random::new(3).tensor(dtype, &[7, c]).on(&dev);
                    let mut dx = Random::new(4).tensor(dtype, &[5, c]).on(&dev);
                    collect(&dev, dy.view(), places(), dx.view_mut());
                    assert_close("collected", &to_f64(&dx), &reference(&to_f64(&dy), c), tolerance);
                }
            }
        }
    }

    #[test]
    fn rows_with_one_copy_keep_its_bits_and_rows_without_are_0() {
        for dev in devices() {
            let dy = Tensor::from_slice(&[f32::MIN_POSITIVE, -0.0, f32::NAN, 1e38], &[2, 2]).on(&dev);
            let mut dx = Random::new(5).tensor(DType::F32, &[3, 2]).on(&dev);
            collect(&dev, dy.view(), Places { starts: &[0, 1, 1, 2], places: &[1, 0] }, dx.view_mut());
            let bits = |x: &Tensor| x.to_f32_vec().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let expected = [f32::NAN, 1e38, 0.0, 0.0, f32::MIN_POSITIVE, -0.0].map(f32::to_bits);
            assert_eq!(bits(&dx), expected);
        }
    }

    #[test]
    fn edges_nothing() {
        for dev in devices() {
            let mut none = dev.zeros(DType::F32, &[0, 3]);
            spread(&dev, dev.zeros(DType::F32, &[2, 3]).view(), &[], none.view_mut());
            let mut dx = Random::new(6).tensor(DType::F32, &[2, 3]).on(&dev);
            collect(&dev, none.view(), Places { starts: &[0, 0, 0], places: &[] }, dx.view_mut());
            assert_eq!(dx.to_f32_vec(), [0.0; 6]);
            collect(
                &dev,
                none.view(),
                Places { starts: &[0], places: &[] },
                dev.zeros(DType::F32, &[0, 3]).view_mut(),
            );
        }
    }
}
