//! What a test needs of the machine. `None` means that it is not there, and that this was noted.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;
use leaktrace_fixtures::toolchain::Toolchain;

/// Probes, and the memory of other users' processes.
pub fn root() -> Option<()> {
    if nix::unistd::geteuid().is_root() {
        return Some(());
    }
    skip("needs root")
}

/// A fixture built with this Go release.
pub fn fixture(name: &str, go: &str, variant: Variant) -> Option<PathBuf> {
    Some(build::build(name, &toolchain(go)?, variant).expect("fixtures compile"))
}

/// A Go release, such as "1.27.3"; "1.19" is Debian's.
pub fn toolchain(go: &str) -> Option<Toolchain> {
    let found = Toolchain::find(go);
    if found.is_some() {
        return found;
    }
    skip(&match go {
        "1.19" => "needs Debian's Go 1.19: apt-get install golang-1.19-go".to_owned(),
        _ => format!("needs go {go}: cargo xtask go {go}"),
    })
}

/// A core file of a running process, made by gdb while it is stopped; it goes on afterwards.
pub fn core(pid: u32, directory: &Path) -> Option<PathBuf> {
    let prefix = directory.join("core");
    let made = Command::new("gcore")
        .arg("-o")
        .arg(&prefix)
        .arg(pid.to_string())
        .output();
    match made {
        Ok(output) if output.status.success() => Some(directory.join(format!("core.{pid}"))),
        Ok(output) => panic!("gcore: {output:?}"),
        Err(_) => skip("needs gcore: apt-get install gdb"),
    }
}

/// The same, running, together with root.
pub fn program(name: &str, go: &str, arguments: &[&str]) -> Option<Program> {
    root()?;
    let executable = fixture(name, go, Variant::DEFAULT)?;
    Some(Program::start(&executable, arguments).expect("fixtures start"))
}

/// Debian's Prometheus server.
pub fn prometheus() -> Option<PathBuf> {
    let named = std::env::var_os("LEAKTRACE_PROMETHEUS").map(PathBuf::from);
    let installed = PathBuf::from("/usr/bin/prometheus");
    let fetched = target_dir().join("debs/prometheus/usr/bin/prometheus");
    let found = [named, Some(installed), Some(fetched)]
        .into_iter()
        .flatten()
        .find(|file| file.is_file());
    if found.is_none() {
        skip::<()>("needs Prometheus: cargo xtask tools");
    }
    found
}

/// A program of a package of one of Debian's suites.
pub fn debian(suite: &str, package: &str, program: &str) -> Option<PathBuf> {
    let folder = target_dir().join("servers").join(suite).join(package);
    let found = folder.join("usr/bin").join(program);
    if found.is_file() {
        return Some(found);
    }
    skip(&format!(
        "needs {package} of Debian {suite}: cargo xtask tools"
    ))
}

/// What tests alert rules: Prometheus 3's, else this machine's.
pub fn promtool() -> Option<PathBuf> {
    let newest = target_dir().join("servers/forky/promtool/usr/bin/promtool");
    if newest.is_file() {
        return Some(newest);
    }
    Some(prometheus()?.with_file_name("promtool"))
}

/// A program that gives up root before it starts another.
pub fn setpriv() -> Option<PathBuf> {
    let program = Path::new("/usr/bin/setpriv");
    if program.is_file() {
        return Some(program.to_owned());
    }
    skip("needs setpriv: apt-get install util-linux")
}

/// Whether the run is to be short.
pub fn quick() -> bool {
    std::env::var_os("LEAKTRACE_QUICK").is_some()
}

/// Whether the run may take long: LEAKTRACE_LONG asks for what a usual one leaves out.
pub fn long() -> bool {
    std::env::var_os("LEAKTRACE_LONG").is_some()
}

/// An esbuild of npm: stripped, and of a Go release that has no toolchain to be had.
pub fn esbuild(package: &str, version: &str) -> Option<PathBuf> {
    let file = target_dir().join(format!("npm/{package}-{version}/package/bin/esbuild"));
    if file.is_file() {
        return Some(file);
    }
    skip(&format!(
        "needs npm's {package} {version}: cargo xtask tools"
    ))
}

/// The packer UPX, of a newer Debian than this machine's may be: run by that one's loader, with its libraries.
pub fn upx() -> Option<Command> {
    let suite = target_dir().join("servers/trixie");
    let loader = suite.join("libc6/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let packer = suite.join("upx-ucl/usr/bin/upx-ucl");
    if !loader.is_file() || !packer.is_file() {
        return skip("needs UPX: cargo xtask tools");
    }
    let libraries = ["libc6", "libucl1", "libstdc++6", "libgcc-s1", "zlib1g"];
    let libraries = libraries.map(|package| suite.join(package).join("usr/lib/x86_64-linux-gnu"));
    let mut command = Command::new(loader);
    command
        .arg("--library-path")
        .arg(std::env::join_paths(libraries).expect("no colon is in a path of ours"))
        .arg(packer);
    Some(command)
}

/// The C compiler, which Go links programs with that have C code in them.
pub fn gcc() -> Option<()> {
    if Command::new("gcc").arg("--version").output().is_ok() {
        return Some(());
    }
    skip("needs gcc: apt-get install gcc")
}

/// Notes that the running test cannot run here.
pub fn skip<T>(reason: &str) -> Option<T> {
    let thread = std::thread::current();
    let name = std::env::var("NEXTEST_TEST_NAME").ok();
    let test = name.as_deref().or(thread.name()).unwrap_or("a test");
    println!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("LEAKTRACE_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        writeln!(
            file.expect("LEAKTRACE_SKIPS can be written"),
            "{test}: {reason}"
        )
        .expect("a line is written");
    }
    None
}

/// How many files a Go program that a test starts may have open: it raises the soft limit to the hard one itself.
pub fn descriptors() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux tells its limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    hard.map_or(0, |limit| limit.parse().unwrap_or(u64::MAX))
}

/// A pid that no process has: the kernel gives out only smaller ones.
pub fn unused_pid() -> String {
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").expect("Linux has a largest pid");
    limit.trim().to_owned()
}
