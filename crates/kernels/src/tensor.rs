//! Tensors: a buffer, a shape, an element type; and the views that ops take.
//!
//! A tensor is contiguous in row-major order. A [`View`] borrows it, whole or a range of its rows; a view's
//! shape may be read differently as long as the number of elements stays. Owned buffers begin at a multiple
//! of 64 bytes. A tensor may also sit in a memory-mapped file, and then it is read-only; or in the memory of a GPU,
//! and then ops on that device alone take it: it is read and written from here by copies.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::aligned::AlignedBytes;
use crate::cuda::{Cuda, DeviceMemory, DevicePtr};
use crate::{DType, Device, Element, convert};

/// Dimensions of a tensor, at most four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// # Panics
    /// With more than four dimensions.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= 4, "a tensor has at most four dimensions");
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Number of rows: the first dimension, 1 for a scalar.
    fn rows(&self) -> usize {
        self.dims[0]
    }

    fn with_rows(mut self, rows: usize) -> Self {
        assert!(self.rank > 0, "a scalar has no rows");
        self.dims[0] = rows;
        self
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dims().fmt(f)
    }
}

enum Buffer {
    Owned(AlignedBytes),
    Mapped { file: Arc<Mmap>, bytes: Range<usize> },
    OnDevice(DeviceMemory),
}

/// A range of a GPU's memory that a view borrows.
#[derive(Clone, Copy)]
struct DeviceBytes<'a> {
    cuda: &'a Arc<Cuda>,
    start: DevicePtr,
    len: usize,
}

impl DeviceBytes<'_> {
    fn range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "a range inside of the tensor");
        Self { start: self.start.offset(range.start), len: range.len(), ..self }
    }
}

/// Where the elements of a view are.
#[derive(Clone, Copy)]
enum Bytes<'a> {
    Host(&'a [u8]),
    Device(DeviceBytes<'a>),
}

/// The same, to write.
enum BytesMut<'a> {
    Host(&'a mut [u8]),
    Device(DeviceBytes<'a>),
}

impl<'a> Bytes<'a> {
    fn len(self) -> usize {
        match self {
            Bytes::Host(bytes) => bytes.len(),
            Bytes::Device(bytes) => bytes.len,
        }
    }

    fn range(self, range: Range<usize>) -> Self {
        match self {
            Bytes::Host(bytes) => Bytes::Host(&bytes[range]),
            Bytes::Device(bytes) => Bytes::Device(bytes.range(range)),
        }
    }

    /// # Panics
    /// If they are on a GPU.
    fn on_host(self) -> &'a [u8] {
        match self {
            Bytes::Host(bytes) => bytes,
            Bytes::Device(_) => panic!("a tensor in GPU memory is read by a copy"),
        }
    }
}

impl<'a> BytesMut<'a> {
    fn as_ref(&self) -> Bytes<'_> {
        match self {
            BytesMut::Host(bytes) => Bytes::Host(bytes),
            BytesMut::Device(bytes) => Bytes::Device(*bytes),
        }
    }

    fn reborrow(&mut self) -> BytesMut<'_> {
        match self {
            BytesMut::Host(bytes) => BytesMut::Host(bytes),
            BytesMut::Device(bytes) => BytesMut::Device(*bytes),
        }
    }

    fn range(self, range: Range<usize>) -> Self {
        match self {
            BytesMut::Host(bytes) => BytesMut::Host(&mut bytes[range]),
            BytesMut::Device(bytes) => BytesMut::Device(bytes.range(range)),
        }
    }

    /// # Panics
    /// If they are on a GPU.
    fn on_host(self) -> &'a mut [u8] {
        match self {
            BytesMut::Host(bytes) => bytes,
            BytesMut::Device(_) => panic!("a tensor in GPU memory is written by a copy"),
        }
    }
}

