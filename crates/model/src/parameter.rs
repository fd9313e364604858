//! A named weight, and its gradient if it is trained.
//!
//! A frozen weight keeps the compute dtype (and stays in its file, mapped, where that is possible). A trained weight
//! is f32, whatever the compute dtype is, so that updates do not lose small steps: products on a CPU round it to bf16 as
//! they read it; on a GPU a matrix is in halves ([`Halves`]), of which products read one. A frozen matrix of a linear
//! layer may be quantised ([`QuantizedWeight`]): products decode it, and nothing else reads it.

use sft_kernels::halves::{Halves, MasterWeight};
use sft_kernels::matmul::{Matmul, Matrix, PackedWeight, Reads};
use sft_kernels::quantized::QuantizedWeight;
use sft_kernels::{DType, Device, Slab, Tensor, View, ViewMut};

use crate::dora;
use crate::quantization;
use crate::weights::{StoredTensor, Turned};

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
    /// A matrix of an adapter for each expert, its three axes in this order and two of them as one, the expert's and the
    /// rank's: the first two where the expert's is the first, else the last two.
    Reordered([usize; 3]),
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
    value: Value,
    gradient: Option<Gradient>,
    /// Trained, but not by the next update.
    rests: bool,
    packed: Option<Packed>,
}

/// What a weight is, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// How it lies in files.
    pub stored: Stored,
}

impl Outline {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay applies to it: not to biases and norms, which are the weights of one dimension but for
    /// DoRA's magnitudes (the rule of Hugging Face's Trainer).
    pub fn decays(&self) -> bool {
        let is_magnitude = self.name.ends_with(dora::MAGNITUDE);
        (self.shape.len() > 1 || is_magnitude) && !self.is_of_vectors()
    }

    /// Whether it is one matrix in transformers' modules.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2 && !self.is_of_vectors()
    }

    /// Whether its rows are vectors of their own in transformers' modules.
    fn is_of_vectors(&self) -> bool {
        self.stored == Stored::Rows || self.name.ends_with("_bias")
    }
}

#[derive(Debug)]
enum Value {
    Whole(Tensor),
    Halves(Halves),
    Quantized(QuantizedWeight),
}

/// The sum of a step's gradients, f32.
#[derive(Debug)]
struct Gradient {
    sum: Tensor,
    state: Summed,
    /// What came first in the last step was a product: that overwrites as well as it adds, and so nothing has to clear
    /// what is there.
    product_comes_first: bool,
}

