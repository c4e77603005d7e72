//! How much slower programs are under leaktrace and under bpftrace than untraced.
//!
//! Programs print four times a second how many operations they manage. Under the default settings, where hundredths count, two
//! copies run side by side ([`super::side_by_side`]); a stretch begins the moment leaktrace is started, so that the storm of its
//! first second is in it. Where an operation takes many times as long, one copy runs throughout, and untraced and traced
//! stretches take turns.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::side_by_side::{Compared, Half, Pair};
use super::{Section, Setup, median, plot};
use crate::go;

/// A program that does one thing all the time.
struct Subject {
    name: &'static str,
    /// That one thing.
    operation: &'static str,
    /// What bpftrace counts in it.
    functions: &'static [&'static str],
}

const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "spawn-storm",
        operation: "goroutine born and ended",
        functions: &["runtime.newproc1", "runtime.goexit1"],
    },
    Subject {
        name: "ping-pong",
        operation: "round trip over channels",
        functions: &["runtime.park_m", "runtime.ready"],
    },
    Subject {
        name: "timer-storm",
        operation: "timer armed and stopped",
        functions: &["time.newTimer", "time.stopTimer"],
    },
];

/// Who traces without a budget, and with what arguments of `leaktrace record`; none of them: bpftrace.
const TRACERS: [(&str, Option<&[&str]>); 3] = [
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
    let mut beside = format!(
        "Under the default settings: two copies of a program side by side, each with half of one processor, Go {}. One of the two\n\
         is traced for {} s, which begin with leaktrace's start, and then the other; leaktrace works in the half of the one that it\n\
         traces, so that what it takes weighs double. Medians of {} such pairs; apart is how far a pair is from the median, in\n\
         the middle. \"First second\" is the slowest one of the first {FIRST_SECONDS} s against the same second of the untraced copy,\n\
         \"any second\" the slowest one of all; leaktrace is what it takes of the processor itself. Nobody traces\n\
         for {} s.\n\n\
         | program | operation | traced by | untraced | traced | traced : untraced | apart | first second | any second | leaktrace |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
        setup.go,
        setup.seconds,
        setup.pairs,
        short(setup),
    );
    let mut turns = format!(
        "\nWithout a budget: one copy, the whole machine, {} pairs of an untraced and a traced stretch of {} s, with the probes on.\n\n\
         | program | operation | tracer | untraced | traced | added | slow-down |\n|---|---|---|--:|--:|--:|--:|\n",
        setup.pairs,
        short(setup),
    );
    let mut notes = String::new();
    let mut bars = Vec::new();
    for subject in &SUBJECTS {
        if (setup.program.as_deref()).is_some_and(|only| only != subject.name) {
            continue;
        }
        let executable = build::build(subject.name, &toolchain, Variant::DEFAULT)?;
        by_default(setup, subject, &executable, &mut beside, &mut bars)?;
        let added = without_budget(setup, subject, &executable, &mut turns, &mut bars)?;
        if let (&[lifecycle, _, bpftrace], "spawn-storm") = (added.as_slice(), subject.name) {
            let _ = writeln!(
                notes,
                "\nFor a goroutine born and ended leaktrace adds {:.1} % of what bpftrace adds.",
                lifecycle / bpftrace * 100.0
            );
        }
    }
    Ok(Section {
        markdown: format!("{beside}{turns}{notes}\n![slow-down](cost-slow-down.svg)\n"),
        plots: vec![(
            "cost-slow-down.svg",
            plot::bars("Time of an operation, traced : untraced", &bars),
        )],
    })
}

/// A bar of the plot: what it shows, how long it is, and what stands beside it.
type Bar = (String, f64, String);

