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
        Self { earlier_s, start: Instant::now() }
    }

    /// Seconds so far.
    pub fn elapsed_s(&self) -> f64 {
        self.earlier_s + self.start.elapsed().as_secs_f64()
    }
}

/// Seconds left when `done` of `total` steps took `elapsed_s`, each step taken to last as long as the average one.
pub fn remaining_s(elapsed_s: f64, done: u64, total: u64) -> f64 {
    if done == 0 { 0.0 } else { elapsed_s / done as f64 * total.saturating_sub(done) as f64 }
}

/// Whole seconds as LLaMA-Factory writes them (Python's `str(timedelta)`): `0:01:23`, `1 day, 2:03:04`.
pub fn format_seconds(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) as u64 } else { 0 };
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}

/// `2026-11-23_13-09-52`: the UTC date and time of `seconds` since 1970, fit for a folder's name.
pub fn format_utc(seconds: u64) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let rest = seconds % 86_400;
    format!("{year}-{month:02}-{day:02}_{:02}-{:02}-{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Year, month and day of a day counted from 1970-01-01: the Gregorian calendar repeats every 146 097 days, and a year
/// that begins in March has its leap day last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153; // 0 = March
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let is_next_year = month >= 10;
    let month = if is_next_year { month - 9 } else { month + 3 };
    (era * 400 + year + u64::from(is_next_year), month, day_of_month)
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
    fn dates_are_those_of_the_calendar() {
        // Values of `date -u -d @SECONDS +%F_%H-%M-%S`.
        for (seconds, text) in [
            (0, "1970-01-01_00-00-00"),
            (951_782_399, "2000-02-28_23-59-59"),
            (951_782_400, "2000-02-29_00-00-00"),
            (1_709_251_200, "2024-03-01_00-00-00"),
            (1_795_439_392, "2026-11-23_13-09-52"),
            (4_107_542_400, "2100-03-01_00-00-00"),
        ] {
            assert_eq!(format_utc(seconds), text);
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
