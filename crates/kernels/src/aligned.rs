//! The memory of owned tensors in the host's memory: from the heap, or pages of its own where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::OutOfMemory;
use crate::pages::{self, HUGE_PAGE};

/// Alignment of owned buffers: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;

/// Zeroed bytes that begin at a multiple of 64.
pub(crate) struct AlignedBytes {
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
    pub fn zeroed(len: usize) -> Self {
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
        let Some(start) = std::ptr::NonNull::new(start) else {
            OutOfMemory { bytes: len, free: None, reason: "the heap cannot grow".into() }.raise()
        };
        Self { start, len, pages: None }
    }

    /// A range of pages that no one else has.
    pub fn in_pages(pages: Arc<MmapMut>, range: Range<usize>) -> Self {
        assert!(range.end <= pages.len() && range.start.is_multiple_of(ALIGNMENT));
        let start = pages.as_ptr().wrapping_add(range.start).cast_mut();
        let start = std::ptr::NonNull::new(start).expect("a mapping is at no address 0");
        Self { start, len: range.len(), pages: Some(pages) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT).expect("a tensor is smaller than the address space")
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes, which the heap or `pages` keeps, or is dangling and aligned
        // with `len` 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
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
