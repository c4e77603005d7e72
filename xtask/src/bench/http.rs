//! What a server's clients notice: requests a second and the 99th percentile under wrk, traced and untraced.
//!
//! The machine's speed drifts by a tenth within a minute, far more than is looked for. So two of the server run at the same time,
//! each with half of one processor, and leaktrace works in the half of the one that it traces; then the sides change. What
//! both notice is the machine, and what one has by itself is on both sides.

use std::array;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::daemon::cpu_seconds;
use super::slow_down::Tracer;
use super::{FIRST, SECOND, Section, Setup, median, on};
use crate::{go, tools};

/// Connections of wrk to each server: so many that the processor is full.
const CONNECTIONS: u32 = 64;

/// How long the daemon has been there: its start is no part of what is measured here (the section on slow-down has it).
const SETTLED: Duration = Duration::from_secs(5);

/// Seconds of load before what is measured: the section on slow-down has the first second of a storm.
const WARM: u32 = 1;

/// Stretches without leaktrace, and those without a budget, are so many times shorter.
const SHORTER: u32 = 6;

/// Everything is heard.
const WITHOUT_BUDGET: [&str; 4] = ["--budget", "off", "--host-budget", "off"];

/// Hits that one request makes then.
const HITS: u32 = 4;

/// Measures all of them.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let executable = build::build("http-mixed", &toolchain, Variant::DEFAULT)?;
    let bench = Bench {
        setup,
        wrk: Wrk::fetch()?,
        sides: [
            Side::start("first", &executable)?,
            Side::start("second", &executable)?,
        ],
    };
    let short = setup.seconds.div_ceil(SHORTER);
    let nobody = bench.pairs("nobody", short, None)?;
    let leaktrace = bench.pairs("leaktrace", setup.seconds, Some(&[]))?;
    let unbounded = bench.pairs("without a budget", short, Some(&WITHOUT_BUDGET))?;
    let own: Vec<f64> = leaktrace.iter().map(|pair| pair.own).collect();
    let mut text = format!(
        "Two servers of net/http with timeouts of their own and one for each request, and a goroutine for each connection, Go {},\n\
         at the same time, each asked by a wrk over {CONNECTIONS} connections for {} s. They share one full processor, half for\n\
         each; wrk has another. One of the two is traced by `leaktrace daemon` at its default settings, which works in that\n\
         one's half, so that what it takes weighs double; then the other one. Medians of {} such pairs; apart is how far a pair is from the\n\
         median, in the middle.\n\n\
         | traced by | | untraced | traced | traced : untraced | apart |\n|---|---|--:|--:|--:|--:|\n",
        setup.go, setup.seconds, setup.pairs,
    );
    text += &rows("nobody", &nobody);
    text += &rows("leaktrace", &leaktrace);
    let _ = writeln!(
        text,
        "\nleaktrace itself took {:.2} % of the processor. Where it hears everything, without a budget ({}), a request takes\n\
         the server {:.1} µs more: that is for {HITS} hits, a goroutine's birth and end and a timer that is armed and stopped.",
        median(&own) * 100.0,
        WITHOUT_BUDGET.join(" "),
        added_us(&unbounded),
    );
    Ok(Section {
        markdown: text,
        plots: Vec::new(),
    })
}

struct Bench<'s> {
    setup: &'s Setup,
    wrk: Wrk,
    sides: [Side; 2],
}

/// A server, and the half of the processor that it has.
struct Side {
    // Ends before its half goes.
    server: Program,
    address: String,
    half: Half,
}

impl Side {
    fn start(name: &str, executable: &Path) -> Result<Self> {
        let half = Half::new(name)?;
        // The server is told where to listen, so that it need not be asked; the port is free a moment before.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut server = half.command(executable);
        server.args(["-clients", "0", "-parts", "0", "-listen", &address]);
        Ok(Self {
            server: Program::spawn(&mut server)?,
            address,
            half,
        })
    }
}

/// Half of the first processor, as long as another half is used: a control group of the scheduler's.
struct Half(PathBuf);

