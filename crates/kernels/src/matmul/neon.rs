//! Products with NEON: four `f32` lanes, 32 registers.

use std::arch::aarch64::*;

use half::bf16;

use super::kernel::{MicroKernel, Stretch};
use super::vector::{Vector, f32_tile};
use crate::Isa;

/// Four lanes.
#[derive(Clone, Copy)]
pub(super) struct Lanes4(float32x4_t);

impl Vector for Lanes4 {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the CPU has NEON, by the trait's contract.
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the CPU has NEON and the pointer is good for four floats, by the trait's contract.
        Self(unsafe { vld1q_f32(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the CPU has NEON and the pointer is good for four values, by the trait's contract.
        Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the pointer is good for four bytes, by the trait's contract; the CPU has NEON.
        unsafe {
            let values = from.cast::<[i8; 4]>().read_unaligned().map(f32::from);
            Self(vld1q_f32(values.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn nibbles(table: &[f32; 16], codes: *const u8) -> Self {
        // SAFETY: the pointer is good for two bytes, by the trait's contract; the CPU has NEON.
        unsafe {
            let [a, b] = codes.cast::<[u8; 2]>().read_unaligned();
            let values = [a >> 4, a & 15, b >> 4, b & 15].map(|code| table[usize::from(code)]);
            Self(vld1q_f32(values.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the CPU has NEON and the pointer is good for four floats, by the trait's contract.
        unsafe { vst1q_f32(to, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: the CPU has NEON, by the trait's contract.
        Self(unsafe { vfmaq_f32(plus.0, self.0, by.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the CPU has NEON, by the trait's contract.
        unsafe { vaddvq_f32(self.0) }
    }
}

/// Tiles of 6×16 in `f32`: 24 sums, four registers of columns, one of a row's value.
pub(super) struct NeonF32;

impl MicroKernel for NeonF32 {
    type Packed = f32;
    type Lanes = Lanes4;
    type Session = ();
    const ISA: Isa = Isa::Neon;
    const MR: usize = 6;
    const NR: usize = 16;
    const PASS: usize = 512;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 16;
    const B_PANELS: usize = 8;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        // SAFETY: the caller's promise is the same.
        unsafe { f32_tile::<Lanes4, 6, 4>(stretches, tile, add) }
    }
}
