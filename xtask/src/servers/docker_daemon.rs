//! As much of a Docker daemon as its client needs to watch events: one comes ten times a second.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// What the client is told each time.
const EVENT: &str = r#"{"Type":"container","Action":"start","Actor":{"ID":"0123456789ab","Attributes":{"name":"one"}},"scope":"local","time":1700000000,"timeNano":1700000000000000000}"#;

/// A daemon that listens. Dropping it ends it.
pub struct DockerDaemon {
    address: String,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl DockerDaemon {
    /// Listens on a TCP address.
    pub fn start(address: &str) -> Result<Self> {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let listening = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                let told = Arc::clone(&told);
                // Ends with the client's connection.
                thread::spawn(move || serve(stream, &told));
            }
        });
        Ok(Self {
            address: address.to_owned(),
            over,
            listening: Some(listening),
        })
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // One more connection wakes the listener.
        let woken = TcpStream::connect(&self.address);
        if let (Ok(_), Some(listening)) = (woken, self.listening.take()) {
            let _ = listening.join();
        }
    }
}

/// Answers one connection until it is closed.
fn serve(stream: TcpStream, over: &AtomicBool) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    loop {
        let request = lines.next()?;
        // The client sends no bodies; the head ends with an empty line.
        lines.by_ref().find(String::is_empty)?;
        let path = request.split(' ').nth(1)?;
        if !path.contains("/events") {
            let head = "HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nOstype: linux\r\n";
            let body = if path.ends_with("/_ping") { "OK" } else { "{}" };
            let length = body.len();
            write!(writer, "{head}Content-Length: {length}\r\n\r\n").ok()?;
            if !request.starts_with("HEAD") {
                writer.write_all(body.as_bytes()).ok()?;
            }
            continue;
        }
        writer
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .ok()?;
        while !over.load(Ordering::Relaxed) {
            write!(writer, "{:x}\r\n{EVENT}\r\n", EVENT.len()).ok()?;
            thread::sleep(Duration::from_millis(100));
        }
        return None;
    }
}
