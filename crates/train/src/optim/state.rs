//! What an optimizer keeps: tensors of each weight, by name.

use sft_kernels::{DType, Tensor};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

/// A tensor that is kept for a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    /// What it is: `exp_avg` is `exp_avg.NAME` in a checkpoint.
    pub kind: &'static str,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Slot {
    /// Of f32.
    pub fn of(kind: &'static str, shape: &[usize]) -> Self {
        Self { kind, dtype: DType::F32, shape: shape.to_vec() }
    }

    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// The tensors of all weights, in the order of the weights and of their slots.
#[derive(Debug, Default)]
pub(super) struct State {
    of: Vec<Vec<Named>>,
}

#[derive(Debug)]
struct Named {
    name: String,
    tensor: Tensor,
}

impl State {
    /// Zeros, where the weights are.
    pub fn new(parameters: &[&mut Parameter], layout: impl Fn(&Outline) -> Vec<Slot>) -> Self {
        let tensors = |parameter: &&mut Parameter| {
            let named = |slot: Slot| Named {
                name: format!("{}.{}", slot.kind, parameter.name()),
                tensor: parameter.value().zeros_beside(slot.dtype, &slot.shape),
            };
            layout(&parameter.outline()).into_iter().map(named).collect()
        };
        Self { of: parameters.iter().map(tensors).collect() }
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// The tensors of each weight.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Vec<&mut Tensor>> {
        self.of.iter_mut().map(|of| of.iter_mut().map(|named| &mut named.tensor).collect())
    }

    /// All with their names.
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        self.of.iter().flatten().map(|named| (named.name.clone(), &named.tensor)).collect()
    }

    /// Takes all from a checkpoint.
    ///
    /// # Errors
    /// Names what is missing or has another shape.
    pub fn restore(&mut self, files: &WeightFiles) -> Result<(), String> {
        for Named { name, tensor } in self.of.iter_mut().flatten() {
            let stored = files.tensor(name, tensor.shape())?;
            tensor.view_mut().copy_from(stored.view());
        }
        Ok(())
    }
}

/// Numbers of 64 bits as a checkpoint can have them: each as the bits of two f32.
pub(super) fn to_tensor(numbers: &[f64]) -> Tensor {
    let halves = |x: &f64| [(x.to_bits() >> 32) as u32, x.to_bits() as u32].map(f32::from_bits);
    let bits: Vec<f32> = numbers.iter().flat_map(halves).collect();
    Tensor::from_slice(&bits, &[bits.len()])
}

/// The numbers of [`to_tensor`].
pub(super) fn from_tensor(tensor: &Tensor) -> Vec<f64> {
    let (pairs, _) = tensor.view().as_slice::<f32>().as_chunks::<2>();
    let whole = |[high, low]: &[f32; 2]| u64::from(high.to_bits()) << 32 | u64::from(low.to_bits());
    pairs.iter().map(|pair| f64::from_bits(whole(pair))).collect()
}
