//! Products on any CPU: four lanes that the compiler maps to what it targets by default.

use half::bf16;

use super::kernel::{MicroKernel, Stretch};
use super::vector::{Vector, f32_tile};
use crate::{Element, Isa};

/// Four lanes.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(super) struct Lanes4([f32; 4]);

impl Vector for Lanes4 {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is good for four floats.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's pointer is good for four values.
        Self(unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(Element::to_f32))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's pointer is good for four bytes.
        Self(unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn nibbles(table: &[f32; 16], codes: *const u8) -> Self {
        // SAFETY: the caller's pointer is good for two bytes.
        let [a, b] = unsafe { codes.cast::<[u8; 2]>().read_unaligned() };
        Self([a >> 4, a & 15, b >> 4, b & 15].map(|code| table[usize::from(code)]))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is good for four floats.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // Two roundings: `f32::mul_add` without the instruction is a library call.
        let mut out = plus;
        for i in 0..4 {
            out.0[i] += self.0[i] * by.0[i];
        }
        out
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        (self.0[0] + self.0[2]) + (self.0[1] + self.0[3])
    }
}

/// Tiles of 4×8 in `f32`.
pub(super) struct PortableF32;

impl MicroKernel for PortableF32 {
    type Packed = f32;
    type Lanes = Lanes4;
    type Session = ();
    const ISA: Isa = Isa::Portable;
    const MR: usize = 4;
    const NR: usize = 8;
    const PASS: usize = 512;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 24;
    const B_PANELS: usize = 16;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        // SAFETY: the caller's promise is the same.
        unsafe { f32_tile::<Lanes4, 4, 2>(stretches, tile, add) }
    }
}
