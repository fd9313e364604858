//! Zeroed pages straight from the system, huge ones where it grants them.
//!
//! A buffer in huge pages is read from memory half as fast again as one in pages of 4 KiB, and panels that are walked in
//! strides do not miss the translation cache.

use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::{DType, Device, OutOfMemory, Tensor};

/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// Bytes that a slab asks the system for at a time; what is not used of the last ones takes addresses, not memory.
const CHUNK: usize = 256 << 20;

/// `bytes` zeroed bytes; if there are enough of them, from a multiple of a huge page on. Whole huge pages are asked for
/// alone: a matrix of 9 MiB takes four of them and 1 MiB in small pages, not five.
///
/// Unwinds with [`OutOfMemory`] if the system has none.
pub(crate) fn zeroed(bytes: usize) -> (MmapMut, Range<usize>) {
    let huge = bytes >= HUGE_PAGE / 4;
    // Addresses beyond what is asked for, so that it can begin where a huge page does; half of one or less is given one.
    let mapped = bytes.max(if huge { HUGE_PAGE } else { 1 }) + if huge { HUGE_PAGE } else { 0 };
    let pages = MmapMut::map_anon(mapped).unwrap_or_else(|error| {
        OutOfMemory { bytes: mapped, free: None, reason: error.to_string() }.raise();
    });
    let start = if huge { pages.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
    #[cfg(target_os = "linux")]
    if huge {
        let whole = (bytes / HUGE_PAGE).max(1) * HUGE_PAGE;
        // A refusal costs speed alone.
        let _ = pages.advise_range(memmap2::Advice::HugePage, start, whole);
    }
    (pages, start..start + bytes)
}

/// Gives memory that was freed back to the system, where the allocator keeps it (glibc): what reading data and
/// tokenizers took is then there for the weights.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` may be called at any time from any thread, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Hands out tensors that are made together and live as long as each other: they share huge pages, which a tensor of a
/// few megabytes of its own could not fill.
#[derive(Debug)]
pub struct Slab<'a> {
    dev: &'a Device,
    chunk: Option<(Arc<MmapMut>, Range<usize>)>,
}

impl<'a> Slab<'a> {
    /// Of tensors where `dev` runs; a GPU's memory needs no sharing of pages.
    pub fn on(dev: &'a Device) -> Self {
        Self { dev, chunk: None }
    }

    /// Where its tensors are.
    pub fn device(&self) -> &'a Device {
        self.dev
    }

    /// A tensor of zeros. The pages are given back when all tensors that share them are gone.
    pub fn zeros(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        if self.dev.cuda().is_some() {
            return self.dev.zeros(dtype, shape);
        }
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        if self.chunk.as_ref().is_none_or(|(_, free)| free.len() < bytes) {
            let (pages, free) = zeroed(bytes.max(CHUNK));
            self.chunk = Some((Arc::new(pages), free));
        }
        let (pages, free) = self.chunk.as_mut().expect("there is one by now");
        let own = free.start..free.start + bytes;
        free.start = own.end.next_multiple_of(64).min(free.end);
        Tensor::in_pages(Arc::clone(pages), own, dtype, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_a_slab_are_zeroed_aligned_and_apart() {
        let dev = Device::cpu(crate::CpuOptions::default()).unwrap();
        let mut slab = Slab::on(&dev);
        let mut all: Vec<Tensor> = [1, 3, 100, CHUNK, 70].map(|n| slab.zeros(DType::BF16, &[n])).into();
        for (i, tensor) in all.iter_mut().enumerate() {
            let values = tensor.view_mut().as_mut_slice::<half::bf16>();
            assert_eq!(values.as_ptr().align_offset(64), 0);
            assert!(values.iter().all(|x| x.to_bits() == 0), "tensor {i} overlaps another one");
            values.fill(half::bf16::ONE);
        }
        drop(slab);
        assert!(all.iter().all(|tensor| tensor.to_f32_vec().iter().all(|x| *x == 1.0)));
    }

    #[test]
    fn large_pages_begin_where_a_huge_page_does() {
        let (pages, range) = zeroed(3 * HUGE_PAGE + 5);
        assert_eq!(range.len(), 3 * HUGE_PAGE + 5);
        assert_eq!(pages[range].as_ptr().align_offset(HUGE_PAGE), 0);
    }
}
