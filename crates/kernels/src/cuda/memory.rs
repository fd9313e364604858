//! Memory of a card, and the ways into it and out of it.
//!
//! Everything is in the order of the card's one stream: what was sent last is what the next kernel sees, and memory
//! that one kernel has read can be written for the next. Only reading waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use cudarc::driver::{DriverError, result, sys};

use super::{Cuda, lock};
use crate::OutOfMemory;

/// An address in a card's memory, of 8 bytes in a kernel's struct too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct DevicePtr(u64);

impl DevicePtr {
    /// Of what is not there.
    pub const NULL: Self = Self(0);

    /// `bytes` further on.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// The address.
    pub fn address(self) -> u64 {
        self.0
    }
}

/// Bytes that this process has on cards, and the most that it had.
static TAKEN: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// How often this process took memory of cards.
static TIMES: AtomicUsize = AtomicUsize::new(0);

/// See [`TIMES`].
pub(super) fn allocations() -> usize {
    TIMES.load(Ordering::Relaxed)
}

/// The most bytes that this process had at a time.
pub(super) fn peak_bytes() -> usize {
    TAKEN[1].load(Ordering::Relaxed)
}

/// Bytes of a card, freed with it.
pub(super) struct Allocation {
    start: DevicePtr,
    len: usize,
}

impl Allocation {
    /// What is in it is anything. The card is bound, here and when it is dropped. Unwinds with [`OutOfMemory`] if the
    /// card has not as many.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return Self { start: DevicePtr::NULL, len };
        }
        // SAFETY: it is freed once, in `drop`.
        let start = unsafe { result::malloc_sync(len) }.unwrap_or_else(|error| {
            let free = result::mem_get_info().map_or(0, |(free, _)| free);
            OutOfMemory { bytes: len, free: Some(free), reason: error.to_string() }.raise()
        });
        TIMES.fetch_add(1, Ordering::Relaxed);
        let taken = TAKEN[0].fetch_add(len, Ordering::Relaxed) + len;
        TAKEN[1].fetch_max(taken, Ordering::Relaxed);
        Self { start: DevicePtr(start), len }
    }

    pub fn start(&self) -> DevicePtr {
        self.start
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `new`. The driver waits for kernels that still use it. An error here is one of an
            // earlier kernel, and who waits for that hears of it.
            let _ = unsafe { result::free_sync(self.start.0) };
            TAKEN[0].fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}

/// Memory of a tensor.
pub(crate) struct DeviceMemory {
    cuda: Arc<Cuda>,
    // `None` in `drop` alone.
    allocation: Option<Allocation>,
}

impl DeviceMemory {
    /// Zeroed bytes.
    pub fn zeroed(cuda: &Arc<Cuda>, len: usize) -> Self {
        cuda.bind();
        let allocation = Allocation::new(len);
        cuda.zero(allocation.start, len);
        Self { cuda: Arc::clone(cuda), allocation: Some(allocation) }
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    pub fn start(&self) -> DevicePtr {
        self.allocation.as_ref().map_or(DevicePtr::NULL, |allocation| allocation.start)
    }

    pub fn len(&self) -> usize {
        self.allocation.as_ref().map_or(0, |allocation| allocation.len)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.cuda.bind();
        self.allocation = None;
    }
}

/// Bytes of one piece of pinned memory.
const PIECE: usize = 8 << 20;
/// Pieces: while the card reads some, the host fills the next.
const PIECES: usize = 8;

/// Pinned memory through which everything goes that is sent.
pub(super) struct Staging {
    pieces: Vec<Piece>,
    current: usize,
    filled: usize,
}

struct Piece {
    start: *mut u8,
    /// Recorded after the last copy out of it.
    done: sys::CUevent,
    under_way: bool,
}

// SAFETY: memory and events of the driver that only the holder of the mutex touches.
unsafe impl Send for Staging {}

impl Staging {
    pub fn new() -> Result<Self, DriverError> {
        let piece = || {
            // SAFETY: the context is bound by whoever opens the card; both live as long as the process needs them.
            let start = unsafe { result::malloc_host(PIECE, 0) }?.cast::<u8>();
            let done = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            Ok(Piece { start, done, under_way: false })
        };
        let pieces = (0..PIECES).map(|_| piece()).collect::<Result<_, DriverError>>()?;
        Ok(Self { pieces, current: 0, filled: 0 })
    }

    /// Room for some bytes, as many as there are in one piece; waits until the card has read what was there.
    fn room(&mut self, wanted: usize, stream: sys::CUstream) -> Result<&mut [u8], DriverError> {
        if self.filled == PIECE {
            let piece = &mut self.pieces[self.current];
            // SAFETY: event and stream of one context.
            unsafe { result::event::record(piece.done, stream) }?;
            piece.under_way = true;
            (self.current, self.filled) = ((self.current + 1) % PIECES, 0);
            let piece = &mut self.pieces[self.current];
            if piece.under_way {
                // SAFETY: as above.
                unsafe { result::event::synchronize(piece.done) }?;
                piece.under_way = false;
            }
        }
        let len = wanted.min(PIECE - self.filled);
        let start = self.pieces[self.current].start.wrapping_add(self.filled);
        // What follows begins at a multiple of 64 bytes.
        self.filled = (self.filled + len).next_multiple_of(64).min(PIECE);
        // SAFETY: a part of the piece that nothing else uses: the card has read it, and this struct is borrowed.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for piece in &self.pieces {
            // SAFETY: made in `new`; the stream is idle. Errors have no one to go to.
            unsafe {
                let _ = result::event::destroy(piece.done);
                let _ = result::free_host(piece.start.cast());
            }
        }
    }
}

