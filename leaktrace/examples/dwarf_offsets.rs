//! Prints, for each Go binary named, the struct offsets that its DWARF tells: one JSON object a line.
//!
//! `cargo xtask offsets` makes the built-in table from it. A command of its own, because xtask must be buildable
//! when leaktrace is not (it builds the eBPF objects that leaktrace embeds).

use std::env;
use std::fs::File;

use anyhow::Context;
use leaktrace::resolve::{buildinfo, dwarf, elf::Elf, release};

fn main() -> anyhow::Result<()> {
    for path in env::args().skip(1) {
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        let elf = Elf::open(&file).with_context(|| format!("reading {path}"))?;
        let build = buildinfo::read(&elf).with_context(|| format!("reading {path}"))?;
        let offsets = dwarf::offsets(&elf).with_context(|| format!("no usable DWARF in {path}"))?;
        let names = release::wait_reasons_by_symbol(&elf)
            .with_context(|| format!("no names of wait reasons in {path}"))?;
        let line = serde_json::json!({
            "minor": build.go.minor,
            "patch": build.go.patch,
            "measured": format!("{} {}", build.go, build.goarch),
            "offsets": offsets,
            "wait_reasons": names,
        });
        println!("{line}");
    }
    Ok(())
}
