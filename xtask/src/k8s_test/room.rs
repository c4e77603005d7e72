//! Where the node is, and how it is left: a mount namespace in which nothing of this machine is written to, a network
//! namespace without a way out, and a cgroup in which all of its processes are.
//!
//! The pid namespace is the machine's: that is where leaktrace counts. Whoever waits outside ends everything, however the
//! inside came to its end.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Arguments, folder};
use crate::tools;

/// The cgroup of all, in every hierarchy.
pub const CGROUP: &str = "leaktrace-k8s";

/// How long it may take until all processes are gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the kubelet writes to, and what it wants to find: other values would be the whole machine's.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// `target/kubernetes/run`: what a run writes, taken away at its end.
pub fn scratch() -> PathBuf {
    folder().join("run")
}

/// The outside of it.
pub struct Room {
    /// There is one at a time.
    _lock: File,
    hierarchies: Vec<PathBuf>,
    mounts: String,
}

impl Room {
    /// Makes the cgroup; what a run that was killed has left is taken away before.
    pub fn open() -> Result<Self> {
        fs::create_dir_all(folder())?;
        let lock = File::create(folder().join("lock"))?;
        ensure!(
            lock.try_lock().is_ok(),
            "another cargo xtask k8s-test runs here"
        );
        let room = Self {
            _lock: lock,
            hierarchies: hierarchies()?,
            mounts: mounts()?,
        };
        room.clear()?;
        for hierarchy in &room.hierarchies {
            let own = hierarchy.join(CGROUP);
            fs::create_dir(&own).with_context(|| format!("making {}", own.display()))?;
            // A new cgroup of cpuset has no processor until it is given some.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(hierarchy.join(name)) {
                    fs::write(own.join(name), all)?;
                }
            }
        }
        fs::create_dir(scratch())?;
        Ok(room)
    }

    /// Runs this command again in namespaces of its own, and waits for its end or for a signal.
    pub fn run_inside(&self, arguments: &Arguments, interrupted: &AtomicBool) -> Result<()> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--propagation", "private"])
            .arg(std::env::current_exe()?)
            .args(["k8s-test", "--inside"])
            .stdin(Stdio::null());
        if arguments.only_pods {
            command.arg("--only-pods");
        }
        let mut child = command.spawn().context("starting unshare")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if interrupted.load(Ordering::Relaxed) {
                // It may not be in the cgroup yet.
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
            thread::sleep(Duration::from_millis(50));
        };
        if let Some(signal) = status.signal() {
            bail!("the node's side was ended by signal {signal}");
        }
        ensure!(status.success(), "it failed on the node");
        Ok(())
    }

    /// Ends every process, takes cgroups and files away, and sees that nothing is left; answers what was done.
    pub fn close(&self) -> Result<String> {
        let ended = self.clear()?;
        ensure!(mounts()? == self.mounts, "a mount was left behind");
        Ok(format!(
            "{ended} processes ended; no process, cgroup, mount, network namespace or file of the node is left"
        ))
    }

    /// Ends every process in the cgroup, and takes it and the run's files away. A namespace ends with its last process.
    fn clear(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let mut ended = Vec::new();
        let mut namespaces = Vec::new();
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "processes {pids:?} do not end");
            for pid in pids {
                if !ended.contains(&pid) {
                    namespaces.extend(fs::read_link(format!("/proc/{pid}/ns/net")));
                    ended.push(pid);
                }
            }
            // All at once, so that nobody starts another (cgroup.kill is of Linux 5.14).
            for hierarchy in &self.hierarchies {
                let _ = fs::write(hierarchy.join(CGROUP).join("cgroup.kill"), "1");
            }
            for pid in self.processes() {
                let mut kill = Command::new("kill");
                // It fails where the process has just ended.
                let _ = kill.args(["-KILL", &pid]).stderr(Stdio::null()).status();
            }
            thread::sleep(Duration::from_millis(50));
        }
        for hierarchy in &self.hierarchies {
            let own = hierarchy.join(CGROUP);
            while own.is_dir() && remove(&own).is_err() {
                ensure!(
                    Instant::now() < deadline,
                    "{} cannot be removed",
                    own.display()
                );
                thread::sleep(Duration::from_millis(50));
            }
        }
        let own = fs::read_link("/proc/self/ns/net")?;
        namespaces.retain(|namespace| *namespace != own);
        while let Some(pid) = lives_in(&namespaces)? {
            ensure!(
                Instant::now() < deadline,
                "process {pid} is still in a network namespace of the node"
            );
            thread::sleep(Duration::from_millis(50));
        }
        if scratch().is_dir() {
            fs::remove_dir_all(scratch()).context("removing target/kubernetes/run")?;
        }
        Ok(ended.len())
    }

    /// Who is in the cgroup, in any hierarchy.
    fn processes(&self) -> Vec<String> {
        let mut pids = Vec::new();
        for hierarchy in &self.hierarchies {
            members(&hierarchy.join(CGROUP), &mut pids);
        }
        pids.sort();
        pids.dedup();
        pids
    }
}

