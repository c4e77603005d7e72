//! From which sources were the checked-in eBPF objects built?
//!
//! `cargo xtask build-ebpf` writes the hash into [`STAMP_FILE`] beside the objects; `leaktrace/build.rs`
//! computes it again and refuses objects that are older than their source. Both include this file, so that there is
//! one definition of what counts as source.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The stamp, in the directory of the objects: its first line is the result of [`hash_sources`], its second
/// the compiler's version, because another compiler makes other bytes.
pub const STAMP_FILE: &str = "sources.sha256";

/// Version of bpf-linker that links the objects.
pub const BPF_LINKER: &str = "0.10.3";

/// Options of the compiler that decide what the objects are, beside the remapped paths: debug information
/// for BTF, and LLVM's usual stores in place of calls of memset, which would clear byte by byte.
pub const RUSTFLAGS: [&str; 3] = [
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

/// Name of the object for an architecture, as Rust calls it.
pub fn object_file(arch: &str) -> String {
    format!("leaktrace.{arch}.bpf.o")
}

/// Hash of everything that the objects are made of, in hexadecimal: the two crates, the pinned versions of
/// aya's crates, the linker and its options.
pub fn hash_sources(workspace: &Path) -> io::Result<String> {
    let mut files = vec![
        workspace.join("leaktrace-ebpf/Cargo.toml"),
        workspace.join("leaktrace-ebpf/build.rs"),
        workspace.join("leaktrace-common/Cargo.toml"),
    ];
    list_files(&workspace.join("leaktrace-ebpf/src"), &mut files)?;
    list_files(&workspace.join("leaktrace-common/src"), &mut files)?;
    files.sort();

    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        // The length keeps two neighbours from being taken for one.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    for file in &files {
        let name = file.strip_prefix(workspace).unwrap_or(file);
        add(name.to_string_lossy().as_bytes());
        add(&fs::read(file)?);
    }
    let lock = fs::read_to_string(workspace.join("Cargo.lock"))?;
    for package in lock.split("[[package]]").filter(|package| {
        package.trim_start().starts_with("name = \"aya-ebpf")
            || package.trim_start().starts_with("name = \"aya-log-ebpf")
    }) {
        add(package.trim().as_bytes());
    }
    add(BPF_LINKER.as_bytes());
    for flag in RUSTFLAGS {
        add(flag.as_bytes());
    }

    let mut hexadecimal = String::new();
    for byte in hash.finalize() {
        let _ = write!(hexadecimal, "{byte:02x}");
    }
    Ok(hexadecimal)
}

fn list_files(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