/// What is in a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Summed {
    /// Zeros.
    Nothing,
    /// The sum of the step before, which counts as zeros.
    Old,
    /// What was added in this step.
    Some,
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
        Self {
            name: name.into(),
            stored: Stored::Plain,
            value: Value::Whole(value),
            gradient: None,
            rests: false,
            packed: None,
        }
    }

    /// A frozen matrix of a linear layer, in a few bits.
    pub fn quantized(name: impl Into<String>, value: QuantizedWeight) -> Self {
        Self {
            name: name.into(),
            stored: Stored::Plain,
            value: Value::Quantized(value),
            gradient: None,
            rests: false,
            packed: None,
        }
    }

    /// A weight that training changes: converted to f32, with a gradient of zeros. Ops compute in `compute`.
    pub fn trained(name: impl Into<String>, value: Tensor, compute: DType) -> Self {
        let gradient = Some(Gradient::zeros(value.view()));
        let is_matrix = value.shape().len() > 1;
        let value = if is_matrix && are_in_halves(compute, value.view()) {
            Value::Halves(Halves::of(value))
        } else if value.dtype() == DType::F32 && value.owned_bytes() > 0 {
            Value::Whole(value)
        } else {
            Value::Whole(value.to_dtype(DType::F32))
        };
        Self { name: name.into(), stored: Stored::Plain, value, gradient, rests: false, packed: None }
    }

    /// The same weight as the bias of a linear layer, which a product reads as it reads its matrices.
    pub fn as_bias(self, compute: DType) -> Self {
        match self.value {
            Value::Whole(value) if self.gradient.is_some() && are_in_halves(compute, value.view()) => {
                Self { value: Value::Halves(Halves::of(value)), ..self }
            }
            value => Self { value, ..self },
        }
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
        match &self.value {
            Value::Quantized(value) => quantization::in_files(&self.name, value),
            _ => self.stored.parts(&self.name, self.as_used()),
        }
    }

    /// The same as transformers' modules have it: so it is in adapters' files.
    ///
    /// # Panics
    /// If it is quantised.
    pub fn in_modules(&self) -> Vec<(String, StoredTensor<'_>)> {
        self.stored.in_modules().parts(&self.name, self.as_used())
    }

    /// The weight in its own type and form, for a file that is read as it is used.
    ///
    /// # Panics
    /// If it is quantised.
    pub fn as_used(&self) -> StoredTensor<'_> {
        match &self.value {
            Value::Whole(value) => value.into(),
            Value::Halves(value) => value.into(),
            Value::Quantized(_) => panic!("{}: a quantised weight is several tensors", self.name),
        }
    }

    /// Its gradient as transformers' modules have the weight; nothing if it takes none.
    pub fn gradient_in_modules(&self) -> Vec<(String, StoredTensor<'_>)> {
        let form = self.stored.in_modules();
        let gradient = self.gradient.as_ref();
        gradient.map_or_else(Vec::new, |gradient| form.parts(&self.name, StoredTensor::from(&gradient.sum)))
    }

    /// The same weight with another value of the same shape, trained or frozen as before.
    pub fn with_value(&self, value: Tensor) -> Self {
        let name = self.name.clone();
        let compute = if matches!(self.value, Value::Halves(_)) { DType::BF16 } else { DType::F32 };
        let new =
            if self.is_trained() { Self::trained(name, value, compute) } else { Self::frozen(name, value) };
        new.stored(self.stored)
    }

    /// Packs a frozen matrix for the products of a linear layer, in memory of `slab`; its pages in a file are released.
    pub fn pack(&mut self, dev: &Device, slab: &mut Slab<'_>) {
        let (Value::Whole(value), false) = (&self.value, self.is_trained()) else { return };
        let mut pack = |reads| PackedWeight::pack(dev, slab, value.view(), reads);
        self.packed = Some(Packed { x_wt: pack(Reads::XWt), dy_w: pack(Reads::DyW) });
        value.release_pages();
    }

    /// y = x·Wᵀ of a linear layer's weight [out, in], x [N, in], y [N, out].
    pub fn x_wt<'a>(&'a self, x: View<'a>, y: ViewMut<'a>) -> Matmul<'a> {
        Matmul::x_wt(x, self.matrix(), y).packed(self.packed.as_ref().map(|packed| &packed.x_wt))
    }

    /// dx = dy·W of a linear layer's weight [out, in], dy [N, out], dx [N, in].
    pub fn dy_w<'a>(&'a self, dy: View<'a>, dx: ViewMut<'a>) -> Matmul<'a> {
        Matmul::dy_w(dy, self.matrix(), dx).packed(self.packed.as_ref().map(|packed| &packed.dy_w))
    }

    /// The weight as products read it.
    fn matrix(&self) -> Matrix<'_> {
        match &self.value {
            Value::Quantized(value) => value.into(),
            value => value.view().into(),
        }
    }

    /// Its codes, if it is quantised.
    pub fn as_quantized(&self) -> Option<&QuantizedWeight> {
        if let Value::Quantized(value) = &self.value { Some(value) } else { None }
    }

    /// Hugging Face's name, or PEFT's for an adapter's weight.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether training changes it.
    pub fn is_trained(&self) -> bool {
        self.gradient.is_some() || self.rests
    }

    /// Whether backward makes its gradient: it is trained, and does not rest.
    pub fn takes_gradient(&self) -> bool {
        self.gradient.is_some()
    }

    /// Lets a trained weight rest, or ends that. A resting weight has no gradient and no memory for one, and backward goes
    /// around it.
    pub fn set_rest(&mut self, rests: bool) {
        if self.is_trained() && rests != self.rests {
            self.rests = rests;
            self.gradient = (!rests).then(|| Gradient::zeros(self.value.view()));
        }
    }

    /// What it is, without its values.
    pub fn outline(&self) -> Outline {
        Outline { name: self.name.clone(), shape: self.shape().to_vec(), stored: self.stored }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        match &self.value {
            Value::Whole(value) => value.shape(),
            Value::Halves(value) => value.shape(),
            Value::Quantized(value) => value.shape(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The type that it is kept and saved in.
    pub fn dtype(&self) -> DType {
        match &self.value {
            Value::Whole(value) => value.dtype(),
            Value::Halves(_) => DType::F32,
            Value::Quantized(value) => value.dtype(),
        }
    }

    /// The weight as ops read it: of one in halves the upper one.
    ///
    /// # Panics
    /// If it is quantised: products alone read such.
    pub fn value(&self) -> View<'_> {
        self.value.view()
    }

    /// The weight in its own type, in the host's memory.
    pub fn to_host(&self) -> Tensor {
        match &self.value {
            Value::Whole(value) => value.to_host(),
            Value::Halves(value) => value.to_host(),
            Value::Quantized(value) => value.to_tensor(),
        }
    }

    /// Zeros of its shape, f32, where it is.
    pub fn zeros(&self) -> Tensor {
        self.value().zeros_beside(DType::F32, self.shape())
    }

    /// Overwrites the weight.
    ///
    /// # Panics
    /// If it is frozen in a mapped file, or quantised.
    pub fn set(&mut self, value: View<'_>) {
        match &mut self.value {
            Value::Whole(whole) => whole.view_mut().copy_from(value),
            Value::Halves(halves) => halves.set(value),
            Value::Quantized(_) => panic!("{}: a quantised weight does not change", self.name),
        }
    }

    /// The gradient, to read; `None` if the weight takes none.
    pub fn gradient(&self) -> Option<View<'_>> {
        self.gradient.as_ref().map(|gradient| gradient.sum.view())
    }

    /// Begins a step: the gradient counts as zeros, and is returned if it has to be made so.
    pub fn begin_gradient(&mut self) -> Option<ViewMut<'_>> {
        let gradient = self.gradient.as_mut()?;
        if gradient.product_comes_first {
            gradient.state = Summed::Old;
            return None;
        }
        gradient.state = Summed::Nothing;
        Some(gradient.sum.view_mut())
    }

    /// Ends a step: the gradient if nothing was added to it and it has to be made zeros.
    pub fn end_gradient(&mut self) -> Option<ViewMut<'_>> {
        let gradient = self.gradient.as_mut()?;
        if gradient.state != Summed::Old {
            return None;
        }
        gradient.state = Summed::Nothing;
        Some(gradient.sum.view_mut())
    }

    /// The gradient, to add to; `None` if the weight takes none.
    pub fn gradient_mut(&mut self) -> Option<ViewMut<'_>> {
        self.gradient.as_mut().map(Gradient::begun)
    }

    /// The weight as ops read it, and the gradient to add to, `None` if it takes none.
    pub fn value_and_gradient(&mut self) -> (View<'_>, Option<ViewMut<'_>>) {
        (self.value.view(), self.gradient.as_mut().map(Gradient::begun))
    }

    /// Adds alpha·dyᵀ·x [out, in] to the gradient, if the weight takes one. dy is [N, out], x is [N, in].
    pub fn add_dyt_x(&mut self, dev: &Device, dy: View<'_>, x: View<'_>, alpha: f32) {
        let Some(gradient) = &mut self.gradient else { return };
        gradient.product_comes_first |= gradient.state == Summed::Nothing;
        let adds = gradient.state != Summed::Old;
        gradient.state = Summed::Some;
        Matmul::dyt_x(dy, x, gradient.sum.view_mut()).alpha(alpha).accumulate_if(adds).run(dev);
    }

    /// Calls `add(gradient)` if the weight takes one.
    pub fn accumulate(&mut self, add: impl FnOnce(ViewMut<'_>)) {
        if let Some(gradient) = self.gradient_mut() {
            add(gradient);
        }
    }

    /// The weight, and the memory of its gradient to keep something of its shape in between two steps; `None` if the
    /// weight takes none.
    pub fn for_exchange(&mut self) -> Option<ForExchange<'_>> {
        let (gradient, weight) = (self.gradient.as_mut()?, self.value.master()?);
        Some(ForExchange { weight, memory: gradient.sum.view_mut() })
    }

    /// What an update reads and writes; `None` if the weight takes no gradient.
    pub fn for_update(&mut self) -> Option<ForUpdate<'_>> {
        let (gradient, weight) = (self.gradient.as_ref()?.sum.view(), self.value.master()?);
        Some(ForUpdate { weight, gradient })
    }
}

