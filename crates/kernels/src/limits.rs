//! What this machine can do at most, measured here and now: arithmetic in registers alone, and copying memory.

use std::time::Instant;

use crate::cuda::{Cuda, Span};
use crate::matmul::Matmul;
use crate::{DType, Device, Isa, Tensor};

/// Limits of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Multiplications and additions a second with `f32` operands.
    pub f32_flops: f64,
    /// Multiplications and additions a second with `bf16` operands.
    pub bf16_flops: f64,
    /// Bytes a second of a copy, read and written.
    pub copy_bytes: f64,
}

/// Times every loop this often; the best counts.
const TURNS: usize = 5;
/// Steps of a loop on registers, some milliseconds.
const STEPS: usize = 1_000_000;
/// Bytes that are copied: more than any cache holds.
const COPIED: usize = 128 << 20;

impl Limits {
    /// Measures for about a second, on all threads of `dev`.
    pub fn measure(dev: &Device) -> Self {
        if let Some(cuda) = dev.cuda() {
            let [f32_flops, bf16_flops] =
                [(DType::F32, 4096), (DType::BF16, 8192)].map(|(dtype, size)| products(dev, dtype, size));
            return Self { f32_flops, bf16_flops, copy_bytes: copy_on_card(dev, cuda) };
        }
        let [f32_flops, bf16_flops] = arithmetic(dev);
        Self { f32_flops, bf16_flops, copy_bytes: copy(dev) }
    }
}

/// Operations a second of a large square product on a GPU. Zeros would be multiplied faster than anything else.
fn products(dev: &Device, dtype: DType, size: usize) -> f64 {
    let draw = |seed: u64| {
        let value = |i: u64| crate::random::uniform(seed, i) as f32 - 0.5;
        let row: Vec<f32> = (0..size as u64 * 61).map(value).collect();
        let values: Vec<f32> = row.iter().cycle().take(size * size).copied().collect();
        Tensor::from_slice(&values, &[size, size]).to_dtype(dtype).on(dev)
    };
    let (a, b, mut c) = (draw(1), draw(2), dev.zeros(dtype, &[size, size]));
    let flops = 2.0 * (size as f64).powi(3);
    best_time(dev, || Matmul::new(a.view(), b.view(), c.view_mut()).run(dev)).map_or(0.0, |s| flops / s)
}

fn copy_on_card(dev: &Device, cuda: &Cuda) -> f64 {
    const BYTES: usize = 1 << 30;
    let [mut to, from] = [(), ()].map(|()| dev.zeros(DType::F32, &[BYTES / 4]));
    let copied = best_time(dev, || cuda.copy(to.view_mut().device(), from.view().device(), BYTES));
    copied.map_or(0.0, |s| (2 * BYTES) as f64 / s)
}

/// Seconds of the fastest of some runs on a GPU, after one to warm up.
fn best_time(dev: &Device, mut run: impl FnMut()) -> Option<f64> {
    let cuda = dev.cuda()?;
    run();
    let times = (0..TURNS).map(|_| {
        let span = Span::begin(cuda);
        run();
        span.end();
        span.time().as_secs_f64()
    });
    times.min_by(f64::total_cmp)
}

/// Operations a second of loops that touch no memory, `[f32, bf16]`.
fn arithmetic(dev: &Device) -> [f64; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::registers::{dpbf16, fma256, fma512, sse, tdpbf16};
        let loops: [fn(usize) -> f64; 2] = match dev.isa() {
            Isa::Amx => [fma512, tdpbf16],
            Isa::Avx512Bf16 => [fma512, dpbf16],
            Isa::Avx512 => [fma512, fma512],
            Isa::Avx2 => [fma256, fma256],
            Isa::Portable | Isa::Neon | Isa::NeonBf16 => [sse, sse],
        };
        loops.map(|register_loop| rate(dev, || register_loop(STEPS)))
    }
    #[cfg(target_arch = "aarch64")]
    {
        use crate::registers::{bfmmla, fma128};
        let loops: [fn(usize) -> f64; 2] = match dev.isa() {
            Isa::NeonBf16 => [fma128, bfmmla],
            Isa::Neon => [fma128, fma128],
            _ => [plain, plain],
        };
        loops.map(|register_loop| rate(dev, || register_loop(STEPS)))
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        [rate(dev, || plain(STEPS)), rate(dev, || plain(STEPS))]
    }
}

/// What `work` counts on every thread at once, a second.
fn rate(dev: &Device, work: impl Fn() -> f64 + Sync) -> f64 {
    (0..TURNS).fold(0.0, |best, _| {
        let started = Instant::now();
        let mut counted = vec![0.0; dev.threads()];
        dev.for_each_chunk(&mut counted, 1, |_, counted| counted[0] = work());
        f64::max(best, counted.iter().sum::<f64>() / started.elapsed().as_secs_f64())
    })
}

fn copy(dev: &Device) -> f64 {
    let [mut from, mut to] = [(), ()].map(|()| Tensor::zeros(DType::F32, &[COPIED / 4]));
    from.view_mut().as_mut_slice::<f32>().fill(1.0);
    let (from, to) = (from.view().as_slice::<f32>(), to.view_mut().as_mut_slice::<f32>());
    let share = from.len().div_ceil(dev.threads());
    (0..TURNS).fold(0.0, |best, _| {
        let started = Instant::now();
        dev.for_each_chunk(to, share, |i, to| to.copy_from_slice(&from[i * share..][..to.len()]));
        std::hint::black_box(&*to);
        f64::max(best, (2 * COPIED) as f64 / started.elapsed().as_secs_f64())
    })
}

/// Multiplications and additions in eight independent sums.
#[cfg(not(target_arch = "x86_64"))]
fn plain(steps: usize) -> f64 {
    let mut sums = std::hint::black_box([[0.5f32; 4]; 8]);
    for _ in 0..steps {
        for sum in sums.iter_mut().flatten() {
            *sum = *sum * 0.5 + 1.0;
        }
    }
    std::hint::black_box(sums);
    (steps * 64) as f64
}
