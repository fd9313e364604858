//! Where buffers come from: really allocated, or only counted.
//!
//! The memory plan and the allocation are the same code run twice, so they cannot disagree.

use sft_kernels::{DType, Slab, Tensor};

/// Hands out zeroed tensors, or only counts their bytes.
#[derive(Debug)]
pub struct Arena {
    /// Where tensors come from; `None` if they are only counted.
    slab: Option<Slab>,
    bytes: usize,
}

impl Arena {
    /// Hands out tensors.
    pub fn allocating() -> Self {
        Self { slab: Some(Slab::default()), bytes: 0 }
    }

    /// Hands out empty tensors and counts what the real ones would take.
    pub fn counting() -> Self {
        Self { slab: None, bytes: 0 }
    }

    /// A tensor of zeros (of no rows when counting).
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        self.bytes += shape.iter().product::<usize>() * dtype.bytes();
        if let Some(slab) = &mut self.slab {
            return slab.zeros(dtype, shape);
        }
        let mut shape = shape.to_vec();
        shape[0] = 0;
        Tensor::zeros(dtype, &shape)
    }

    /// Whether it only counts.
    pub fn is_counting(&self) -> bool {
        self.slab.is_none()
    }

    /// Bytes handed out so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
