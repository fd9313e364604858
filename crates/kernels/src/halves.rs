//! A float32 tensor in two halves of 16 bits: the bfloat16 that ops read, and what an update needs beyond it.
//!
//! Formula, with the bits of a number as an integer:
//!
//! > bits(x) = 2¹⁶·high + low, low in [−2¹⁵, 2¹⁵)
//!
//! so high is x rounded to the nearest bfloat16, ties away from zero, and the two together are x to the bit. This is
//! Split SGD (Kalamkar et al., 2020) with rounding in place of truncation. A weight that is trained in float32 takes
//! its 4 bytes, and products read 2 of them; no copy is kept for them. What is not a number becomes the one pattern
//! of it, so that both halves say so.

use half::bf16;

use crate::DType;
use crate::tensor::{Tensor, View, ViewMut};

pub(crate) use on_cuda::SOURCE;

/// A trained weight as an update takes it: float32, whole or in halves.
#[derive(Debug)]
pub enum MasterWeight<'a> {
    /// f32.
    Whole(ViewMut<'a>),
    /// Both of 16 bits.
    Halves {
        /// bf16.
        high: ViewMut<'a>,
        /// The bits of signed integers.
        low: ViewMut<'a>,
    },
}

impl MasterWeight<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        match self {
            MasterWeight::Whole(whole) => whole.elements(),
            MasterWeight::Halves { high, .. } => high.elements(),
        }
    }
}

/// A float32 tensor in halves.
#[derive(Debug)]
pub struct Halves {
    high: Tensor,
    /// Signed integers of 16 bits; bf16 is only what says their width.
    low: Tensor,
}

impl Halves {
    /// The halves of a tensor, where it is; f16 is widened first.
    pub fn of(value: Tensor) -> Self {
        match value.dtype() {
            DType::BF16 => Self { low: value.zeros_beside(DType::BF16, value.shape()), high: value },
            DType::F16 => Self::of(value.to_dtype(DType::F32)),
            DType::F32 => {
                let half = || value.zeros_beside(DType::BF16, value.shape());
                let mut halves = Self { high: half(), low: half() };
                split(value.view(), halves.master());
                halves
            }
        }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        self.high.shape()
    }

    /// The nearest bfloat16 of each element.
    pub fn high(&self) -> View<'_> {
        self.high.view()
    }

    /// Both, to write.
    pub fn master(&mut self) -> MasterWeight<'_> {
        MasterWeight::Halves { high: self.high.view_mut(), low: self.low.view_mut() }
    }

    /// Overwrites the elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn set(&mut self, value: View<'_>) {
        let mut copy = self.high.zeros_beside(DType::F32, value.shape());
        copy.view_mut().copy_from(value);
        split(copy.view(), self.master());
    }

    /// The elements in f32, in the host's memory.
    pub fn to_host(&self) -> Tensor {
        self.to_host_by(|half| half.to_host())
    }

    /// The same of what `part` fetches of each half.
    pub fn to_host_by(&self, part: impl Fn(View<'_>) -> Tensor) -> Tensor {
        let (high, low) = (part(self.high.view()), part(self.low.view()));
        let mut whole = Tensor::zeros(DType::F32, high.shape());
        join_into(high.view().as_slice(), low.view().as_slice(), whole.view_mut().as_mut_slice());
        whole
    }
}

/// # Panics
/// If `to` is not in halves, or elsewhere.
fn split(from: View<'_>, to: MasterWeight<'_>) {
    let MasterWeight::Halves { high, low } = to else { panic!("a tensor is split into halves") };
    if from.is_on_host() {
        split_into(from.as_slice(), high.as_mut_slice(), low.as_mut_slice());
    } else {
        on_cuda::split(from, high, low);
    }
}

/// x in halves.
#[inline(always)]
fn halves_of(x: f32) -> (bf16, bf16) {
    let bits = if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    let high = bits.wrapping_add(0x8000) >> 16;
    (bf16::from_bits(high as u16), bf16::from_bits(bits as u16))
}

