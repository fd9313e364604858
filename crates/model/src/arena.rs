//! Where buffers come from: really allocated, or only counted.
//!
//! The memory plan and the allocation are the same code run twice, so they cannot disagree.

use sft_kernels::{DType, Device, Slab, Tensor};

/// Hands out zeroed tensors, or only counts their bytes.
#[derive(Debug)]
pub struct Arena<'a> {
    /// Where tensors come from; `None` if they are only counted.
    slab: Option<Slab<'a>>,
    bytes: usize,
    on_card: bool,
}

impl<'a> Arena<'a> {
    /// Hands out tensors where `dev` runs.
    pub fn allocating(dev: &'a Device) -> Self {
        Self { slab: Some(Slab::on(dev)), bytes: 0, on_card: dev.cuda().is_some() }
    }

    /// Hands out empty tensors and counts what the real ones would take, on a GPU if `on_card`.
    pub fn counting(on_card: bool) -> Self {
        Self { slab: None, bytes: 0, on_card }
    }

    /// A tensor of zeros (of no rows when counting).
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().fold(dtype.bytes(), |bytes, size| bytes.saturating_mul(*size));
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(slab) = &mut self.slab {
            return slab.zeros(dtype, shape);
        }
        let mut shape = shape.to_vec();
        shape[0] = 0;
        Tensor::zeros(dtype, &shape)
    }

    /// Indices, which stay on the host; zeros.
    pub fn indices(&mut self, len: usize) -> Vec<u32> {
        if !self.on_card {
            self.bytes += len * size_of::<u32>();
        }
        vec![0; if self.slab.is_some() { len } else { 0 }]
    }

    /// Where tensors are really made; `None` if they are only counted.
    pub fn device(&self) -> Option<&'a Device> {
        self.slab.as_ref().map(Slab::device)
    }

    /// Whether tensors are in a GPU's memory, or would be.
    pub fn is_on_card(&self) -> bool {
        self.on_card
    }

    /// Bytes handed out so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