/// Makes the inside of it, from the inside.
pub fn furnish() -> Result<()> {
    let all = hierarchies()?;
    let unified = (all.iter()).find(|hierarchy| {
        hierarchy.join("cgroup.procs").is_file() && hierarchy.join("cgroup.controllers").is_file()
    });
    let unified = unified.context("a cgroup2 file system has to be mounted")?;
    let own = unified.join(CGROUP).join("node");
    fs::create_dir(&own)?;
    // Everything that is started from now on is in it too.
    fs::write(own.join("cgroup.procs"), "0")?;

    for words in [
        &["link", "set", "lo", "up"][..],
        &[
            "link", "add", "node", "type", "veth", "peer", "name", "outside",
        ],
        &[
            "address",
            "add",
            super::configuration::NODE_NETWORK,
            "dev",
            "node",
        ],
        &["link", "set", "node", "up"],
        &["link", "set", "outside", "up"],
        // It leads nowhere, but programs look for the address that goes with it.
        &["route", "add", "default", "dev", "node"],
    ] {
        tools::silently(Command::new("ip").args(words))?;
    }
    // The kubelet, containerd and the network plugins have files at fixed places.
    let mount = |arguments: &[&str], place: &Path| {
        let mut mount = Command::new("mount");
        tools::silently(mount.args(arguments).arg(place))
            .with_context(|| format!("mounting on {}", place.display()))
    };
    mount(&["-t", "tmpfs", "none"], Path::new("/run"))?;
    let [upper, work] = ["var", "var-work"].map(|name| scratch().join(name));
    for folder in [&upper, &work] {
        fs::create_dir(folder)?;
    }
    let layers = format!(
        "lowerdir=/var,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount(&["-t", "overlay", "none", "-o", &layers], Path::new("/var"))?;
    // Where pods' logs are, and only those.
    mount(&["-t", "tmpfs", "none"], Path::new("/var/log"))?;
    for (name, value) in TUNABLES {
        let file = scratch().join(name.replace('/', "-"));
        fs::write(&file, format!("{value}\n"))?;
        let file = file.display().to_string();
        mount(&["--bind", &file], &Path::new("/proc/sys").join(name))?;
    }
    Ok(())
}

/// Where cgroups are mounted, of both versions.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = mounts()?;
    let mut found = Vec::new();
    for line in mounts.lines() {
        // ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS… - TYPE SOURCE OPTIONS (proc_pid_mountinfo(5)).
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let kind = after.split(' ').next().unwrap_or_default();
        if let ("cgroup" | "cgroup2", Some(place)) = (kind, before.split(' ').nth(4)) {
            found.push(PathBuf::from(place));
        }
    }
    ensure!(!found.is_empty(), "no cgroup file system is mounted");
    Ok(found)
}

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")
}

/// The processes of a cgroup and of those below it.
fn members(cgroup: &Path, pids: &mut Vec<String>) {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // Who has ended but was not waited for is a zombie of nobody's here, and 0 is of another pid namespace.
    pids.extend(procs.lines().filter(|pid| *pid != "0").map(str::to_owned));
    for below in below(cgroup) {
        members(&below, pids);
    }
}

/// Removes a cgroup and those below it; they have to be empty.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for below in below(cgroup) {
        remove(&below)?;
    }
    fs::remove_dir(cgroup)
}

fn below(cgroup: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// A process that is in one of the network namespaces.
fn lives_in(namespaces: &[PathBuf]) -> Result<Option<String>> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let namespace = fs::read_link(entry.path().join("ns/net"));
        if namespace.is_ok_and(|namespace| namespaces.contains(&namespace)) {
            return Ok(Some(entry.file_name().display().to_string()));
        }
    }
    Ok(None)
}
