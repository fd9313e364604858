//! Peak memory of this process as the operating system counts it.
//!
//! In: nothing → out: bytes, where the system tells (stage 14).

/// Largest resident set of this process so far, in bytes: `VmHWM` of `/proc/self/status`; `None` where there is none.
pub fn peak_rss_bytes() -> Option<u64> {
    parse_high_water_mark(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The line is `VmHWM:     1234 kB` with 1 kB = 1024 bytes (proc(5)).
fn parse_high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_units_of_1024_bytes() {
        let status = "Name:\tsft\nVmPeak:\t 9999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 100 kB\n";
        assert_eq!(parse_high_water_mark(status), Some(2 << 20));
    }

    #[test]
    fn a_system_without_the_line_answers_none() {
        assert_eq!(parse_high_water_mark("Name:\tsft\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_memory_that_is_touched() {
        let before = peak_rss_bytes().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = peak_rss_bytes().unwrap();
        assert_eq!(block.iter().map(|&b| u64::from(b)).sum::<u64>(), 64 << 20);
        assert!(after >= before, "{after} < {before}");
        assert!(after >= 64 << 20, "{after}");
    }
}
