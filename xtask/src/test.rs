//! `cargo xtask test`: every test there is, those that attach to real processes too.
//!
//! It runs all steps even when one fails, prints what it leaves out and why, and ends with a summary.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leaktrace_fixtures::toolchain::{PINNED, Toolchain};
use leaktrace_fixtures::{repository, target_dir};

use crate::{containers, demo, go, servers, tools, vm_test};

/// Go releases that a quick run builds fixtures with; a full one has all that are pinned.
const QUICK_RELEASES: [&str; 3] = ["1.22.10", "1.25.5", "1.27.3"];

/// What a first run writes, in megabytes: toolchains, packages, what is built. Without that room odd things fail.
const ROOM_MB: u64 = 12_000;

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Shorter: three Go releases, no rebuild of the eBPF objects, no docs, shorter watches of real servers
    #[arg(long)]
    quick: bool,
    /// Run only the tests whose names contain this, and none of the other steps
    filter: Option<String>,
}

/// Runs every step; an error when one failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::default();
    if let Some(free) = free_megabytes(&target_dir()).filter(|free| *free < ROOM_MB) {
        report.room = format!("{free} MB were free at the start; a first run takes {ROOM_MB} MB");
        eprintln!("{}", report.room);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if arguments.filter.is_none() {
        report.run(
            "format",
            Command::new(&cargo).args(["fmt", "--all", "--check"]),
        );
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        report.run("clippy", Command::new(&cargo).args(clippy));
    }
    fetch(arguments, &mut report);
    if arguments.filter.is_none() && !arguments.quick {
        ebpf_objects(&mut report);
        offsets(&mut report);
    }
    tests(&cargo, arguments, &mut report)?;
    if arguments.filter.is_none() && !arguments.quick {
        virtual_machines(&mut report)?;
    }
    if arguments.filter.is_none() {
        dashboards(&mut report);
        fuzz_targets(&cargo, &mut report);
        if !arguments.quick {
            real_servers(&mut report);
            real_containers(&mut report);
            let doc = ["doc", "--workspace", "--no-deps"];
            report.run(
                "docs",
                Command::new(&cargo)
                    .args(doc)
                    .env("RUSTDOCFLAGS", "-D warnings"),
            );
        }
        licences(&cargo, &mut report);
    }
    report.finish()
}

/// Gets the Go toolchains and the real servers that the tests want.
fn fetch(arguments: &Arguments, report: &mut Report) {
    let versions = if arguments.quick {
        QUICK_RELEASES.to_vec()
    } else {
        PINNED.iter().map(|release| release.version).collect()
    };
    for version in versions {
        if let Err(error) = go::install(version) {
            report.skip(&format!("tests with go {version}"), &format!("{error:#}"));
        }
    }
    // The only Go 1.19 that a package registry has, and what makes core files.
    let present = [
        (
            Toolchain::debian().is_some(),
            "golang-1.19-go",
            "tests with Debian's Go 1.19",
        ),
        (find("gcore").is_some(), "gdb", "tests with core files"),
        (
            find("systemd-analyze").is_some(),
            "systemd",
            "tests of the systemd unit",
        ),
    ];
    for (_, package, what) in present.iter().filter(|(present, ..)| !present) {
        if let Err(error) = tools::install(&[package]) {
            report.skip(what, &format!("{error:#}"));
        }
    }
    if let Err(error) = tools::prometheus() {
        report.skip("the test with a real Prometheus", &format!("{error:#}"));
    }
    if let Err(error) = tools::alerting() {
        report.skip("the test with a real Alertmanager", &format!("{error:#}"));
    }
    if let Err(error) = tools::upx() {
        report.skip("the test with the packer UPX", &format!("{error:#}"));
    }
    for (package, version, hash) in tools::ESBUILD {
        if let Err(error) = tools::esbuild(package, version, hash) {
            let what = format!("tests with npm's {package} {version}");
            report.skip(&what, &format!("{error:#}"));
        }
    }
}

