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
#[cfg(target_arch = "x86_64")]
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
            Isa::Portable | Isa::Neon => [sse, sse],
        };
        loops.map(|register_loop| rate(dev, || register_loop(STEPS)))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let register_loop = match dev.isa() {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => fma128,
            _ => plain,
        };
        [rate(dev, register_loop), rate(dev, register_loop)]
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
fn plain() -> f64 {
    const STEPS: usize = 1_000_000;
    let mut sums = std::hint::black_box([[0.5f32; 4]; 8]);
    for _ in 0..STEPS {
        for sum in sums.iter_mut().flatten() {
            *sum = *sum * 0.5 + 1.0;
        }
    }
    std::hint::black_box(sums);
    (STEPS * 64) as f64
}

/// Fused multiplications and additions of four lanes, in as many sums as leave registers for the factors.
#[cfg(target_arch = "aarch64")]
fn fma128() -> f64 {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    const STEPS: usize = 1_000_000;
    // SAFETY: the device that this is measured for has NEON; the assembly is no instruction at all, and keeps the loop
    // from being computed beforehand.
    unsafe {
        let (factor, mut sums) = (vdupq_n_f32(1e-3), [vdupq_n_f32(0.0); 24]);
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = vfmaq_f32(*sum, factor, factor);
            }
            std::arch::asm!("", options(nomem, nostack, preserves_flags));
        }
        std::hint::black_box(sums);
    }
    (STEPS * 24 * 8) as f64
}
