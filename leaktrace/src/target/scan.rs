//! Looking around in /proc: which processes are there, and are they still the same?

use std::fs;

use procfs::process as proc_fs;

use super::Pid;

/// A process as one look into `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its number.
    pub pid: Pid,
    /// Which process of that number, and which program in it.
    pub life: LifeId,
    /// `comm`: its name, at most 15 bytes.
    pub name: String,
    /// Whether it is a thread of the kernel.
    pub kernel: bool,
}

/// Tells a process from a later one with its number, and a program from the next one in the same process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LifeId {
    /// When the process started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Where its first stack begins: chosen anew by each exec. 0 for one that may not be looked into.
    pub image: u64,
}

/// The numbers of all processes.
#[must_use]
pub fn pids() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
        .collect()
}

/// Looks at one process; `None` when it is not there, or has ended and waits for its parent to notice.
#[must_use]
pub fn sight(pid: Pid) -> Option<Sighting> {
    /// include/linux/sched.h: PF_KTHREAD
    const KERNEL_THREAD: u32 = 0x0020_0000;
    let stat = proc_fs::Process::new(pid.0).ok()?.stat().ok()?;
    if matches!(stat.state, 'Z' | 'X') {
        return None;
    }
    Some(Sighting {
        pid,
        life: LifeId {
            start_ticks: stat.starttime,
            image: stat.startstack,
        },
        name: stat.comm,
        kernel: stat.flags & KERNEL_THREAD != 0,
    })
}
