//! Light load on a server: some forty requests a second, some of them over new connections.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::http::{Connection, Request};

use super::catalogue::{self, Program, Ready};
use super::running::Running;

/// Time between two requests.
const PACE: Duration = Duration::from_millis(25);
/// Time between two commands, each of which costs as much as many requests.
const COMMAND_PACE: Duration = Duration::from_millis(400);
/// Requests over one connection before it is closed and another opened.
const REQUESTS_OF_A_CONNECTION: usize = 10;
/// Requests that may go wrong in a row before the load gives up.
const MISTAKES: usize = 5;

/// Load that goes on until it is stopped.
pub struct Load {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Load {
    /// Begins.
    pub fn start(program: &'static Program, server: &Running) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let address = match program.ready {
            Ready::Http(address, _) => server.fill(address),
            Ready::Output => String::new(),
        };
        let thread = match program.load {
            catalogue::Load::Http(requests) => {
                thread::spawn(move || http(&address, requests, &told))
            }
            catalogue::Load::Nats => {
                let address = server.fill("127.0.0.1:{port2}");
                thread::spawn(move || nats(&address, &told))
            }
            catalogue::Load::Command(line) => {
                let line: Vec<String> = line.iter().map(|word| server.fill(word)).collect();
                thread::spawn(move || commands(&line, &told))
            }
            catalogue::Load::None => thread::spawn(|| Ok(0)),
        };
        Self { over, thread }
    }

    /// Ends it; answers how many requests were answered.
    pub fn stop(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let done = self.thread.join();
        done.ok().context("the load ended in a panic")?
    }
}

/// Sends requests in turn.
fn http(address: &str, requests: &[(&str, &str, &str)], over: &AtomicBool) -> Result<u64> {
    let (mut answered, mut mistakes) = (0, 0);
    let mut turn = requests.iter().cycle();
    while !over.load(Ordering::Relaxed) {
        let mut connection = Connection::open(address)?;
        for _ in 0..REQUESTS_OF_A_CONNECTION {
            let Some(&(method, path, body)) = turn.next() else {
                break;
            };
            if over.load(Ordering::Relaxed) {
                break;
            }
            let head = match body.starts_with(['{', '[']) {
                true => "Content-Type: application/json\r\n",
                false => "",
            };
            let request = Request {
                method,
                path,
                body,
                head,
            };
            // An error status is an answer, too; a connection that the server closed is opened again.
            match connection.ask(request) {
                Ok(_) => (answered, mistakes) = (answered + 1, 0),
                Err(error) => {
                    mistakes += 1;
                    ensure!(mistakes < MISTAKES, "{error:#}");
                    break;
                }
            }
            thread::sleep(PACE);
        }
    }
    Ok(answered)
}

/// Publishes messages and hears them again, over connections that are renewed now and then.
fn nats(address: &str, over: &AtomicBool) -> Result<u64> {
    let mut heard = 0;
    while !over.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut writer = stream.try_clone()?;
        let mut lines = BufReader::new(stream).lines();
        writer.write_all(b"CONNECT {\"verbose\":false}\r\nSUB one 1\r\n")?;
        for _ in 0..REQUESTS_OF_A_CONNECTION {
            writer.write_all(b"PUB one 5\r\nhello\r\n")?;
            loop {
                let line = lines
                    .next()
                    .context("nats-server closed the connection")??;
                if line == "PING" {
                    writer.write_all(b"PONG\r\n")?;
                }
                if line == "hello" {
                    break;
                }
                ensure!(!line.starts_with("-ERR"), "nats-server says {line}");
            }
            heard += 1;
            thread::sleep(PACE);
        }
    }
    Ok(heard)
}

/// Runs a command line again and again.
fn commands(line: &[String], over: &AtomicBool) -> Result<u64> {
    let (name, arguments) = line.split_first().context("a command has a name")?;
    let mut done = 0;
    while !over.load(Ordering::Relaxed) {
        let output = Command::new(name)
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        done += 1;
        thread::sleep(COMMAND_PACE);
    }
    Ok(done)
}
