//! Kubernetes' own programs, built out of Debian's source package, which holds all that they are made of. No registry has
//! them finished.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::toolchain::Toolchain;

use super::folder;
use crate::tools;

/// What a node needs besides etcd and containerd.
const PROGRAMS: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];

/// Which release the package of Debian 12 is; the programs would say v0.0.0 of themselves.
const VERSION: &str = "v1.20.2";

/// Where the version is written when it is built below a GOPATH.
const VERSION_VARIABLE: &str = "k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion";

/// The folder with the programs, built if they are not there yet: 6 minutes of two cores, 3 GB while it lasts.
pub fn build() -> Result<PathBuf> {
    let programs = folder().join("bin");
    let is_there = |name: &&str| programs.join(name).is_file();
    if PROGRAMS.iter().all(is_there) {
        return Ok(programs);
    }
    fs::create_dir_all(&programs)?;
    let toolchain = match Toolchain::debian() {
        Some(toolchain) => toolchain,
        None => {
            tools::install(&["golang-1.19-go", "golang-1.19-src"])?;
            Toolchain::debian()
                .context("Debian's Go 1.19 is needed, which builds this Kubernetes")?
        }
    };
    for program in ["make", "rsync"] {
        tools::need(program, &[program])?;
    }
    tools::need("dpkg-source", &["dpkg-dev"])?;
    let source = folder().join("source");
    tools::debian_source("bookworm", "kubernetes", &source)?;

    let gopath = folder().join("gopath");
    let inside = gopath.join("src/k8s.io");
    fs::create_dir_all(&inside)?;
    let link = inside.join("kubernetes");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&source, &link)?;
    let work = Work {
        go: toolchain.root().join("bin"),
        gopath,
        tree: link,
    };
    // What was interrupted leaves empty generators, which are taken for finished.
    for leftover in ["_output", ".make"] {
        let _ = fs::remove_dir_all(source.join(leftover));
    }
    eprintln!("generating Kubernetes' code (a minute, once)");
    work.run(Command::new("make").arg("generated_files"))?;
    for name in PROGRAMS.iter().filter(|name| !is_there(name)) {
        eprintln!("building {name} (once)");
        let unfinished = programs.join(format!("{name}.unfinished"));
        let mut build = Command::new(work.go.join("go"));
        build.args(["build", "-o"]).arg(&unfinished);
        build.arg(format!("-ldflags=-s -w -X {VERSION_VARIABLE}={VERSION}"));
        work.run(build.arg(format!("./cmd/{name}")))?;
        fs::rename(unfinished, programs.join(name))?;
    }
    // The programs are all that is used again.
    for leftover in ["source", "gopath", "gocache"] {
        let leftover = folder().join(leftover);
        // Go's own folders are read-only only where modules are used, which they are not.
        fs::remove_dir_all(&leftover)
            .with_context(|| format!("removing {}", leftover.display()))?;
    }
    Ok(programs)
}

/// Where and with what it is built.
struct Work {
    go: PathBuf,
    gopath: PathBuf,
    tree: PathBuf,
}

impl Work {
    /// Runs a command in the tree, out of the way of others; what it says goes to `log/build.log`.
    fn run(&self, command: &mut Command) -> Result<()> {
        let logs = folder().join("log");
        fs::create_dir_all(&logs)?;
        let log = logs.join("build.log");
        let file = fs::File::create(&log)?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "10"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&self.tree)
            .env("GOPATH", &self.gopath)
            .env("GOCACHE", folder().join("gocache"))
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            .env("CGO_ENABLED", "0")
            .env("PATH", self.path()?)
            // Its scripts believe it more than the folder they are in.
            .env("PWD", &self.tree)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let status = nice.status().context("starting nice")?;
        ensure!(status.success(), "{}", last_line(&log));
        Ok(())
    }

    fn path(&self) -> Result<std::ffi::OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::iter::once(self.go.clone());
        Ok(std::env::join_paths(
            own.chain(std::env::split_paths(&path)),
        )?)
    }
}

/// What a log ends with, and where it is.
pub fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    format!(
        "{}: {}",
        log.display(),
        line.unwrap_or("it is empty").trim()
    )
}
