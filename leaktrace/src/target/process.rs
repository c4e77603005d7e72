//! The few files of `/proc/PID` that leaktrace reads.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use procfs::ProcError;
use procfs::process::{self as proc_fs, MMPermissions, MMapPath};

use super::whereabouts::{Pods, Whereabouts};
use super::{Inode, Pid, TargetId};
use crate::address::{LoadBias, RuntimeAddr, VirtAddr};
use crate::clock::boot_ns;
use crate::resolve::ReadAt;

/// A running process and its executable, held open so that a deleted or replaced file still reads right.
pub struct Process {
    /// Which process.
    pub id: TargetId,
    /// `comm`: its name, at most 15 bytes.
    pub name: String,
    /// Where `/proc/PID/exe` points to; ends in " (deleted)" when the file is gone.
    pub exe: PathBuf,
    /// When it started, seconds since the epoch, by the time of day when this thread first looked a process up: for people.
    /// [`Process::age_ns`] is for rules.
    pub started_unix: f64,
    /// Where it lives, as far as it was looked up.
    pub whereabouts: Whereabouts,
    file: File,
    /// Where its first stack begins: chosen anew by each exec, so that another program in the same process shows.
    image: u64,
    /// Where the kernel put the program headers (`AT_PHDR`).
    program_headers: RuntimeAddr,
}

/// Why a process cannot be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is no such process.
    #[error("no process has pid {0}")]
    NoProcess(Pid),
    /// A kernel thread, or a process that is ending.
    #[error("process {0} has no executable: it is a kernel thread or has already exited")]
    NoExecutable(Pid),
    /// Another user's process.
    #[error(
        "not allowed to look into process {0}: run leaktrace as root, or give it CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    Denied(Pid),
    /// It ended while we looked.
    #[error("process {0} has exited")]
    Exited(Pid),
    /// Anything else that /proc said.
    #[error("cannot read /proc/{0}: {1}")]
    Proc(Pid, String),
}

impl Process {
    /// Looks a process up and opens its executable.
    ///
    /// # Errors
    /// When there is no such process, or this user may not look into it.
    pub fn open(pid: Pid) -> Result<Self, TargetError> {
        let proc = proc_fs::Process::new(pid.0).map_err(|error| match error {
            ProcError::NotFound(_) => TargetError::NoProcess(pid),
            other => from_proc(pid, other),
        })?;
        let stat = proc.stat().map_err(|error| from_proc(pid, error))?;
        let exe = proc.exe().map_err(|error| match error {
            ProcError::NotFound(_) => TargetError::NoExecutable(pid),
            other => from_proc(pid, other),
        })?;
        let file = File::open(format!("/proc/{pid}/exe")).map_err(|error| from_io(pid, &error))?;
        let program_headers = proc
            .auxv()
            .map_err(|error| from_proc(pid, error))?
            .get(&AT_PHDR)
            .copied()
            .ok_or(TargetError::NoExecutable(pid))?;
        let boot_seconds = procfs::boot_time_secs()
            .map_err(|error| TargetError::Proc(pid, format!("no boot time: {error}")))?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since boot and since the epoch fit a double's 53 bits"
        )]
        let started_unix =
            boot_seconds as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            id: TargetId {
                pid,
                start_ticks: stat.starttime,
            },
            name: stat.comm,
            exe,
            started_unix,
            whereabouts: Whereabouts::default(),
            file,
            image: stat.startstack,
            program_headers: RuntimeAddr(program_headers),
        })
    }

    /// How long it has been running, in nanoseconds, whatever was done to the time of day since.
    #[must_use]
    pub fn age_ns(&self) -> u64 {
        age_ns(self.id.start_ticks, procfs::ticks_per_second(), boot_ns())
    }

    /// Looks up where it lives.
    pub fn locate(&mut self, pods: &mut Pods) {
        self.whereabouts = Whereabouts::of(self.id.pid, pods);
    }

    /// The open executable.
    #[must_use]
    pub fn executable(&self) -> &File {
        &self.file
    }

    /// Which file it runs; `None` when that cannot be looked at.
    #[must_use]
    pub fn inode(&self) -> Option<Inode> {
        Inode::of(&self.file).ok()
    }

    /// What the kernel added to the linked addresses: where it put the program headers, less where they were linked.
    ///
    /// Taken from the auxiliary vector (`fs/binfmt_elf.c: create_elf_tables`) rather than from the list of
    /// mappings, because that names the executable itself whatever its path or mount is called.
    #[must_use]
    pub fn load_bias(&self, linked_program_headers: VirtAddr) -> LoadBias {
        LoadBias(
            self.program_headers
                .0
                .wrapping_sub(linked_program_headers.0),
        )
    }

    /// The files that it has mapped to run code from: its executable and its libraries.
    ///
    /// A library that was deleted is left out, and so are those beyond the bound below.
    pub fn mapped_files(&self) -> impl Iterator<Item = (PathBuf, File)> {
        /// A desktop program maps some three hundred.
        const MOST_FILES: usize = 1024;
        let pid = self.id.pid;
        let maps = proc_fs::Process::new(pid.0).and_then(|proc| proc.maps());
        let mut seen = HashSet::new();
        let mappings = maps.into_iter().flatten();
        let paths = mappings.filter_map(move |mapping| match mapping.pathname {
            MMapPath::Path(path)
                if mapping.perms.contains(MMPermissions::EXECUTE)
                    && seen.insert((mapping.dev, mapping.inode)) =>
            {
                Some(path)
            }
            _ => None,
        });
        paths.take(MOST_FILES).filter_map(move |path| {
            // Its paths are those of its own mount namespace.
            let place =
                PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").ok()?);
            // Opening a device or a pipe may block or do something.
            let regular = fs::metadata(&place).is_ok_and(|found| found.is_file());
            Some((path, File::open(place).ok().filter(|_| regular)?))
        })
    }

    /// What its threads have run in all, in nanoseconds of a core; `None` when it is gone.
    #[must_use]
    pub fn cpu_time_ns(&self) -> Option<u64> {
        let clock =
            nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(self.id.pid.0)).ok()?;
        let time = clock.now().ok()?;
        let seconds = u64::try_from(time.tv_sec()).ok()?;
        Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
    }

    /// Whether this very process (not a later one with its pid) still runs the program that it ran.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        proc_fs::Process::new(self.id.pid.0)
            .and_then(|proc| proc.stat())
            .is_ok_and(|stat| {
                stat.starttime == self.id.start_ticks
                    && stat.startstack == self.image
                    && !matches!(stat.state, 'Z' | 'X')
            })
    }
}

