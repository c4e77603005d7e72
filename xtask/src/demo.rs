//! `cargo xtask demo`: two leaking programs and a healthy one, watched side by side.
//!
//! It fetches the Go toolchains and builds everything, watches with `leaktrace record`, prints the report and
//! a few lines of what `leaktrace daemon` exports, and leaves nothing running. It succeeds only if both
//! leaking lines are named as leaks and the healthy program is not.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::{repository, target_dir};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::go;

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long to watch, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,
}

/// A program of the demo, and what leaktrace is to say about it.
struct Role {
    fixture: &'static str,
    /// The Go release that it is built with.
    go: &'static str,
    /// The comment that marks its leaking line; none in the healthy program.
    marker: Option<&'static str>,
}

/// The timers of time.After only pile up before Go 1.23, so that program is built with 1.22.
const CAST: [Role; 3] = [
    Role {
        fixture: "handler-timeout",
        go: "1.27.3",
        marker: Some("LEAK: goroutine"),
    },
    Role {
        fixture: "time-after-loop",
        go: "1.22.10",
        marker: Some("LEAK: timer"),
    },
    Role {
        fixture: "handler-timeout-healthy",
        go: "1.27.3",
        marker: None,
    },
];

/// Runs the demo; an error when leaktrace does not say what it should.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        is_root()?,
        "probes need root here: run it as root, or `sudo -E env PATH=\"$PATH\" cargo xtask demo`"
    );
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let leaktrace = build_leaktrace()?;
    let mut executables = Vec::new();
    for role in &CAST {
        let toolchain = go::install(role.go)?;
        eprintln!("building {} with go {}", role.fixture, role.go);
        executables.push(build::build(role.fixture, &toolchain, Variant::DEFAULT)?);
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    }
    let reports = tempfile::tempdir().context("making a folder for the reports")?;
    let mut watches = Vec::new();
    for (role, executable) in CAST.iter().zip(&executables) {
        watches.push(Watch::start(
            role,
            executable,
            &leaktrace,
            reports.path(),
            arguments.duration,
        )?);
    }
    wait(
        &mut watches,
        Duration::from_secs(arguments.duration),
        &interrupted,
    )?;

    let mut mistakes = Vec::new();
    // The leaking lines come first, whatever the order of the cast.
    watches.sort_by_key(|watch| watch.role.marker.is_none());
    for watch in &watches {
        let report = watch.report()?;
        print_report(watch.role, &report);
        mistakes.extend(mistake(watch.role, &report)?);
    }
    println!("\nThe same on /metrics of `leaktrace daemon`:");
    for watch in &watches {
        mistakes.extend(watch.print_metrics()?);
    }
    ensure!(mistakes.is_empty(), "{}", mistakes.join("; "));
    println!("\nBoth leaking lines were found, and the healthy program was left in peace.");
    Ok(())
}

/// Builds leaktrace itself, optimised.
pub fn build_leaktrace() -> Result<PathBuf> {
    eprintln!("building leaktrace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "leaktrace"])
        .current_dir(repository())
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "leaktrace does not build");
    Ok(target_dir().join("release/leaktrace"))
}

/// Whether this process runs as root, by what the kernel says of it.
pub fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0"))
}

/// One program, with leaktrace recording it, and for a leaking one a daemon that exports it. All of them are
/// ended when this is dropped.
struct Watch {
    role: &'static Role,
    file: PathBuf,
    record: Tracer,
    daemon: Option<Daemon>,
    // Dropped last, so that the tracers detach from a program that is still there.
    _program: Program,
}

impl Watch {
    fn start(
        role: &'static Role,
        executable: &Path,
        leaktrace: &Path,
        reports: &Path,
        seconds: u64,
    ) -> Result<Self> {
        let program = Program::start(executable, &[])?;
        let pid = program.pid().to_string();
        let file = reports.join(format!("{}.json", role.fixture));
        let mut record = Command::new(leaktrace);
        record.args([
            "record",
            "--pid",
            &pid,
            "--duration",
            &format!("{seconds}s"),
        ]);
        record.args(["--format", "json", "-o"]).arg(&file);
        let record = Tracer::spawn(&mut record)?;
        let daemon = match role.marker {
            // A verdict takes ten counts: at the usual interval of 5 s the demo would be over before.
            Some(_) => {
                let options = ["--interval", "1s", "--pid", &pid];
                Some(Daemon::start(leaktrace, &options)?)
            }
            None => None,
        };
        Ok(Self {
            role,
            file,
            record,
            daemon,
            _program: program,
        })
    }

    /// What `record` wrote.
    fn report(&self) -> Result<Value> {
        let text = fs::read(&self.file)
            .with_context(|| format!("leaktrace left no report on {}", self.role.fixture))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("the report on {} is not JSON", self.role.fixture))
    }

    /// Prints the metrics of the leaking line; says so when the daemon does not call it a leak.
    fn print_metrics(&self) -> Result<Option<String>> {
        let (Some(daemon), Some(marker)) = (&self.daemon, self.role.marker) else {
            return Ok(None);
        };
        let line = build::marked_line(self.role.fixture, marker)?;
        let place = format!("main.go:{line}\"");
        let metrics = daemon.asked.page("/metrics")?;
        let mut is_leak = false;
        for line in metrics.lines().filter(|line| line.contains(&place)) {
            let Some((name, _)) = line.split_once('{') else {
                continue;
            };
            if [
                "leaktrace_goroutines",
                "leaktrace_timers_pending",
                "leaktrace_leak",
            ]
            .contains(&name)
            {
                println!("  {line}");
            }
            is_leak |= name == "leaktrace_leak";
        }
        let missing = format!(
            "/metrics has no leaktrace_leak for line {line} of {}",
            self.role.fixture
        );
        Ok((!is_leak).then_some(missing))
    }
}

