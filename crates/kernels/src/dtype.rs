//! Element types of tensors, and the conversions that every op shares.

use half::{bf16, f16};

use crate::Isa;
use crate::isa::per_isa;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// 16-bit IEEE float; read from files, never computed with.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }

    /// The name that people read: `float32`, `bfloat16`, `float16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// A type that a tensor can hold: plain old data with conversions from and to `f32`.
///
/// Sealed: the views reinterpret raw bytes as these types, so every bit pattern must be valid.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed + 'static {
    /// The tag of this type.
    const DTYPE: DType;
    /// Exact for every type.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

/// [`Element::from_f32`] of every value. The instruction that rounds to `bf16` makes subnormal numbers zero.
///
/// # Panics
/// If lengths differ.
pub(crate) fn round<E: Element>(isa: Isa, from: &[f32], to: &mut [E]) {
    #[cfg(target_arch = "x86_64")]
    if E::DTYPE == DType::BF16 && matches!(isa, Isa::Avx512Bf16 | Isa::Amx) {
        // SAFETY: an instruction set that a device has; and `E` is `bf16`.
        return unsafe { round_bf16(from, std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len())) };
    }
    round_plainly(isa, from, to);
}

per_isa! {
    fn round_plainly<E: Element>(from: &[f32], to: &mut [E]) {
        assert_eq!(from.len(), to.len());
        to.iter_mut().zip(from).for_each(|(to, from)| *to = E::from_f32(*from));
    }
}

/// Rounds with the instruction for it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_bf16(from: &[f32], to: &mut [bf16]) {
    use std::arch::x86_64::*;
    assert_eq!(from.len(), to.len());
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<32>(), to.as_chunks_mut::<32>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 32 floats are two registers, and rounded they are one.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from[16..].as_ptr()));
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded);
        }
    }
    for (from, to) in from_rest.chunks(16).zip(to_rest.chunks_mut(16)) {
        let mask = (0xFFFF_u32 >> (16 - from.len())) as u16;
        // SAFETY: only the lanes of the mask are touched, as many as there are values.
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask, from.as_ptr());
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, rounded);
        }
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    // Branch-free, so that loops over it vectorise; a NaN stays a NaN (quiet bit set).
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { nan as u16 } else { rounded as u16 })
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// Runs `$body` with `$E` bound to the Rust type of a compute dtype (`F32` or `BF16`).
///
/// An op calls it once at its entrance. `F16` is converted when a file is read and never reaches an op.
#[macro_export]
macro_rules! with_dtype {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $E = ::half::bf16;
                $body
            }
            $crate::DType::F16 => unreachable!("float16 is converted when a file is read"),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_as_the_half_crate_does() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            assert!(
                ours.to_bits() == theirs.to_bits() || (x.is_nan() && ours.is_nan()),
                "{x:e} gave {ours} and not {theirs}"
            );
        }
    }

    #[test]
    fn rounding_many_values_is_rounding_each() {
        let mut bits = 1u32;
        let mut random = || {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for n in [0, 1, 15, 16, 31, 32, 33, 100_000] {
                let from: Vec<f32> = (0..n).map(|_| random()).collect();
                let mut to = vec![bf16::ONE; n];
                round(isa, &from, &mut to);
                for (x, y) in from.into_iter().zip(to) {
                    let each = <bf16 as Element>::from_f32(x);
                    let both_nan = x.is_nan() && y.is_nan();
                    let flushed = x.is_subnormal() && y.to_bits() & 0x7FFF == 0;
                    assert!(each.to_bits() == y.to_bits() || both_nan || flushed, "{x:e} gave {y} on {isa}");
                }
            }
        }
    }
}
