//! A named weight, and its gradient if it is trained.
//!
//! A frozen weight keeps the compute dtype (and stays in its file, mapped, where that is possible). A trained weight
//! is f32, whatever the compute dtype is: products on a CPU round it to bf16 as they read it, those on a GPU read a copy
//! that the update rounds; updates do not lose small steps.

use sft_kernels::matmul::{Matmul, PackedWeight, Reads};
use sft_kernels::{DType, Device, Slab, Tensor, View, ViewMut};

use crate::weights::StoredTensor;

/// How a weight lies in files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stored {
    /// As it is used.
    #[default]
    Plain,
    /// A matrix with rows for columns: [in, out].
    Transposed,
    /// Each row as a tensor of its own, whose name has the row's number for `*`.
    Rows,
    /// In other modules than the model has.
    Elsewhere(Elsewhere),
}

/// A weight whose name ends in `own`, in files under names that end in one of `files` instead. One without a `*` is the
/// whole weight. Those with a `*` stand once for each row, by its number: a row is what they are one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere {
    /// In the model.
    pub own: &'static str,
    /// In files.
    pub files: &'static [&'static str],
}

/// A weight of the model or of an adapter.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    stored: Stored,
    value: Tensor,
    gradient: Option<Tensor>,
    /// The value of a trained matrix in the type that a GPU multiplies.
    rounded: Option<Tensor>,
    packed: Option<Packed>,
}

/// A frozen weight of a linear layer, packed for its two products.
#[derive(Debug)]
struct Packed {
    x_wt: PackedWeight,
    dy_w: PackedWeight,
}

impl Parameter {
    /// A weight that does not change.
    pub fn frozen(name: impl Into<String>, value: Tensor) -> Self {
        Self { name: name.into(), stored: Stored::Plain, value, gradient: None, rounded: None, packed: None }
    }

    /// A weight that training changes: converted to f32, with a gradient of zeros. Products are of type `compute`.
    pub fn trained(name: impl Into<String>, value: Tensor, compute: DType) -> Self {
        let value = if value.dtype() == DType::F32 && value.owned_bytes() > 0 {
            value
        } else {
            value.to_dtype(DType::F32)
        };
        let gradient = Some(value.zeros_beside(DType::F32, value.shape()));
        let is_multiplied = value.shape().len() > 1 && compute != DType::F32 && !value.is_on_host();
        let rounded = is_multiplied.then(|| value.to_dtype(compute));
        Self { name: name.into(), stored: Stored::Plain, value, gradient, rounded, packed: None }
    }

    /// The same weight, in files as it is said here.
    pub fn stored(self, stored: Stored) -> Self {
        Self { stored, ..self }
    }

    /// How it lies in files.
    pub fn stored_as(&self) -> Stored {
        self.stored
    }

    /// The tensors that it is in files, by name.
    pub fn in_files(&self) -> Vec<(String, StoredTensor<'_>)> {
        self.stored.parts(&self.name, &self.value)
    }

    /// Its gradient as transformers' modules have the weight; nothing if it is frozen.
    pub fn gradient_in_modules(&self) -> Vec<(String, StoredTensor<'_>)> {
        let form = if let Stored::Elsewhere(_) = self.stored { Stored::Plain } else { self.stored };
        self.gradient.as_ref().map_or_else(Vec::new, |gradient| form.parts(&self.name, gradient))
    }

    /// The same weight with another value of the same shape, trained or frozen as before.
    pub fn with_value(&self, value: Tensor) -> Self {
        let name = self.name.clone();
        let compute = self.rounded.as_ref().map_or(DType::F32, Tensor::dtype);
        let new =
            if self.is_trained() { Self::trained(name, value, compute) } else { Self::frozen(name, value) };
        new.stored(self.stored)
    }

    /// Packs a frozen matrix for the products of a linear layer, in memory of `slab`; its pages in a file are released.
    pub fn pack(&mut self, dev: &Device, slab: &mut Slab<'_>) {
        if self.is_trained() {
            return;
        }
        let mut pack = |reads| PackedWeight::pack(dev, slab, self.value.view(), reads);
        self.packed = Some(Packed { x_wt: pack(Reads::XWt), dy_w: pack(Reads::DyW) });
        self.value.release_pages();
    }