impl Half {
    fn new(name: &str) -> Result<Self> {
        // Version 1 has a hierarchy for each controller, version 2 one for all.
        let root = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .context("there are no control groups to divide a processor with")?;
        let divided = root.join("cgroup.subtree_control");
        if divided.exists() {
            fs::write(&divided, "+cpu")
                .with_context(|| format!("writing {}", divided.display()))?;
        }
        let folder = root.join(format!("leaktrace-bench-{name}"));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// A command that runs there.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.join("cgroup.procs"))
            .args(["taskset", "-c", FIRST])
            .arg(program);
        command
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// What one server did beside the other.
struct Measured {
    answers: Answers,
    /// Seconds of a processor.
    used: f64,
}

/// Two stretches, in which the one and then the other server was traced.
struct Pair {
    /// In either stretch, the untraced and the traced one.
    stretches: [[Measured; 2]; 2],
    /// What leaktrace used, as a part of a processor.
    own: f64,
}

impl Bench<'_> {
    /// Stretches of so long, traced by a daemon with such arguments, or by nobody.
    fn pairs(&self, name: &str, seconds: u32, daemon: Option<&[&str]>) -> Result<Vec<Pair>> {
        let pairs = (0..self.setup.pairs).map(|number| {
            let (first, first_own) = self.stretch(0, seconds, daemon)?;
            let (second, second_own) = self.stretch(1, seconds, daemon)?;
            let pair = Pair {
                stretches: [first, second],
                own: (first_own + second_own) / 2.0,
            };
            let [requests, percentile, used] =
                MEASURES.map(|measure| pair.ratio(measure.of));
            eprintln!(
                "{name}, pair {}: requests {requests:.3} ×, 99th percentile {percentile:.3} ×, time a request {used:.3} ×",
                number + 1
            );
            Ok(pair)
        });
        pairs.collect()
    }

    /// A stretch in which one of the two is traced. Answers the untraced and the traced, and what leaktrace used.
    fn stretch(
        &self,
        traced: usize,
        seconds: u32,
        daemon: Option<&[&str]>,
    ) -> Result<([Measured; 2], f64)> {
        let side = &self.sides[traced];
        let daemon = daemon.map(|arguments| {
            let mut daemon = side.half.command(&self.setup.leaktrace);
            daemon.args(["daemon", "--listen", "127.0.0.1:0", "--pid"]);
            daemon.arg(side.server.pid().to_string()).args(arguments);
            Tracer::start(&mut daemon, "leaktrace daemon", None)
        });
        let daemon = daemon.transpose()?;
        thread::sleep(SETTLED);
        self.ask(WARM)?;
        let own = || {
            daemon
                .as_ref()
                .map_or(Ok(0.0), |daemon| cpu_seconds(daemon.pid()))
        };
        let own_before = own()?;
        let measured = self.ask(seconds)?;
        let own = (own()? - own_before) / f64::from(seconds);
        let [first, second] = measured;
        let measured = if traced == 0 {
            [second, first]
        } else {
            [first, second]
        };
        Ok((measured, own))
    }

    /// Has both servers asked at the same time.
    fn ask(&self, seconds: u32) -> Result<[Measured; 2]> {
        let used = || -> Result<[f64; 2]> {
            let [first, second] = &self.sides;
            Ok([
                cpu_seconds(first.server.pid())?,
                cpu_seconds(second.server.pid())?,
            ])
        };
        let before = used()?;
        let wrk = &self.wrk;
        let [one, other] = self.sides.each_ref().map(|side| side.address.as_str());
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| wrk.ask(other, seconds));
            (wrk.ask(one, seconds), second.join())
        });
        let second = second.map_err(|_| anyhow::anyhow!("the second wrk was not heard"))?;
        let after = used()?;
        let measured = |answers: Answers, side: usize| Measured {
            used: after[side] - before[side],
            answers,
        };
        Ok([measured(first?, 0), measured(second?, 1)])
    }
}

/// What is compared.
#[derive(Clone, Copy)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    digits: usize,
    of: fn(&Measured) -> f64,
}

const MEASURES: [Measure; 3] = [
    Measure {
        name: "requests a second",
        unit: "",
        digits: 0,
        of: |measured| measured.answers.per_second,
    },
    Measure {
        name: "99th percentile",
        unit: " ms",
        digits: 2,
        of: |measured| measured.answers.p99_ms,
    },
    Measure {
        name: "time of the server a request",
        unit: " µs",
        digits: 1,
        of: |measured| measured.used * 1e6 / measured.answers.requests,
    },
];

