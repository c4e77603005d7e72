//! `cargo xtask fuzz [--seconds N] [TARGET…]`: random inputs for everything that reads a traced program's bytes.
//!
//! cargo-fuzz wants flags that only a nightly compiler takes; `RUSTC_BOOTSTRAP` makes the stable one take them. The
//! seeds are cut out of our own fixtures (fuzz/examples/seeds). What a run finds stays under `target/fuzz/corpus`;
//! `--keep` puts the smallest inputs that reach all that was reached into the repository.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::{repository, target_dir};

use crate::go;

/// The targets, the quick ones first. Each is a program in fuzz/fuzz_targets.
const TARGETS: [&str; 9] = [
    "event",
    "code",
    "elf",
    "resolve",
    "census",
    "pclntab",
    "dwarf",
    "buildinfo",
    "core",
];
/// What the seeds are made of: each way that leaktrace takes through a binary is taken by one of them.
const PROGRAMS: [(&str, Variant); 6] = [
    ("1.22.10", Variant::DEFAULT),
    ("1.27.3", Variant::STRIPPED),
    (
        "1.25.5",
        Variant {
            pie: true,
            ..Variant::DEFAULT
        },
    ),
    (
        "1.21.13",
        Variant {
            pie: true,
            ..Variant::STRIPPED
        },
    ),
    (
        "1.27.3",
        Variant {
            arm64: true,
            ..Variant::DEFAULT
        },
    ),
    (
        "1.26.6",
        Variant {
            arm64: true,
            pie: true,
            ..Variant::STRIPPED
        },
    ),
];
/// Longest input: the seeds have half of it.
const MOST_BYTES: u32 = 64 << 10;
/// What one input may allocate and how long it may take before that is a finding.
const MOST_MEGABYTES: u32 = 256;
const MOST_SECONDS: u32 = 5;
/// What is kept of one target, so that all corpora together stay below 2 MB.
const KEPT_BYTES: u64 = 200 << 10;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Put the smallest inputs that reach everything into fuzz/corpus
    #[arg(long)]
    keep: bool,
    /// Which targets; all when none is named
    targets: Vec<String>,
}

/// Fuzzes one target after the other; an error when one has a finding.
pub fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.targets {
        ensure!(
            TARGETS.contains(&name.as_str()),
            "there is no target {name}; there are {}",
            TARGETS.join(", ")
        );
    }
    let chosen = |name: &&str| {
        arguments.targets.is_empty() || arguments.targets.iter().any(|wanted| wanted == name)
    };
    let cargo_fuzz = cargo_fuzz()?;
    seed()?;
    let build = fuzz_command(&cargo_fuzz, "build").status();
    ensure!(
        build.context("starting cargo-fuzz")?.success(),
        "the fuzz targets do not build"
    );
    let mut lines = Vec::new();
    let mut findings = 0;
    for name in TARGETS.into_iter().filter(chosen) {
        let outcome = fuzz(&cargo_fuzz, name, arguments.seconds)?;
        findings += usize::from(outcome.finding.is_some());
        let mut line = format!("{name:10} {}", outcome.done);
        if let Some(finding) = outcome.finding {
            line += &format!(
                "\n  FINDING {finding}\n  again: RUSTC_BOOTSTRAP=1 {} fuzz run -s none {name} {finding}",
                cargo_fuzz.display()
            );
        } else if arguments.keep {
            let (inputs, bytes) = keep(&cargo_fuzz, name)?;
            line += &format!("; kept {inputs} inputs, {bytes} bytes");
        }
        lines.push(line);
    }
    println!("\nSummary");
    for line in lines {
        println!("  {line}");
    }
    if findings > 0 {
        bail!("{findings} of the targets have a finding");
    }
    Ok(())
}

