//! A named weight, and its gradient if it is trained.
//!
//! A frozen weight keeps the compute dtype (and stays in its file, mapped, where that is possible). A trained weight
//! is f32, whatever the compute dtype is: products round it to bf16 as they read it, updates do not lose small steps.

use sft_kernels::matmul::{Matmul, PackedWeight, Reads};
use sft_kernels::{DType, Device, Slab, Tensor, View, ViewMut};

/// A weight of the model or of an adapter.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    value: Tensor,
    gradient: Option<Tensor>,
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
        Self { name: name.into(), value, gradient: None, packed: None }
    }

    /// A weight that training changes: converted to f32, with a gradient of zeros.
    pub fn trained(name: impl Into<String>, value: Tensor) -> Self {
        let value = if value.dtype() == DType::F32 && value.owned_bytes() > 0 {
            value
        } else {
            value.to_dtype(DType::F32)
        };
        let gradient = Some(Tensor::zeros(DType::F32, value.shape()));
        Self { name: name.into(), value, gradient, packed: None }
    }

    /// Packs a frozen matrix for the products of a linear layer, in memory of `slab`; its pages in a file are released.
    pub fn pack(&mut self, dev: &Device, slab: &mut Slab) {
        if self.is_trained() {
            return;
        }
        let mut pack = |reads| PackedWeight::pack(dev, slab, self.value.view(), reads);
        self.packed = Some(Packed { x_wt: pack(Reads::XWt), dy_w: pack(Reads::DyW) });
        self.value.release_pages();
    }

    /// y = x·Wᵀ of a linear layer's weight [out, in], x [N, in], y [N, out].
    pub fn x_wt<'a>(&'a self, x: View<'a>, y: ViewMut<'a>) -> Matmul<'a> {
        Matmul::x_wt(x, self.value(), y).packed(self.packed.as_ref().map(|packed| &packed.x_wt))
    }

    /// dx = dy·W of a linear layer's weight [out, in], dy [N, out], dx [N, in].
    pub fn dy_w<'a>(&'a self, dy: View<'a>, dx: ViewMut<'a>) -> Matmul<'a> {
        Matmul::dy_w(dy, self.value(), dx).packed(self.packed.as_ref().map(|packed| &packed.dy_w))
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
        self.value.shape().len() > 1
    }

    /// The weight.
    pub fn value(&self) -> View<'_> {
        self.value.view()
    }

    /// The weight as a tensor, to write it to a file.
    pub fn tensor(&self) -> &Tensor {
        &self.value
    }

    /// The weight, to overwrite it.
    ///
    /// # Panics
    /// If it is frozen in a mapped file.
    pub fn value_mut(&mut self) -> ViewMut<'_> {
        self.value.view_mut()
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

    /// Weight and gradient (f32 both) for an update; `None` if the weight is frozen.
    pub fn for_update(&mut self) -> Option<(ViewMut<'_>, View<'_>)> {
        let gradient = self.gradient.as_ref()?;
        Some((self.value.view_mut(), gradient.view()))
    }

    /// Sets the gradient to zero.
    pub fn zero_gradient(&mut self) {
        if let Some(gradient) = &mut self.gradient {
            gradient.view_mut().zero();
        }
    }
}