impl Pair {
    /// Traced to untraced: the geometric mean of both stretches, in which what one server has by itself cancels out.
    fn ratio(&self, of: fn(&Measured) -> f64) -> f64 {
        let [first, second] = self
            .stretches
            .each_ref()
            .map(|[untraced, traced]| of(traced) / of(untraced));
        (first * second).sqrt()
    }
}

/// How much more of the server's time a traced request takes, in microseconds: the median.
fn added_us(pairs: &[Pair]) -> f64 {
    let [_, _, time] = MEASURES;
    let added = pairs.iter().flat_map(|pair| &pair.stretches);
    let added = added.map(|[untraced, traced]| (time.of)(traced) - (time.of)(untraced));
    median(&added.collect::<Vec<_>>())
}

/// The rows of the table.
fn rows(name: &str, pairs: &[Pair]) -> String {
    let mut text = String::new();
    for Measure {
        name: what,
        unit,
        digits,
        of,
    } in MEASURES
    {
        let [untraced, traced]: [f64; 2] = array::from_fn(|side| {
            let all = pairs.iter().flat_map(|pair| &pair.stretches);
            median(&all.map(|stretch| of(&stretch[side])).collect::<Vec<_>>())
        });
        let ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio(of)).collect();
        let ratio = median(&ratios);
        let apart: Vec<f64> = ratios.iter().map(|one| (one - ratio).abs()).collect();
        let _ = writeln!(
            text,
            "| {name} | {what} | {untraced:.digits$}{unit} | {traced:.digits$}{unit} | **{ratio:.3} ×** | {:.1} % |",
            median(&apart) * 100.0
        );
    }
    text
}

/// What wrk says of a stretch.
struct Answers {
    requests: f64,
    per_second: f64,
    p99_ms: f64,
}

/// Debian's wrk, with the library that it needs.
struct Wrk {
    program: PathBuf,
    libraries: PathBuf,
}

impl Wrk {
    fn fetch() -> Result<Self> {
        let library = tools::debian("bookworm", "libluajit-5.1-2")?;
        let machine = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        Ok(Self {
            program: tools::debian("bookworm", "wrk")?.join("usr/bin/wrk"),
            libraries: library.join(machine),
        })
    }

    /// Asks for some seconds.
    fn ask(&self, address: &str, seconds: u32) -> Result<Answers> {
        let output = on(SECOND, &self.program)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .args(["-t", "1", "-c", &CONNECTIONS.to_string()])
            .args(["-d", &format!("{seconds}s"), "--latency"])
            .arg(format!("http://{address}/"))
            .stdin(Stdio::null())
            .output()
            .context("starting wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && !text.contains("Socket errors"),
            "wrk was not served well:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let word = |key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
            line.map(str::trim)
                .with_context(|| format!("wrk says no {key} in:\n{text}"))
        };
        let total = text
            .lines()
            .find_map(|line| line.split_once(" requests in"));
        let (total, _) = total.with_context(|| format!("wrk says no total in:\n{text}"))?;
        Ok(Answers {
            requests: total.trim().parse()?,
            per_second: word("Requests/sec:")?.parse()?,
            p99_ms: milliseconds(word("99%")?)?,
        })
    }
}

/// A time as wrk writes it: "812.00us", "1.20ms", "1.02s".
fn milliseconds(text: &str) -> Result<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        let number = text.strip_suffix('s');
        (number.with_context(|| format!("{text:?} is no time"))?, 1e3)
    };
    let number: f64 = number
        .parse()
        .with_context(|| format!("{text:?} is no time"))?;
    Ok(number * factor)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn times_of_wrk_are_read_in_each_unit() {
        for (text, expected) in [("812.00us", 0.812), ("1.25ms", 1.25), ("1.5s", 1500.0)] {
            let found = milliseconds(text).expect("a time");
            assert!((found - expected).abs() < 1e-9, "{text}: {found}");
        }
        assert!(milliseconds("soon").is_err());
    }
}
