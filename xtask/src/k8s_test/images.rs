//! The images that the node gets: leaktrace as it is shipped, two Go programs, and what keeps a pod's namespaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use leaktrace_fixtures::build::{self, Variant};

use super::folder;
use crate::oci::Image;
use crate::{dist, go, tools};

/// A program that leaks, one that does not, and one that waits.
pub const LEAKY: &str = "localhost/shop-leaky:1";
/// See [`LEAKY`].
pub const HEALTHY: &str = "localhost/shop-healthy:1";
/// See [`LEAKY`].
pub const PAUSE: &str = "localhost/pause:1";

/// The archives for `ctr image import`, as [`fn@write`] has written them.
pub fn archives() -> Result<Vec<PathBuf>> {
    let shipped = dist::folder()?.join("leaktrace-amd64.image.tar");
    let mut archives = vec![shipped];
    archives.extend([LEAKY, HEALTHY, PAUSE].map(archive));
    Ok(archives)
}

/// Builds the programs and writes the archives.
pub fn write(release: &str) -> Result<()> {
    dist::image(dist::Machine::Amd64)?;
    fs::create_dir_all(folder().join("image"))?;
    let toolchain = go::install(release)?;
    for (name, fixture) in [
        (LEAKY, "handler-timeout"),
        (HEALTHY, "handler-timeout-healthy"),
    ] {
        let program = build::build(fixture, &toolchain, Variant::STRIPPED)?;
        one_program(name, &program, "srv/shop", &[])?;
    }
    let busybox = tools::debian("bookworm", "busybox-static")?.join("bin/busybox");
    one_program(PAUSE, &busybox, "bin/busybox", &["sleep", "1000000"])
}

fn one_program(name: &str, program: &Path, place: &str, arguments: &[&str]) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let image = Image {
        name,
        architecture: "amd64",
        files: &[(place, &content, None)],
        entrypoint: &[&format!("/{place}")],
        arguments,
        user: "65534:65534",
    };
    image.write(&archive(name))
}

fn archive(name: &str) -> PathBuf {
    let name = name.rsplit('/').next().unwrap_or(name).replace(':', "-");
    folder().join("image").join(format!("{name}.tar"))
}
