//! A tensor in another element type: in another place, on a GPU (on the CPU, [`ViewMut::copy_from`] converts by itself),
//! or in its own, on both.
//!
//! Rounded to nearest even where the new type is narrower. Memory-bound: one pass.

use half::bf16;

use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::dtype::round;
use crate::{DType, Device, View, ViewMut};

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
    let types = [from.dtype(), to.dtype()];
    launch(cuda, types, [from.device(), to.device()], from.elements());
}

fn launch(cuda: &Cuda, types: [DType; 2], [from, to]: [DevicePtr; 2], elements: usize) {
    let together = 16 / types[0].bytes().max(types[1].bytes());
    let params = Convert { from, to, elements: elements as u64 };
    let grid = Grid::new(elements.div_ceil(together * THREADS), THREADS);
    cuda.launch(&SOURCE, "tensor_convert", &types, grid, params);
}

/// Values of the first part, which is rounded beside its place.
const FIRST: usize = 4096;
/// The same on a GPU, where each part is a launch.
const FIRST_ON_CARD: usize = if cfg!(test) { FIRST } else { 1 << 20 };
/// Values of a task.
const TASK: usize = 64 * 1024;

/// x [...], f32, rounded to `bf16` in the first half of its memory; what is `bf16` stays as it is.
///
/// The values from n to 2·n go where those from n/2 to n have been, which are rounded already.
pub fn narrow<'a>(dev: &Device, mut x: ViewMut<'a>) -> ViewMut<'a> {
    if x.dtype() == DType::BF16 {
        return x;
    }
    let _timed = dev.pass("round", x.byte_len() * 3 / 2);
    match dev.cuda() {
        None => narrow_on_cpu(dev, x.reborrow().as_mut_slice()),
        Some(cuda) => narrow_on_cuda(cuda, x.device(), x.elements()),
    }
    x.into_first_half()
}

fn narrow_on_cpu(dev: &Device, x: &mut [f32]) {
    let (count, isa) = (x.len(), dev.isa());
    let mut done = count.min(FIRST);
    let mut first = [bf16::ZERO; FIRST];
    round(isa, &x[..done], &mut first[..done]);
    as_halves(x)[..done].copy_from_slice(&first[..done]);
    while done < count {
        let (before, from) = x.split_at_mut(done);
        let len = done.min(count - done);
        let (from, to) = (&mut from[..len], &mut as_halves(&mut before[done / 2..])[..len]);
        dev.for_each_chunk_pair((from, TASK), (to, TASK), |_, from, to| round(isa, from, to));
        done += len;
    }
}

/// Room for twice as many values of half the size.
fn as_halves(values: &mut [f32]) -> &mut [bf16] {
    // SAFETY: plain old data of a smaller alignment; every bit pattern of either is valid.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), 2 * values.len()) }
}

fn narrow_on_cuda(cuda: &Cuda, x: DevicePtr, count: usize) {
    let types = [DType::F32, DType::BF16];
    let bytes_of = |values: usize| values * DType::BF16.bytes();
    let mut done = count.min(FIRST_ON_CARD);
    let first = cuda.scratch(bytes_of(done));
    launch(cuda, types, [x, first.start()], done);
    cuda.copy(x, first.start(), bytes_of(done));
    while done < count {
        let len = done.min(count - done);
        launch(cuda, types, [x.offset(2 * bytes_of(done)), x.offset(bytes_of(done))], len);
        done += len;
    }
}

#[cfg(test)]
mod tests {
    use super::narrow;
    use crate::testing::{Random, devices};
    use crate::{DType, Tensor};

    #[test]
    fn narrowing_in_place_rounds_every_value() {
        for dev in devices() {
            for count in [0, 1, 4095, 4096, 4097, 8192, 8193, 100_003, 300_000] {
                let mut x = Random::new(7).tensor(DType::F32, &[1, count]);
                let expected = x.to_dtype(DType::BF16);
                x = x.on(&dev);
                let narrow = narrow(&dev, x.view_mut()).as_view().to_host();
                assert_eq!((narrow.dtype(), narrow.shape()), (DType::BF16, &[1, count][..]));
                assert_eq!(narrow.view().bytes(), expected.view().bytes(), "{count} on {}", dev.name());
            }
        }
    }

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
