//! A `leaktrace daemon` under a command's hand: started, asked, killed, started again on the same address.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leaktrace_fixtures::http::Connection;
use serde_json::Value;

/// How long a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The daemon. Dropping it kills it.
pub struct Daemon {
    leaktrace: PathBuf,
    arguments: Vec<String>,
    /// Where it listens.
    pub address: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it on a free port of the loopback; its log is appended to `log`.
    ///
    /// # Errors
    /// It does not start, or does not listen in time.
    pub fn start(leaktrace: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        // Free a moment ago; kept, so that it can be started again on the same.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let child = spawn(leaktrace, arguments, &address, log)?;
        let mut daemon = Self {
            leaktrace: leaktrace.to_owned(),
            arguments: arguments.to_vec(),
            address,
            log: log.to_owned(),
            child,
        };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }

    /// Starts it again, whatever became of it; its log goes to `log`, or to the same as before.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn restart(&mut self, log: Option<&Path>) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait()?;
        let log = log.unwrap_or(&self.log);
        self.child = spawn(&self.leaktrace, &self.arguments, &self.address, log)?;
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
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .context("starting kill")?;
        if !status.success() {
            bail!("the daemon has ended before its time");
        }
        Ok(())
    }

    /// Asks for a path, and answers with the body.
    ///
    /// # Errors
    /// It does not answer, or with another status than 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut connection = Connection::open(&self.address).context("the daemon listens")?;
        let answer = connection.get(path)?;
        if answer.status != 200 {
            bail!("{path}: {} {}", answer.status, answer.body.trim());
        }
        Ok(answer.body)
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// As for [`Daemon::get`], or it is no JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.get(path)?).with_context(|| format!("reading {path}"))
    }

    /// The sum of all series of a metric.
    ///
    /// # Errors
    /// As for [`Daemon::get`].
    pub fn sum(&self, metric: &str) -> Result<f64> {
        let metrics = self.get("/metrics")?;
        let of = |line: &str| {
            let rest = line.strip_prefix(metric)?;
            let value = rest.rsplit_once(' ')?.1;
            (rest.starts_with(['{', ' '])).then(|| value.parse::<f64>().ok())?
        };
        Ok(metrics.lines().filter_map(of).sum())
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.get("/healthz").is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the daemon ended at its start: {status}; see {}",
                    self.log.display()
                );
            }
            if Instant::now() > end {
                bail!("the daemon does not listen; see {}", self.log.display());
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
