//! Memory as the operating system counts it: what is free for this process, and the most that it has used.
//!
//! In: nothing → out: bytes, where the system tells (stage 14).

#[cfg(any(target_os = "linux", test))]
mod groups;

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

/// Bytes that this process may still use without swapping, where the system tells. On Linux that is `MemAvailable`, or less
/// where a control group (a container, a job of a cluster) allows less.
pub fn available_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use std::path::Path;
        let of_machine = groups::number_of(Path::new("/proc/meminfo"), "MemAvailable:")?.checked_mul(1024)?;
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Some(of_machine.min(groups::left(&own, Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        use sysinfo::{MemoryRefreshKind, RefreshKind, System};
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        Some(System::new_with_specifics(kind).ok()?.available_memory()).filter(|bytes| *bytes > 0)
    }
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

    #[test]
    fn this_system_says_what_is_free() {
        assert!(available_bytes().unwrap() > 0);
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