/// A running leaktrace. Dropping it kills it.
struct Tracer {
    child: Child,
    errors: Receiver<String>,
}

impl Tracer {
    fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting leaktrace")?;
        let stderr = child.stderr.take().context("a piped stderr is there")?;
        let (sender, errors) = mpsc::channel();
        // Reads on after nobody listens, so that leaktrace never blocks on a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, errors })
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("waiting for leaktrace")
    }

    /// The last line that it wrote to standard error.
    fn last_words(&self) -> String {
        let last = self.errors.try_iter().last();
        last.unwrap_or_else(|| "it gave no reason".to_owned())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // The kernel takes the probes off however it ends; there is no need to ask it first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until every recording is finished.
fn wait(watches: &mut [Watch], duration: Duration, interrupted: &AtomicBool) -> Result<()> {
    let begin = Instant::now();
    // Reading a binary, the last census and the verdicts take a while beyond the watch itself.
    let patience = duration + Duration::from_secs(30);
    let terminal = std::io::stderr().is_terminal();
    if !terminal {
        eprintln!(
            "watching {} programs for {} s",
            watches.len(),
            duration.as_secs()
        );
    }
    loop {
        let mut running = 0;
        for watch in watches.iter_mut() {
            match watch.record.ended()? {
                None => running += 1,
                Some(status) if matches!(status.code(), Some(0 | 1)) => {}
                Some(_) => bail!(
                    "leaktrace record on {}: {}",
                    watch.role.fixture,
                    watch.record.last_words()
                ),
            }
        }
        if terminal {
            let seconds = begin.elapsed().min(duration).as_secs();
            eprint!(
                "\rwatching {} programs: {seconds} of {} s ",
                watches.len(),
                duration.as_secs()
            );
        }
        if running == 0 {
            break;
        }
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        ensure!(
            begin.elapsed() < patience,
            "leaktrace record did not end in time"
        );
        thread::sleep(Duration::from_millis(200));
    }
    if terminal {
        eprintln!();
    }
    Ok(())
}

/// Prints what one report found.
fn print_report(role: &Role, report: &Value) {
    let total = &report["goroutines"]["total"];
    let pid = &report["target"]["pid"];
    println!(
        "\n{} (pid {pid}, go {}, {total} goroutines)",
        role.fixture, role.go
    );
    let mut found = false;
    for site in sites(report).filter(|site| verdict(site) != "ok") {
        found = true;
        let kind = site["kind"].as_str().unwrap_or("thing");
        let growth = site["growth_per_minute"].as_f64().unwrap_or(0.0);
        println!(
            "  {} {} {kind}s, {growth:+.0} per minute",
            verdict(site).to_uppercase(),
            site["count"]
        );
        println!(
            "    {}:{} in {}{}",
            site["file"].as_str().unwrap_or("?"),
            site["line"],
            site["function"].as_str().unwrap_or("?"),
            states(site)
        );
        println!(
            "    {}",
            site["evidence"].as_str().unwrap_or("no evidence given")
        );
    }
    if !found {
        println!("  nothing found");
    }
}

/// In what the goroutines of a site wait: ", 291 in chan send".
fn states(site: &Value) -> String {
    let states = site["states"].as_object();
    let parts = states
        .into_iter()
        .flatten()
        .map(|(state, count)| format!(", {count} in {state}"));
    parts.collect()
}

/// What a report should have said and did not, or the reverse.
fn mistake(role: &Role, report: &Value) -> Result<Option<String>> {
    let leaks: Vec<_> = sites(report)
        .filter(|site| verdict(site) == "leak")
        .collect();
    let Some(marker) = role.marker else {
        let named = leaks.first().map(|site| {
            format!(
                "the healthy {} is called a leak at line {}",
                role.fixture, site["line"]
            )
        });
        return Ok(named);
    };
    let line = build::marked_line(role.fixture, marker)?;
    let file = format!("{}/main.go", role.fixture);
    let kind = marker.trim_start_matches("LEAK: ");
    let is_it = |site: &&Value| {
        site["kind"] == kind
            && site["line"] == line
            && site["file"]
                .as_str()
                .is_some_and(|path| path.ends_with(&file))
    };
    Ok(match leaks.iter().any(is_it) {
        true => None,
        false => Some(format!("the {kind} leak at {file}:{line} was not found")),
    })
}

/// The sites of a report, leaks first and the largest first among those.
fn sites(report: &Value) -> impl Iterator<Item = &Value> {
    let mut sites: Vec<_> = report["sites"].as_array().into_iter().flatten().collect();
    sites.sort_by_key(|site| {
        (
            verdict(site) != "leak",
            std::cmp::Reverse(site["count"].as_u64()),
        )
    });
    sites.into_iter()
}

fn verdict(site: &Value) -> &str {
    site["verdict"].as_str().unwrap_or("ok")
}