/// An owned, contiguous tensor.
pub struct Tensor {
    buffer: Buffer,
    shape: Shape,
    dtype: DType,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        let buffer = Buffer::Owned(AlignedBytes::zeroed(shape.elements() * dtype.bytes()));
        Self { buffer, shape, dtype }
    }

    /// A tensor of zeros in a range of pages that no other tensor has.
    pub(crate) fn in_pages(pages: Arc<MmapMut>, range: Range<usize>, dtype: DType, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(range.len(), shape.elements() * dtype.bytes());
        Self { buffer: Buffer::Owned(AlignedBytes::in_pages(pages, range)), shape, dtype }
    }

    /// A tensor of zeros where `dev` runs.
    pub(crate) fn zeros_on(dev: &Device, dtype: DType, shape: &[usize]) -> Self {
        match dev.cuda() {
            Some(cuda) => Self::zeros_in(cuda, dtype, shape),
            None => Self::zeros(dtype, shape),
        }
    }

    /// A tensor of zeros in a GPU's memory.
    fn zeros_in(cuda: &Arc<Cuda>, dtype: DType, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        let memory = DeviceMemory::zeroed(cuda, shape.elements() * dtype.bytes());
        Self { buffer: Buffer::OnDevice(memory), shape, dtype }
    }

    /// A tensor of zeros where this one is.
    pub fn zeros_beside(&self, dtype: DType, shape: &[usize]) -> Self {
        self.view().zeros_beside(dtype, shape)
    }

    /// The tensor where `dev` runs: itself, or a copy if it is elsewhere.
    pub fn on(self, dev: &Device) -> Self {
        match (&self.buffer, dev.cuda()) {
            (Buffer::OnDevice(_), None) => self.to_host(),
            (Buffer::Owned(_) | Buffer::Mapped { .. }, Some(cuda)) => {
                let mut copy = Self::zeros_in(cuda, self.dtype, self.shape());
                copy.view_mut().copy_from(self.view());
                copy
            }
            _ => self,
        }
    }

    /// A copy in the host's memory.
    pub fn to_host(&self) -> Self {
        self.view().to_host()
    }

    /// Whether it is in the host's memory.
    pub fn is_on_host(&self) -> bool {
        !matches!(self.buffer, Buffer::OnDevice(_))
    }

    /// A copy of `values`.
    ///
    /// # Panics
    /// If the shape has another number of elements.
    pub fn from_slice<E: Element>(values: &[E], shape: &[usize]) -> Self {
        let mut tensor = Self::zeros(E::DTYPE, shape);
        tensor.view_mut().as_mut_slice::<E>().copy_from_slice(values);
        tensor
    }

    /// A read-only tensor in a memory-mapped file, without a copy; `None` if the bytes are not aligned for
    /// `dtype`, not inside the file, or not as many as the shape needs.
    pub fn mapped(file: Arc<Mmap>, bytes: Range<usize>, dtype: DType, shape: &[usize]) -> Option<Self> {
        let shape = Shape::new(shape);
        let slice = file.get(bytes.clone())?;
        let aligned = slice.as_ptr().addr().is_multiple_of(dtype.bytes());
        let fits = slice.len() == shape.elements() * dtype.bytes();
        (aligned && fits).then_some(Self { buffer: Buffer::Mapped { file, bytes }, shape, dtype })
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Bytes of memory that this tensor itself takes (none if it is mapped from a file).
    pub fn owned_bytes(&self) -> usize {
        match &self.buffer {
            Buffer::Owned(bytes) => bytes.len(),
            Buffer::Mapped { .. } => 0,
            Buffer::OnDevice(memory) => memory.len(),
        }
    }

    /// Tells the system that the pages of a tensor in a file are not needed soon; they are read again when they are.
    pub fn release_pages(&self) {
        #[cfg(unix)]
        if let Buffer::Mapped { file, bytes } = &self.buffer {
            // SAFETY: pages of a file that is mapped for reading are what the file holds, before and after. A refusal
            // costs memory alone.
            let _ = unsafe {
                file.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len())
            };
        }
    }

    /// The whole tensor, to read.
    pub fn view(&self) -> View<'_> {
        let bytes = match &self.buffer {
            Buffer::Owned(owned) => Bytes::Host(owned.bytes()),
            Buffer::Mapped { file, bytes } => Bytes::Host(&file[bytes.clone()]),
            Buffer::OnDevice(memory) => Bytes::Device(device_bytes(memory)),
        };
        View { bytes, shape: self.shape, dtype: self.dtype }
    }

    /// The whole tensor, to write.
    ///
    /// # Panics
    /// If it is mapped from a file: those are frozen weights, and nothing writes to them.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let bytes = match &mut self.buffer {
            Buffer::Owned(owned) => BytesMut::Host(owned.bytes_mut()),
            Buffer::OnDevice(memory) => BytesMut::Device(device_bytes(memory)),
            Buffer::Mapped { .. } => panic!("a tensor that is mapped from a file is read-only"),
        };
        ViewMut { bytes, shape: self.shape, dtype: self.dtype }
    }

    /// The first `rows` rows, to read: buffers are planned for the largest micro-batch and used up to its size.
    pub fn head(&self, rows: usize) -> View<'_> {
        self.view().rows(0..rows)
    }

    /// The first `rows` rows, to write.
    pub fn head_mut(&mut self, rows: usize) -> ViewMut<'_> {
        self.view_mut().into_rows(0..rows)
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), self.shape.elements(), "{:?} as {shape:?}", self.shape);
        Self { shape, ..self }
    }

    /// A copy in another element type.
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        self.view().to_dtype(dtype)
    }

    /// All elements as `f32`, in a new vector.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        self.view().to_f32_vec()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

