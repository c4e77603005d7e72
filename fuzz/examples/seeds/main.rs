//! Makes the first inputs of the fuzz targets out of Go programs: `seeds CORPUS PROGRAM…`.
//!
//! A program is megabytes; a seed is the few kilobytes of it that leaktrace looks at, cut out and joined up again so
//! that leaktrace finds in the seed what it finds in the program. `cargo xtask fuzz` calls it with our own fixtures.

mod cut;
mod dwarf;
mod program;
mod records;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let corpus = arguments.next().context("seeds CORPUS PROGRAM…")?;
    let corpus = Path::new(&corpus);
    for path in arguments {
        let name = Path::new(&path).file_name().context("a file's name")?;
        let name = name.to_string_lossy().into_owned();
        let file = fs::read(&path).with_context(|| format!("reading {path}"))?;
        let seeds = program::seeds(&file).with_context(|| format!("cutting up {path}"))?;
        for (target, bytes) in seeds {
            save(corpus, target, &name, &bytes)?;
        }
    }
    for (name, bytes) in records::events() {
        save(corpus, "event", name, &bytes)?;
    }
    save(corpus, "core", "one-thread", &records::core())?;
    for (name, bytes) in records::processes() {
        records::check(&bytes).with_context(|| format!("the process of {name}"))?;
        save(corpus, "census", &name, &bytes)?;
    }
    Ok(())
}

/// Seeds are small: libFuzzer copies and changes each of them many thousand times a second.
const MOST_BYTES: usize = 64 << 10;

fn save(corpus: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    ensure!(
        bytes.len() <= MOST_BYTES,
        "the seed {name} of {target} has {} bytes",
        bytes.len()
    );
    let folder = corpus.join(target);
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("seed-{name}"));
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
}
