//! How much memory a process holds, and how much it may: what is left tells when a leak becomes an outage.

use std::fs;
use std::path::{Path, PathBuf};

use super::Pid;

/// Memory of one process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What it holds now: its resident set. 0 when that could not be read.
    pub resident: u64,
    /// The lowest limit of its cgroups, at most the machine's memory; 0 when neither could be read. Other processes
    /// of the cgroup take from it too.
    pub limit: u64,
}

/// Where the kernel shows cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Cgroups that are looked at on the way up: Kubernetes nests five.
const MOST_CGROUPS: usize = 32;

impl Room {
    /// What a process holds and may. Reads a handful of small files of the kernel's.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cgroups = read(pid, "cgroup");
        let limits = limit_files(&cgroups, Path::new(CGROUPS))
            .into_iter()
            .filter_map(|file| limit(&fs::read_to_string(file).ok()?));
        let room = Self {
            resident: 0,
            limit: limits.chain(total(&machine)).min().unwrap_or(0),
        };
        room.now(pid)
    }

    /// The same with what the process holds now. Reads one file: what it may have changes seldom.
    #[must_use]
    pub fn now(self, pid: Pid) -> Self {
        Self {
            resident: resident(&read(pid, "statm"), procfs::page_size()),
            ..self
        }
    }
}

/// A file of `/proc/PID`; empty when it cannot be read.
fn read(pid: Pid, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// The second field of `/proc/PID/statm`, which is in pages (proc_pid_statm(5)).
fn resident(statm: &str, page_size: u64) -> u64 {
    let pages: Option<u64> = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0).saturating_mul(page_size)
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What a limit file says: `max`, or version 1's largest number, is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The files that may hold a limit, from the process's own cgroup up, by `/proc/PID/cgroup`. Version 2 has the line `0::`,
/// version 1 one for the controller `memory`. A cgroup outside leaktrace's own namespace is shown with `..`: none then.
fn limit_files(cgroups: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (folder, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        if path.components().any(|part| part.as_os_str() == "..") {
            continue;
        }
        let up = path.ancestors().take(MOST_CGROUPS);
        files.extend(up.map(|cgroup| folder.join(cgroup).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(resident("52170 6251 2913 1 0 9803 0\n", 4096), 6251 * 4096);
        assert_eq!(resident("", 4096), 0);
        let meminfo = "MemTotal:       16303428 kB\nMemFree:  1 kB\n";
        assert_eq!(total(meminfo), Some(16_303_428 * 1024));
        assert_eq!(total("MemFree: 1 kB"), None);
        assert_eq!(limit("536870912\n"), Some(536_870_912));
        assert_eq!(limit("max\n"), None);
    }

    #[test]
    fn limits_are_looked_for_from_the_own_cgroup_up() {
        let root = Path::new("/c");
        let two = limit_files("0::/kubepods.slice/pod1/ID\n", root);
        let two: Vec<_> = two.iter().filter_map(|file| file.to_str()).collect();
        assert_eq!(
            two,
            [
                "/c/kubepods.slice/pod1/ID/memory.max",
                "/c/kubepods.slice/pod1/memory.max",
                "/c/kubepods.slice/memory.max",
                "/c/memory.max",
            ]
        );
        let one = limit_files("9:name=systemd:/a\n4:cpu,memory:/docker/ID\n", root);
        assert_eq!(
            one.first().and_then(|file| file.to_str()),
            Some("/c/memory/docker/ID/memory.limit_in_bytes")
        );
        assert_eq!(one.len(), 3);
        assert!(limit_files("0::/../../other\n", root).is_empty());
        assert!(limit_files("nonsense", root).is_empty());
        let deep = format!("0::{}", "/a".repeat(1000));
        assert_eq!(limit_files(&deep, root).len(), MOST_CGROUPS);
    }

    #[test]
    fn this_process_holds_some_memory() {
        let room = Room::of(Pid(std::process::id().cast_signed()));
        assert!(room.resident > 1 << 20, "{room:?}");
        assert!(room.limit > room.resident, "{room:?}");
    }
}
