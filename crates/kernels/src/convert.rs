//! A tensor in another element type, on a GPU. On the CPU, [`ViewMut::copy_from`] converts by itself.
//!
//! Rounded to nearest even where the new type is narrower. Memory-bound: one pass.

use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{View, ViewMut};

pub(crate) static SOURCE: Source = Source::new("convert", include_str!("convert.cu"));

/// Threads of a block.
const THREADS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Convert {
    from: DevicePtr,
    to: DevicePtr,
    elements: u64,
}

// SAFETY: the struct of the kernel; both have that many elements.
unsafe impl Params for Convert {}

/// to = from, of different types.
///
/// # Panics
/// If the number of elements differs, or the type does not.
pub(crate) fn on_cuda(cuda: &Cuda, from: View<'_>, mut to: ViewMut<'_>) {
    assert_eq!(from.elements(), to.elements(), "convert: {from:?} to {to:?}");
    let together = 16 / from.dtype().bytes().max(to.dtype().bytes());
    let params = Convert { from: from.device(), to: to.device(), elements: from.elements() as u64 };
    let grid = Grid::new(from.elements().div_ceil(together * THREADS), THREADS);
    cuda.launch(&SOURCE, "tensor_convert", &[from.dtype(), to.dtype()], grid, params);
}

#[cfg(test)]
mod tests {
    use crate::testing::devices;
    use crate::{DType, Tensor};

    /// Every pattern of 16 bits but NaN, and numbers around all of those.
    fn numbers() -> Vec<f32> {
        let halves = (0..=u16::MAX).map(half::f16::from_bits).map(half::f16::to_f32);
        let brains = (0..=u16::MAX).map(half::bf16::from_bits).map(half::bf16::to_f32);
        let exact: Vec<f32> = halves.chain(brains).filter(|x| !x.is_nan()).collect();
        let between = exact.windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]).filter(|x| !x.is_nan());
        let above: Vec<f32> = between.clone().map(f32::next_up).collect();
        exact.iter().copied().chain(between).chain(above).collect()
    }

    #[test]
    fn device_matches_reference() {
        let numbers = numbers();
        for dev in devices() {
            for from in [DType::F32, DType::BF16, DType::F16] {
                for to in [DType::F32, DType::BF16, DType::F16] {
                    let x = Tensor::from_slice(&numbers, &[numbers.len()]).to_dtype(from);
                    let expected = x.to_dtype(to).to_f32_vec();
                    let x = x.on(&dev);
                    assert_eq!(x.to_dtype(to).to_f32_vec(), expected, "{from:?} to {to:?}");
                    let mut odd = dev.zeros(to, &[12]);
                    odd.view_mut().into_rows(1..12).copy_from(x.view().rows(3..14));
                    assert_eq!(odd.to_f32_vec()[1..], expected[3..14], "{from:?} to {to:?}");
                }
            }
        }
    }
}
