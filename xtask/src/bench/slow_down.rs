//! How much slower programs are under leaktrace and under bpftrace than untraced.
//!
//! One program runs throughout and prints four times a second how many operations it manages; untraced and traced
//! stretches take turns, so that a machine whose speed drifts does not matter. A stretch under the default settings
//! begins the moment leaktrace is started, so that the storm of its first second is in it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::{Section, Setup, median, plot};
use crate::go;

/// A program: its name, what it does, and what bpftrace counts in it.
const PROGRAMS: [(&str, &str, &[&str]); 3] = [
    (
        "spawn-storm",
        "goroutine born and ended",
        &["runtime.newproc1", "runtime.goexit1"],
    ),
    (
        "ping-pong",
        "round trip over channels",
        &["runtime.park_m", "runtime.ready"],
    ),
    (
        "timer-storm",
        "timer armed and stopped",
        &["time.newTimer", "time.stopTimer"],
    ),
];

/// Who traces, and with what arguments of `leaktrace record`; none of them: bpftrace.
const TRACERS: [(&str, Option<&[&str]>); 4] = [
    ("leaktrace", Some(&[])),
    (
        "leaktrace --events lifecycle --budget off",
        Some(&["--events", "lifecycle", "--budget", "off"]),
    ),
    (
        "leaktrace --events full --budget off",
        Some(&["--events", "full", "--budget", "off"]),
    ),
    ("bpftrace counting at entries", None),
];

/// Measures all of them.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let mut table = format!(
        "Go {}; medians of {} pairs. Stretches under the default settings last {} s and begin with leaktrace's start; the\n\
         others {} s, with the probes on. \"First second\" is the slowest one in the first {FIRST_SECONDS} s of a stretch, in which\n\
         leaktrace starts; \"any second\" is the slowest one of the whole stretch. Both are against the mean of the untraced\n\
         stretch, and so is what stands beside them: the same of the untraced stretch itself, the machine's own unrest.\n\n\
         | program | operation | tracer | untraced | traced | added | slow-down | first second | any second |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|\n",
        setup.go,
        setup.pairs,
        setup.seconds,
        short(setup)
    );
    let mut rows = Vec::new();
    let mut notes = String::new();
    for (name, operation, functions) in PROGRAMS {
        if setup.program.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let executable = build::build(name, &toolchain, Variant::DEFAULT)?;
        let mut added = Vec::new();
        for (tracer, arguments) in TRACERS {
            eprintln!("{name} under {tracer}");
            let Some(costs) = compare(setup, &executable, tracer, arguments, functions)? else {
                let _ = writeln!(
                    table,
                    "| {name} | {operation} | {tracer} | | | not installed | | | |"
                );
                continue;
            };
            let is_default = arguments == Some(&[]);
            let second = |of: fn(&Stretch) -> f64| match is_default {
                true => format!(
                    "{:.2} ×, untraced {:.2} ×",
                    costs.against_untraced(&costs.traced, of),
                    costs.against_untraced(&costs.untraced, of)
                ),
                false => String::new(),
            };
            let _ = writeln!(
                table,
                "| {name} | {operation} | {tracer} | {} | {} | {} | **{:.2} ×** | {} | {} |",
                time(typical(&costs.untraced)),
                time(typical(&costs.traced)),
                time(costs.added()),
                costs.ratio(),
                second(|stretch| stretch.first),
                second(|stretch| stretch.slowest),
            );
            added.push(costs.added());
            rows.push((
                format!("{name}, {}", short_name(tracer)),
                costs.ratio(),
                format!("{:.2} ×", costs.ratio()),
            ));
        }
        if let (&[_, lifecycle, _, bpftrace], "spawn-storm") = (added.as_slice(), name) {
            let _ = writeln!(
                notes,
                "\nFor a goroutine born and ended leaktrace adds {:.1} % of what bpftrace adds.",
                lifecycle / bpftrace * 100.0
            );
        }
    }
    notes += "\n![slow-down](cost-slow-down.svg)\n";
    Ok(Section {
        markdown: table + &notes,
        plots: vec![(
            "cost-slow-down.svg",
            plot::bars("Time of an operation, traced : untraced", &rows),
        )],
    })
}

/// Seconds of a stretch that is not under the default settings.
fn short(setup: &Setup) -> u32 {
    (setup.seconds / 10).max(2)
}

fn short_name(tracer: &str) -> String {
    tracer
        .replace("leaktrace --events ", "")
        .replace(" --budget off", ", no budget")
        .replace(" counting at entries", "")
}

