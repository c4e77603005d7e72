//! `cargo xtask offsets [DIR|FILE…]`: makes leaktrace's table of struct offsets from what real toolchains compile.
//!
//! Each toolchain compiles one small program for each architecture; leaktrace's own DWARF reader (the example
//! `dwarf_offsets`) reads the offsets; releases in which nothing moved become one entry. Of a release that has no
//! toolchain to be fetched (1.18, 1.20), finished binaries with DWARF serve as well: the structures of the runtime
//! do not depend on the program. The entry names every release and architecture that it was measured on.

mod document;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::repository;
use leaktrace_fixtures::toolchain::PINNED;
use serde_json::{Value, json};

use crate::{go, tools};

/// Where the table is kept.
const TABLE: &str = "leaktrace/src/resolve/offsets.json";
/// Debian's toolchain, the only one of its release that a package registry has.
const DEBIAN: &str = "/usr/lib/go-1.19";
/// Package runtime is in every program, with all its structures: the program need not do anything.
const PROGRAM: &str = "package main\n\nfunc main() {}\n";

/// Arguments of `cargo xtask offsets`.
#[derive(clap::Args)]
pub struct Arguments {
    /// GOROOTs, directories that hold them as goVERSION/go, or Go binaries with DWARF; all that can be fetched when
    /// none is named
    sources: Vec<PathBuf>,
    /// Write nothing: fail when the table is not what comes of it
    #[arg(long)]
    check: bool,
}

/// Writes the table; prints what it was made from.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut sources = arguments.sources.clone();
    if sources.is_empty() {
        for release in PINNED {
            sources.push(go::install(release.version)?.root().to_owned());
        }
        sources.extend(tools::with_dwarf()?);
    }
    let (files, directories): (Vec<_>, Vec<_>) =
        sources.iter().partition(|source| source.is_file());
    let mut roots = Vec::new();
    for directory in directories {
        roots.extend(toolchains(directory)?);
    }
    if Path::new(DEBIAN).join("bin/go").is_file() {
        roots.push(DEBIAN.into());
    }
    ensure!(
        !roots.is_empty() || !files.is_empty(),
        "no Go toolchain found; fetch them with `cargo xtask go`"
    );
    let work = std::env::temp_dir().join(format!("leaktrace-offsets-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let measured = compile(&roots, &work).and_then(|mut binaries| {
        binaries.extend(files.into_iter().cloned());
        measure(&binaries)
    });
    // The program and its binaries are no use to anyone once they are measured.
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    let table = merge(measured?)?;
    let mut text = serde_json::to_string_pretty(&table)?;
    text.push('\n');
    let path = repository().join(TABLE);
    let document = repository().join(document::FILE);
    let described = fs::read_to_string(&document)
        .with_context(|| format!("reading {}", document.display()))
        .and_then(|text| Ok((document::renewed(&text, &table)?, text)))?;
    if arguments.check {
        let kept = fs::read_to_string(&path).with_context(|| format!("reading {TABLE}"))?;
        ensure!(
            kept == text,
            "{TABLE} is not what its sources give: run `cargo xtask offsets`"
        );
        ensure!(
            described.0 == described.1,
            "{} is not what the table says: run `cargo xtask offsets`",
            document::FILE
        );
    } else {
        fs::write(&path, text).with_context(|| format!("writing {TABLE}"))?;
        fs::write(&document, described.0)
            .with_context(|| format!("writing {}", document.display()))?;
    }
    for release in &table {
        println!(
            "1.{} from patch {}: {}",
            release["minor"], release["from_patch"], release["measured"]
        );
    }
    Ok(())
}

/// The GOROOTs at a place: itself, or those below it.
fn toolchains(directory: &Path) -> Result<Vec<PathBuf>> {
    // The compiler is run elsewhere, so relative paths will not do.
    let directory = fs::canonicalize(directory)
        .with_context(|| format!("looking for toolchains in {}", directory.display()))?;
    if directory.join("bin/go").is_file() {
        return Ok(vec![directory]);
    }
    let mut roots = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let root = entry?.path().join("go");
        if root.join("bin/go").is_file() {
            roots.push(root);
        }
    }
    roots.sort();
    Ok(roots)
}