fn device_bytes(memory: &DeviceMemory) -> DeviceBytes<'_> {
    DeviceBytes { cuda: memory.cuda(), start: memory.start(), len: memory.len() }
}

/// A borrowed tensor, or a range of its rows, to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: Bytes<'a>,
    shape: Shape,
    dtype: DType,
}

impl<'a> View<'a> {
    /// A view of plain values.
    ///
    /// # Panics
    /// If the shape has another number of elements.
    pub fn of<E: Element>(values: &'a [E], shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), values.len(), "values for shape {shape:?}");
        // SAFETY: `Element` is sealed to plain old data; any such slice is readable as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { bytes: Bytes::Host(bytes), shape, dtype: E::DTYPE }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape.dims()[i]
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Bytes of all elements.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Where it begins on the GPU.
    ///
    /// # Panics
    /// If it is in the host's memory.
    pub(crate) fn device(&self) -> DevicePtr {
        match self.bytes {
            Bytes::Device(bytes) => bytes.start,
            Bytes::Host(_) => panic!("{self:?} is in the host's memory, and an op on a GPU takes it"),
        }
    }

    /// The GPU that it is on.
    ///
    /// # Panics
    /// If it is in the host's memory.
    pub(crate) fn cuda(&self) -> &'a Arc<Cuda> {
        match self.bytes {
            Bytes::Device(bytes) => bytes.cuda,
            Bytes::Host(_) => panic!("a tensor in the host's memory is on no GPU"),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), self.shape.elements(), "{:?} as {shape:?}", self.shape);
        Self { shape, ..self }
    }

    /// A range of rows (first dimension).
    ///
    /// # Panics
    /// If the range is outside.
    pub fn rows(self, range: Range<usize>) -> Self {
        let row_bytes = self.bytes.len() / self.shape.rows().max(1);
        let bytes = self.bytes.range(range.start * row_bytes..range.end * row_bytes);
        Self { bytes, shape: self.shape.with_rows(range.len()), dtype: self.dtype }
    }

    /// The elements.
    ///
    /// # Panics
    /// If `E` is another type than the tensor's.
    pub fn as_slice<E: Element>(self) -> &'a [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type of {:?}", self.shape);
        let bytes = self.bytes.on_host();
        // SAFETY: the type matches, buffers are aligned for it (`AlignedBytes`, `Tensor::mapped`), every bit
        // pattern is valid, and the length is a multiple of the element's size by construction.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<E>()) }
    }

    /// Whether it is in the host's memory.
    pub fn is_on_host(&self) -> bool {
        matches!(self.bytes, Bytes::Host(_))
    }

    /// A copy in the host's memory.
    pub fn to_host(self) -> Tensor {
        let mut copy = Tensor::zeros(self.dtype, self.shape());
        copy.view_mut().copy_from(self);
        copy
    }

    /// A tensor of zeros where this is.
    pub fn zeros_beside(&self, dtype: DType, shape: &[usize]) -> Tensor {
        match self.bytes {
            Bytes::Device(bytes) => Tensor::zeros_in(bytes.cuda, dtype, shape),
            Bytes::Host(_) => Tensor::zeros(dtype, shape),
        }
    }

    /// A copy in another element type, where this is.
    pub fn to_dtype(self, dtype: DType) -> Tensor {
        let mut copy = self.zeros_beside(dtype, self.shape());
        copy.view_mut().copy_from(self);
        copy
    }

    /// All elements as `f32`, in a new vector.
    pub fn to_f32_vec(self) -> Vec<f32> {
        if let Bytes::Device(_) = self.bytes {
            return self.to_host().to_f32_vec();
        }
        match self.dtype {
            DType::F32 => self.as_slice::<f32>().to_vec(),
            DType::BF16 => self.as_slice::<half::bf16>().iter().map(|x| Element::to_f32(*x)).collect(),
            DType::F16 => self.as_slice::<half::f16>().iter().map(|x| Element::to_f32(*x)).collect(),
        }
    }

    /// The raw bytes in native (little-endian) order, as files store them.
    ///
    /// # Panics
    /// If it is in a GPU's memory.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes.on_host()
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

/// A borrowed tensor, or a range of its rows, to write.
pub struct ViewMut<'a> {
    bytes: BytesMut<'a>,
    shape: Shape,
    dtype: DType,
}

