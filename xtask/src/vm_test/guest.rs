//! One emulated machine from power on to power off.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::Arch;
use crate::tools::{self, silently};

/// How long a machine may run. It needs less than a sixth of it on an idle host.
const PATIENCE: Duration = Duration::from_secs(180);

/// Each line of the guest's that is meant for us begins so.
const MARK: &str = "@@ ";

/// What to boot.
pub struct Boot<'a> {
    /// The machine.
    pub arch: Arch,
    /// Its kernel.
    pub kernel: &'a Path,
    /// Its file system.
    pub initramfs: &'a Path,
    /// Where its console is kept; the number of the attempt is added.
    pub log: PathBuf,
}

impl Boot<'_> {
    /// Boots, and answers with the guest's lines once it said that it was through.
    ///
    /// # Errors
    /// When it never said so: it hung, or died.
    pub fn run(&self, attempt: u32) -> Result<Vec<String>> {
        let folder = self.log.parent().context("a log lies in a folder")?;
        fs::create_dir_all(folder)?;
        let path = self.log.with_added_extension(format!("{attempt}.txt"));
        let mut log =
            File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let emulator = emulator(self.arch);
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("starting {emulator}"))?;
        let console = child.stdout.take().context("a piped stdout is there")?;
        let machine = Running(child);
        let (sender, lines) = mpsc::channel();
        // Ends with the emulator, which closes its end of the pipe.
        thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let end = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    // The firmware's escape sequences may stand before the first.
                    if let Some((_, line)) = line.split_once(MARK) {
                        if line == "end" {
                            break;
                        }
                        said.push(line.to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine hung, after saying {:?}", last_key(&said))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine died, after saying {:?}", last_key(&said))
                }
            }
        }
        drop(machine);
        Ok(said)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(emulator(self.arch));
        let console = match self.arch {
            Arch::Amd64 => {
                // This emulator's cmpxchg16b (QEMU 7.2) leaves wrong flags behind when it is interrupted; Linux 6.12
                // uses it in every allocation, and panics.
                command.args(["-cpu", "max,-cx16"]);
                "ttyS0"
            }
            Arch::Arm64 => {
                command.args(["-M", "virt", "-cpu", "cortex-a72"]);
                "ttyAMA0"
            }
        };
        command
            .args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .args(["-nic", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &format!("console={console} loglevel=5 panic=-1")]);
        command
    }
}

/// An emulator of ours. Dropping it switches the machine off.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already. The pid is ours until it is waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes sure that there is an emulator for this machine; installs Debian's if need be.
///
/// # Errors
/// When there is none and none can be installed.
pub fn install_emulator(arch: Arch) -> Result<()> {
    let program = emulator(arch);
    let works = || silently(Command::new(program).arg("--version"));
    if works().is_ok() {
        return Ok(());
    }
    let package = match arch {
        Arch::Amd64 => "qemu-system-x86",
        Arch::Arm64 => "qemu-system-arm",
    };
    tools::install(&[package])?;
    works()
}

fn emulator(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "qemu-system-x86_64",
        Arch::Arm64 => "qemu-system-aarch64",
    }
}

/// The first word of the last line.
fn last_key(said: &[String]) -> &str {
    said.last()
        .and_then(|line| line.split(' ').next())
        .unwrap_or("nothing")
}
