//! `cargo xtask fixture NAME`: builds one Go fixture and prints where the executable is.

use anyhow::Result;
use leaktrace_fixtures::build::{self, Variant};

use crate::go;

/// Arguments of `cargo xtask fixture`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A folder below fixtures/, such as handler-timeout
    name: String,
    /// Go release to build it with
    #[arg(long, default_value = "1.27.3")]
    go: String,
    /// Without symbols and DWARF (-s -w)
    #[arg(long)]
    stripped: bool,
    /// Position independent
    #[arg(long)]
    pie: bool,
    /// For AArch64
    #[arg(long)]
    arm64: bool,
    /// Linked by the C compiler's linker
    #[arg(long)]
    external: bool,
    /// Position independent without a dynamic linker
    #[arg(long)]
    static_pie: bool,
}

/// Builds, unless it is there and newer than its source; fetches the toolchain if need be.
pub fn run(arguments: &Arguments) -> Result<()> {
    let variant = Variant {
        stripped: arguments.stripped,
        pie: arguments.pie,
        arm64: arguments.arm64,
        external: arguments.external,
        static_pie: arguments.static_pie,
    };
    let executable = build::build(&arguments.name, &go::install(&arguments.go)?, variant)?;
    println!("{}", executable.display());
    Ok(())
}
