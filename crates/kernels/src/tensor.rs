//! Tensors: a buffer, a shape, an element type; and the views that ops take.
//!
//! A tensor is contiguous in row-major order. A [`View`] borrows it, whole or a range of its rows; a view's
//! shape may be read differently as long as the number of elements stays. Owned buffers begin at a multiple
//! of 64 bytes. A tensor may also sit in a memory-mapped file, and then it is read-only.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::pages::{self, HUGE_PAGE};
use crate::{DType, Element};

/// Alignment of owned buffers: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;

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

/// Zeroed bytes that begin at a multiple of 64.
struct AlignedBytes {
    start: std::ptr::NonNull<u8>,
    len: usize,
    /// The pages that they are part of, no other owner's part; of their own from the heap if `None`.
    pages: Option<Arc<MmapMut>>,
}

/// Bytes from which on a tensor has pages of its own.
const OWN_PAGES: usize = 4 * HUGE_PAGE;

// SAFETY: it owns its memory and hands out borrows by the usual rules.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { start: std::ptr::NonNull::<u64>::dangling().cast(), len, pages: None };
        }
        if len >= OWN_PAGES {
            let (pages, range) = pages::zeroed(len);
            return Self::in_pages(Arc::new(pages), range.start..range.start + len);
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size other than zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = std::ptr::NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, pages: None }
    }

    /// A range of pages that no one else has.
    fn in_pages(pages: Arc<MmapMut>, range: Range<usize>) -> Self {
        assert!(range.end <= pages.len() && range.start.is_multiple_of(ALIGNMENT));
        let start = pages.as_ptr().wrapping_add(range.start).cast_mut();
        let start = std::ptr::NonNull::new(start).expect("a mapping is at no address 0");
        Self { start, len: range.len(), pages: Some(pages) }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT).expect("a tensor is smaller than the address space")
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes, which the heap or `pages` keeps, or is dangling and aligned
        // with `len` 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len > 0 && self.pages.is_none() {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
        }
    }
}

enum Buffer {
    Owned(AlignedBytes),
    Mapped { file: Arc<Mmap>, bytes: Range<usize> },
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
            Buffer::Owned(bytes) => bytes.len,
            Buffer::Mapped { .. } => 0,
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
            Buffer::Owned(owned) => owned.bytes(),
            Buffer::Mapped { file, bytes } => &file[bytes.clone()],
        };
        View { bytes, shape: self.shape, dtype: self.dtype }
    }

    /// The whole tensor, to write.
    ///
    /// # Panics
    /// If it is mapped from a file: those are frozen weights, and nothing writes to them.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let Buffer::Owned(owned) = &mut self.buffer else {
            panic!("a tensor that is mapped from a file is read-only");
        };
        ViewMut { bytes: owned.bytes_mut(), shape: self.shape, dtype: self.dtype }
    }

    /// The first `rows` rows, to read: buffers are planned for the largest micro-batch and used up to its size.
    pub fn head(&self, rows: usize) -> View<'_> {
        self.view().rows(0..rows)
    }

    /// The first `rows` rows, to write.
    pub fn head_mut(&mut self, rows: usize) -> ViewMut<'_> {
        self.view_mut().into_rows(0..rows)
    }

    /// A copy in another element type.
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        let mut copy = Tensor::zeros(dtype, self.shape());
        copy.view_mut().copy_from(self.view());
        copy
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

/// A borrowed tensor, or a range of its rows, to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
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
        Self { bytes, shape, dtype: E::DTYPE }
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
        let bytes = &self.bytes[range.start * row_bytes..range.end * row_bytes];
        Self { bytes, shape: self.shape.with_rows(range.len()), dtype: self.dtype }
    }

    /// The elements.
    ///
    /// # Panics
    /// If `E` is another type than the tensor's.
    pub fn as_slice<E: Element>(self) -> &'a [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type of {:?}", self.shape);
        // SAFETY: the type matches, buffers are aligned for it (`AlignedBytes`, `Tensor::mapped`), every bit
        // pattern is valid, and the length is a multiple of the element's size by construction.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / size_of::<E>()) }
    }

    /// All elements as `f32`, in a new vector.
    pub fn to_f32_vec(self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.as_slice::<f32>().to_vec(),
            DType::BF16 => self.as_slice::<half::bf16>().iter().map(|x| Element::to_f32(*x)).collect(),
            DType::F16 => self.as_slice::<half::f16>().iter().map(|x| Element::to_f32(*x)).collect(),
        }
    }

    /// The raw bytes in native (little-endian) order, as files store them.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

/// A borrowed tensor, or a range of its rows, to write.
pub struct ViewMut<'a> {
    bytes: &'a mut [u8],
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
        Self { bytes, shape, dtype: E::DTYPE }
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

    /// Read what is there.
    pub fn as_view(&self) -> View<'_> {
        View { bytes: self.bytes, shape: self.shape, dtype: self.dtype }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { bytes: self.bytes, shape: self.shape, dtype: self.dtype }
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
        let row_bytes = self.bytes.len() / self.shape.rows().max(1);
        let bytes = &mut self.bytes[range.start * row_bytes..range.end * row_bytes];
        Self { bytes, shape: self.shape.with_rows(range.len()), dtype: self.dtype }
    }

    /// The elements.
    ///
    /// # Panics
    /// If `E` is another type than the tensor's.
    pub fn as_mut_slice<E: Element>(self) -> &'a mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type of {:?}", self.shape);
        // SAFETY: as in `View::as_slice`, and the bytes are borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), self.bytes.len() / size_of::<E>())
        }
    }

    /// Sets every element to zero.
    pub fn zero(self) {
        self.bytes.fill(0);
    }

    /// Copies `from`, converting the element type.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn copy_from(self, from: View<'_>) {
        assert_eq!(self.shape.elements(), from.elements(), "{from:?} into {:?}", self.shape);
        if self.dtype == from.dtype {
            self.bytes.copy_from_slice(from.bytes);
            return;
        }
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
