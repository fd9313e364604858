//! Memory that is not there: what no plan can rule out, since other programs take some, too.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use thiserror::Error;

/// The system, or the driver of a GPU, refused memory. No op returns this: it unwinds to whoever called
/// [`OutOfMemory::caught`].
#[derive(Debug, Error)]
#[error(
    "out of memory: {} MiB more were asked for{}, and refused: {reason}\n\
     help: the plan fitted when the run began, so other programs took memory since, or a limit (`ulimit -v`) is lower than \
     what is free; free some, or lower per_device_train_batch_size or cutoff_len",
    bytes.div_ceil(1 << 20), free.map_or_else(String::new, |free| format!(" of the GPU, where {} are free", free >> 20))
)]
pub struct OutOfMemory {
    /// What was asked for.
    pub bytes: usize,
    /// What a GPU has; of other memory nobody knows.
    pub free: Option<usize>,
    /// What the system says.
    pub reason: String,
}

impl OutOfMemory {
    /// Ends what `caught` runs.
    pub(crate) fn raise(self) -> ! {
        resume_unwind(Box::new(self))
    }

    /// Runs `f`, which is lost with all that it owns if memory is refused.
    ///
    /// # Errors
    /// Memory was refused.
    pub fn caught<R>(f: impl FnOnce() -> R) -> Result<R, Self> {
        catch_unwind(AssertUnwindSafe(f)).map_err(|panic| match panic.downcast::<Self>() {
            Ok(refused) => *refused,
            Err(panic) => resume_unwind(panic),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::devices;

    #[test]
    fn memory_that_is_refused_is_an_error_from_any_thread_of_a_device() {
        for dev in devices() {
            // More than addresses of 48 bits reach.
            let refused =
                OutOfMemory::caught(|| dev.install(|| dev.zeros(DType::F32, &[1 << 47]).elements()));
            let refused = refused.unwrap_err();
            assert!(refused.bytes >= 1 << 49, "{refused}");
            assert!(refused.to_string().starts_with("out of memory: 5368709"), "{refused}");
            // The device is as good as before.
            assert_eq!(dev.install(|| dev.zeros(DType::F32, &[3])).elements(), 3);
        }
    }

    #[test]
    fn other_panics_pass() {
        let panic = catch_unwind(|| OutOfMemory::caught(|| resume_unwind(Box::new(7_i32))));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&7_i32));
    }
}
