//! Where buffers come from: really allocated, or only counted.
//!
//! The memory plan and the allocation are the same code run twice, so they cannot disagree.

use sft_kernels::{DType, Tensor};

/// Hands out zeroed tensors, or only counts their bytes.
#[derive(Debug)]
pub struct Arena {
    counting: bool,
    bytes: usize,
}

impl Arena {
    /// Hands out tensors.
    pub fn allocating() -> Self {
        Self { counting: false, bytes: 0 }
    }

    /// Hands out empty tensors and counts what the real ones would take.
    pub fn counting() -> Self {
        Self { counting: true, bytes: 0 }
    }

    /// A tensor of zeros (of no rows when counting).
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        self.bytes += shape.iter().product::<usize>() * dtype.bytes();
        if !self.counting {
            return Tensor::zeros(dtype, shape);
        }
        let mut shape = shape.to_vec();
        shape[0] = 0;
        Tensor::zeros(dtype, &shape)
    }

    /// Whether it only counts.
    pub fn is_counting(&self) -> bool {
        self.counting
    }

    /// Bytes handed out so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
