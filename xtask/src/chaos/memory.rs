//! The daemon's memory comes to an end, in both ways that there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::program::Program;

use super::world::{RELEASES, World, own_copy};
use crate::go;

impl World {
    /// The next piece of memory that it asks for is not given, and it aborts, as in a container that is full.
    pub(super) fn memory_limit(&mut self) -> Result<String> {
        let pid = self.daemon.pid().to_string();
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm
            .split(' ')
            .next()
            .context("statm has numbers")?
            .parse()?;
        let limit = format!("--as={}", pages * 4096);
        let status = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        ensure!(
            status.context("starting prlimit")?.success(),
            "there is no limit of memory"
        );
        self.starve()?;
        Ok("no more memory: the daemon ended, and is started again".to_owned())
    }

    /// As in a container that is full: what it has may stay, and a little more.
    pub(super) fn out_of_memory(&mut self) -> Result<String> {
        let group = Group::new(1 << 20)?;
        group.enter(self.daemon.pid())?;
        self.starve()?;
        let kills = group.kills()?;
        ensure!(kills > 0, "it ended, but the kernel has not killed it");
        Ok("its control group is full: the kernel killed it, and it is started again".to_owned())
    }

    /// Gives the daemon more and more to count, until it ends.
    fn starve(&mut self) -> Result<()> {
        const ROUNDS: usize = 5;
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            all.extend(news()?);
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                if !self.daemon.is_running() {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("the daemon never met the limit")
    }
}

/// Programs of files that the daemon has not seen, with so many timers that a census needs memory.
fn news() -> Result<Vec<Program>> {
    let mut news = Vec::new();
    for release in RELEASES {
        let executable = own_copy("timers-mixed", &go::install(release)?)?;
        news.push(Program::start(&executable, &["-each", "100000"])?);
    }
    Ok(news)
}

/// A control group with a limit of memory.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Result<Self> {
        let (first, second) = (
            Path::new("/sys/fs/cgroup/memory"),
            Path::new("/sys/fs/cgroup"),
        );
        let (root, limit) = if first.join("memory.limit_in_bytes").exists() {
            (first, "memory.limit_in_bytes")
        } else if fs::read_to_string(second.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.contains("memory"))
        {
            (second, "memory.max")
        } else {
            bail!("no control group can limit memory here");
        };
        let group = Self(root.join("leaktrace-chaos"));
        fs::create_dir_all(&group.0).with_context(|| format!("{}", group.0.display()))?;
        fs::write(group.0.join(limit), bytes.to_string())?;
        Ok(group)
    }

    /// How often the kernel has killed for it (Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst).
    fn kills(&self) -> Result<u64> {
        let file = ["memory.oom_control", "memory.events"].map(|name| self.0.join(name));
        let file = file.iter().find(|file| file.exists());
        let text = fs::read_to_string(file.context("no count of kills")?)?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.context("no count of kills")?.trim().parse()?)
    }

    fn enter(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("entering a control group")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may take a moment to be gone.
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
    }
}
