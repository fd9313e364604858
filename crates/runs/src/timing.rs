//! Elapsed and remaining time of a run, counted over interruptions, and how it is written.
//!
//! In: seconds of earlier sessions → out: seconds so far, `0:01:23` (stage 14). The clock is monotonic: a wall clock
//! that jumps changes nothing.

use std::time::Instant;

/// Counts the seconds of a run: those of the sessions before it was resumed plus those of this one.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    earlier_s: f64,
    start: Instant,
}

impl Stopwatch {
    /// Starts now, with `earlier_s` seconds already on it.
    pub fn start(earlier_s: f64) -> Self {
        Self {
            earlier_s,
            start: Instant::now(),
        }
    }

    /// Seconds so far.
    pub fn elapsed_s(&self) -> f64 {
        self.earlier_s + self.start.elapsed().as_secs_f64()
    }
}

/// Seconds left when `done` of `total` steps took `elapsed_s`, each step taken to last as long as the average one.
pub fn remaining_s(elapsed_s: f64, done: u64, total: u64) -> f64 {
    if done == 0 {
        0.0
    } else {
        elapsed_s / done as f64 * total.saturating_sub(done) as f64
    }
}

/// Whole seconds as LLaMA-Factory writes them (Python's `str(timedelta)`): `0:01:23`, `1 day, 2:03:04`.
pub fn format_seconds(seconds: f64) -> String {
    let seconds = if seconds.is_finite() {
        seconds.max(0.0) as u64
    } else {
        0
    };
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_python_writes_a_timedelta() {
        // Values of `str(datetime.timedelta(seconds=int(x)))`.
        for (seconds, text) in [
            (0.0, "0:00:00"),
            (83.9, "0:01:23"),
            (3_600.0, "1:00:00"),
            (86_399.0, "23:59:59"),
            (86_400.0, "1 day, 0:00:00"),
            (183_845.0, "2 days, 3:04:05"),
        ] {
            assert_eq!(format_seconds(seconds), text);
        }
    }

    #[test]
    fn the_remaining_time_is_the_average_step_times_the_steps_left() {
        assert_eq!(remaining_s(10.0, 5, 20), 30.0);
        assert_eq!(remaining_s(10.0, 0, 20), 0.0);
        assert_eq!(remaining_s(10.0, 21, 20), 0.0);
    }

    #[test]
    fn the_time_of_earlier_sessions_counts() {
        assert!(Stopwatch::start(100.0).elapsed_s() >= 100.0);
    }
}