/// Rows of the first table: nobody, and leaktrace's default settings.
fn by_default(
    setup: &Setup,
    Subject {
        name, operation, ..
    }: &Subject,
    executable: &Path,
    table: &mut String,
    bars: &mut Vec<Bar>,
) -> Result<()> {
    let sides = [
        Side::start("first", executable)?,
        Side::start("second", executable)?,
    ];
    for is_traced in [false, true] {
        let by = if is_traced { "leaktrace" } else { "nobody" };
        eprintln!("{name} under {by}");
        let pairs = side_by_side(setup, &sides, is_traced)?;
        let Compared {
            untraced,
            traced,
            ratio,
            apart,
        } = Compared::of(&pairs, Stretch::mean);
        let own: Vec<f64> = pairs.iter().map(|pair| pair.own).collect();
        let _ = writeln!(
            table,
            "| {name} | {operation} | {by} | {} | {} | **{ratio:.3} ×** | {:.1} % | {:.2} × | {:.2} × | {:.2} % |",
            time(untraced),
            time(traced),
            apart * 100.0,
            slowest(&pairs, FIRST_SECONDS),
            slowest(&pairs, setup.seconds),
            median(&own) * 100.0
        );
        if is_traced {
            bars.push((format!("{name}, {by}"), ratio, format!("{ratio:.2} ×")));
        }
    }
    Ok(())
}

/// Rows of the second table. Answers what each tracer adds to an operation, as far as it is there.
fn without_budget(
    setup: &Setup,
    Subject {
        name,
        operation,
        functions,
    }: &Subject,
    executable: &Path,
    table: &mut String,
    bars: &mut Vec<Bar>,
) -> Result<Vec<f64>> {
    let mut added = Vec::new();
    for (tracer, arguments) in TRACERS {
        eprintln!("{name} under {tracer}");
        let Some(costs) = compare(setup, executable, tracer, arguments, functions)? else {
            let _ = writeln!(
                table,
                "| {name} | {operation} | {tracer} | | | not installed | |"
            );
            continue;
        };
        let _ = writeln!(
            table,
            "| {name} | {operation} | {tracer} | {} | {} | {} | **{:.2} ×** |",
            time(typical(&costs.untraced)),
            time(typical(&costs.traced)),
            time(costs.added()),
            costs.ratio(),
        );
        added.push(costs.added());
        bars.push((
            format!("{name}, {}", short_name(tracer)),
            costs.ratio(),
            format!("{:.2} ×", costs.ratio()),
        ));
    }
    Ok(added)
}

/// A copy of a program, and the half of the processor that it has.
struct Side {
    // Ends before its half goes.
    program: Program,
    half: Half,
}

impl Side {
    fn start(name: &str, executable: &Path) -> Result<Self> {
        let half = Half::new(name)?;
        let report = format!("{REPORT}ms");
        let program = Program::spawn(half.command(executable).args(["-report", &report]))?;
        Ok(Self { program, half })
    }
}

/// Two copies of a program, in turn under leaktrace's default settings or under nothing.
fn side_by_side(setup: &Setup, sides: &[Side; 2], is_traced: bool) -> Result<Vec<Pair<Stretch>>> {
    let seconds = if is_traced {
        setup.seconds
    } else {
        short(setup)
    };
    let start = |traced: usize| {
        // The kernel takes a moment to take the last probes off.
        thread::sleep(Duration::from_secs(1));
        let Side { program, half } = &sides[traced];
        let mut command = record(half.command(&setup.leaktrace), program.pid());
        is_traced
            .then(|| Tracer::start(&mut command, "leaktrace", None))
            .transpose()
    };
    let measure = || {
        let [first, second] = sides;
        forget(&first.program);
        forget(&second.program);
        Ok([
            listen(&first.program, seconds)?,
            listen(&second.program, seconds)?,
        ])
    };
    let pairs = (0..setup.pairs).map(|number| {
        let pair = Pair::measure(start, measure)?;
        eprintln!("pair {}: {:.3} ×", number + 1, pair.ratio(Stretch::mean));
        Ok(pair)
    });
    pairs.collect()
}

/// The slowest second in the first ones of the traced, against the same of the untraced: the median.
fn slowest(pairs: &[Pair<Stretch>], seconds: u32) -> f64 {
    let all = pairs.iter().flat_map(|pair| &pair.stretches);
    let slowest = all.map(|[untraced, traced]| traced.slowest_against(untraced, seconds));
    median(&slowest.collect::<Vec<_>>())
}

