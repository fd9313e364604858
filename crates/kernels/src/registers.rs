//! Arithmetic on registers alone: loops that count what they did, and which of two instructions does more.
//!
//! The instruction set of a loop must be there.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::LazyLock;
use std::time::Instant;

#[cfg(target_arch = "aarch64")]
use self::{bfmmla as bf16_loop, fma128 as f32_loop};
#[cfg(target_arch = "x86_64")]
use self::{dpbf16 as bf16_loop, fma512 as f32_loop};

/// Whether the instruction that multiplies `bf16` (`vdpbf16ps`, `bfmmla`) multiplies more values in a time than the fused
/// multiplication of `f32` does: `vdpbf16ps` twice as many on a Zen 4, half as many on a Xeon of the fifth generation.
/// Measured once, in less than a millisecond.
pub(crate) fn bf16_is_faster() -> bool {
    static FASTER: LazyLock<bool> = LazyLock::new(|| {
        let mut best = [0.0; 2];
        for _ in 0..16 {
            for (best, run) in best.iter_mut().zip([bf16_loop, f32_loop]) {
                let started = Instant::now();
                let counted = run(2_000);
                *best = f64::max(*best, counted / started.elapsed().as_secs_f64());
            }
        }
        best[0] > best[1]
    });
    *FASTER
}

macro_rules! register_loop {
    ($name:ident, $features:literal, $sums:literal, $flops:literal, $zero:expr, |$sum:ident| $step:expr) => {
        pub(crate) fn $name(steps: usize) -> f64 {
            #[target_feature(enable = $features)]
            fn run(steps: usize) {
                let mut sums = [$zero; $sums];
                for _ in 0..steps {
                    for $sum in &mut sums {
                        *$sum = $step;
                    }
                    // SAFETY: no instruction at all; it keeps the loop from being computed beforehand.
                    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) }
                }
                std::hint::black_box(sums);
            }
            // SAFETY: the device that this is measured for has the instruction set.
            unsafe { run(steps) }
            (steps * $sums * $flops) as f64
        }
    };
}

/// Four sums of tiles, as the kernel keeps them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn tdpbf16(steps: usize) -> f64 {
    let loops = steps / 4;
    // SAFETY: the device that this is measured for has AMX.
    let _tiles = unsafe { crate::amx::Tiles::configure() };
    // SAFETY: as above; no memory is touched, and the registers are named.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {steps}", "jnz 2b",
            steps = inout(reg) loops => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    (loops * 4 * 2 * 16 * 16 * 32) as f64
}

#[cfg(target_arch = "x86_64")]
register_loop!(dpbf16, "avx512f,avx512bf16", 24, 64, _mm512_setzero_ps(), |s| {
    // SAFETY: the same bits under another name.
    let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(0x3F80_3F80)) };
    _mm512_dpbf16_ps(*s, ones, ones)
});
#[cfg(target_arch = "x86_64")]
register_loop!(fma512, "avx512f", 24, 32, _mm512_setzero_ps(), |s| {
    _mm512_fmadd_ps(_mm512_set1_ps(1e-3), _mm512_set1_ps(1e-3), *s)
});
#[cfg(target_arch = "x86_64")]
register_loop!(fma256, "avx2,fma", 12, 16, _mm256_setzero_ps(), |s| {
    _mm256_fmadd_ps(_mm256_set1_ps(1e-3), _mm256_set1_ps(1e-3), *s)
});
#[cfg(target_arch = "x86_64")]
register_loop!(sse, "sse2", 12, 8, _mm_setzero_ps(), |s| {
    _mm_add_ps(_mm_mul_ps(*s, _mm_set1_ps(0.5)), *s)
});

#[cfg(target_arch = "aarch64")]
register_loop!(bfmmla, "neon,bf16", 24, 32, vdupq_n_f32(0.0), |s| {
    let ones = vdupq_n_u32(0x3F80_3F80);
    crate::matmul::neonbf16::bfmmla(*s, ones, ones)
});
#[cfg(target_arch = "aarch64")]
register_loop!(fma128, "neon", 24, 8, vdupq_n_f32(0.0), |s| {
    vfmaq_f32(*s, vdupq_n_f32(1e-3), vdupq_n_f32(1e-3))
});