/// Where cargo-fuzz is, installed below `target/` if need be.
fn cargo_fuzz() -> Result<PathBuf> {
    let root = target_dir().join("tools");
    let program = root.join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("installing cargo-fuzz (once)");
    let status = Command::new(cargo())
        .args(["install", "cargo-fuzz", "--locked", "--root"])
        .arg(&root)
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "cargo-fuzz could not be installed");
    Ok(program)
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo-fuzz command. Without a sanitizer: what is fuzzed has no unsafe code, so what there is to find are panics,
/// overflows (checked in this build), endless loops and memory.
fn fuzz_command(cargo_fuzz: &Path, action: &str) -> Command {
    let mut command = Command::new(cargo_fuzz);
    command
        .arg(action)
        .args(["--sanitizer", "none", "--target-dir"])
        .arg(target_dir().join("fuzz"))
        .current_dir(repository().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .stdin(Stdio::null());
    command
}

fn seeds() -> PathBuf {
    target_dir().join("fuzz/seeds")
}

/// What runs have found so far.
fn found(target: &str) -> PathBuf {
    target_dir().join("fuzz/corpus").join(target)
}

fn kept(target: &str) -> PathBuf {
    repository().join("fuzz/corpus").join(target)
}

/// Cuts the seeds out of fixtures.
fn seed() -> Result<()> {
    let mut programs = Vec::new();
    for (version, variant) in PROGRAMS {
        match go::install(version).and_then(|go| build::build("handler-timeout", &go, variant)) {
            Ok(program) => programs.push(program),
            Err(error) => println!("skipped: the seeds of go {version}: {error:#}"),
        }
    }
    let status = Command::new(cargo())
        .args(["run", "--quiet", "--no-default-features"])
        .args(["--example", "seeds", "--target-dir"])
        .arg(target_dir())
        .arg("--")
        .arg(seeds())
        .args(programs)
        .current_dir(repository().join("fuzz"))
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "the seeds could not be made");
    Ok(())
}

struct Outcome {
    /// libFuzzer's own words on how much it did.
    done: String,
    /// The input that broke something.
    finding: Option<String>,
}

/// Runs one target.
fn fuzz(cargo_fuzz: &Path, name: &str, seconds: u32) -> Result<Outcome> {
    fs::create_dir_all(found(name))?;
    fs::create_dir_all(kept(name))?;
    println!("{name}: {seconds} s");
    let mut command = fuzz_command(cargo_fuzz, "run");
    command
        .arg(name)
        .arg(found(name))
        .arg(kept(name))
        .arg(seeds().join(name))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MOST_BYTES}"))
        .arg(format!("-timeout={MOST_SECONDS}"))
        .arg(format!("-malloc_limit_mb={MOST_MEGABYTES}"));
    let output = command.output().context("starting cargo-fuzz")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let log = target_dir().join(format!("fuzz/{name}.log"));
    fs::write(&log, said.as_bytes()).with_context(|| format!("writing {}", log.display()))?;
    let last_with = |words: &str| said.lines().rfind(|line| line.contains(words));
    let coverage = last_with(" cov: ").map_or("", |line| {
        let from = line.find("cov:").unwrap_or(line.len());
        let to = line.find(" exec/s").unwrap_or(line.len());
        line.get(from..to).unwrap_or_default()
    });
    let done = last_with("Done ").unwrap_or("stopped early");
    let finding = said
        .lines()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path.to_owned());
    if finding.is_none() && !output.status.success() {
        bail!("{name} did not run; see {}", log.display());
    }
    Ok(Outcome {
        done: format!("{done}; {coverage}"),
        finding,
    })
}

/// Replaces the kept inputs by the smallest set that reaches what was reached, and answers how many those are. Where
/// that would be too much for a repository, those of middling size are left out: the small ones are many, and the
/// large ones come furthest.
fn keep(cargo_fuzz: &Path, name: &str) -> Result<(usize, u64)> {
    let minimal = target_dir().join("fuzz/minimal").join(name);
    if minimal.exists() {
        fs::remove_dir_all(&minimal)?;
    }
    fs::create_dir_all(&minimal)?;
    let merged = fuzz_command(cargo_fuzz, "run")
        .arg(name)
        .arg(&minimal)
        .arg(kept(name))
        .arg(seeds().join(name))
        .arg(found(name))
        .args(["--", "-merge=1"])
        .arg(format!("-max_len={MOST_BYTES}"))
        .stderr(Stdio::null())
        .status()?;
    ensure!(
        merged.success(),
        "the corpus of {name} could not be minimised"
    );
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&minimal)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.path()));
    }
    inputs.sort();
    fs::remove_dir_all(kept(name))?;
    fs::create_dir_all(kept(name))?;
    let (small, large) = inputs.split_at(within(&inputs, KEPT_BYTES / 2));
    let large: Vec<_> = large.iter().rev().cloned().collect();
    let left = KEPT_BYTES - small.iter().map(|(bytes, _)| bytes).sum::<u64>();
    let (large, _) = large.split_at(within(&large, left));
    let (mut count, mut total) = (0, 0);
    for (bytes, path) in small.iter().chain(large) {
        let file = path.file_name().context("an input has a name")?;
        fs::copy(path, kept(name).join(file))?;
        count += 1;
        total += bytes;
    }
    Ok((count, total))
}

/// How many of the first inputs have so many bytes together at most.
fn within(inputs: &[(u64, PathBuf)], most: u64) -> usize {
    let sums = inputs.iter().scan(0, |sum, (bytes, _)| {
        *sum += bytes;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most).count()
}
