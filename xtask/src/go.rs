//! `cargo xtask go [VERSION…]`: fetches Go toolchains and prints where they are.

use anyhow::Result;
use leaktrace_fixtures::toolchain::{PINNED, Toolchain};

/// Arguments of `cargo xtask go`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Releases, such as 1.27.3; all that are pinned when none is named
    versions: Vec<String>,
}

/// Fetches what is missing; prints one line per toolchain.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut versions: Vec<&str> = arguments.versions.iter().map(String::as_str).collect();
    if versions.is_empty() {
        versions = PINNED.iter().map(|release| release.version).collect();
    }
    for version in versions {
        println!("{}", install(version)?.root().display());
    }
    Ok(())
}

/// The toolchain of this version; says so when it has to be fetched.
pub fn install(version: &str) -> Result<Toolchain> {
    let is_pinned = PINNED.iter().any(|release| release.version == version);
    if is_pinned && Toolchain::find(version).is_none() {
        eprintln!("fetching go {version} (70 MB, once)");
    }
    Toolchain::install(version)
}
