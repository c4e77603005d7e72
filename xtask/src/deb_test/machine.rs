//! A small Debian with systemd as its first process, in a container of systemd-nspawn. Nothing of it is kept.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::target_dir;

use crate::tools;

/// How long it may take to boot, and to go down.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's release; systemd 252.
const SUITE: &str = "bookworm";

/// A machine that runs. Dropping it ends it.
pub struct Machine {
    nspawn: Child,
    leader: u32,
}

impl Machine {
    /// Boots it, with folders and files of ours bound read-only: each (here, there).
    pub fn boot(log: &Path, binds: &[(&Path, &str)]) -> Result<Self> {
        tools::need("systemd-nspawn", &["systemd-container"])?;
        let root = root()?;
        let output = File::create(log)?;
        let mut command = Command::new("systemd-nspawn");
        command
            .arg("--directory")
            .arg(root)
            // What is written goes to memory.
            .args(["--boot", "--volatile=overlay", "--private-network"])
            .args(["--register=no", "--keep-unit", "--console=pipe"])
            .arg(format!("--machine=leaktrace-{}", std::process::id()))
            // A container may not trace unless it is told so.
            .args([
                "--capability=all",
                "--system-call-filter=bpf perf_event_open",
            ]);
        for (here, there) in binds {
            command.arg(format!("--bind-ro={}:{there}", here.display()));
        }
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let nspawn = command.spawn().context("starting systemd-nspawn")?;
        let mut machine = Self { nspawn, leader: 0 };
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(
                matches!(machine.nspawn.try_wait(), Ok(None)) && Instant::now() < deadline,
                "the machine does not boot: see {}",
                log.display()
            );
            let id = machine.nspawn.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
            let children = children.unwrap_or_default();
            machine.leader = children
                .split_whitespace()
                .next()
                .map_or(0, |pid| pid.parse().unwrap_or(0));
            if machine.leader != 0 {
                let state = machine
                    .ask("systemctl is-system-running")
                    .unwrap_or_default();
                if state == "running" || state == "degraded" {
                    return Ok(machine);
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs a line of shell in it and gives back what it printed, whatever its exit code.
    pub fn ask(&self, line: &str) -> Result<String> {
        let output = self.shell(line)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The same for what has to succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.shell(line)?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{line}: {} {}", said.trim(), errors.trim());
        }
        Ok(said.trim().to_owned())
    }

    /// Asks a server in it; bash can speak to a port, and nothing more is there.
    pub fn get(&self, port: u16, path: &str) -> Result<String> {
        let answer = self.run(&format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        ))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        Ok(body.to_owned())
    }

    fn shell(&self, line: &str) -> Result<std::process::Output> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.leader.to_string()])
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root",
            ])
            .args(["--", "/bin/bash", "-c", line])
            .current_dir("/")
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command.output().context("starting nsenter")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Asked first, then ended: what it wrote was in memory only.
        let _ = self.ask("systemctl --no-block poweroff");
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.nspawn.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

/// A Debian as small as it can be, made once.
fn root() -> Result<PathBuf> {
    let place = target_dir().join("debootstrap").join(SUITE);
    if place.is_dir() {
        return Ok(place);
    }
    tools::need("debootstrap", &["debootstrap"])?;
    let parent = place.parent().context("everything lies below target/")?;
    fs::create_dir_all(parent)?;
    let unfinished = parent.join(format!("{SUITE}.unfinished"));
    let _ = fs::remove_dir_all(&unfinished);
    eprintln!("making a small Debian {SUITE} (once, about a minute)");
    let mut command = Command::new("debootstrap");
    command.args([
        "--variant=minbase",
        "--include=systemd,systemd-sysv,dbus",
        SUITE,
    ]);
    tools::silently(command.arg(&unfinished))?;
    fs::rename(&unfinished, &place)?;
    Ok(place)
}
