//! What a server's clients notice: requests a second and the 99th percentile under wrk, traced and untraced in turn.
//!
//! Once with all the load that the machine takes, for the throughput; and once with a few connections, where the
//! percentile is the server's answer and not the queue before it. What differs between two untraced stretches tells how much
//! of a difference is the machine's.
//!
//! The server has a processor, on which leaktrace has to work, too: what it takes, the server lacks. wrk has another one. Where
//! the kernel may move them about, it is chance that decides over the percentile.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::slow_down::Tracer;
use super::{Section, Setup, median};
use crate::{go, tools};

/// Goroutines that the handler starts for the work of each request (none, as most handlers, and some), and connections of wrk:
/// so many that the server's processor is full, and few.
const ROWS: [(&str, u32); 3] = [("0", FULL), ("0", FEW), ("2", FULL)];
const FULL: u32 = 64;
const FEW: u32 = 2;

/// Parts of a stretch, of which the median counts: whoever else uses the real machine does so for seconds at a time.
const PARTS: u32 = 10;

/// How long the daemon has been there: its start is no part of what is measured here (the section on slow-down has it).
const SETTLED: Duration = Duration::from_secs(5);

/// The processor of the server and of leaktrace.
const SERVERS: &str = "0";
/// That of wrk.
const CLIENTS: &str = "1";

/// Measures all of them.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let executable = build::build("http-mixed", &toolchain, Variant::DEFAULT)?;
    let wrk = Wrk::fetch()?;
    let mut text = format!(
        "A server of net/http with timeouts of its own and one for each request, a goroutine for each connection, and so many that\n\
         each request's handler starts, Go {}, asked by wrk for {} times {} s with and without `leaktrace daemon` at its default\n\
         settings, in turn; medians of those, and of {} pairs. The server and leaktrace share one processor, wrk has another:\n\
         with {} connections the server's is full, with {} it is not. The last column is how far an untraced stretch is from the\n\
         untraced one before it, in the middle: the machine's own unrest.\n\n\
         | handler starts | connections | requests/s untraced | traced | throughput | 99th percentile untraced | traced | 99th percentile | unrest |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        setup.go,
        PARTS,
        part(setup),
        setup.pairs,
        FULL,
        FEW
    );
    for (goroutines, connections) in ROWS {
        // The server is told where to listen, so that it need not be asked; the port is free a moment before.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let flags = ["-clients", "0", "-parts", goroutines, "-listen", &address];
        let server = Program::spawn(on(SERVERS, &executable).args(flags))?;
        eprintln!("{connections} connections, {goroutines} goroutines a request");
        let pairs = Pairs::take(setup, &wrk, &server, &address, connections)?;
        let _ = writeln!(text, "| {goroutines} | {connections} | {} |", pairs.row());
    }
    Ok(Section {
        markdown: text,
        plots: Vec::new(),
    })
}

/// Seconds of a part.
fn part(setup: &Setup) -> u32 {
    (setup.seconds / PARTS).max(1)
}

/// A program on one processor; the number of processors that Go sees is 1 then.
fn on(processor: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", processor]).arg(program);
    command
}

/// Stretches in turn.
struct Pairs {
    untraced: Vec<Answers>,
    traced: Vec<Answers>,
}

impl Pairs {
    fn take(
        setup: &Setup,
        wrk: &Wrk,
        server: &Program,
        address: &str,
        connections: u32,
    ) -> Result<Self> {
        let (mut untraced, mut traced) = (Vec::new(), Vec::new());
        wrk.ask(address, connections, 2)?;
        for pair in 0..setup.pairs {
            // Which comes first changes, so that neither has the better of a machine that warms up or tires.
            for with_daemon in [pair % 2 == 1, pair % 2 == 0] {
                let daemon = if with_daemon {
                    let mut daemon = on(SERVERS, &setup.leaktrace);
                    daemon.args(["daemon", "--listen", "127.0.0.1:0", "--pid"]);
                    daemon.arg(server.pid().to_string());
                    Some(Tracer::start(&mut daemon, "leaktrace daemon", None)?)
                } else {
                    None
                };
                // Also without a daemon: the kernel takes a moment to take probes off, and who rested longer is colder.
                thread::sleep(SETTLED);
                wrk.ask(address, connections, 1)?;
                let parts = (0..PARTS)
                    .map(|_| wrk.ask(address, connections, part(setup)))
                    .collect::<Result<Vec<_>>>()?;
                let answers = Answers::median(&parts);
                if daemon.is_some() {
                    traced.push(answers);
                } else {
                    untraced.push(answers);
                }
            }
            for (what, answers) in [("untraced", &untraced), ("traced", &traced)] {
                if let Some(last) = answers.last() {
                    eprintln!("{what}: {:.0}/s, {:.2} ms", last.per_second, last.p99_ms);
                }
            }
        }
        Ok(Self { untraced, traced })
    }

    /// What is said of them in the table.
    fn row(&self) -> String {
        let rate = |answers: &Answers| answers.per_second;
        let slow = |answers: &Answers| answers.p99_ms;
        let of = |answers: &[Answers], what: fn(&Answers) -> f64| {
            median(&answers.iter().map(what).collect::<Vec<_>>())
        };
        let ratio = |what: fn(&Answers) -> f64| {
            let pairs = self.traced.iter().zip(&self.untraced);
            let ratios = pairs.map(|(traced, untraced)| what(traced) / what(untraced));
            median(&ratios.collect::<Vec<_>>())
        };
        let unrest = |what: fn(&Answers) -> f64| {
            let pairs = self.untraced.windows(2);
            let apart = pairs.filter_map(|pair| match pair {
                [one, next] => Some((what(next) / what(one) - 1.0).abs() * 100.0),
                _ => None,
            });
            median(&apart.collect::<Vec<_>>())
        };
        format!(
            "{:.0} | {:.0} | **{:.3} ×** | {:.2} ms | {:.2} ms | **{:.3} ×** | {:.1} %, {:.1} %",
            of(&self.untraced, rate),
            of(&self.traced, rate),
            ratio(rate),
            of(&self.untraced, slow),
            of(&self.traced, slow),
            ratio(slow),
            unrest(rate),
            unrest(slow),
        )
    }
}

/// What wrk says of a stretch.
struct Answers {
    per_second: f64,
    p99_ms: f64,
}

impl Answers {
    /// The median of each.
    fn median(parts: &[Self]) -> Self {
        let of = |what: fn(&Self) -> f64| median(&parts.iter().map(what).collect::<Vec<_>>());
        Self {
            per_second: of(|answers| answers.per_second),
            p99_ms: of(|answers| answers.p99_ms),
        }
    }
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

    /// Asks for so many seconds.
    fn ask(&self, address: &str, connections: u32, seconds: u32) -> Result<Answers> {
        let output = on(CLIENTS, &self.program)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .args(["-t", "1", "-c", &connections.to_string()])
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
        Ok(Answers {
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