/// A trained weight, and its gradient's memory.
#[derive(Debug)]
pub struct ForExchange<'a> {
    /// f32.
    pub weight: MasterWeight<'a>,
    /// f32: what is written here is lost when the next step begins.
    pub memory: ViewMut<'a>,
}

/// Whether trained weights that products read are in halves: where these have no type for f32.
fn are_in_halves(compute: DType, value: View<'_>) -> bool {
    compute == DType::BF16 && !value.is_on_host()
}

impl Value {
    /// To write; `None` if it is quantised.
    fn master(&mut self) -> Option<MasterWeight<'_>> {
        match self {
            Value::Whole(value) => Some(MasterWeight::Whole(value.view_mut())),
            Value::Halves(value) => Some(value.master()),
            Value::Quantized(_) => None,
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Value::Whole(value) => value.view(),
            Value::Halves(value) => value.high(),
            Value::Quantized(_) => panic!("a quantised weight is read by products alone"),
        }
    }
}

impl Gradient {
    fn zeros(value: View<'_>) -> Self {
        let sum = value.zeros_beside(DType::F32, value.shape());
        Self { sum, state: Summed::Nothing, product_comes_first: false }
    }

    /// What to add to: zeros where the sum is of the step before.
    fn begun(&mut self) -> ViewMut<'_> {
        if self.state == Summed::Old {
            self.product_comes_first = false;
            self.sum.view_mut().zero();
        }
        self.state = Summed::Some;
        self.sum.view_mut()
    }
}

