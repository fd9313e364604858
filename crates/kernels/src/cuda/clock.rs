//! Time on the card: events before and after an op, read when all is done.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::Cuda;

/// From one moment in the stream to another.
pub(crate) struct Span {
    cuda: Arc<Cuda>,
    begin: sys::CUevent,
    end: sys::CUevent,
}

// SAFETY: events of the driver, used with the context bound.
unsafe impl Send for Span {}

impl Span {
    /// Begins now.
    pub fn begin(cuda: &Cuda) -> Self {
        cuda.bind();
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .unwrap_or_else(|error| panic!("the CUDA driver gives no event: {error}"))
        };
        let span = Self { cuda: cuda.arc(), begin: event(), end: event() };
        span.record(span.begin);
        span
    }

    /// Ends now.
    pub fn end(&self) {
        self.cuda.bind();
        self.record(self.end);
    }

    fn record(&self, event: sys::CUevent) {
        // SAFETY: event and stream of one context.
        unsafe { result::event::record(event, self.cuda.stream) }
            .unwrap_or_else(|error| panic!("the CUDA driver records no event: {error}"));
    }

    /// How long it took; waits for its end.
    pub fn time(&self) -> Duration {
        self.cuda.bind();
        // SAFETY: both were recorded.
        let ms = unsafe {
            result::event::synchronize(self.end).and_then(|()| result::event::elapsed(self.begin, self.end))
        };
        Duration::from_secs_f64(f64::from(ms.unwrap_or(0.0).max(0.0)) / 1e3)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.cuda.bind();
        // SAFETY: made in `begin`. Errors have no one to go to.
        unsafe {
            let _ = result::event::destroy(self.begin);
            let _ = result::event::destroy(self.end);
        }
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Span")
    }
}
