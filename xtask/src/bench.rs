//! `cargo xtask bench`: what being traced costs a program, against the same program untraced.
//!
//! One program runs throughout and prints how many operations a second it manages; untraced and traced stretches
//! take turns, so that a machine whose speed drifts does not matter. Ratios and medians count, single numbers do not.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use crate::{bench_census, demo, go};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Untraced and traced stretches of each kind
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    pairs: u32,
    /// Go release of the traced programs
    #[arg(long, default_value = "1.27.3")]
    go: String,
    /// Measure what counting everything costs instead
    #[arg(long)]
    census: bool,
}

/// Rates read of each stretch, after one that is thrown away; the programs print two a second.
const READINGS: usize = 3;

/// Measures, and prints a table.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here: run it as root");
    if arguments.census {
        return bench_census::run(&arguments.go, arguments.pairs);
    }
    let leaktrace = demo::build_leaktrace()?;
    let toolchain = go::install(&arguments.go)?;
    println!(
        "{} untraced and traced stretches in turn, Go {}, medians\n",
        arguments.pairs, arguments.go
    );
    println!(
        "program     operation                 tracer               untraced   traced    added"
    );
    for (fixture, operation, events) in [
        ("spawn-storm", "goroutine born and ended", "lifecycle"),
        ("ping-pong", "round trip", "lifecycle"),
        ("ping-pong", "round trip", "full"),
    ] {
        let executable = build::build(fixture, &toolchain, Variant::DEFAULT)?;
        let name = format!("leaktrace {events}");
        let costs = measure(&executable, &[], arguments.pairs, |pid| {
            let mut command = Command::new(&leaktrace);
            command.args([
                "record",
                "--duration",
                "1h",
                "--format",
                "json",
                "-o",
                "/dev/null",
            ]);
            command.args(["--events", events, "--pid", &pid.to_string()]);
            Tracer::start(&mut command, &name, None)
        })?;
        print(fixture, operation, &name, &costs);
        if fixture == "spawn-storm" {
            bpftrace(&executable, arguments.pairs, operation)?;
        }
    }
    Ok(())
}

/// The same with what people use today: a count at the entries of the two functions.
fn bpftrace(executable: &Path, pairs: u32, operation: &str) -> Result<()> {
    if Command::new("bpftrace").arg("--version").output().is_err() {
        println!("spawn-storm {operation:<25} bpftrace             not installed: skipped");
        return Ok(());
    }
    let program = executable.display();
    let script = format!(
        "uprobe:{program}:runtime.newproc1 {{ @born = count(); }} uprobe:{program}:runtime.goexit1 {{ @ended = count(); }}"
    );
    let costs = measure(executable, &[], pairs, |_| {
        Tracer::start(
            Command::new("bpftrace").args(["-e", &script]),
            "bpftrace",
            Some("Attaching"),
        )
    })?;
    print("spawn-storm", operation, "bpftrace, entries", &costs);
    Ok(())
}

/// Nanoseconds per operation of each stretch.
pub struct Costs {
    untraced: Vec<f64>,
    traced: Vec<f64>,
}

/// Runs the program with these flags, and takes turns: a stretch alone, a stretch with the tracer that `start` starts.
pub fn measure(
    executable: &Path,
    flags: &[&str],
    pairs: u32,
    start: impl Fn(u32) -> Result<Tracer>,
) -> Result<Costs> {
    let flags: Vec<&str> = flags.iter().copied().chain(["-report", "500ms"]).collect();
    let program = Program::start(executable, &flags)?;
    let mut costs = Costs {
        untraced: Vec::new(),
        traced: Vec::new(),
    };
    for _ in 0..pairs {
        costs.untraced.push(stretch(&program)?);
        let tracer = start(program.pid())?;
        costs.traced.push(stretch(&program)?);
        drop(tracer);
    }
    Ok(costs)
}

impl Costs {
    /// How much longer an operation takes when traced, in per cent: the median over the pairs.
    pub fn slow_down(&self) -> f64 {
        let ratios: Vec<f64> = self
            .traced
            .iter()
            .zip(&self.untraced)
            .map(|(traced, untraced)| traced / untraced)
            .collect();
        (median(&ratios) - 1.0) * 100.0
    }
}

/// The median cost of an operation over the next readings, in nanoseconds.
fn stretch(program: &Program) -> Result<f64> {
    // The first reading lies on both sides of the change.
    program.line()?;
    let mut costs = Vec::new();
    for _ in 0..READINGS {
        let line = program.line()?;
        let rate = line["ops_per_second"]
            .as_f64()
            .context("the program prints ops_per_second")?;
        costs.push(1e9 / rate);
    }
    Ok(median(&costs))
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn print(program: &str, operation: &str, tracer: &str, costs: &Costs) {
    let (untraced, traced) = (median(&costs.untraced), median(&costs.traced));
    let added: Vec<f64> = costs
        .traced
        .iter()
        .zip(&costs.untraced)
        .map(|(traced, untraced)| traced - untraced)
        .collect();
    println!(
        "{program:<11} {operation:<25} {tracer:<18} {untraced:>7.0} ns {traced:>7.0} ns {:>+7.0} ns",
        median(&added)
    );
}

/// A running tracer, attached. Dropping it ends it as Ctrl-C does, and waits.
pub struct Tracer(Child);

impl Tracer {
    /// Starts it and waits until its probes are on: until it says `ready` on standard output, or else a moment.
    pub fn start(command: &mut Command, name: &str, ready: Option<&str>) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(if ready.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take();
        let tracer = Self(child);
        match (ready, stdout) {
            (Some(ready), Some(stdout)) => {
                let deadline = Instant::now() + Duration::from_secs(20);
                for line in BufReader::new(stdout).lines() {
                    if line?.starts_with(ready) || Instant::now() > deadline {
                        break;
                    }
                }
                // It says so before it does so.
                std::thread::sleep(Duration::from_secs(1));
            }
            _ => std::thread::sleep(Duration::from_secs(1)),
        }
        Ok(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // The kernel takes the probes off when the process ends, however it ends.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
