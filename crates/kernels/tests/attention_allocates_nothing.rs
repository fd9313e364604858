//! A steady step allocates nothing: attention keeps its scratch from call to call.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sft_kernels::attention::{self, AttentionParams, Backward, Forward, RowOffsets};
use sft_kernels::{CpuOptions, DType, Device, Tensor};

struct Counting;

thread_local! {
    /// Of this thread: what the test harness does meanwhile is its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn attention_allocates_nothing_after_the_first_step() {
    // One thread: with more, a thread's first task may come in any step.
    let dev = Device::cpu(CpuOptions { threads: Some(1), isa: None }).unwrap();
    let params = AttentionParams::scaled(0.125);
    let shapes = [[100, 6, 64], [100, 2, 64], [1, 6, 64], [3000, 2, 64]];
    let [q, k, last, cache] = shapes.map(|shape| Tensor::zeros(DType::BF16, &shape));
    let [mut out, mut dq, mut dk, mut dv] =
        [shapes[0], shapes[0], shapes[1], shapes[1]].map(|shape| Tensor::zeros(DType::BF16, &shape));
    let [mut lse, mut delta] = [0; 2].map(|_| Tensor::zeros(DType::F32, &[100, 6]));
    let mut step = || {
        let rows = RowOffsets { q: &[0, 30, 100], k: &[0, 30, 100] };
        let (q, k) = (q.view(), k.view());
        let io = Forward { q, k, v: k, out: out.view_mut(), lse: Some(lse.view_mut()) };
        attention::forward(&dev, &params, rows, io);
        let io = Backward {
            q,
            k,
            v: k,
            out: out.view(),
            dout: q,
            lse: lse.view(),
            delta: delta.view_mut(),
            dq: dq.view_mut(),
            dk: dk.view_mut(),
            dv: dv.view_mut(),
        };
        attention::backward(&dev, &params, rows, io);
        let (query, cache) = (last.view(), cache.view());
        let io = Forward { q: query, k: cache, v: cache, out: out.head_mut(1), lse: None };
        attention::forward(&dev, &params, RowOffsets { q: &[0, 1], k: &[0, 3000] }, io);
    };
    let allocated = dev.install(|| {
        step();
        let before = ALLOCATIONS.get();
        step();
        step();
        ALLOCATIONS.get() - before
    });
    assert_eq!(allocated, 0);
}
