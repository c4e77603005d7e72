//! The `leaktrace` command as a user runs it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How a finished run went.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// The command under test.
pub fn leaktrace() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leaktrace"))
}

/// Runs it to its end, which has to come within `limit`.
pub fn run<S: AsRef<OsStr>>(arguments: &[S], limit: Duration) -> Outcome {
    Tool::spawn(leaktrace().args(arguments)).wait(limit)
}

/// Runs it with `--format json` and returns what it printed. Exit codes 0 and 1 both mean that it worked.
pub fn json(arguments: &[&str]) -> Value {
    let arguments: Vec<_> = arguments
        .iter()
        .copied()
        .chain(["--format", "json"])
        .collect();
    run(&arguments, Duration::from_secs(30)).json()
}

impl Outcome {
    /// The JSON that it printed.
    pub fn json(&self) -> Value {
        assert!(
            matches!(self.code, Some(0 | 1)),
            "exit code {:?}: {}",
            self.code,
            self.stderr
        );
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.stdout))
    }
}

/// Hears everything, whatever that costs the program.
pub const UNBOUNDED: [&str; 2] = ["--budget", "off"];

/// A `leaktrace` that runs. Dropping it kills it.
pub struct Tool {
    child: Child,
    begin: Instant,
    stdout: Option<JoinHandle<String>>,
    errors: Receiver<String>,
}

impl Tool {
    /// Starts a command.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("leaktrace starts");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            stdout
                .read_to_string(&mut text)
                .expect("leaktrace prints UTF-8");
            text
        });
        let errors = listen(child.stderr.take().expect("stderr is piped"));
        Self {
            child,
            begin: Instant::now(),
            stdout: Some(stdout),
            errors,
        }
    }

    /// Starts `record --format json` on a process, for longer than any test takes.
    pub fn record(pid: u32, output: &Path) -> Self {
        Self::record_with(pid, output, &[])
    }

    /// The same with more arguments, which may tell another duration; [`UNBOUNDED`] for what is to be heard whole.
    pub fn record_with(pid: u32, output: &Path, arguments: &[&str]) -> Self {
        let pid = pid.to_string();
        let mut command = leaktrace();
        command.args(["record", "--pid", &pid, "--format", "json", "-o"]);
        command.arg(output).args(arguments);
        if !arguments.contains(&"--duration") {
            command.args(["--duration", "1h"]);
        }
        Self::spawn(&mut command)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid is an i32");
        kill(Pid::from_raw(pid), signal).expect("leaktrace is there to be signalled");
    }

    /// Its next line on standard error.
    pub fn error_line(&self, limit: Duration) -> String {
        self.errors
            .recv_timeout(limit)
            .expect("leaktrace says something in time")
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }

    /// Whether it goes on running for this long.
    pub fn runs_for(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while self.is_running() {
            if Instant::now() > deadline {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Waits for its end, which has to come within `limit` from now.
    pub fn wait(mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    panic!("leaktrace did not end within {limit:?}")
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let took = self.begin.elapsed();
        let stdout = self.stdout.take().expect("nobody else took it");
        Outcome {
            code: status.code(),
            stdout: stdout.join().expect("stdout was read"),
            // Ends when leaktrace's end of the pipe is closed, which it is.
            stderr: self.errors.iter().map(|line| line + "\n").collect(),
            took,
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds, for at most `limit`.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads lines in the background, so that leaktrace never waits for a reader.
fn listen(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // A test that looks no more has dropped its end.
            let _ = sender.send(line);
        }
    });
    receiver
}
