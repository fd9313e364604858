//! Instruction sets of a CPU: which are there, which one is used, and how loops are compiled for it.

use std::fmt;
use std::str::FromStr;

/// An instruction set that kernels are written for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the compiler targets by default.
    Portable,
    /// NEON, which every aarch64 has: 4 `f32` lanes.
    Neon,
    /// NEON with `bfmmla`: products of 2 × 4 by 4 × 2 `bf16` summed in `f32`; everything else as [`Isa::Neon`].
    NeonBf16,
    /// AVX2 with FMA: 8 `f32` lanes.
    Avx2,
    /// AVX-512 F/BW/DQ/VL: 16 `f32` lanes.
    Avx512,
    /// AVX-512 with `vdpbf16ps`: products of pairs of `bf16` summed in `f32`.
    Avx512Bf16,
    /// AMX: products of tiles of 16 × 32 `bf16` summed in `f32`; everything else as [`Isa::Avx512Bf16`].
    Amx,
}

impl Isa {
    /// All of them, weakest first.
    pub const ALL: [Isa; 7] =
        [Isa::Portable, Isa::Neon, Isa::NeonBf16, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The name used by `SFT_CPU` and in the start-up table.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::NeonBf16 => "neonbf16",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx512bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            match self {
                Isa::Portable => true,
                Isa::Neon | Isa::NeonBf16 => false,
                Isa::Avx2 => avx2,
                Isa::Avx512 => avx512,
                Isa::Avx512Bf16 => avx512bf16,
                Isa::Amx => avx512bf16 && amx_is_granted(),
            }
        }
        #[cfg(target_arch = "aarch64")]
        match self {
            Isa::Portable | Isa::Neon => true,
            Isa::NeonBf16 => std::arch::is_aarch64_feature_detected!("bf16"),
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => false,
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Isa::Portable
        }
    }

    /// The fastest one of this machine: the strongest, but for [`Isa::Avx512Bf16`] and [`Isa::NeonBf16`] where the CPU
    /// multiplies `bf16` slower than `f32`.
    pub fn best() -> Isa {
        let fastest = Isa::ALL.into_iter().rev().find(|isa| isa.is_available() && isa.is_faster());
        fastest.unwrap_or(Isa::Portable)
    }

    /// The one that `SFT_CPU` names, or else the fastest.
    ///
    /// # Errors
    /// A name of none.
    pub fn chosen() -> Result<Isa, String> {
        std::env::var("SFT_CPU").map_or_else(|_| Ok(Isa::best()), |name| name.parse())
    }

    /// Whether it is faster than the ones before it. It must be available.
    fn is_faster(self) -> bool {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if matches!(self, Isa::Avx512Bf16 | Isa::NeonBf16) {
            return crate::registers::bf16_is_faster();
        }
        true
    }
}

/// Whether the CPU has tiles of `bf16` and the system lets this process use their eight KiB of state, which has to be
/// asked for: it is saved at every change of context.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_granted() -> bool {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::LazyLock;
    static GRANTED: LazyLock<bool> = LazyLock::new(|| {
        /// Leaf 7, register EDX: AMX-BF16 and AMX-TILE (Intel's manual, volume 2, CPUID).
        const TILES_OF_BF16: u32 = 1 << 22 | 1 << 24;
        /// `ARCH_REQ_XCOMP_PERM` and the tile data's number among the parts of the state (`asm/prctl.h`).
        const REQUEST: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        let has_leaf = __cpuid_count(0, 0).eax >= 7;
        // SAFETY: the call takes two numbers and changes nothing but what this process may use.
        let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 };
        has_leaf && __cpuid_count(7, 0).edx & TILES_OF_BF16 == TILES_OF_BF16 && granted()
    });
    *GRANTED
}

/// Elsewhere nobody has written how to ask for them.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_is_granted() -> bool {
    false
}

/// Defines a function whose body is compiled once for every instruction set, and which one runs is its first argument:
/// plain loops vectorise for it. What an aarch64 is compiled for by default has NEON already.
///
/// The body is written out in a function of its own for each, so that closures inside it have the instructions too
/// (a closure that is handed to such a function, and not inlined, would be compiled for the default ones and run
/// ten times slower). What the body calls must be `#[inline(always)]`.
///
/// # Safety of the calls inside
/// An `Isa` other than `Portable` comes from a `Device`, which exists only after [`Isa::is_available`].
macro_rules! per_isa {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $(<$($G:ident: $bound:path),+>)? ($($arg:ident: $T:ty),* $(,)?) $(-> $R:ty)?
        $body:block
    )+) => { $(
        $(#[$attribute])*
        $visibility fn $name $(<$($G: $bound),+>)? (isa: $crate::Isa, $($arg: $T),*) $(-> $R)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$($G: $bound),+>)? ($($arg: $T),*) $(-> $R)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($G: $bound),+>)? ($($arg: $T),*) $(-> $R)? $body
            fn portable $(<$($G: $bound),+>)? ($($arg: $T),*) $(-> $R)? $body
            match isa {
                // SAFETY: the CPU has it, see above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: the CPU has it, see above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    )+ };
}
pub(crate) use per_isa;

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        known.ok_or_else(|| {
            let names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
            format!("`{name}` is no instruction set known here; one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn every_name_is_read_as_its_instruction_set() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
    }

    #[test]
    fn neon_is_what_an_aarch64_has_and_no_other_does() {
        let aarch64 = cfg!(target_arch = "aarch64");
        assert_eq!(Isa::Neon.is_available(), aarch64);
        assert_eq!(matches!(Isa::best(), Isa::Neon | Isa::NeonBf16), aarch64);
    }
}
