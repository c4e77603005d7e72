//! The Go toolchains at hand, and what they compile.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A GOROOT.
pub struct Toolchain {
    root: PathBuf,
}

/// How a binary is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Build {
    /// `-buildmode=pie`.
    pub pie: bool,
    /// `-ldflags="-s -w"`: no symbol table, no DWARF.
    pub stripped: bool,
    /// Linked by the C compiler's linker.
    pub external: bool,
    /// Compiled for arm64, else for amd64.
    pub arm64: bool,
    /// GOEXPERIMENT; "" for the release's own choice.
    pub experiment: &'static str,
}

impl Toolchain {
    /// All of them: below `LEAKTRACE_GO_DIR`, or `target/go`, and Debian's. Says so when there is none.
    pub fn all() -> Vec<Self> {
        let directory = std::env::var_os("LEAKTRACE_GO_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/go"),
            PathBuf::from,
        );
        let mut roots: Vec<PathBuf> = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("go")))
            .chain([PathBuf::from("/usr/lib/go-1.19")])
            .filter(|root| root.join("bin/go").is_file())
            .collect();
        roots.sort();
        if roots.is_empty() {
            eprintln!("skipped: no Go toolchain in {}", directory.display());
        }
        roots.into_iter().map(|root| Self { root }).collect()
    }

    /// The one with this release, for tests that need no more; any when it is not there. Says so when there is none.
    pub fn one(minor: u32) -> Option<Self> {
        let mut all = Self::all();
        let wanted = all
            .iter()
            .position(|go| go.version().starts_with(&format!("go1.{minor}.")));
        let last = all.len().checked_sub(1)?;
        Some(all.swap_remove(wanted.unwrap_or(last)))
    }

    /// As in `go1.22.10`.
    pub fn version(&self) -> String {
        let text =
            std::fs::read_to_string(self.root.join("VERSION")).expect("a GOROOT has a VERSION");
        text.lines().next().expect("VERSION has a line").to_owned()
    }

    /// Compiles the program `source` (a file beside this one) to `output`.
    pub fn compile(&self, source: &str, build: Build, output: &Path) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/resolve")
            .join(source);
        let ldflags = [
            ("-s -w", build.stripped),
            ("-linkmode=external", build.external),
        ];
        let ldflags = ldflags
            .iter()
            .filter(|(_, on)| *on)
            .map(|(flag, _)| *flag)
            .collect::<Vec<_>>();
        let mut command = Command::new(self.root.join("bin/go"));
        command
            .arg("build")
            .arg(format!("-ldflags={}", ldflags.join(" ")));
        if build.pie {
            command.arg("-buildmode=pie");
        }
        let result = command
            .arg("-o")
            .args([output, &source])
            .env("GOROOT", &self.root)
            .env("GOARCH", if build.arm64 { "arm64" } else { "amd64" })
            .env("CGO_ENABLED", if build.external { "1" } else { "0" })
            .env("GO111MODULE", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOPROXY", "off")
            .env("GOFLAGS", "")
            .env("GOCACHE", leaktrace_fixtures::target_dir().join("gocache"))
            .env("GOEXPERIMENT", build.experiment)
            .output()
            .expect("the compiler starts");
        let complaint = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.success(), "{}: {complaint}", self.version());
    }
}
