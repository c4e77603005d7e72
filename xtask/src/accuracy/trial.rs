//! One program under leaktrace: started, watched, and its report compared with what is known of it.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program as Running;
use serde_json::Value;

use super::catalogue::{Leak, Load, Program};
use crate::go;

/// What `record` logs when it begins to watch.
const READY: &str = "the probes are on";

/// A burst alone happens so long after that.
const BEFORE_BURST: Duration = Duration::from_secs(5);

/// And in a program that is older than this: what comes while a program starts may be meant to stay
/// (`looping.start-up-seconds`).
const START_UP: Duration = Duration::from_secs(60);

/// One program in one release under one load.
pub struct Trial {
    /// Its place in the table.
    pub number: usize,
    pub program: &'static Program,
    pub go: String,
    pub load: Load,
    /// How long it is watched.
    pub seconds: u64,
    executable: PathBuf,
}

/// What leaktrace said.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Lines that are to be named, and that were called a leak.
    expected: usize,
    pub right: usize,
    /// After how long the last of them was.
    after: f64,
    /// Lines that are to be named, and that were called suspect.
    suspected: usize,
    /// Leak verdicts at other lines.
    pub wrong: usize,
    /// Suspects at other lines.
    wrongly_suspected: usize,
    /// What they were.
    others: Vec<String>,
    /// Why there is no report.
    failure: Option<String>,
}

impl Outcome {
    /// Of a program that should have no verdict: those that it had, and whether they are leaks.
    pub fn of_healthy(verdicts: impl IntoIterator<Item = (bool, String)>) -> Self {
        let mut outcome = Self::default();
        for (leak, words) in verdicts {
            outcome.wrong += usize::from(leak);
            outcome.wrongly_suspected += usize::from(!leak);
            outcome.others.push(words);
        }
        outcome
    }

    /// There is no report.
    pub fn failed(reason: String) -> Self {
        Self {
            failure: Some(reason),
            ..Self::default()
        }
    }

    /// Whether every line was found, and no other.
    pub fn found(&self) -> bool {
        self.failure.is_none() && self.right == self.expected && self.wrong == 0
    }

    /// Whether every line is suspect or worse, and not all of them a leak.
    pub fn only_suspected(&self) -> bool {
        self.failure.is_none() && !self.found() && self.right + self.suspected == self.expected
    }

    /// Whether nothing was found.
    pub fn silent(&self) -> bool {
        self.failure.is_none() && self.wrong + self.right + self.wrongly_suspected == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(failure) = &self.failure {
            return write!(f, "no report: {failure}");
        }
        match (self.expected, self.right, self.suspected) {
            (0, ..) if self.silent() => write!(f, "none")?,
            (0, ..) => {}
            (_, 0, 0) => write!(f, "not found")?,
            (expected, right, _) if right == expected => write!(f, "leak, {:.0} s", self.after)?,
            (expected, 0, suspected) if suspected == expected => write!(f, "suspect")?,
            (expected, right, suspected) => {
                write!(f, "{right} of {expected} lines leak, {suspected} suspect")?;
            }
        }
        if !self.others.is_empty() {
            write!(f, " wrong: {}", self.others.join(", "))?;
        }
        Ok(())
    }
}

impl Trial {
    /// Builds the program.
    pub fn new(
        number: usize,
        program: &'static Program,
        go: &str,
        load: Load,
        seconds: u64,
    ) -> Result<Self> {
        let executable = build::build(program.name, &go::install(go)?, Variant::DEFAULT)?;
        Ok(Self {
            number,
            program,
            go: go.to_owned(),
            load,
            seconds,
            executable,
        })
    }

    /// For people.
    pub fn name(&self) -> String {
        format!("{} go{} {}", self.program.name, self.go, self.load.name())
    }

    /// Starts it, watches it, ends it.
    pub fn run(&self, leaktrace: &Path) -> Outcome {
        let watched = self.watch(leaktrace).and_then(|report| self.judge(&report));
        watched.unwrap_or_else(|error| Outcome::failed(format!("{error:#}")))
    }