/// Builds the eBPF objects anew and compares them with those checked in; that installs what it needs.
fn ebpf_objects(report: &mut Report) {
    let step = "eBPF objects";
    let Ok(this) = env::current_exe() else {
        return report.skip(step, "the path of xtask itself is not known");
    };
    Report::announce(step);
    let begin = Instant::now();
    match status(Command::new(this).args(["build-ebpf", "--check"])) {
        // It says itself that they came from another compiler.
        Some(2) => report.skip(
            step,
            "this compiler gives other bytes than the one they were built with",
        ),
        code => report.note(step, code == Some(0), begin),
    }
}

/// Generates the table of struct offsets anew, and compares it with the one that is checked in.
fn offsets(report: &mut Report) {
    let step = "table of struct offsets";
    let Ok(this) = env::current_exe() else {
        return report.skip(step, "the path of xtask itself is not known");
    };
    if let Err(error) = tools::with_dwarf() {
        return report.skip(step, &format!("{error:#}"));
    }
    report.run(step, Command::new(this).args(["offsets", "--check"]));
}

/// Runs the tests of the workspace; then reads which of them could not run here.
fn tests(cargo: &OsString, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let skips = target_dir().join("skipped-tests.txt");
    // Tests append to it: it has to be empty before, and there after.
    fs::write(&skips, "").with_context(|| format!("writing {}", skips.display()))?;
    let mut command = Command::new(cargo);
    if find("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast"]);
    }
    command.args(&arguments.filter);
    command.env("LEAKTRACE_SKIPS", &skips);
    if arguments.quick {
        command.env("LEAKTRACE_QUICK", "1");
    }
    // Written by the test of every release and kind of binary, if it runs.
    let matrix = target_dir().join("matrix.txt");
    let _ = fs::remove_file(&matrix);
    command.env("LEAKTRACE_MATRIX", &matrix);
    report.run("tests", &mut command);
    report.matrix = fs::read_to_string(&matrix).unwrap_or_default();
    report.skips_in(&skips)
}

/// Traces Go programs on other kernels, and on the other architecture, in emulated machines.
fn virtual_machines(report: &mut Report) -> Result<()> {
    let step = "kernels in virtual machines";
    let skips = target_dir().join("skipped-kernels.txt");
    fs::write(&skips, "").with_context(|| format!("writing {}", skips.display()))?;
    let Ok(this) = env::current_exe() else {
        report.skip(step, "the path of xtask itself is not known");
        return Ok(());
    };
    Report::announce(step);
    let begin = Instant::now();
    let mut command = Command::new(this);
    command.arg("vm-test").env("LEAKTRACE_SKIPS", &skips);
    match status(&mut command) {
        Some(code) if code == i32::from(vm_test::EXIT_SKIPPED) => {
            report.skip(step, "no machine could be booted here");
        }
        code => report.note(step, code == Some(0), begin),
    }
    report.skips_in(&skips)
}

/// Watches a handful of real servers with the leaktrace that the tests have built.
fn real_servers(report: &mut Report) {
    let step = "real servers";
    let Ok(this) = env::current_exe() else {
        return report.skip(step, "the path of xtask itself is not known");
    };
    if !matches!(demo::is_root(), Ok(true)) {
        return report.skip(step, "needs root");
    }
    if let Err(error) = servers::fetch_handful() {
        return report.skip(step, &format!("{error:#}"));
    }
    let leaktrace = target_dir().join("debug/leaktrace");
    let arguments = ["servers", "--handful", "--seconds", "10", "--leaktrace"];
    report.run(step, Command::new(this).args(arguments).arg(leaktrace));
}

/// Traces Go programs in containers of containerd and docker, with the leaktrace that the tests have built.
fn real_containers(report: &mut Report) {
    let step = "containers";
    let Ok(this) = env::current_exe() else {
        return report.skip(step, "the path of xtask itself is not known");
    };
    if !matches!(demo::is_root(), Ok(true)) {
        return report.skip(step, "needs root");
    }
    if let Err(error) = containers::fetch() {
        return report.skip(step, &format!("{error:#}"));
    }
    let mut command = Command::new(this);
    command.args(["containers", "--leaktrace"]);
    report.run(step, command.arg(target_dir().join("debug/leaktrace")));
}

/// Compares the dashboards that are checked in with what they are generated from.
fn dashboards(report: &mut Report) {
    match env::current_exe() {
        Ok(this) => report.run(
            "dashboards",
            Command::new(this).args(["dashboards", "--check"]),
        ),
        Err(_) => report.skip("dashboards", "the path of xtask itself is not known"),
    }
}

