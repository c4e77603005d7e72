//! The guest's only file system: an initramfs with busybox, leaktrace, Go programs, and what to do with them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::{repository, target_dir};

use super::kernel::{self, Arch};
use crate::go;

/// What the guest runs as process 1.
const INIT: &str = include_str!("init.sh");

/// The fixtures that the guest runs.
const FIXTURES: [&str; 3] = ["mixed-states", "spawn-million", "time-after-loop"];

/// Builds all that goes into it, and writes it.
///
/// # Errors
/// When a toolchain cannot be had or something does not compile.
pub fn build(arch: Arch, releases: &[&str]) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "tmp", "go"] {
        archive.folder(folder);
    }
    archive.file("init", INIT.as_bytes());
    archive.file("bin/busybox", &fs::read(kernel::busybox(arch)?)?);
    archive.file("bin/leaktrace", &fs::read(leaktrace(arch)?)?);
    for release in releases {
        archive.folder(&format!("go/{release}"));
        let toolchain = go::install(release)?;
        let variant = Variant {
            arm64: arch == Arch::Arm64,
            ..Variant::DEFAULT
        };
        for fixture in FIXTURES {
            let program = build::build(fixture, &toolchain, variant)?;
            archive.file(&format!("go/{release}/{fixture}"), &fs::read(program)?);
        }
    }
    let path = target_dir().join(format!("vm/initramfs-{arch}.cpio"));
    fs::write(&path, archive.finish()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// A static leaktrace for this machine. The linker comes with Rust: without TLS no C is in it, so no C compiler is needed.
fn leaktrace(arch: Arch) -> Result<PathBuf> {
    let (target, variable) = match arch {
        Arch::Amd64 => (
            "x86_64-unknown-linux-musl",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER",
        ),
        Arch::Arm64 => (
            "aarch64-unknown-linux-musl",
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER",
        ),
    };
    eprintln!("building leaktrace for {target}");
    // Where Rust did not come by rustup, its libraries may be there all the same: cargo tells.
    let _ = Command::new("rustup")
        .args(["--quiet", "target", "add", target])
        .stderr(Stdio::null())
        .status();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(repository())
        .args([
            "build",
            "--quiet",
            "--package",
            "leaktrace",
            "--no-default-features",
        ])
        .args(["--profile", "vm", "--target", target])
        .env(variable, "rust-lld")
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "leaktrace does not build for {target}");
    Ok(target_dir().join(target).join("vm/leaktrace"))
}

/// An archive in the format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder.
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    /// Adds an executable file.
    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    /// The archive as bytes.
    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no file of a guest has 4 GiB");
        let name_bytes = u32::try_from(name.len() + 1).expect("names are short");
        self.bytes.extend(b"070701");
        // Inode, mode, owner, group, links, time, size, two pairs of device numbers, length of the name, no checksum.
        let inode = self.entries;
        for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_bytes, 0] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Names and contents end at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_headers_names_and_contents_on_multiples_of_four() {
        let mut archive = Archive::default();
        archive.folder("go");
        archive.file("init", b"#!x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3);
        // 110 bytes of header, "go" and its 0, and three to the next multiple of four.
        assert!(bytes[116..].starts_with(b"070701"), "{text}");
        assert!(text.contains("init\0"));
    }
}