/// The number of these halves.
#[inline(always)]
fn whole_of(high: bf16, low: bf16) -> f32 {
    let low = i32::from(low.to_bits() as i16);
    f32::from_bits((u32::from(high.to_bits()) << 16).wrapping_add_signed(low))
}

pub(crate) fn split_into(from: &[f32], high: &mut [bf16], low: &mut [bf16]) {
    for ((x, high), low) in from.iter().zip(high).zip(low) {
        (*high, *low) = halves_of(*x);
    }
}

pub(crate) fn join_into(high: &[bf16], low: &[bf16], to: &mut [f32]) {
    for ((high, low), x) in high.iter().zip(low).zip(to) {
        *x = whole_of(*high, *low);
    }
}

mod on_cuda {
    use crate::cuda::{DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new(
        "halves",
        concat!(include_str!("halves.cuh"), "\n#line 1 \"halves.cu\"\n", include_str!("halves.cu")),
    );

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct HalvesSplit {
        from: DevicePtr,
        high: DevicePtr,
        low: DevicePtr,
        elements: u64,
    }
    // SAFETY: `HalvesSplit` of halves.cu; all three have that many elements.
    unsafe impl Params for HalvesSplit {}

    pub(super) fn split(from: View<'_>, mut high: ViewMut<'_>, mut low: ViewMut<'_>) {
        let n = from.elements();
        assert_eq!((high.elements(), low.elements()), (n, n), "halves: lengths");
        let cuda = from.cuda();
        let (high, low) = (high.device(), low.device());
        let params = HalvesSplit { from: from.device(), high, low, elements: n as u64 };
        cuda.launch(&SOURCE, "halves_split", &[], Grid::element_wise(n, DType::BF16), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::devices;

    /// All patterns of the upper bits with lower bits at both ends, around the middle, and one of its own.
    fn numbers() -> Vec<f32> {
        let low = |high: u32| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, high.wrapping_mul(0x9e37) & 0xffff];
        (0..1 << 16).flat_map(|high| low(high).map(|low| f32::from_bits(high << 16 | low))).collect()
    }

    #[test]
    fn halves_are_the_number_to_the_bit() {
        let numbers = numbers();
        for dev in devices() {
            let halves = Halves::of(Tensor::from_slice(&numbers, &[numbers.len()]).on(&dev));
            let again = halves.to_host();
            for (x, again) in numbers.iter().zip(again.view().as_slice::<f32>()) {
                let same = x.to_bits() == again.to_bits() || x.is_nan() && again.is_nan();
                assert!(same, "{:08x} became {:08x}", x.to_bits(), again.to_bits());
            }
        }
    }

    #[test]
    fn the_high_half_is_the_nearest_bfloat16() {
        let numbers = numbers();
        for dev in devices() {
            let halves = Halves::of(Tensor::from_slice(&numbers, &[numbers.len()]).on(&dev));
            let high = halves.high().to_host();
            for (x, high) in numbers.iter().zip(high.view().as_slice::<bf16>()) {
                // To nearest even as the half crate has it, but for ties.
                let is_tie = x.to_bits() & 0xffff == 0x8000;
                let nearest = bf16::from_f32(*x);
                let up = bf16::from_bits(((x.to_bits() >> 16) as u16).wrapping_add(1));
                let expected = if is_tie && !x.is_nan() { up } else { nearest };
                let same = high.to_bits() == expected.to_bits() || high.is_nan() && x.is_nan();
                assert!(same, "{:08x} has the high half {:04x}", x.to_bits(), high.to_bits());
            }
        }
    }

    #[test]
    fn a_tensor_of_bfloat16_is_its_own_high_half() {
        for dev in devices() {
            let value = Tensor::from_slice(&[1.5f32, -0.25, 3.0], &[3]).to_dtype(DType::BF16).on(&dev);
            let mut halves = Halves::of(value);
            assert_eq!(halves.high().to_f32_vec(), [1.5, -0.25, 3.0]);
            halves.set(Tensor::from_slice(&[0.1f32, 1e-30, -7.7], &[3]).view());
            assert_eq!(halves.to_host().to_f32_vec(), [0.1, 1e-30, -7.7]);
        }
    }
}