/// `AT_PHDR` of the auxiliary vector (include/uapi/linux/auxvec.h).
const AT_PHDR: u64 = 3;

fn from_proc(pid: Pid, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::Exited(pid),
        ProcError::PermissionDenied(_) => TargetError::Denied(pid),
        ProcError::Io(error, _) => from_io(pid, &error),
        other => TargetError::Proc(pid, other.to_string()),
    }
}

/// From clock ticks since boot (`starttime`, fs/proc/array.c) to an age at `now_ns` of the same clock; 0 for a time to come.
fn age_ns(start_ticks: u64, ticks_per_second: u64, now_ns: u64) -> u64 {
    let start_ns = u128::from(start_ticks) * 1_000_000_000 / u128::from(ticks_per_second.max(1));
    u64::try_from(u128::from(now_ns).saturating_sub(start_ns)).unwrap_or(0)
}

fn from_io(pid: Pid, error: &io::Error) -> TargetError {
    match error.kind() {
        io::ErrorKind::NotFound => TargetError::NoExecutable(pid),
        io::ErrorKind::PermissionDenied => TargetError::Denied(pid),
        // ESRCH: the process went away between two reads.
        _ if error.raw_os_error() == Some(3) => TargetError::Exited(pid),
        _ => TargetError::Proc(pid, error.to_string()),
    }
}

impl ReadAt for File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_itself() {
        let pid = Pid(i32::try_from(std::process::id()).expect("a pid fits an i32"));
        let process = Process::open(pid).expect("this process runs");
        assert!(process.is_alive());
        assert!(process.executable().size() > 0);
        assert!(process.started_unix > 1.7e9);
        // A test takes minutes at most; the machine may have been up for less than that.
        assert!(process.age_ns() < 3_600_000_000_000);
    }

    #[test]
    fn ages_are_of_the_clock_that_counts_from_boot() {
        assert_eq!(age_ns(500, 100, 7_250_000_000), 2_250_000_000);
        assert_eq!(age_ns(800, 100, 7_250_000_000), 0);
        assert_eq!(age_ns(u64::MAX, 0, 1), 0);
        assert_eq!(age_ns(0, 100, u64::MAX), u64::MAX);
    }

    #[test]
    fn refuses_what_is_not_there() {
        let error = Process::open(Pid(i32::MAX)).err().expect("no such pid");
        assert_eq!(error.to_string(), "no process has pid 2147483647");
    }

    #[test]
    fn refuses_a_kernel_thread() {
        // kthreadd is pid 2 wherever the pid namespace is the initial one.
        let Ok(name) = fs::read_to_string("/proc/2/comm") else {
            eprintln!("skipping: pid 2 is not visible here");
            return;
        };
        if name.trim() == "kthreadd" {
            let error = Process::open(Pid(2)).err().expect("a kernel thread");
            assert!(
                matches!(error, TargetError::NoExecutable(_) | TargetError::Denied(_)),
                "{error}"
            );
        }
    }
}
