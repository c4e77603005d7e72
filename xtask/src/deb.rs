//! `cargo xtask deb`: the Debian package, made by cargo-deb from `[package.metadata.deb]` of leaktrace's Cargo.toml.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::{repository, target_dir};

use crate::dist::{self, Machine};

/// The release of cargo-deb that is used: it lies below `target/tools`.
const CARGO_DEB: &str = "3.8.0";

/// Arguments of `cargo xtask deb`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Machine that it is for
    #[arg(long, value_enum, default_value_t = Machine::Amd64)]
    arch: Machine,
}

/// Builds it, and prints where it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    println!("{}", build(arguments.arch, "1")?.display());
    Ok(())
}

/// Builds it with a revision of the package, and says where it is.
pub fn build(machine: Machine, revision: &str) -> Result<PathBuf> {
    let tool = cargo_deb()?;
    let native = match std::env::consts::ARCH {
        "aarch64" => Machine::Arm64,
        _ => Machine::Amd64,
    };
    let binary = dist::binary(machine)?;
    let runnable = match machine == native {
        true => binary.clone(),
        false => dist::binary(native)?,
    };
    dist::generated(&runnable, &binary.with_file_name("packaged"))?;
    let package = dist::folder()?.join(format!(
        "leaktrace_{}-{revision}_{}.deb",
        dist::version(),
        machine.name()
    ));
    let mut command = Command::new(tool);
    command
        .current_dir(repository())
        .args(["deb", "--no-build", "--no-strip", "--quiet"])
        .args(["--package", "leaktrace", "--profile", "dist"])
        .args(["--target", machine.triple(), "--deb-revision", revision])
        .arg("--output")
        .arg(&package)
        .stdin(Stdio::null());
    let status = command.status().context("starting cargo-deb")?;
    ensure!(status.success(), "cargo-deb makes no package");
    Ok(package)
}

/// cargo-deb, installed below `target/tools` if it is not there yet.
fn cargo_deb() -> Result<PathBuf> {
    let root = target_dir().join("tools");
    let tool = root.join("bin/cargo-deb");
    if tool.is_file() {
        return Ok(tool);
    }
    eprintln!("installing cargo-deb {CARGO_DEB} (once)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut install = Command::new(cargo);
    install
        .args(["install", "--locked", "--quiet", "--root"])
        .arg(&root)
        .arg(format!("cargo-deb@{CARGO_DEB}"))
        .stdin(Stdio::null());
    let status = install.status().context("starting cargo")?;
    ensure!(
        status.success(),
        "cargo-deb {CARGO_DEB} cannot be installed"
    );
    Ok(tool)
}