impl<'a> ViewMut<'a> {
    /// A view of plain values.
    ///
    /// # Panics
    /// If the shape has another number of elements.
    pub fn of<E: Element>(values: &'a mut [E], shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), values.len(), "values for shape {shape:?}");
        // SAFETY: `Element` is sealed to plain old data; every bit pattern is valid.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) };
        Self { bytes: BytesMut::Host(bytes), shape, dtype: E::DTYPE }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape.dims()[i]
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Bytes of all elements.
    pub fn byte_len(&self) -> usize {
        self.bytes.as_ref().len()
    }

    /// Where it begins on the GPU.
    ///
    /// # Panics
    /// If it is in the host's memory.
    pub(crate) fn device(&mut self) -> DevicePtr {
        self.as_view().device()
    }

    /// Read what is there.
    pub fn as_view(&self) -> View<'_> {
        View { bytes: self.bytes.as_ref(), shape: self.shape, dtype: self.dtype }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { bytes: self.bytes.reborrow(), shape: self.shape, dtype: self.dtype }
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), self.shape.elements(), "{:?} as {shape:?}", self.shape);
        Self { shape, ..self }
    }

    /// A range of rows (first dimension).
    ///
    /// # Panics
    /// If the range is outside.
    pub fn into_rows(self, range: Range<usize>) -> Self {
        let row_bytes = self.byte_len() / self.shape.rows().max(1);
        let bytes = self.bytes.range(range.start * row_bytes..range.end * row_bytes);
        Self { bytes, shape: self.shape.with_rows(range.len()), dtype: self.dtype }
    }

    /// The first half of the memory of `f32`, as `bf16` of the same shape.
    pub(crate) fn into_first_half(self) -> Self {
        assert_eq!(self.dtype, DType::F32, "half of {:?}", self.shape);
        let bytes = 0..self.byte_len() / 2;
        Self { bytes: self.bytes.range(bytes), shape: self.shape, dtype: DType::BF16 }
    }

    /// The elements.
    ///
    /// # Panics
    /// If `E` is another type than the tensor's.
    pub fn as_mut_slice<E: Element>(self) -> &'a mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type of {:?}", self.shape);
        let bytes = self.bytes.on_host();
        // SAFETY: as in `View::as_slice`, and the bytes are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<E>()) }
    }

    /// The raw bytes.
    ///
    /// # Panics
    /// If they are in a GPU's memory.
    pub(crate) fn into_bytes(self) -> &'a mut [u8] {
        self.bytes.on_host()
    }

    /// Sets every element to zero.
    pub fn zero(self) {
        match self.bytes {
            BytesMut::Host(bytes) => bytes.fill(0),
            BytesMut::Device(bytes) => bytes.cuda.zero(bytes.start, bytes.len),
        }
    }

    /// Copies `from`, converting the element type, from wherever it is.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn copy_from(self, from: View<'_>) {
        assert_eq!(self.shape.elements(), from.elements(), "{from:?} into {:?}", self.shape);
        if self.dtype == from.dtype {
            match (self.bytes, from.bytes) {
                (BytesMut::Host(to), Bytes::Host(from)) => to.copy_from_slice(from),
                (BytesMut::Host(to), Bytes::Device(from)) => from.cuda.read(from.start, to),
                (BytesMut::Device(to), Bytes::Host(from)) => to.cuda.write(to.start, from),
                (BytesMut::Device(to), Bytes::Device(from)) => to.cuda.copy(to.start, from.start, to.len),
            }
            return;
        }
        match (&self.bytes, from.bytes) {
            (BytesMut::Host(_), Bytes::Host(_)) => self.convert_from(from),
            (BytesMut::Device(to), Bytes::Device(_)) => convert::on_cuda(to.cuda, from, self),
            // Converted where it is, then moved.
            (BytesMut::Host(_), Bytes::Device(_)) => {
                let mut moved = Tensor::zeros(from.dtype, from.shape());
                moved.view_mut().copy_from(from);
                self.convert_from(moved.view());
            }
            (BytesMut::Device(_), Bytes::Host(_)) => {
                let mut converted = Tensor::zeros(self.dtype, self.shape());
                converted.view_mut().convert_from(from);
                self.copy_from(converted.view());
            }
        }
    }

    /// In the host's memory.
    fn convert_from(self, from: View<'_>) {
        fn convert<A: Element, B: Element>(to: &mut [B], from: &[A]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = B::from_f32(from.to_f32()));
        }
        fn from_type<A: Element>(to: ViewMut<'_>, from: &[A]) {
            match to.dtype {
                DType::F32 => convert(to.as_mut_slice::<f32>(), from),
                DType::BF16 => convert(to.as_mut_slice::<half::bf16>(), from),
                DType::F16 => convert(to.as_mut_slice::<half::f16>(), from),
            }
        }
        match from.dtype {
            DType::F32 => from_type(self, from.as_slice::<f32>()),
            DType::BF16 => from_type(self, from.as_slice::<half::bf16>()),
            DType::F16 => from_type(self, from.as_slice::<half::f16>()),
        }
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}
