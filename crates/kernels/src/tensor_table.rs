//! Many tensors in one launch on a GPU: a table says where they are and which chunk is the first of each.
//!
//! An adapter's tensors are small and many; each is cut into chunks, and a block finds the tensor of its chunk in the
//! table (`tensor_table.cuh`). A table that is the same in every step is sent once.

use crate::cuda::Grid;

/// Elements of one block.
const CHUNK: usize = 8192;
const THREADS: usize = 256;

/// Rows of 64-bit words, one for each tensor: its first chunk, its elements, and what the kernel's struct has beyond.
#[derive(Default)]
pub(crate) struct TensorTable {
    words: Vec<u32>,
    tensors: u32,
    chunks: usize,
    bytes: usize,
}

impl TensorTable {
    pub fn push<const W: usize>(&mut self, elements: usize, others: [u64; W]) {
        for word in [self.chunks as u64, elements as u64].into_iter().chain(others) {
            self.words.extend([word as u32, (word >> 32) as u32]);
        }
        self.tensors += 1;
        self.chunks += elements.div_ceil(CHUNK);
        self.bytes += elements * size_of::<f32>();
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Number of rows.
    pub fn tensors(&self) -> u32 {
        self.tensors
    }

    /// Number of chunks of all tensors.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Of one f32 for each element.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A block for each chunk.
    pub fn grid(&self) -> Grid {
        Grid::new(self.chunks, THREADS)
    }
}
