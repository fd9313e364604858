//! What the control groups of Linux leave a process (cgroups(7)): a container or a job of a cluster may use less memory
//! than the machine has.

use std::fs;
use std::path::Path;

/// The files of a version of control groups: limits, what is used, and the parts of that which files take, which the
/// system gives up when memory is short (cgroups(7)).
struct GroupFiles {
    root: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    of_files: [&'static str; 2],
}

const V1: GroupFiles = GroupFiles {
    root: "memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    of_files: ["total_inactive_file", "total_active_file"],
};

const V2: GroupFiles = GroupFiles {
    root: "",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    of_files: ["inactive_file", "active_file"],
};

/// The least that the control groups of a process leave it, its own and those around it: `groups` is
/// `/proc/self/cgroup`, with lines like `4:memory:/job` (version 1) and `0::/job` (version 2). In a container the path may
/// be that outside of it; the part that is there counts. `None` without a limit.
pub(super) fn left(groups: &str, mounted: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let files = match controllers {
            "" => V2,
            _ if controllers.split(',').any(|name| name == "memory") => V1,
            _ => continue,
        };
        let root = mounted.join(files.root);
        let own = path
            .split('/')
            .filter(|name| !matches!(*name, "" | ".."))
            .fold(root.clone(), |at, name| at.join(name));
        for group in own.ancestors().take_while(|group| group.starts_with(&root)) {
            let limits = files.limits.iter().filter_map(|limit| whole_number(&group.join(limit)));
            let (Some(limit), Some(used)) = (limits.min(), whole_number(&group.join(files.used))) else {
                continue;
            };
            let stat = group.join("memory.stat");
            let of_files: u64 = files.of_files.iter().filter_map(|part| number_of(&stat, part)).sum();
            let left = limit.saturating_sub(used.saturating_sub(of_files));
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
    }
    least
}

/// The number that is all of a file; `None` for `max`.
fn whole_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a name in a file of lines of names and numbers.
pub(super) fn number_of(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next())?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of control groups: files and what they hold.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_tightest_of_the_groups_around_a_process_decides_and_memory_of_files_is_free() {
        let folder = groups(&[
            ("job/memory.max", "max\n"),
            ("job/memory.high", "900\n"),
            ("job/memory.current", "500\n"),
            ("job/memory.stat", "anon 100\ninactive_file 250\nactive_file 50\n"),
            ("job/task/memory.max", "4000\n"),
            ("job/task/memory.high", "max\n"),
            ("job/task/memory.current", "10\n"),
        ]);
        assert_eq!(left("0::/job/task\n", folder.path()), Some(900 - 200));
        assert_eq!(left("0::/other\n", folder.path()), None);
    }

    #[test]
    fn groups_of_version_1_have_files_of_their_own() {
        let folder = groups(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "700\n"),
            ("memory/job/memory.limit_in_bytes", "1000\n"),
            ("memory/job/memory.usage_in_bytes", "600\n"),
            ("memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20\n"),
        ]);
        let lines = "5:cpu,memory:/job\n1:name=systemd:/job\n0::/\n";
        assert_eq!(left(lines, folder.path()), Some(1000 - 480));
    }

    #[test]
    fn a_path_that_is_that_outside_of_a_container_leaves_the_groups_that_are_there() {
        let folder = groups(&[("memory.max", "1000\n"), ("memory.current", "300\n")]);
        assert_eq!(left("0::/../../docker/1f\n", folder.path()), Some(700));
        assert_eq!(left("0::/docker/1f\n", folder.path()), Some(700));
    }

    #[test]
    fn a_group_that_is_over_its_limit_leaves_nothing() {
        let folder = groups(&[("memory.max", "1000\n"), ("memory.current", "1300\n")]);
        assert_eq!(left("0::/\n", folder.path()), Some(0));
    }
}
