//! A `leaktrace daemon` under a command's hand, and what it says over HTTP: started, asked, ended, started again on the
//! same address.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

    /// The same as JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.page(path)?).with_context(|| format!("{path} is no JSON"))
    }

    /// The sum of all series of a metric.
    pub fn sum(&self, metric: &str) -> Result<f64> {
        let metrics = self.page("/metrics")?;
        let of = |line: &str| {
            let rest = line.strip_prefix(metric)?;
            let value = rest.rsplit_once(' ')?.1;
            (rest.starts_with(['{', ' '])).then(|| value.parse::<f64>().ok())?
        };
        Ok(metrics.lines().filter_map(of).sum())
    }

    /// What is said of each process that is traced.
    pub fn traced(&self) -> Result<Vec<Value>> {
        let all = self.json("/api/v1/targets")?;
        let rows = all["targets"].as_array().context("targets is a list")?;
        let traced = rows.iter().filter(|row| row["status"] == "traced");
        Ok(traced.cloned().collect())
    }

    /// The report of one process, counted now.
    pub fn report(&self, pid: i64) -> Result<Value> {
        let answer = self.json(&format!("/api/v1/targets/{pid}"))?;
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
                let all = self.json("/api/v1/targets")?;
                let mut rows = all["targets"].as_array().into_iter().flatten();
                match rows.find(|row| row["pid"] == pid) {
                    Some(row) => bail!("not traced within {limit:?}: {row}"),
                    None => bail!("process {pid} is not known within {limit:?}"),
                }
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
    leaktrace: PathBuf,
    arguments: Vec<String>,
    log: Log,
    child: Child,
}

/// Where a daemon's log goes.
enum Log {
    /// Nobody reads it unless the daemon does not start; it goes when the daemon goes.
    Own(tempfile::TempPath),
    Kept(PathBuf),
}

impl Log {
    fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Kept(path) => path,
        }
    }
}

impl Daemon {
    /// Starts one on a free port of the loopback, and waits until it listens.
    pub fn start(leaktrace: &Path, arguments: &[impl AsRef<str>]) -> Result<Self> {
        let log = tempfile::NamedTempFile::new()?.into_temp_path();
        Self::begin(leaktrace, arguments, Log::Own(log))
    }

    /// The same; its log is appended to a file that stays.
    pub fn start_with_log(
        leaktrace: &Path,
        arguments: &[impl AsRef<str>],
        log: &Path,
    ) -> Result<Self> {
        Self::begin(leaktrace, arguments, Log::Kept(log.to_owned()))
    }

    fn begin(leaktrace: &Path, arguments: &[impl AsRef<str>], log: Log) -> Result<Self> {
        // Free a moment ago; kept, so that it can be started again on the same.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let arguments: Vec<String> = (arguments.iter())
            .map(|argument| argument.as_ref().to_owned())
            .collect();
        let mut daemon = Self {
            child: spawn(leaktrace, &arguments, &address, log.path())?,
            asked: Asked { address },
            leaktrace: leaktrace.to_owned(),
            arguments,
            log,
        };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }

    /// Starts it again, whatever became of it; its log goes to `log`, or to the same as before.
    pub fn restart(&mut self, log: Option<&Path>) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait()?;
        let log = log.unwrap_or(self.log.path());
        self.child = spawn(&self.leaktrace, &self.arguments, &self.asked.address, log)?;
        self.wait_until_it_listens()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal such as "STOP".
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .context("starting kill")?;
        ensure!(status.success(), "the daemon has ended before its time");
        Ok(())
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.asked.page("/healthz").is_err() {
            if !self.is_running() || Instant::now() > end {
                let log = fs::read_to_string(self.log.path()).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                bail!("leaktrace daemon does not listen: {last}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(leaktrace: &Path, arguments: &[String], address: &str, log: &Path) -> Result<Child> {
    let log = OpenOptions::new().append(true).create(true).open(log)?;
    Command::new(leaktrace)
        .args(["daemon", "--listen", address])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", leaktrace.display()))
}
