//! Plain code compiled for an instruction set, without leaving to the optimiser whether it is.
//!
//! A closure cannot be marked `#[inline(always)]`, and one that is not inlined is compiled for the default
//! instructions: everything in it then runs ten times slower. A method can be marked.

use crate::Isa;

/// A piece of work, with its arguments as fields.
pub(super) trait Job {
    /// Does it. Implementations are marked `#[inline(always)]`, and so is what they call.
    fn run(self);
}

/// Does `job` compiled for `isa`.
///
/// # Safety
/// The CPU has `isa`.
#[inline(always)]
pub(super) unsafe fn run(isa: Isa, job: impl Job) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: the caller's promise.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { for_avx512(job) },
        // SAFETY: the caller's promise.
        Isa::Avx2 => unsafe { for_avx2(job) },
        Isa::Portable => job.run(),
    }
    #[cfg(not(target_arch = "x86_64"))]
    job.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn for_avx512(job: impl Job) {
    job.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn for_avx2(job: impl Job) {
    job.run();
}