/// One binary for each toolchain and architecture.
fn compile(roots: &[PathBuf], work: &Path) -> Result<Vec<PathBuf>> {
    let source = work.join("main.go");
    fs::write(&source, PROGRAM)?;
    let mut binaries = Vec::new();
    for (number, root) in roots.iter().enumerate() {
        for arch in ["amd64", "arm64"] {
            let binary = work.join(format!("{number}-{arch}"));
            let status = Command::new(root.join("bin/go"))
                .args(["build", "-o"])
                .args([&binary, &source])
                .current_dir(work)
                .env("GOROOT", root)
                .env("GOARCH", arch)
                .env("CGO_ENABLED", "0")
                .env("GO111MODULE", "off")
                .env("GOTOOLCHAIN", "local")
                .env("GOPROXY", "off")
                .env("GOFLAGS", "")
                .env_remove("GOEXPERIMENT")
                .status()
                .with_context(|| format!("starting {}/bin/go", root.display()))?;
            ensure!(
                status.success(),
                "{}/bin/go cannot compile for {arch}",
                root.display()
            );
            binaries.push(binary);
        }
    }
    Ok(binaries)
}

/// What leaktrace reads from the DWARF of each binary.
fn measure(binaries: &[PathBuf]) -> Result<Vec<Value>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "run",
            "--quiet",
            "--package",
            "leaktrace",
            "--example",
            "dwarf_offsets",
            "--",
        ])
        .args(binaries)
        .output()
        .context("starting cargo")?;
    ensure!(
        output.status.success(),
        "reading the DWARF failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    let measured: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(
        measured.len() == binaries.len(),
        "not every binary was measured"
    );
    Ok(measured)
}

/// One entry for each run of patch releases in which nothing moved.
fn merge(measured: Vec<Value>) -> Result<Vec<Value>> {
    let mut by_release: BTreeMap<(u64, u64), Vec<Value>> = BTreeMap::new();
    for one in measured {
        let number = |key: &str| one[key].as_u64().context("a release without a number");
        by_release
            .entry((number("minor")?, number("patch")?))
            .or_default()
            .push(one);
    }
    let mut table: Vec<Value> = Vec::new();
    for ((minor, patch), of_release) in by_release {
        let names: Vec<Value> = of_release
            .iter()
            .map(|one| one["measured"].clone())
            .collect();
        let (offsets, reasons) = (&of_release[0]["offsets"], &of_release[0]["wait_reasons"]);
        let same = |one: &Value| one["offsets"] == *offsets && one["wait_reasons"] == *reasons;
        if !of_release.iter().all(same) {
            bail!("{names:?} differ: the table must learn to tell them apart");
        }
        if let Some(before) = table.last_mut().filter(|before| before["minor"] == minor) {
            if same(before) {
                before["measured"]
                    .as_array_mut()
                    .context("a list")?
                    .extend(names);
                continue;
            }
            table.push(
                json!({"minor": minor, "from_patch": patch, "measured": names, "offsets": offsets, "wait_reasons": reasons}),
            );
        } else {
            table.push(
                json!({"minor": minor, "from_patch": 0, "measured": names, "offsets": offsets, "wait_reasons": reasons}),
            );
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(patch: u64, arch: &str, goid: u64) -> Value {
        json!({
            "minor": 30,
            "patch": patch,
            "measured": format!("go1.30.{patch} {arch}"),
            "offsets": {"g_goid": goid},
            "wait_reasons": [""],
        })
    }

    #[test]
    fn patches_in_which_nothing_moved_are_one_entry() {
        let table = merge(vec![
            measured(4, "amd64", 160),
            measured(2, "amd64", 152),
            measured(3, "amd64", 152),
            measured(4, "arm64", 160),
        ])
        .expect("nothing differs within a release");
        assert_eq!(
            table,
            [
                json!({"minor": 30, "from_patch": 0, "measured": ["go1.30.2 amd64", "go1.30.3 amd64"],
                       "offsets": {"g_goid": 152}, "wait_reasons": [""]}),
                json!({"minor": 30, "from_patch": 4, "measured": ["go1.30.4 amd64", "go1.30.4 arm64"],
                       "offsets": {"g_goid": 160}, "wait_reasons": [""]}),
            ]
        );
    }

    #[test]
    fn architectures_that_differ_are_refused() {
        assert!(merge(vec![measured(2, "amd64", 152), measured(2, "arm64", 160)]).is_err());
    }
}
