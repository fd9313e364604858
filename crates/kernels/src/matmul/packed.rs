//! A frozen weight that is packed once, for every product that will read it.
//!
//! It takes as much memory again as the weight, for each of the two products of a layer, and saves the time of packing
//! its panels in every step.

use super::kernel::{MicroKernel, Unit};
use super::pack::{Operand, Panels, Slice};
use crate::{DType, Device, Element, Isa, Slab, Tensor, View};

/// Which product of a linear layer reads a weight `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// `y = x·Wᵀ`.
    XWt,
    /// `dx = dy·W`.
    DyW,
}

/// A weight, packed for one of its products on one instruction set.
#[derive(Debug)]
pub struct PackedWeight {
    /// Panels one after the other, in units.
    units: Tensor,
    reads: Reads,
    shape: [usize; 2],
    isa: Isa,
    in_f32: bool,
}

impl PackedWeight {
    /// Packs `w [out, in]`; its memory comes from `slab`.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn pack(dev: &Device, slab: &mut Slab<'_>, w: View<'_>, reads: Reads) -> Self {
        let shape = [w.dim(0), w.dim(1)];
        let (isa, in_f32) = (dev.isa(), w.dtype() == DType::F32);
        let mut units = slab.zeros(DType::F32, &[Self::bytes(isa, w.dtype(), shape, reads) / 4]);
        let operand = Operand::of(w.into(), reads == Reads::XWt, !in_f32);
        let to = units_mut(&mut units);
        with_kernel!(isa, in_f32, K => {
            let panels = Panels { slices: &[Slice::whole(operand)], width: K::NR, run: 1 };
            panels.pack_whole::<K>(dev, 0, to);
        });
        Self { units, reads, shape, isa, in_f32 }
    }

    /// What weights of a type are packed as: products widen `bf16` where the instruction set has none of it.
    pub fn dtype(isa: Isa, dtype: DType) -> DType {
        with_kernel!(isa, dtype == DType::F32, K => <K as MicroKernel>::Packed::DTYPE)
    }

    /// Bytes that it takes.
    fn bytes(isa: Isa, dtype: DType, [out, inputs]: [usize; 2], reads: Reads) -> usize {
        let (lanes, depth) = if reads == Reads::XWt { (out, inputs) } else { (inputs, out) };
        with_kernel!(isa, dtype == DType::F32, K => {
            let units = depth.div_ceil(K::UNIT).next_multiple_of(K::RUN);
            lanes.next_multiple_of(K::NR) * units * size_of::<Unit>()
        })
    }

    /// Its panels, if they are what a product `op(A)·op(B)` of these sizes and types packs of `B`.
    pub(super) fn panels(&self, isa: Isa, in_f32: bool, b: &Operand<'_>) -> Option<&[Unit]> {
        let reads = if b.along_k { Reads::XWt } else { Reads::DyW };
        let same = (self.isa, self.in_f32, self.reads) == (isa, in_f32, reads) && b.shape() == self.shape;
        let bytes = self.units.view().bytes();
        // SAFETY: a tensor of `f32` is aligned for units, of the same size; every bit pattern is one.
        same.then(|| unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Unit>())
        })
    }
}

fn units_mut(tensor: &mut Tensor) -> &mut [Unit] {
    let values = tensor.view_mut().as_mut_slice::<f32>();
    // SAFETY: as in `panels`, and borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

#[cfg(test)]
mod tests {
    use super::{PackedWeight, Reads};
    use crate::{DType, Isa};

    #[test]
    fn whole_panels_take_what_their_type_says() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for dtype in [DType::F32, DType::BF16] {
                for reads in [Reads::XWt, Reads::DyW] {
                    let bytes = PackedWeight::bytes(isa, dtype, [192, 384], reads);
                    assert_eq!(bytes, 192 * 384 * PackedWeight::dtype(isa, dtype).bytes(), "{isa} {reads:?}");
                }
            }
        }
    }
}
