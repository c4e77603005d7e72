//! What a server's clients notice: requests a second and the 99th percentile under wrk, traced and untraced in turn.
//!
//! The server has a processor, on which leaktrace has to work, too: what it takes, the server lacks. wrk has another one. Where
//! the kernel may move them about, it is chance that decides over the percentile.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::slow_down::Tracer;
use super::{FIRST, SECOND, Section, Setup, median, on};
use crate::{go, tools};

/// Connections of wrk: so many that the server's processor is full.
const CONNECTIONS: u32 = 64;

/// Stretches are so many times shorter, and so many times more: the machine's speed drifts by a tenth within a minute.
const SHORTER: u32 = 6;

/// How long the daemon has been there: its start is no part of what is measured here (the section on slow-down has it).
const SETTLED: Duration = Duration::from_secs(5);

/// Measures all of them.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let executable = build::build("http-mixed", &toolchain, Variant::DEFAULT)?;
    let wrk = Wrk::fetch()?;
    // The server is told where to listen, so that it need not be asked; the port is free a moment before.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut server = on(FIRST, &executable);
    server.args(["-clients", "0", "-parts", "0", "-listen", &address]);
    let server = Program::spawn(&mut server)?;
    let pairs = Pairs::take(setup, &wrk, &server, &address)?;
    let text = format!(
        "A server of net/http with timeouts of its own and one for each request, and a goroutine for each connection, Go {}, asked\n\
         by wrk over {CONNECTIONS} connections with and without `leaktrace daemon` at its default settings, in turn. The server and\n\
         leaktrace share one processor, which is full; wrk has another. wrk is started anew each second: what it says of one\n\
         differs by 10 % from what it says of the next, so the medians of {} s are compared, and the median of {} pairs of them\n\
         counts. The last column is how far one such median of the untraced server is from the one before, in the middle.\n\n\
         | | untraced | traced | traced : untraced | unrest |\n|---|--:|--:|--:|--:|\n{}",
        setup.go,
        seconds(setup),
        pairs.traced.len(),
        pairs.rows()
    );
    Ok(Section {
        markdown: text,
        plots: Vec::new(),
    })
}

/// Seconds of a stretch.
fn seconds(setup: &Setup) -> u32 {
    (setup.seconds / SHORTER).max(1)
}

/// Stretches in turn.
struct Pairs {
    untraced: Vec<Answers>,
    traced: Vec<Answers>,
}

impl Pairs {
    fn take(setup: &Setup, wrk: &Wrk, server: &Program, address: &str) -> Result<Self> {
        let (mut untraced, mut traced) = (Vec::new(), Vec::new());
        for pair in 0..setup.pairs * SHORTER {
            // Which comes first changes, so that neither has the better of a machine that warms up or tires.
            for with_daemon in [pair % 2 == 1, pair % 2 == 0] {
                let daemon = if with_daemon {
                    let mut daemon = on(FIRST, &setup.leaktrace);
                    daemon.args(["daemon", "--listen", "127.0.0.1:0", "--pid"]);
                    daemon.arg(server.pid().to_string());
                    Some(Tracer::start(&mut daemon, "leaktrace daemon", None)?)
                } else {
                    None
                };
                // Also without a daemon: the kernel takes a moment to take probes off, and who rested longer is colder.
                thread::sleep(SETTLED);
                wrk.ask(address)?;
                let answers = (0..seconds(setup))
                    .map(|_| wrk.ask(address))
                    .collect::<Result<Vec<_>>>()?;
                let answers = Answers::median(&answers);
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

    /// The rows of the table.
    fn rows(&self) -> String {
        let row = |name: &str, unit: &str, digits: usize, what: fn(&Answers) -> f64| {
            let all = |answers: &[Answers]| answers.iter().map(what).collect::<Vec<_>>();
            let (untraced, traced) = (all(&self.untraced), all(&self.traced));
            let ratios = traced.iter().zip(&untraced);
            let ratios: Vec<f64> = ratios.map(|(traced, untraced)| traced / untraced).collect();
            format!(
                "| {name} | {:.digits$}{unit} | {:.digits$}{unit} | **{:.3} ×** | {:.1} % |\n",
                median(&untraced),
                median(&traced),
                median(&ratios),
                unrest(&untraced) * 100.0,
            )
        };
        row("requests a second", "", 0, |answers| answers.per_second)
            + &row("99th percentile", " ms", 2, |answers| answers.p99_ms)
    }
}

/// By how much a number differs from the one before: the median, as a part of that.
fn unrest(numbers: &[f64]) -> f64 {
    let apart = numbers.windows(2).filter_map(|pair| match pair {
        [one, next] => Some((next / one - 1.0).abs()),
        _ => None,
    });
    median(&apart.collect::<Vec<_>>())
}

/// What wrk says of a stretch.
struct Answers {
    per_second: f64,
    p99_ms: f64,
}

impl Answers {
    /// The median of each.
    fn median(seconds: &[Self]) -> Self {
        let of = |what: fn(&Self) -> f64| median(&seconds.iter().map(what).collect::<Vec<_>>());
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

    /// Asks for a second.
    fn ask(&self, address: &str) -> Result<Answers> {
        let output = on(SECOND, &self.program)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .args(["-t", "1", "-c", &CONNECTIONS.to_string()])
            .args(["-d", "1s", "--latency"])
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