/// leaktrace as it is when nobody says more than what is to be traced.
fn record(mut leaktrace: Command, pid: u32) -> Command {
    let pid = pid.to_string();
    leaktrace.args([
        "record",
        "--duration",
        "1h",
        "-o",
        "/dev/null",
        "--pid",
        &pid,
    ]);
    leaktrace
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
        return measure(executable, setup.pairs, short(setup), start).map(Some);
    };
    measure(executable, setup.pairs, short(setup), |pid| {
        let mut command = record(Command::new(&setup.leaktrace), pid);
        let tracer = Tracer::start(command.args(arguments), name, None)?;
        // Until the probes are on.
        thread::sleep(Duration::from_secs(1));
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

/// What a program says in a stretch: how many operations a second, each [`REPORT`].
struct Stretch(Vec<f64>);

impl Stretch {
    /// Nanoseconds per operation.
    fn mean(&self) -> f64 {
        cost(&self.0)
    }

    /// What a second costs against the same second of another stretch, where that is most, in the first seconds.
    fn slowest_against(&self, other: &Self, seconds: u32) -> f64 {
        const A_SECOND: usize = (1000 / REPORT) as usize;
        let of = |stretch: &Self| -> Vec<f64> { stretch.0.windows(A_SECOND).map(cost).collect() };
        let (own, others) = (of(self), of(other));
        let ratios = own.iter().zip(&others).map(|(own, other)| own / other);
        // Those that end within these seconds.
        let whole = (seconds as usize * A_SECOND).saturating_sub(A_SECOND - 1);
        ratios.take(whole).fold(0.0, f64::max)
    }
}

/// Nanoseconds per operation at these rates.
fn cost(rates: &[f64]) -> f64 {
    1e9 * rates.len() as f64 / rates.iter().sum::<f64>()
}

/// Seconds at the start of a stretch in which leaktrace starts, puts its probes on, and finds out what they cost.
const FIRST_SECONDS: u32 = 3;

/// How often programs print, in milliseconds.
const REPORT: u32 = 250;

/// Runs the program, and takes turns: a stretch alone, a stretch with the tracer that `start` starts.
pub fn measure(
    executable: &Path,
    pairs: u32,
    seconds: u32,
    start: impl Fn(u32) -> Result<Tracer>,
) -> Result<Costs> {
    let report = format!("{REPORT}ms");
    let program = Program::start(executable, &["-report", &report])?;
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
        let ratios = (self.traced.iter().zip(&self.untraced))
            .map(|(traced, untraced)| traced.mean() / untraced.mean());
        median(&ratios.collect::<Vec<_>>())
    }

    /// What being traced adds to an operation, in nanoseconds.
    pub fn added(&self) -> f64 {
        let added = (self.traced.iter().zip(&self.untraced))
            .map(|(traced, untraced)| traced.mean() - untraced.mean());
        median(&added.collect::<Vec<_>>())
    }
}

/// Nanoseconds per operation: the median of these stretches.
fn typical(stretches: &[Stretch]) -> f64 {
    let means: Vec<f64> = stretches.iter().map(Stretch::mean).collect();
    median(&means)
}

fn stretch(program: &Program, seconds: u32) -> Result<Stretch> {
    forget(program);
    listen(program, seconds)
}

/// What was printed before is of the time before.
fn forget(program: &Program) {
    while program.line_at_once().is_some() {}
}

/// What the program says from now on.
fn listen(program: &Program, seconds: u32) -> Result<Stretch> {
    let mut rates = Vec::new();
    for _ in 0..seconds * 1000 / REPORT {
        let line = program.line()?;
        rates.push(
            line["ops_per_second"]
                .as_f64()
                .context("the program prints ops_per_second")?,
        );
    }
    Ok(Stretch(rates))
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
            thread::sleep(Duration::from_secs(1));
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

#[cfg(test)]
mod tests {
    use super::Stretch;

    #[test]
    fn a_slow_second_is_one_that_the_other_did_not_have() {
        // The machine halves in the third second, the traced one alone in the fifth; it loses a fifth of the first.
        let other = [100.0, 100.0, 50.0, 100.0, 100.0];
        let own = [80.0, 100.0, 50.0, 100.0, 50.0];
        let stretch = |rates: [f64; 5]| Stretch(rates.iter().flat_map(|rate| [*rate; 4]).collect());
        let slowest = |seconds| stretch(own).slowest_against(&stretch(other), seconds);
        for (seconds, expected) in [(1, 1.25), (4, 1.25), (5, 2.0), (u32::MAX, 2.0)] {
            let found = slowest(seconds);
            assert!(
                (found - expected).abs() < 1e-9,
                "of {seconds} seconds: {found}"
            );
        }
    }
}
