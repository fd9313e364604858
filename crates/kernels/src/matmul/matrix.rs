//! What a product multiplies by: values as they are, or a frozen weight's codes.

use crate::quantized::QuantizedWeight;
use crate::{DType, View};

/// The second operand of a product, or a stored matrix in general.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a> {
    /// As they are.
    Values(View<'a>),
    /// Decoded as they are read.
    Quantized(&'a QuantizedWeight),
}

impl<'a> From<View<'a>> for Matrix<'a> {
    fn from(values: View<'a>) -> Self {
        Matrix::Values(values)
    }
}

impl<'a> From<&'a QuantizedWeight> for Matrix<'a> {
    fn from(weight: &'a QuantizedWeight) -> Self {
        Matrix::Quantized(weight)
    }
}

impl Matrix<'_> {
    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Matrix::Values(view) => view.shape(),
            Matrix::Quantized(weight) => weight.shape(),
        }
    }

    /// Dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape()[i]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The type of its values.
    pub fn dtype(&self) -> DType {
        match self {
            Matrix::Values(view) => view.dtype(),
            Matrix::Quantized(weight) => weight.dtype(),
        }
    }

    /// Bytes that a product reads of it.
    pub fn byte_len(&self) -> usize {
        match self {
            Matrix::Values(view) => view.byte_len(),
            Matrix::Quantized(weight) => weight.byte_len(),
        }
    }
}