    /// Starts it.
    pub fn start(&self) -> Result<Running> {
        let mut command = Command::new(&self.executable);
        command.args(self.load.arguments());
        if self.program.spins {
            // A crowd that never rests would leave the others no processor.
            command.env("GOMAXPROCS", "1");
        }
        Running::spawn(&mut command)
    }

    fn watch(&self, leaktrace: &Path) -> Result<Value> {
        let mut running = self.start()?;
        if self.load == Load::Burst {
            thread::sleep(START_UP);
        }
        let mut watching = Command::new(leaktrace)
            .env("LEAKTRACE_LOG", "leaktrace=info")
            .args(["record", "--pid", &running.pid().to_string()])
            .args(["--duration", &format!("{}s", self.seconds)])
            .args(["--format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting leaktrace")?;
        let mut said = BufReader::new(watching.stderr.take().context("leaktrace says nothing")?);
        let mut words = String::new();
        // On a busy machine it takes longer than the burst waits.
        while !words.contains(READY) && said.read_line(&mut words)? > 0 {}
        // Nobody may wait for a pipe that is full.
        let rest = thread::spawn(move || {
            let mut rest = String::new();
            said.read_to_string(&mut rest).map(|_| rest)
        });
        if self.load == Load::Burst {
            thread::sleep(BEFORE_BURST);
            running.ask("begin")?;
        }
        let output = watching
            .wait_with_output()
            .context("waiting for leaktrace")?;
        let rest = rest
            .join()
            .map_err(|_| anyhow!("nobody heard leaktrace"))??;
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "{}",
            (words + &rest).trim()
        );
        serde_json::from_slice(&output.stdout).context("its report is no JSON")
    }

    fn judge(&self, report: &Value) -> Result<Outcome> {
        let name = self.program.name;
        let mut lines = Vec::new();
        if self.program.leak != Leak::None {
            for thing in ["goroutine", "timer", "coroutine"] {
                let marked = build::marked_lines(name, &format!("LEAK: {thing}"));
                lines.extend(
                    marked
                        .unwrap_or_default()
                        .into_iter()
                        .map(|line| (thing, line)),
                );
            }
        }
        let mut outcome = Outcome {
            expected: match self.program.leak {
                // Of each connection the goroutine that reads and the one that writes.
                Leak::Connection => 2,
                _ => lines.len(),
            },
            ..Outcome::default()
        };
        for site in report["sites"].as_array().context("a report has sites")? {
            let leak = site["verdict"] == "leak";
            if !leak && site["verdict"] != "suspect" {
                continue;
            }
            let is_expected = match self.program.leak {
                Leak::None => false,
                Leak::Connection => site["function"] == "net/http.(*Transport).dialConn",
                Leak::Marked => (lines.iter())
                    .any(|(thing, line)| site["kind"] == *thing && is_at(site, name, *line)),
                Leak::Coroutine => (site["creation_stack"].as_array().into_iter().flatten())
                    .any(|frame| lines.iter().any(|(_, line)| is_at(frame, name, *line))),
            };
            match (is_expected, leak) {
                (true, true) => {
                    outcome.right += 1;
                    let after = site["verdict_after_seconds"].as_f64().unwrap_or(0.0);
                    outcome.after = outcome.after.max(after);
                }
                (true, false) => outcome.suspected += 1,
                (false, true) => outcome.wrong += 1,
                (false, false) => outcome.wrongly_suspected += 1,
            }
            if !is_expected {
                let text = |field: &str| site[field].as_str().unwrap_or_default().to_owned();
                let (verdict, rule, place) = (text("verdict"), text("rule"), text("site"));
                outcome
                    .others
                    .push(format!("{verdict} ({rule}) at {place}"));
            }
        }
        Ok(outcome)
    }
}

/// Whether a site or a frame is at a line of the fixture.
fn is_at(place: &Value, name: &str, line: u32) -> bool {
    place["line"] == line
        && (place["file"].as_str()).is_some_and(|file| file.ends_with(&format!("/{name}/main.go")))
}