/// Small arrays of the host that are on the card: an op that asks for the same values again gets the same memory.
#[derive(Default)]
pub(super) struct Sent {
    arrays: Vec<SentArray>,
    /// Counts requests, to know which array was wanted last.
    requests: u64,
}

struct SentArray {
    words: Vec<u32>,
    memory: Allocation,
    used: u64,
}

/// Arrays that are kept: more than the ops of one micro-batch ask for. There may be more for want of a large one.
const KEPT: usize = 32;
/// Bytes of the smallest, so that almost all do for almost all.
const SMALLEST: usize = 64 << 10;

/// Workspace of one op, between its launches.
pub(crate) struct Scratch<'a>(MutexGuard<'a, Option<Allocation>>);

impl Scratch<'_> {
    pub fn start(&self) -> DevicePtr {
        self.0.as_ref().map_or(DevicePtr::NULL, |memory| memory.start)
    }
}

impl Cuda {
    /// Indices on the card, u32. They stay until many other arrays were asked for.
    pub(crate) fn indices(&self, values: &[u32]) -> DevicePtr {
        if values.is_empty() {
            return DevicePtr::NULL;
        }
        self.bind();
        let mut sent = lock(&self.sent);
        sent.requests += 1;
        let now = sent.requests;
        if let Some(array) = sent.arrays.iter_mut().find(|array| array.words == values) {
            array.used = now;
            return array.memory.start;
        }
        let bytes = size_of_val(values);
        let is_full = sent.arrays.len() >= KEPT;
        let fits = |i: &usize| is_full && sent.arrays[*i].memory.len >= bytes;
        let oldest = (0..sent.arrays.len()).filter(fits).min_by_key(|i| sent.arrays[*i].used);
        let memory = match oldest.map(|i| sent.arrays.swap_remove(i).memory) {
            Some(memory) => memory,
            None => Allocation::new(bytes.next_power_of_two().max(SMALLEST)),
        };
        let start = memory.start;
        // SAFETY: any words are bytes.
        self.write(start, unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), bytes) });
        sent.arrays.push(SentArray { words: values.to_vec(), memory, used: now });
        start
    }

    /// Numbers on the card, f32, for as long as [`Cuda::indices`].
    pub(crate) fn values(&self, values: &[f32]) -> DevicePtr {
        self.indices(&values.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    }

    /// Memory of at least this size, whose contents no other op changes as long as the caller holds it.
    pub(crate) fn scratch(&self, bytes: usize) -> Scratch<'_> {
        self.bind();
        let mut scratch = lock(&self.scratch);
        if scratch.as_ref().is_none_or(|memory| memory.len < bytes) {
            *scratch = None;
            *scratch = Some(Allocation::new(bytes.next_multiple_of(1 << 20)));
        }
        Scratch(scratch)
    }

    /// Sends bytes. They are copied before this returns.
    pub(crate) fn write(&self, to: DevicePtr, from: &[u8]) {
        self.bind();
        let mut staging = lock(&self.staging);
        let mut sent = 0;
        while sent < from.len() {
            let room =
                staging.room(from.len() - sent, self.stream).unwrap_or_else(|error| refused("send", error));
            room.copy_from_slice(&from[sent..sent + room.len()]);
            let target = to.offset(sent).0;
            // SAFETY: the target is as large as `from` by the caller's word; the source is pinned and stays until read.
            unsafe { result::memcpy_htod_async(target, room, self.stream) }
                .unwrap_or_else(|error| refused("send", error));
            sent += room.len();
        }
    }

    /// Fetches bytes, after everything that was started before.
    pub(crate) fn read(&self, from: DevicePtr, to: &mut [u8]) {
        if to.is_empty() {
            return;
        }
        self.bind();
        // SAFETY: the source is as large as `to` by the caller's word, and `to` is borrowed until it is filled.
        unsafe { result::memcpy_dtoh_async(to, from.0, self.stream) }
            .unwrap_or_else(|error| refused("read", error));
        self.synchronize();
    }

    /// Fetches numbers.
    pub(crate) fn read_f32(&self, from: DevicePtr, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; count * size_of::<f32>()];
        self.read(from, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Fetches numbers of double precision.
    pub(crate) fn read_f64(&self, from: DevicePtr, count: usize) -> Vec<f64> {
        let mut bytes = vec![0; count * size_of::<f64>()];
        self.read(from, &mut bytes);
        let eight = |b: &[u8]| b.try_into().expect("eight bytes");
        bytes.chunks_exact(8).map(|b| f64::from_le_bytes(eight(b))).collect()
    }

    pub(crate) fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) {
        if bytes > 0 {
            self.bind();
            // SAFETY: both are as large by the caller's word.
            unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
                .unwrap_or_else(|error| refused("copy", error));
        }
    }

    pub(crate) fn zero(&self, start: DevicePtr, bytes: usize) {
        if bytes > 0 {
            self.bind();
            // SAFETY: as large by the caller's word.
            unsafe { result::memset_d8_async(start.0, 0, bytes, self.stream) }
                .unwrap_or_else(|error| refused("clear", error));
        }
    }
}

fn refused(what: &str, error: DriverError) -> ! {
    panic!("the CUDA driver cannot {what} memory: {error}")
}
