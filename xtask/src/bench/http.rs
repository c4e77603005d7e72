//! What a server's clients notice: requests a second and the 99th percentile under wrk, traced and untraced.
//!
//! Two of the server run side by side ([`super::side_by_side`]), and each is asked.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;

use super::daemon::cpu_seconds;
use super::side_by_side::{Compared, Half, Pair};
use super::slow_down::{self, Tracer};
use super::{SECOND, Section, Setup, median, on};
use crate::{go, tools};

/// Connections of wrk to each server: so many that the processor is full.
const CONNECTIONS: u32 = 64;

/// How long the daemon has been there: its start is no part of what is measured here (the section on slow-down has it).
const SETTLED: Duration = Duration::from_secs(5);

/// Seconds of load before what is measured: the section on slow-down has the first second of a storm.
const WARM: u32 = 1;

/// Stretches under anything but leaktrace's default settings are so many times shorter.
const SHORTER: u32 = 6;

/// What a request does that is probed: a goroutine is born and ends, and a timer is armed and stopped. Each is a hit.
const FUNCTIONS: [&str; 4] = [
    "runtime.newproc1",
    "runtime.goexit1",
    "time.newTimer",
    "time.stopTimer",
];

/// Who traces one of the servers.
#[derive(Clone, Copy)]
enum Tracing {
    Nobody,
    /// `leaktrace daemon` with these arguments.
    Leaktrace(&'static [&'static str]),
    /// bpftrace, which counts the entries of [`FUNCTIONS`].
    Bpftrace,
}

/// Everything is heard.
const LIFECYCLE: &[&str] = &[
    "--events",
    "lifecycle",
    "--budget",
    "off",
    "--host-budget",
    "off",
];
const FULL: &[&str] = &[
    "--events",
    "full",
    "--budget",
    "off",
    "--host-budget",
    "off",
];

const TRACERS: [(&str, Tracing); 5] = [
    ("nobody", Tracing::Nobody),
    ("leaktrace", Tracing::Leaktrace(&[])),
    (
        "leaktrace --events lifecycle, no budget",
        Tracing::Leaktrace(LIFECYCLE),
    ),
    (
        "leaktrace --events full, no budget",
        Tracing::Leaktrace(FULL),
    ),
    ("bpftrace counting at entries", Tracing::Bpftrace),
];

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
    let mut text = format!(
        "Two servers of net/http with timeouts of their own and one for each request, and a goroutine for each connection, Go {},\n\
         at the same time, each asked by a wrk over {CONNECTIONS} connections for {} s ({} s where not under the default settings).\n\
         They share one full processor, half for each; wrk has another. One of the two is traced, leaktrace as a daemon, which\n\
         works in that one's half, so that what it takes weighs double; then the other one. Medians of {} such pairs; apart is how far\n\
         a pair is from the median, in the middle.\n\n\
         | traced by | | untraced | traced | traced : untraced | apart |\n|---|---|--:|--:|--:|--:|\n",
        setup.go,
        setup.seconds,
        bench.short(),
        setup.pairs,
    );
    let mut notes = String::new();
    for (name, tracing) in TRACERS {
        if matches!(tracing, Tracing::Bpftrace) && !slow_down::has_bpftrace() {
            let _ = writeln!(text, "| {name} | | | | not installed | |");
            continue;
        }
        let pairs = bench.pairs(name, tracing)?;
        text += &rows(name, &pairs);
        match tracing {
            Tracing::Leaktrace([]) => {
                let own: Vec<f64> = pairs.iter().map(|pair| pair.own).collect();
                let _ = writeln!(
                    notes,
                    "\nleaktrace itself took {:.2} % of the processor at its default settings.",
                    median(&own) * 100.0
                );
            }
            Tracing::Leaktrace(LIFECYCLE) | Tracing::Bpftrace => {
                let _ = writeln!(
                    notes,
                    "The {} hits of a request, a goroutine's birth and end and a timer that is armed and stopped, take {:.1} µs of\n\
                     the server's time under {name}.",
                    FUNCTIONS.len(),
                    added_us(&pairs)
                );
            }
            Tracing::Nobody | Tracing::Leaktrace(_) => {}
        }
    }
    text += &notes;
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
    /// A file of its own: bpftrace's probes are in every process of a file.
    executable: PathBuf,
    address: String,
    half: Half,
}

