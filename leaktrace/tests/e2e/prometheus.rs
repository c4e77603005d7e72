//! A real server, stripped, from Debian: Prometheus scraping itself, watched while it answers queries.
//!
//! What "at rest" means here. A reading of `go_goroutines` counts goroutines that are there only for the reading
//! (`leaktrace_fixtures::own_count` tells which), so the test first finds out, without leaktrace, how many those are;
//! they are subtracted from then on. Both connections stay open throughout, so that the goroutines
//! serving them are there at every count; a scrape in flight shows as two readings, one before and
//! one after the census, that differ, and the reading is taken again.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leaktrace_fixtures::own_count;

use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, report, tool};

/// Censuses that are compared.
const CENSUSES: u32 = 10;

#[test]
fn a_real_server_is_counted_exactly_while_it_answers() {
    let (Some(()), Some(executable)) = (needs::root(), needs::prometheus()) else {
        return;
    };
    let mut server = Server::start(Command::new(executable));
    let pid = server.child.id().to_string();
    server.wait_for_rest();
    let added = server.added_by_a_reading();

    let watch = Duration::from_secs(if needs::quick() { 20 } else { 60 });
    let seconds = format!("{}s", watch.as_secs());
    let begin = Instant::now();
    let arguments = [
        "record",
        "--pid",
        &pid,
        "--duration",
        &seconds,
        "--format",
        "json",
    ];
    let record = Tool::spawn(tool::leaktrace().args(arguments));

    let (mut differences, mut queries) = (Vec::new(), 0);
    for number in 1..=CENSUSES {
        // The query is answered within the connection's timeout, or the test fails there.
        while begin.elapsed() < watch * number / (CENSUSES + 1) {
            server.query();
            queries += 1;
            thread::sleep(Duration::from_millis(50));
        }
        differences.push(server.difference(&pid, added));
    }
    let found = record.wait(watch + Duration::from_secs(20)).json();

    println!(
        "go_goroutines minus census: {differences:?}, {queries} queries answered, a reading adds {added}"
    );
    let exact = differences
        .iter()
        .filter(|&&difference| difference == 0)
        .count();
    assert!(exact >= 9, "{differences:?}");
    assert!(
        differences.iter().all(|difference| difference.abs() <= 2),
        "{differences:?}"
    );
    let leaks: Vec<_> = report::sites(&found)
        .filter(|site| site["verdict"] == "leak")
        .collect();
    assert!(leaks.is_empty(), "Prometheus does not leak: {leaks:?}");
    server.query();
}

/// Prometheus on a free port of the loopback, scraping itself every 5 s, with two connections to it. Dropping
/// it kills it.
struct Server {
    child: Child,
    metrics: Connection,
    other: Connection,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let directory = tempfile::tempdir().expect("temporary folders can be made");
        // Free a moment ago; Prometheus cannot choose one itself.
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener
            .local_addr()
            .expect("it has an address")
            .to_string();
        drop(listener);
        let configuration = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 5s}}\nscrape_configs:\n- job_name: self\n  static_configs: [{{targets: ['{address}']}}]\n"
        );
        fs::write(&configuration, text).expect("temporary files can be written");
        let mut child = command
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Prometheus starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        let metrics = loop {
            if let Ok(mut connection) = Connection::open(&address)
                && connection.get("/-/ready").status == 200
            {
                break connection;
            }
            if Instant::now() > deadline {
                // Not in a guard yet.
                let _ = child.kill();
                let _ = child.wait();
                panic!("Prometheus was not ready in time");
            }
            thread::sleep(Duration::from_millis(50));
        };
        Self {
            child,
            metrics,
            other: Connection::open(&address).expect("Prometheus listens"),
            _directory: directory,
        }
    }

    /// Waits until two scrapes have happened: then everything is there that a scrape needs, and stays.
    fn wait_for_rest(&mut self) {
        tool::eventually(
            "Prometheus has scraped itself twice",
            Duration::from_secs(30),
            || {
                let answer = self
                    .other
                    .get("/api/v1/query?query=count_over_time(up[1m])");
                let answer: serde_json::Value =
                    serde_json::from_str(&answer.body).expect("the API speaks JSON");
                let count = answer["data"]["result"][0]["value"][1]
                    .as_str()
                    .and_then(|count| count.parse().ok());
                count >= Some(2)
            },
        );
    }

    /// A query, which has to be answered.
    fn query(&mut self) {
        let answer = self.other.get("/api/v1/query?query=up");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(
            answer.body.contains("\"status\":\"success\""),
            "{}",
            answer.body
        );
    }

    /// `go_goroutines`: the least of a few readings.
    fn reading(&mut self) -> i64 {
        own_count::reading(&mut self.metrics.0, "/metrics").expect("go_goroutines is there")
    }

    /// How many goroutines a reading of `go_goroutines` counts that are there only for the reading.
    fn added_by_a_reading(&mut self) -> i64 {
        own_count::added_by_a_reading(
            (&mut self.metrics.0, "/metrics"),
            (&mut self.other.0, own_count::LISTING),
        )
        .expect("the server counts itself")
    }

    /// `go_goroutines` at rest minus the census.
    fn difference(&mut self, pid: &str, added: i64) -> i64 {
        for _ in 0..10 {
            let before = self.reading();
            let found = tool::json(&["snapshot", "--pid", pid]);
            let after = self.reading();
            if before == after {
                let total = found["goroutines"]["total"]
                    .as_i64()
                    .expect("a snapshot has a total");
                return before - added - total;
            }
        }
        panic!("the server never came to rest");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