    /// y = x·Wᵀ of a linear layer's weight [out, in], x [N, in], y [N, out].
    pub fn x_wt<'a>(&'a self, x: View<'a>, y: ViewMut<'a>) -> Matmul<'a> {
        Matmul::x_wt(x, self.operand(), y).packed(self.packed.as_ref().map(|packed| &packed.x_wt))
    }

    /// dx = dy·W of a linear layer's weight [out, in], dy [N, out], dx [N, in].
    pub fn dy_w<'a>(&'a self, dy: View<'a>, dx: ViewMut<'a>) -> Matmul<'a> {
        Matmul::dy_w(dy, self.operand(), dx).packed(self.packed.as_ref().map(|packed| &packed.dy_w))
    }

    /// Hugging Face's name, or PEFT's for an adapter's weight.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether training changes it.
    pub fn is_trained(&self) -> bool {
        self.gradient.is_some()
    }

    /// Whether weight decay applies to it: not to biases and norms, which are the weights of one dimension
    /// (the rule of Hugging Face's Trainer).
    pub fn decays(&self) -> bool {
        let is_bias = self.name.ends_with("_bias");
        self.value.shape().len() > 1 && self.stored != Stored::Rows && !is_bias
    }

    /// The weight.
    pub fn value(&self) -> View<'_> {
        self.value.view()
    }

    /// The weight as products take it.
    pub fn operand(&self) -> View<'_> {
        self.rounded.as_ref().unwrap_or(&self.value).view()
    }

    /// The weight as products take it, and the gradient to add to, `None` if it is frozen.
    pub fn operand_and_gradient(&mut self) -> (View<'_>, Option<ViewMut<'_>>) {
        let operand = self.rounded.as_ref().unwrap_or(&self.value).view();
        (operand, self.gradient.as_mut().map(Tensor::view_mut))
    }

    /// The weight, and the gradient to add to, `None` if it is frozen.
    pub fn value_and_gradient(&mut self) -> (View<'_>, Option<ViewMut<'_>>) {
        (self.value.view(), self.gradient.as_mut().map(Tensor::view_mut))
    }

    /// The weight as a tensor, to write it to a file.
    pub fn tensor(&self) -> &Tensor {
        &self.value
    }

    /// Overwrites the weight.
    ///
    /// # Panics
    /// If it is frozen in a mapped file.
    pub fn set(&mut self, value: View<'_>) {
        self.value.view_mut().copy_from(value);
        if let Some(rounded) = &mut self.rounded {
            rounded.view_mut().copy_from(self.value.view());
        }
    }

    /// The gradient, to read.
    pub fn gradient(&self) -> Option<View<'_>> {
        self.gradient.as_ref().map(Tensor::view)
    }

    /// The gradient, to add to; `None` if the weight is frozen.
    pub fn gradient_mut(&mut self) -> Option<ViewMut<'_>> {
        self.gradient.as_mut().map(Tensor::view_mut)
    }

    /// Calls `add(weight, gradient)` if the weight is trained.
    pub fn accumulate(&mut self, add: impl FnOnce(View<'_>, ViewMut<'_>)) {
        if let Some(gradient) = &mut self.gradient {
            add(self.value.view(), gradient.view_mut());
        }
    }

    /// What an update reads and writes; `None` if the weight is frozen.
    pub fn for_update(&mut self) -> Option<ForUpdate<'_>> {
        let gradient = self.gradient.as_ref()?.view();
        let rounded = self.rounded.as_mut().map(Tensor::view_mut);
        Some(ForUpdate { value: self.value.view_mut(), rounded, gradient })
    }
}

/// A trained weight as an update takes it.
#[derive(Debug)]
pub struct ForUpdate<'a> {
    /// f32.
    pub value: ViewMut<'a>,
    /// The copy of the value that products read, where there is one.
    pub rounded: Option<ViewMut<'a>>,
    /// f32.
    pub gradient: View<'a>,
}

impl Stored {
    /// The names and shapes of the tensors that a weight of this shape is in files.
    pub fn shapes(self, name: &str, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        match self {
            Stored::Plain => vec![(name.to_owned(), shape.to_vec())],
            Stored::Transposed => vec![(name.to_owned(), shape.iter().rev().copied().collect())],
            Stored::Rows => {
                (0..shape[0]).map(|row| (name.replace('*', &row.to_string()), shape[1..].to_vec())).collect()
            }
            Stored::Elsewhere(Elsewhere { own, files }) => {
                let start = name.strip_suffix(own).unwrap_or(name);
                if let [whole] = files
                    && !whole.contains('*')
                {
                    return vec![(format!("{start}{whole}"), shape.to_vec())];
                }
                let part = [&[shape[1] / files.len()], &shape[2..]].concat();
                let of_row = |row: usize| {
                    let named = move |file: &&str| format!("{start}{}", file.replace('*', &row.to_string()));
                    files.iter().map(named)
                };
                (0..shape[0]).flat_map(of_row).map(|name| (name, part.clone())).collect()
            }
        }
    }

    fn parts<'a>(self, name: &str, value: &'a Tensor) -> Vec<(String, StoredTensor<'a>)> {
        let shapes = self.shapes(name, value.shape());
        let count = shapes.len();
        let part = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
            let part = (count > 1).then_some((i, count));
            (name, StoredTensor::new(value, shape, part, self == Stored::Transposed))
        };
        shapes.into_iter().enumerate().map(part).collect()
    }
}