impl Side {
    fn start(name: &str, executable: &Path) -> Result<Self> {
        let half = Half::new(name)?;
        let own = target_dir().join("bench").join(format!("http-{name}"));
        fs::copy(executable, &own).with_context(|| format!("making {}", own.display()))?;
        // The server is told where to listen, so that it need not be asked; the port is free a moment before.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut server = half.command(&own);
        server.args(["-clients", "0", "-parts", "0", "-listen", &address]);
        Ok(Self {
            server: Program::spawn(&mut server)?,
            executable: own,
            address,
            half,
        })
    }
}

/// What one server did beside the other.
struct Measured {
    answers: Answers,
    /// Seconds of a processor.
    used: f64,
}

impl Bench<'_> {
    /// Seconds of a stretch that is not under the default settings.
    fn short(&self) -> u32 {
        self.setup.seconds.div_ceil(SHORTER)
    }

    /// All pairs of stretches, traced so.
    fn pairs(&self, name: &str, tracing: Tracing) -> Result<Vec<Pair<Measured>>> {
        let seconds = match tracing {
            Tracing::Leaktrace([]) => self.setup.seconds,
            _ => self.short(),
        };
        let pairs = (0..self.setup.pairs).map(|number| {
            let pair = Pair::measure(|traced| self.start(traced, tracing), || self.ask(seconds))?;
            let [requests, percentile, used] = MEASURES.map(|measure| pair.ratio(measure.of));
            eprintln!(
                "{name}, pair {}: requests {requests:.3} ×, 99th percentile {percentile:.3} ×, time a request {used:.3} ×",
                number + 1
            );
            Ok(pair)
        });
        pairs.collect()
    }

    /// Has one of the two traced, and both warm.
    fn start(&self, traced: usize, tracing: Tracing) -> Result<Option<Tracer>> {
        let side = &self.sides[traced];
        let pid = side.server.pid().to_string();
        let tracer = match tracing {
            Tracing::Nobody => None,
            Tracing::Leaktrace(arguments) => {
                let mut daemon = side.half.command(&self.setup.leaktrace);
                daemon.args(["daemon", "--listen", "127.0.0.1:0", "--pid", &pid]);
                daemon.args(arguments);
                Some(Tracer::start(&mut daemon, "leaktrace daemon", None)?)
            }
            Tracing::Bpftrace => {
                let mut bpftrace = side.half.command(Path::new("bpftrace"));
                let script = slow_down::counting(&side.executable, &FUNCTIONS);
                bpftrace.args(["-e", &script]);
                Some(Tracer::start(&mut bpftrace, "bpftrace", Some("Attaching"))?)
            }
        };
        thread::sleep(SETTLED);
        self.ask(WARM)?;
        Ok(tracer)
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

/// How much more of the server's time a traced request takes, in microseconds: the median.
fn added_us(pairs: &[Pair<Measured>]) -> f64 {
    let [_, _, time] = MEASURES;
    let added = pairs.iter().flat_map(|pair| &pair.stretches);
    let added = added.map(|[untraced, traced]| (time.of)(traced) - (time.of)(untraced));
    median(&added.collect::<Vec<_>>())
}

/// The rows of the table.
fn rows(name: &str, pairs: &[Pair<Measured>]) -> String {
    let mut text = String::new();
    for Measure {
        name: what,
        unit,
        digits,
        of,
    } in MEASURES
    {
        let Compared {
            untraced,
            traced,
            ratio,
            apart,
        } = Compared::of(pairs, of);
        let _ = writeln!(
            text,
            "| {name} | {what} | {untraced:.digits$}{unit} | {traced:.digits$}{unit} | **{ratio:.3} ×** | {:.1} % |",
            apart * 100.0
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
