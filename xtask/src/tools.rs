//! `cargo xtask tools`: fetches the real servers that tests attach to.
//!
//! They are Debian's packages, downloaded by apt and unpacked below `target/debs/`: nothing is installed.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use leaktrace_fixtures::target_dir;

/// Arguments of `cargo xtask tools`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Fetches what is missing; prints one line per server.
pub fn run(_: &Arguments) -> Result<()> {
    println!("{}", prometheus()?.display());
    Ok(())
}

/// Debian's Prometheus server, fetched if it is neither installed nor fetched yet.
pub fn prometheus() -> Result<PathBuf> {
    let fetched = target_dir().join("debs/prometheus/usr/bin/prometheus");
    for place in [PathBuf::from("/usr/bin/prometheus"), fetched.clone()] {
        if place.is_file() {
            return Ok(place);
        }
    }
    unpack("prometheus")?;
    if !fetched.is_file() {
        bail!("Debian's package prometheus holds no usr/bin/prometheus");
    }
    Ok(fetched)
}

/// Downloads a Debian package and unpacks it to `target/debs/<package>`.
fn unpack(package: &str) -> Result<()> {
    let debs = target_dir().join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("creating {}", debs.display()))?;
    let scratch = tempfile::tempdir_in(&debs)?;
    eprintln!("fetching Debian's {package} (once)");
    let download = [
        "download",
        "--quiet",
        "-o",
        "APT::Sandbox::User=root",
        package,
    ];
    let mut apt = Command::new("apt-get");
    apt.args(download).current_dir(scratch.path());
    if silently(&mut apt).is_err() {
        // A fresh container image has no package lists.
        silently(Command::new("apt-get").args(["update", "--quiet"]))?;
        silently(&mut apt)?;
    }
    let mut archive = None;
    for entry in fs::read_dir(scratch.path())? {
        archive = Some(entry?.path());
    }
    let archive = archive.with_context(|| format!("apt-get downloaded nothing for {package}"))?;
    let unpacked = scratch.path().join("unpacked");
    silently(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    fs::rename(&unpacked, debs.join(package)).with_context(|| format!("naming {package}"))
}

/// Runs a command without its chatter; its last line becomes the error.
pub fn silently(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{name} is missing: Debian's packages can only be fetched on Debian and its kin");
        }
        Err(error) => return Err(error).with_context(|| format!("starting {name}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{name}: {}",
        errors
            .lines()
            .next_back()
            .unwrap_or("failed without a reason")
            .trim()
    );
}
