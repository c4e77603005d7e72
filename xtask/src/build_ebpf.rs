//! Builds the eBPF objects that are checked in under `leaktrace/bpf`, one for each architecture.
//!
//! Any machine makes the same bytes from the same sources and compiler: paths are remapped, and DWARF,
//! which the kernel does not read, is cut off (BTF stays).

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

#[path = "../../leaktrace/build/stamp.rs"]
mod stamp;

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const TARGET: &str = "bpfel-unknown-none";

/// Build the eBPF objects from source and check them in (needs rust-src and bpf-linker, and installs them).
///
/// With --log the programs also tell each event through aya-log; such objects go to target/bpf-log and are
/// used by LEAKTRACE_BPF_DIR=target/bpf-log cargo build -p leaktrace.
#[derive(clap::Args)]
pub struct BuildEbpf {
    /// Build aside and compare with what is checked in: exit code 1 when a byte differs, 2 when this
    /// compiler cannot tell
    #[arg(long, conflicts_with = "log")]
    check: bool,
    /// Build the variant that logs, into target/bpf-log
    #[arg(long)]
    log: bool,
}

impl BuildEbpf {
    /// Does it; the exit code is 1 or 2 only with `--check`.
    pub fn run(&self) -> Result<ExitCode> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask must lie in its workspace")?;
        let compiler = output_of(Command::new("rustc").arg("--version"))?;
        let checked_in = workspace.join("leaktrace/bpf");
        if self.check
            && let Some(built_with) = fs::read_to_string(checked_in.join(stamp::STAMP_FILE))?
                .lines()
                .nth(1)
            && built_with != compiler
        {
            eprintln!(
                "cannot compare: the eBPF objects were built with {built_with}, and this is {compiler}"
            );
            return Ok(ExitCode::from(2));
        }
        install_tools()?;

        let sources = stamp::hash_sources(workspace)?;
        let directory = match (self.check, self.log) {
            (true, _) => workspace.join("target/bpf-check"),
            (_, true) => workspace.join("target/bpf-log"),
            _ => checked_in.clone(),
        };
        fs::create_dir_all(&directory)?;
        for arch in ARCHITECTURES {
            build(workspace, arch, self.log, &directory)?;
        }
        fs::write(
            directory.join(stamp::STAMP_FILE),
            format!("{sources}\n{compiler}\n"),
        )?;
        if self.check {
            return compare(&directory, &checked_in);
        }
        println!("built {}", directory.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Compares the objects and the stamp; says what differs.
fn compare(built: &Path, checked_in: &Path) -> Result<ExitCode> {
    let mut same = true;
    for name in ARCHITECTURES
        .map(stamp::object_file)
        .into_iter()
        .chain([stamp::STAMP_FILE.to_owned()])
    {
        if fs::read(built.join(&name))? != fs::read(checked_in.join(&name)).unwrap_or_default() {
            eprintln!(
                "{} differs from what its source gives: run `cargo xtask build-ebpf`",
                checked_in.join(&name).display()
            );
            same = false;
        }
    }
    Ok(if same {
        println!("the checked-in eBPF objects are what their source gives");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Builds the object for one architecture into `directory`.
fn build(workspace: &Path, arch: &str, log: bool, directory: &Path) -> Result<()> {
    let target_directory = workspace.join("target/bpf").join(arch);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "leaktrace-ebpf",
        ])
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target_directory)
        // Unstable options on the stable compiler: building core, and features of core.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace, arch)?)
        // bpf-linker sees the whole program anyway, and wants whole crates.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if log {
        cargo.args(["--features", "log"]);
    }
    run(&mut cargo)?;
    run(Command::new(objcopy()?)
        .arg("--strip-debug")
        .arg(target_directory.join(TARGET).join("release/leaktrace-ebpf"))
        .arg(directory.join(stamp::object_file(arch))))
}

/// The compiler's options, joined the way cargo wants them.
fn rustflags(workspace: &Path, arch: &str) -> Result<OsString> {
    let mut flags: Vec<OsString> = stamp::RUSTFLAGS.map(OsString::from).to_vec();
    flags.push(format!("--cfg=bpf_target_arch=\"{arch}\"").into());
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(workspace, "leaktrace");
    remap(&sysroot()?.join("lib/rustlib/src/rust"), "rust");
    let registries = cargo_home()?.join("registry/src");
    for registry in
        fs::read_dir(&registries).with_context(|| format!("listing {}", registries.display()))?
    {
        remap(&registry?.path(), "registry");
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

/// Installs what is missing, by the ordinary tools.
fn install_tools() -> Result<()> {
    if !sysroot()?
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        run(Command::new("rustup").args(["component", "add", "rust-src"]))?;
    }
    let installed = Command::new("bpf-linker").arg("--version").output();
    let wanted = format!("bpf-linker {}", stamp::BPF_LINKER);
    if !installed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == wanted) {
        run(Command::new("cargo").args([
            "install",
            "--locked",
            "--force",
            &format!("bpf-linker@{}", stamp::BPF_LINKER),
        ]))?;
    }
    Ok(())
}

/// LLVM's objcopy, which comes with the compiler.
fn objcopy() -> Result<PathBuf> {
    let host = output_of(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let path = sysroot()?
        .join("lib/rustlib")
        .join(host)
        .join("bin/rust-objcopy");
    ensure!(
        path.is_file(),
        "{} is missing: install the toolchain with rustup",
        path.display()
    );
    Ok(path)
}

fn sysroot() -> Result<PathBuf> {
    Ok(output_of(Command::new("rustc").args(["--print", "sysroot"]))?.into())
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    Ok(PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cargo"))
}

fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("running {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
