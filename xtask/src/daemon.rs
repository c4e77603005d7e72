//! A `leaktrace daemon` and what it says over HTTP: for the commands that try it on containers and packages.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::http::Connection;
use serde_json::Value;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon somewhere, asked anew each time: it may be restarted in between.
pub struct Asked {
    /// Such as `127.0.0.1:9779`.
    pub address: String,
}

impl Asked {
    /// The body of a page, which has to be there.
    pub fn page(&self, path: &str) -> Result<String> {
        let mut connection = Connection::open(&self.address)
            .with_context(|| format!("nobody listens on {}", self.address))?;
        let answer = connection.get(path)?;
        ensure!(answer.status == 200, "{path}: status {}", answer.status);
        Ok(answer.body)
    }

    /// What is said of each process that is traced.
    pub fn traced(&self) -> Result<Vec<Value>> {
        let all: Value = serde_json::from_str(&self.page("/api/v1/targets")?)?;
        let rows = all["targets"].as_array().context("targets is a list")?;
        let traced = rows.iter().filter(|row| row["status"] == "traced");
        Ok(traced.cloned().collect())
    }

    /// The report of one process, counted now.
    pub fn report(&self, pid: i64) -> Result<Value> {
        let answer: Value = serde_json::from_str(&self.page(&format!("/api/v1/targets/{pid}"))?)?;
        Ok(answer["report"].clone())
    }

    /// The row of a process once it is traced.
    pub fn waits_for(&self, pid: i64, limit: Duration) -> Result<Value> {
        let begin = Instant::now();
        loop {
            let row = (self.traced()?).into_iter().find(|row| row["pid"] == pid);
            if let Some(row) = row {
                return Ok(row);
            }
            if begin.elapsed() > limit {
                let all = self.page("/api/v1/targets")?;
                bail!("process {pid} is not traced within {limit:?}: {all}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a process is in the metrics no more.
    pub fn forgets(&self, pid: i64, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        let label = format!("pid=\"{pid}\"");
        while self.page("/metrics")?.contains(&label) {
            ensure!(begin.elapsed() < limit, "{label} is not gone in {limit:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// How many goroutines of a report stand in a state, all lines together.
pub fn in_state(report: &Value, state: &str) -> u64 {
    let sites = report["sites"].as_array();
    let counts = sites
        .into_iter()
        .flatten()
        .filter(|site| site["kind"] == "goroutine")
        .filter_map(|site| site["states"][state].as_u64());
    counts.sum()
}

/// A daemon of ours. Dropping it kills it.
pub struct Daemon {
    /// Where it listens.
    pub asked: Asked,
    child: Child,
}

impl Daemon {
    /// Starts one on a free port of the loopback.
    pub fn start(leaktrace: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(leaktrace)
            .args(["daemon", "--listen", "127.0.0.1:0", "--interval", "500ms"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", leaktrace.display()))?;
        let log = child.stderr.take().context("stderr is piped")?;
        // From here on dropping ends it.
        let mut daemon = Self {
            asked: Asked {
                address: String::new(),
            },
            child,
        };
        daemon.asked.address = listening(log)?;
        Ok(daemon)
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address that it says; what it says later is read and dropped, so that it never waits for a reader.
fn listening(log: impl Read + Send + 'static) -> Result<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut last = String::new();
    let deadline = Instant::now() + PATIENCE;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if let Some((_, address)) = line.split_once("listening on http://") {
            return Ok(address.trim().to_owned());
        }
        last = line;
    }
    bail!("leaktrace does not listen: {last}")
}
