//! What Prometheus and Grafana are given: every metric is documented, the rules fire when they should, and each query of the
//! dashboards finds something on a real server.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaktrace_fixtures::repository;
use serde_json::Value;

use crate::daemon::address;
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, tool};

const SOURCE: &str = include_str!("../../src/export/metrics.rs");

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names that the code exports.
fn exported() -> BTreeSet<String> {
    let literals = SOURCE.split('"').skip(1).step_by(2);
    literals
        .filter(|text| text.starts_with("leaktrace_") && !text.contains(' '))
        .map(str::to_owned)
        .collect()
}

/// Words of a text that are names of metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words
        .filter(|word| word.starts_with("leaktrace_"))
        .map(str::to_owned)
        .collect()
}

fn dashboards() -> Vec<PathBuf> {
    let folder = fs::read_dir(repository().join("deploy/grafana")).expect("there are dashboards");
    let paths: Vec<PathBuf> = folder
        .map(|entry| entry.expect("it is there").path())
        .collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    paths
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let documentation = read(&repository().join("doc/prometheus.md"));
    let rows = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    assert_eq!(documented, exported());
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_there_are() {
    let exported = exported();
    let rules = repository().join("deploy/prometheus/leaktrace.rules.yml");
    for path in dashboards().into_iter().chain([rules]) {
        let asked = named(&read(&path));
        assert!(!asked.is_empty(), "{}", path.display());
        let unknown: Vec<_> = asked.difference(&exported).collect();
        assert!(
            unknown.is_empty(),
            "{} asks for {unknown:?}",
            path.display()
        );
    }
}

#[test]
fn alerts_fire_when_they_should() {
    let Some(prometheus) = needs::prometheus() else {
        return;
    };
    let promtool = prometheus.with_file_name("promtool");
    let tests = repository().join("deploy/prometheus/leaktrace.rules.test.yml");
    let output = Command::new(promtool)
        .args(["test", "rules"])
        .arg(tests)
        .output();
    let output = output.expect("promtool is beside Prometheus");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn every_query_finds_something_on_a_real_server() {
    let Some(prometheus) = needs::prometheus() else {
        return;
    };
    let Some(program) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let pid = program.pid().to_string();
    let daemon = Tool::spawn(tool::leaktrace().args([
        "daemon",
        "--pid",
        &pid,
        "--listen",
        "127.0.0.1:0",
        "--interval",
        "500ms",
    ]));
    let address = address(&daemon);
    lint(&prometheus, &address);
    let mut server = Server::start(&prometheus, &address);
    tool::eventually("Prometheus sees the leak", Duration::from_secs(90), || {
        let alerts = server.query("ALERTS{alertname=\"LeaktraceLeak\"}");
        !alerts.is_empty()
    });
    let alert = &server.query("ALERTS{alertname=\"LeaktraceLeak\"}")[0]["metric"];
    assert_eq!(alert["target"], label(&address), "{alert}");
    assert_eq!(server.query("up{job=\"leaktrace\"} == 1").len(), 1);
    let mut asked = 0;
    for path in dashboards() {
        let dashboard: Value = serde_json::from_str(&read(&path)).expect("JSON");
        for panel in dashboard["panels"].as_array().expect("panels") {
            for query in panel["targets"].as_array().expect("queries") {
                let query = query["expr"].as_str().expect("a query");
                // As Grafana does when everything is chosen.
                let query = query
                    .replace("$__rate_interval", "10s")
                    .replace("$target", ".*")
                    .replace("$site", ".*");
                tool::eventually(&query, Duration::from_secs(20), || {
                    !server.query(&query).is_empty()
                });
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked} queries");
}

/// promtool has nothing to say against what is served.
fn lint(prometheus: &Path, daemon: &str) {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let served = folder.path().join("metrics.txt");
    let mut connection = Connection::open(daemon).expect("the daemon listens");
    fs::write(&served, connection.get("/metrics").body).expect("ours");
    let output = Command::new(prometheus.with_file_name("promtool"))
        .args(["check", "metrics"])
        .stdin(fs::File::open(&served).expect("ours"))
        .output()
        .expect("promtool is beside Prometheus");
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

/// The label of the one target.
fn label(daemon: &str) -> Value {
    let mut connection = Connection::open(daemon).expect("the daemon listens");
    let rows: Value = serde_json::from_str(&connection.get("/api/v1/targets").body).expect("JSON");
    let rows = rows["targets"].as_array().expect("a list");
    let traced = rows.iter().find(|row| row["status"] == "traced");
    traced.expect("one is traced")["target"].clone()
}

/// Prometheus with our rules, scraping a daemon every second. Dropping it kills it.
struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(prometheus: &Path, daemon: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        // Free a moment ago; Prometheus cannot choose one itself.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port").to_string();
        let rules = repository().join("deploy/prometheus/leaktrace.rules.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs:\n- job_name: leaktrace\n  static_configs: [{{targets: ['{daemon}']}}]\n",
            rules.display()
        );
        let configuration = folder.path().join("prometheus.yml");
        fs::write(&configuration, text).expect("temporary files can be written");
        let child = Command::new(prometheus)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Prometheus starts");
        let server = Self {
            child,
            address,
            _folder: folder,
        };
        tool::eventually("Prometheus is ready", Duration::from_secs(30), || {
            Connection::open(&server.address)
                .is_ok_and(|mut connection| connection.get("/-/ready").status == 200)
        });
        server
    }

    /// The series that a query finds.
    fn query(&mut self, query: &str) -> Vec<Value> {
        let encoded: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let mut connection = Connection::open(&self.address).expect("Prometheus listens");
        let answer = connection.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["data"]["result"].as_array().expect("a list").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