fn compare(
    setup: &Setup,
    executable: &Path,
    name: &str,
    arguments: Option<&[&str]>,
    functions: &[&str],
) -> Result<Option<Costs>> {
    let Some(arguments) = arguments else {
        if !has_bpftrace() {
            return Ok(None);
        }
        let script = counting(executable, functions);
        let start = |_| {
            Tracer::start(
                Command::new("bpftrace").args(["-e", &script]),
                name,
                Some("Attaching"),
            )
        };
        return measure(executable, &[], setup.pairs, short(setup), start).map(Some);
    };
    let seconds = if arguments.is_empty() {
        setup.seconds
    } else {
        short(setup)
    };
    measure(executable, &[], setup.pairs, seconds, |pid| {
        let mut command = Command::new(&setup.leaktrace);
        command.args([
            "record",
            "--duration",
            "1h",
            "-o",
            "/dev/null",
            "--pid",
            &pid.to_string(),
        ]);
        let tracer = Tracer::start(command.args(arguments), name, None)?;
        if !arguments.is_empty() {
            // Until the probes are on.
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(tracer)
    })
    .map(Some)
}

/// Whether there is a bpftrace to compare with.
pub fn has_bpftrace() -> bool {
    Command::new("bpftrace").arg("--version").output().is_ok()
}

/// A script of bpftrace's that counts how often each of the functions is entered.
pub fn counting(executable: &Path, functions: &[&str]) -> String {
    let path = executable.display();
    let probes: Vec<_> = (functions.iter())
        .map(|function| format!("uprobe:{path}:{function} {{ @[probe] = count(); }}"))
        .collect();
    probes.join(" ")
}

/// The stretches, in pairs.
#[derive(Default)]
pub struct Costs {
    untraced: Vec<Stretch>,
    traced: Vec<Stretch>,
}

/// What a program says in a stretch: nanoseconds per operation.
struct Stretch {
    /// Over all of it.
    mean: f64,
    /// In the slowest second at its start.
    first: f64,
    /// In its slowest second.
    slowest: f64,
}

/// Seconds at the start of a stretch in which leaktrace starts, puts its probes on, and finds out what they cost.
const FIRST_SECONDS: u32 = 3;

/// How often programs print, in milliseconds.
const REPORT: u32 = 250;

/// Runs the program with these flags, and takes turns: a stretch alone, a stretch with the tracer that `start` starts.
pub fn measure(
    executable: &Path,
    flags: &[&str],
    pairs: u32,
    seconds: u32,
    start: impl Fn(u32) -> Result<Tracer>,
) -> Result<Costs> {
    let report = format!("{REPORT}ms");
    let flags: Vec<&str> = flags.iter().copied().chain(["-report", &report]).collect();
    let program = Program::start(executable, &flags)?;
    let mut costs = Costs::default();
    for pair in 0..pairs {
        let trace = || -> Result<Stretch> {
            let _tracer = start(program.pid())?;
            stretch(&program, seconds)
        };
        // Which comes first changes, so that neither has the better of a machine that warms up or tires.
        let (untraced, traced) = if pair % 2 == 0 {
            let untraced = stretch(&program, seconds)?;
            (untraced, trace()?)
        } else {
            let traced = trace()?;
            stretch(&program, 1)?;
            (stretch(&program, seconds)?, traced)
        };
        costs.untraced.push(untraced);
        costs.traced.push(traced);
        // The kernel takes a moment to take probes off.
        stretch(&program, 1)?;
    }
    Ok(costs)
}

impl Costs {
    /// How often as long an operation takes when traced: the median over the pairs.
    pub fn ratio(&self) -> f64 {
        self.against_untraced(&self.traced, |stretch| stretch.mean)
    }

    /// What being traced adds to an operation, in nanoseconds.
    pub fn added(&self) -> f64 {
        let added = (self.traced.iter().zip(&self.untraced))
            .map(|(traced, untraced)| traced.mean - untraced.mean);
        median(&added.collect::<Vec<_>>())
    }

    /// Something of these stretches, against the mean of the untraced stretch in the same pair: the median.
    fn against_untraced(&self, stretches: &[Stretch], of: fn(&Stretch) -> f64) -> f64 {
        let ratios =
            (stretches.iter().zip(&self.untraced)).map(|(one, untraced)| of(one) / untraced.mean);
        median(&ratios.collect::<Vec<_>>())
    }
}

/// Nanoseconds per operation: the median of these stretches.
fn typical(stretches: &[Stretch]) -> f64 {
    let means: Vec<f64> = stretches.iter().map(|stretch| stretch.mean).collect();
    median(&means)
}

fn stretch(program: &Program, seconds: u32) -> Result<Stretch> {
    // What was printed before is of the time before.
    while program.line_at_once().is_some() {}
    let mut rates = Vec::new();
    for _ in 0..seconds * 1000 / REPORT {
        let line = program.line()?;
        rates.push(
            line["ops_per_second"]
                .as_f64()
                .context("the program prints ops_per_second")?,
        );
    }
    let a_second = (1000 / REPORT) as usize;
    let cost = |rates: &[f64]| 1e9 * rates.len() as f64 / rates.iter().sum::<f64>();
    let slowest = |rates: &[f64]| rates.windows(a_second).map(cost).fold(0.0, f64::max);
    let beginning = rates.get(..a_second * FIRST_SECONDS as usize);
    Ok(Stretch {
        mean: cost(&rates),
        first: slowest(beginning.unwrap_or(&rates)),
        slowest: slowest(&rates),
    })
}

fn time(ns: f64) -> String {
    if ns.abs() < 10_000.0 {
        format!("{ns:.0} ns")
    } else {
        format!("{:.1} µs", ns / 1000.0)
    }
}

/// A running tracer. Dropping it ends it at once: the kernel takes its probes off.
pub struct Tracer(Child);

impl Tracer {
    /// Starts it; with `ready` waits until it says that on standard output, and until its probes are on.
    pub fn start(command: &mut Command, name: &str, ready: Option<&str>) -> Result<Self> {
        let stdout = if ready.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take();
        let tracer = Self(child);
        if let (Some(ready), Some(stdout)) = (ready, stdout) {
            let deadline = Instant::now() + Duration::from_secs(20);
            for line in BufReader::new(stdout).lines() {
                if line?.starts_with(ready) || Instant::now() > deadline {
                    break;
                }
            }
            // It says so before it does so.
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(tracer)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
