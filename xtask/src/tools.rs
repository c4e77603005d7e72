//! `cargo xtask tools`: fetches the real servers that tests attach to.
//!
//! They are Debian's packages, downloaded by apt and unpacked below `target/debs/`, and npm's, below `target/npm/`:
//! nothing is installed, and nothing of theirs is run here.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::target_dir;
use sha2::{Digest, Sha256};

/// Arguments of `cargo xtask tools`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Fetches what is missing; prints one line per server.
pub fn run(_: &Arguments) -> Result<()> {
    println!("{}", prometheus()?.display());
    for (package, version, hash) in ESBUILD {
        println!("{}", esbuild(package, version, hash)?.display());
    }
    Ok(())
}

/// esbuild in the Go releases of which no toolchain can be fetched, and without build information: package, version,
/// SHA-256 of the archive. Compiled by Go 1.17.2, 1.18, 1.20 and 1.26.5.
pub const ESBUILD: [(&str, &str, &str); 4] = [
    (
        "esbuild-linux-64",
        "0.13.15",
        "4441c72e5a251f9d7c83fc1949f74c46d92ddeff8ca67eb7f3050dc6401e9f03",
    ),
    (
        "esbuild-linux-64",
        "0.14.30",
        "2481a4ec7e8ed54ff98430c2a48f2ae4af2ad616414322e464d8f0b4e9582917",
    ),
    (
        "@esbuild/linux-x64",
        "0.17.10",
        "5ed9eeeb2dc6def48b48128358feb625857b7811db32a781f247ae3a2293a62a",
    ),
    (
        "@esbuild/linux-x64",
        "0.28.2",
        "9573bb2233aab0f9ea7647d5cca9726113cc1768de61d66b17267f4db84488f6",
    ),
];

/// An esbuild of npm, fetched if it is not there yet.
pub fn esbuild(package: &str, version: &str, hash: &str) -> Result<PathBuf> {
    let npm = target_dir().join("npm");
    let folder = npm.join(format!("{package}-{version}"));
    let executable = folder.join("package/bin/esbuild");
    if executable.is_file() {
        return Ok(executable);
    }
    fs::create_dir_all(folder.parent().unwrap_or(&npm))
        .with_context(|| format!("creating {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(&npm)?;
    eprintln!("fetching npm's {package} {version} (once)");
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent"])
        .arg(format!("{package}@{version}"));
    silently(pack.current_dir(scratch.path())).context("npm")?;
    let archive = fs::read_dir(scratch.path())?
        .next()
        .with_context(|| format!("npm fetched nothing for {package}"))??
        .path();
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(&archive)?, &mut hasher)?;
    let found: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(
        found == hash,
        "npm's {package} {version} has SHA-256 {found}, but {hash} is pinned: it was not unpacked"
    );
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    silently(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&unpacked),
    )?;
    fs::rename(&unpacked, &folder).with_context(|| format!("naming {}", folder.display()))?;
    Ok(executable)
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
fn silently(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "{name} is missing: the packages are Debian's and npm's, and fetched by apt-get and npm"
            );
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
