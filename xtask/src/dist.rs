//! `cargo xtask dist`: what is shipped besides the source, in a static binary and a container image in
//! `target/dist`. No container tool is needed to make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use leaktrace_fixtures::{repository, target_dir};

use crate::oci::{FileCapabilities, Image};
use crate::tools;

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Machine that it is for
    #[arg(long, value_enum, default_value_t = Machine::Amd64)]
    arch: Machine,
}

/// A machine that leaktrace runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Machine {
    /// The name that Debian and images use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's name for it, with a C library that is linked in.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }
}

/// What the daemon may do, as the unit, the image and the manifests say: CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE,
/// CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (include/uapi/linux/capability.h).
pub const CAPABILITIES: u64 = 1 << 2 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;

/// Name of the image, without its version.
pub const IMAGE: &str = "localhost/leaktrace";

/// Builds everything, and prints where it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    let name = format!("leaktrace-{}", arguments.arch.name());
    let binary = folder()?.join(name);
    fs::copy(self::binary(arguments.arch)?, &binary)?;
    println!("{}", binary.display());
    println!("{}", image(arguments.arch)?.display());
    Ok(())
}

/// The version of all crates.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Builds the static binary, and says where it is: below `target/TRIPLE/dist`, where cargo-deb looks for it too.
pub fn binary(machine: Machine) -> Result<PathBuf> {
    let triple = machine.triple();
    eprintln!("building leaktrace for {triple}");
    // Where Rust did not come by rustup, its libraries may be there all the same: cargo tells.
    let _ = Command::new("rustup")
        .args(["--quiet", "target", "add", triple])
        .stderr(Stdio::null())
        .status();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The linker comes with Rust; what C is in the dependencies wants a compiler for the machine.
    match machine {
        Machine::Amd64 => tools::need("musl-gcc", &["musl-tools"])?,
        Machine::Arm64 => tools::need(
            "aarch64-linux-gnu-gcc",
            &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        )?,
    }
    let linker = format!(
        "CARGO_TARGET_{}_LINKER",
        triple.replace('-', "_").to_uppercase()
    );
    let status = Command::new(cargo)
        .current_dir(repository())
        .args(["build", "--quiet", "--package", "leaktrace"])
        .args(["--profile", "dist", "--target", triple])
        .env(linker, "rust-lld")
        .env("CC_aarch64_unknown_linux_musl", "aarch64-linux-gnu-gcc")
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "leaktrace does not build for {triple}");
    Ok(target_dir().join(triple).join("dist/leaktrace"))
}

/// Writes what `leaktrace generate` prints to a folder. The binary has to run here.
pub fn generated(leaktrace: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for (arguments, file) in [
        (&["config"][..], "leaktrace.toml"),
        (&["man"], "leaktrace.1"),
        (&["completions", "bash"], "leaktrace.bash"),
        (&["completions", "zsh"], "_leaktrace"),
        (&["completions", "fish"], "leaktrace.fish"),
    ] {
        let mut generate = Command::new(leaktrace);
        let output = generate.arg("generate").args(arguments).output()?;
        ensure!(output.status.success(), "generate {arguments:?} failed");
        fs::write(folder.join(file), output.stdout)?;
    }
    // Debian wants it so; without the time, for the same bytes each time.
    let mut gzip = Command::new("gzip");
    tools::silently(gzip.args(["-9nkf"]).arg(folder.join("leaktrace.1")))
}

/// Writes the image, and says where it is. It holds the binary and nothing else.
///
/// The binary carries its capabilities, so that a user other than root has them: Kubernetes gives a container's added
/// capabilities to root only.
pub fn image(machine: Machine) -> Result<PathBuf> {
    let content = fs::read(binary(machine)?)?;
    let name = format!("{IMAGE}:{}", version());
    let path = folder()?.join(format!("leaktrace-{}.image.tar", machine.name()));
    let image = Image {
        name: &name,
        architecture: machine.name(),
        files: &[(
            "usr/bin/leaktrace",
            &content,
            Some(FileCapabilities(CAPABILITIES)),
        )],
        entrypoint: &["/usr/bin/leaktrace"],
        arguments: &["daemon"],
        user: "65532:65532",
    };
    image.write(&path)?;
    Ok(path)
}

/// `target/dist`.
pub fn folder() -> Result<PathBuf> {
    let folder = target_dir().join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}
