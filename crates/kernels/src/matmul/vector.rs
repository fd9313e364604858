//! `f32` lanes of an instruction set, and the kernels that are written once over them.

use half::bf16;

use super::kernel::{Rows, Stretch};

/// A register of `f32` lanes.
///
/// # Safety
/// Every method needs the CPU to have the instruction set, and is meant to be inlined into a function that is
/// compiled for it. Pointers are good for `LANES` elements and need no alignment.
pub(crate) trait Vector: Copy {
    /// Lanes of a register.
    const LANES: usize;
    /// Registers that the instruction set has.
    const REGISTERS: usize;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// `LANES` floats.
    unsafe fn load(from: *const f32) -> Self;
    /// `LANES` values of `bf16`, widened.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// `LANES` signed bytes.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// The values of `LANES` codes of four bits, the first in the upper half of the first of `LANES / 2` bytes.
    unsafe fn nibbles(table: &[f32; 16], codes: *const u8) -> Self;
    /// Writes all lanes.
    unsafe fn store(self, to: *mut f32);
    /// `self·by + plus`, in one rounding where the instruction set has it.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    /// Sum of all lanes.
    unsafe fn sum(self) -> f32;
}

/// Asks for the cache line at `at`, which need not be mapped: sequences of rows end before the hardware's own
/// prefetching has found its stride.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Asks for the cache line at `at`, which need not be mapped, into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_l2<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// The tile of [`super::kernel::MicroKernel::tile`] for `f32` panels, `V` registers of `MR` rows by `NV`.
///
/// # Safety
/// That of `MicroKernel::tile`, with `NR = NV·LANES`.
#[inline(always)]
pub(super) unsafe fn f32_tile<V: Vector, const MR: usize, const NV: usize>(
    stretches: &[Stretch],
    tile: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise: `tile` holds `MR·NV·LANES` floats, and a stretch as much as it says.
    unsafe {
        let mut sum = [[V::splat(0.0); NV]; MR];
        if add {
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(tile.add((i * NV + j) * V::LANES));
                }
            }
        }
        for stretch in stretches {
            let b = stretch.b.cast();
            match stretch.a {
                Rows::Packed(start) => add_stretch(&mut sum, stretch.units, (start.cast(), 1, MR), b),
                Rows::Stored { start, row } => {
                    add_stretch(&mut sum, stretch.units, (start.cast(), row, 1), b)
                }
            }
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(tile.add((i * NV + j) * V::LANES));
            }
        }
    }
}

/// Adds a stretch of `k` values; `a` comes with the strides from a row and from a value along `k` to the next.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn add_stretch<V: Vector, const MR: usize, const NV: usize>(
    sum: &mut [[V; NV]; MR],
    k: usize,
    (mut a, row_stride, k_stride): (*const f32, usize, usize),
    mut b: *const f32,
) {
    // SAFETY: by the caller's promise `a` and `b` hold `k` units of `MR` and `NV·LANES` floats, which is how
    // far they advance.
    unsafe {
        for _ in 0..k {
            let mut columns = [V::splat(0.0); NV];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = V::load(b.add(j * V::LANES));
            }
            for (i, row) in sum.iter_mut().enumerate() {
                let value = V::splat(*a.add(i * row_stride));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = value.mul_add(column, *sum);
                }
            }
            a = a.add(k_stride);
            b = b.add(NV * V::LANES);
        }
    }
}