/// A trained weight as an update takes it.
#[derive(Debug)]
pub struct ForUpdate<'a> {
    /// f32.
    pub weight: MasterWeight<'a>,
    /// f32.
    pub gradient: View<'a>,
}

impl Stored {
    /// How the weight lies in transformers' modules.
    pub fn in_modules(self) -> Self {
        if let Stored::Elsewhere(_) = self { Stored::Plain } else { self }
    }

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
            Stored::Reordered(axes) => {
                let [a, b, c] = axes.map(|axis| shape[axis]);
                vec![(name.to_owned(), if axes[0] == 0 { vec![a * b, c] } else { vec![a, b * c] })]
            }
        }
    }

    /// How the axes of a weight of this shape are in a file, if in another order.
    pub(crate) fn turned(self, shape: &[usize]) -> Option<Turned> {
        match (self, shape) {
            (Stored::Transposed, [rows, columns]) => Some(Turned::transposed([*rows, *columns])),
            (Stored::Reordered(axes), [a, b, c]) => Some(Turned::new([*a, *b, *c], axes)),
            _ => None,
        }
    }

    fn parts<'a>(self, name: &str, value: StoredTensor<'a>) -> Vec<(String, StoredTensor<'a>)> {
        let (shapes, turned) = (self.shapes(name, value.shape()), self.turned(value.shape()));
        let count = shapes.len();
        let part = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
            let part = (count > 1).then_some((i, count));
            (name, value.clone().part(shape, part, turned))
        };
        shapes.into_iter().enumerate().map(part).collect()
    }
}