/// Checks the fuzz targets, a workspace of their own, and runs the inputs that are kept through them. Without the
/// fuzzer, in the common target directory, little of that is built anew.
fn fuzz_targets(cargo: &OsString, report: &mut Report) {
    let fuzz = |arguments: &[&str]| {
        let mut command = Command::new(cargo);
        command
            .args(arguments)
            .args(["--manifest-path", "fuzz/Cargo.toml"])
            .args(["--no-default-features", "--target-dir"])
            .arg(target_dir());
        command
    };
    // Its own lock file must know what the workspace needs: else whoever runs it changes it.
    let mut clippy = fuzz(&["clippy", "--locked", "--all-targets"]);
    report.run(
        "clippy of the fuzz targets",
        clippy.args(["--", "-D", "warnings"]),
    );
    report.run(
        "kept inputs of the fuzz targets",
        &mut fuzz(&["test", "--quiet"]),
    );
}

/// Checks the licences of all dependencies.
fn licences(cargo: &OsString, report: &mut Report) {
    if find("cargo-deny").is_none() {
        return report.skip(
            "licences",
            "no cargo-deny: cargo install --locked cargo-deny",
        );
    }
    report.run(
        "licences",
        Command::new(cargo).args(["deny", "check", "licenses"]),
    );
}

/// Where `program` lies in PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// What is free on the disk of a folder, as far as df tells.
fn free_megabytes(folder: &Path) -> Option<u64> {
    let mut df = Command::new("df");
    let output = df.args(["-m", "--output=avail"]).arg(folder).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    text.lines().last()?.trim().parse().ok()
}

/// Runs a command in the root of the repository, and returns its exit code if it gave one.
fn status(command: &mut Command) -> Option<i32> {
    let status = command
        .current_dir(repository())
        .stdin(Stdio::null())
        .status();
    status.ok().and_then(|status| status.code())
}

/// What was run, how it ended, and what was left out.
#[derive(Default)]
struct Report {
    steps: Vec<(String, bool, Duration)>,
    skipped: Vec<(String, String)>,
    /// The table of Go releases and kinds of binary that were traced.
    matrix: String,
    /// What is said of the disk, if that may be too small.
    room: String,
}

impl Report {
    /// Runs one step and keeps how it ended.
    fn run(&mut self, step: &str, command: &mut Command) {
        Self::announce(step);
        let begin = Instant::now();
        self.note(step, status(command) == Some(0), begin);
    }

    /// Says which step begins.
    fn announce(step: &str) {
        eprintln!("\n==> {step}");
    }

    /// Keeps how a step ended.
    fn note(&mut self, step: &str, passed: bool, begin: Instant) {
        self.steps.push((step.to_owned(), passed, begin.elapsed()));
    }

    /// Notes that something is left out, and why.
    fn skip(&mut self, what: &str, reason: &str) {
        self.skipped.push((what.to_owned(), reason.to_owned()));
    }

    /// Reads what a step left out from the file that it wrote them to.
    fn skips_in(&mut self, path: &Path) -> Result<()> {
        let mut lines: Vec<_> = fs::read_to_string(path)?
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines.dedup();
        for line in lines {
            let (what, reason) = line.split_once(": ").unwrap_or((&line, "no reason given"));
            self.skip(what, reason);
        }
        Ok(())
    }

    /// Prints the summary; an error when a step failed.
    fn finish(self) -> Result<()> {
        if !self.matrix.is_empty() {
            println!("\nGo releases and kinds of binary\n{}", self.matrix);
        }
        println!("\nSummary");
        for (step, passed, took) in &self.steps {
            let verdict = if *passed { "passed" } else { "FAILED" };
            println!("  {verdict}   {step} ({:.0} s)", took.as_secs_f64());
        }
        for (what, reason) in &self.skipped {
            println!("  skipped  {what}: {reason}");
        }
        if !self.room.is_empty() {
            println!("  note     {}", self.room);
        }
        let failed: Vec<_> = self
            .steps
            .iter()
            .filter(|step| !step.1)
            .map(|step| step.0.as_str())
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "));
    }
}
