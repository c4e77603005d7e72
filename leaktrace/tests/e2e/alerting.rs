//! From a leaking line to somebody's pager, and back to quiet, with real servers: Debian's Prometheus 3 and Alertmanager run
//! our rules on what a daemon says of a service that leaks, and that is then replaced by its healthy twin, as a release
//! would. On the way each query of the dashboards has to find something.
//!
//! The rules wait for minutes before they alarm. Here they run as a copy in which those of the group leaktrace-leaks wait
//! for seconds; nothing else is changed.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::repository;
use serde_json::Value;

use crate::daemon::address;
use crate::http::Connection;
use crate::monitoring::{dashboards, read};
use crate::pods::Pod;
use crate::tool::Tool;
use crate::{needs, tool};

/// How long an alert may take on a busy machine; it takes half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_leak_alarms_and_its_mending_resolves_the_alert() {
    let (Some(()), Some(prometheus), Some(alertmanager)) = (
        needs::root(),
        needs::debian("forky", "prometheus", "prometheus"),
        needs::debian(
            "forky",
            "prometheus-alertmanager",
            "prometheus-alertmanager",
        ),
    ) else {
        return;
    };
    let (Some(leaking), Some(healthy)) = (
        needs::fixture("handler-timeout", "1.27.3", Variant::DEFAULT),
        needs::fixture("handler-timeout-healthy", "1.27.3", Variant::DEFAULT),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let pod = Pod::make(folder.path(), "market_shop-0", "server");
    if pod.is_none() {
        println!("no cgroup can be made here: the variable `namespace` is not tried");
    }
    let shop = start(&leaking, folder.path(), pod.as_ref());
    let daemon = Tool::spawn(
        tool::leaktrace()
            .args(["daemon", "--listen", "127.0.0.1:0", "--interval", "500ms"])
            .arg("--exe")
            .arg(folder.path().join("shop"))
            .arg("--pod-logs")
            .arg(folder.path()),
    );
    let daemon = (address(&daemon), daemon);
    let pager = Pager::open();
    let alertmanager = Server::alertmanager(&alertmanager, &pager.address);
    let mut prometheus = Server::prometheus(&prometheus, &daemon.0, &alertmanager.address);

    let line = build::marked_line("handler-timeout", "LEAK: goroutine").expect("it is marked");
    let site = format!("main.handle handler-timeout/main.go:{line}");
    let alert = pager.waits_for("firing", "LeaktraceLeak");
    let target = pod.as_ref().map_or("shop", |_| "market/shop/server");
    assert_eq!(alert["labels"]["target"], target, "{alert}");
    assert_eq!(alert["labels"]["site"], site, "{alert}");
    assert_eq!(
        alert["annotations"]["summary"],
        format!("{target} leaks goroutines at {site}")
    );
    assert_eq!(prometheus.query("up{job=\"leaktrace\"} == 1").len(), 1);
    every_query_finds_something(&mut prometheus, pod.is_some());

    drop(shop);
    let _shop = start(&healthy, folder.path(), pod.as_ref());
    let alert = pager.waits_for("resolved", "LeaktraceLeak");
    assert_eq!(alert["labels"]["site"], site, "{alert}");
    tool::eventually("the new one is watched", PATIENCE, || {
        !prometheus
            .query(&format!("leaktrace_target_up{{target=\"{target}\"}} == 1"))
            .is_empty()
    });
    assert!(prometheus.query("leaktrace_leak").is_empty());
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}");
    assert!(firing.is_empty(), "{firing:?}");
}

/// Starts a program as the service `shop`, whose file is replaced if it is there.
fn start(executable: &Path, folder: &Path, pod: Option<&Pod>) -> Program {
    let (new, path) = (folder.join("new"), folder.join("shop"));
    fs::copy(executable, &new).expect("a fixture can be copied");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::rename(&new, &path).expect("it is ours");
    let command = pod.map_or_else(|| Command::new(&path), |pod| pod.command(&path));
    Program::spawn(&mut { command }).expect("fixtures start")
}

/// Asks what every panel of every dashboard asks, and what fills the variables.
fn every_query_finds_something(server: &mut Server, namespaces: bool) {
    let mut asked = 0;
    for path in dashboards() {
        let dashboard: Value = serde_json::from_str(&read(&path)).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels").iter();
        let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("queries"));
        for query in targets.map(|query| query["expr"].as_str().expect("a query")) {
            // As Grafana does when everything is chosen.
            let query = query
                .replace("$__rate_interval", "10s")
                .replace("$namespace", ".*")
                .replace("$target", ".*")
                .replace("$site", ".*");
            tool::eventually(&query, Duration::from_secs(20), || {
                !server.query(&query).is_empty()
            });
            asked += 1;
        }
        let variables = dashboard["templating"]["list"].as_array().expect("a list");
        for variable in variables
            .iter()
            .filter_map(|one| one["query"]["query"].as_str())
        {
            let query = variable
                .replace("$namespace", ".*")
                .replace("$target", ".*");
            let values = server.label_values(&query);
            let none = variable.ends_with(", namespace)") && !namespaces;
            assert!(none || !values.is_empty(), "{query}");
            asked += 1;
        }
    }
    assert!(asked > 25, "{asked} queries");
}

/// What Alertmanager tells: an HTTP server that takes its notices.
struct Pager {
    address: String,
    notices: Receiver<Value>,
}

impl Pager {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener
            .local_addr()
            .expect("it has an address")
            .to_string();
        let (sender, notices) = mpsc::channel();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if let Some(notice) = notice(stream)
                    && sender.send(notice).is_err()
                {
                    return;
                }
            }
        });
        Self { address, notices }
    }

    /// The alert of that name, once it is told in that state.
    fn waits_for(&self, state: &str, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let notice = (self.notices.recv_timeout(left))
                .unwrap_or_else(|_| panic!("{name} was not told as {state}"));
            let alerts = notice["alerts"].as_array().expect("alerts");
            let wanted =
                |alert: &&Value| alert["status"] == state && alert["labels"]["alertname"] == name;
            if let Some(alert) = alerts.iter().find(wanted) {
                return alert.clone();
            }
        }
    }
}

/// One request with a body of JSON, answered with 200.
fn notice(mut stream: TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).ok()?;
    serde_json::from_slice(&body).ok()
}

/// Prometheus or Alertmanager on the loopback. Dropping it kills it.
struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Prometheus with our rules, scraping a daemon every second.
    fn prometheus(executable: &Path, daemon: &str, alertmanager: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let rules = folder.path().join("leaktrace.rules.yml");
        fs::write(&rules, impatient()).expect("temporary files can be written");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
             scrape_configs:\n- job_name: leaktrace\n  static_configs: [{{targets: ['{daemon}']}}]\n",
            rules.display()
        );
        let data = folder.path().join("data");
        let mut command = Command::new(executable);
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        Self::start(command, &text, folder)
    }

    /// Alertmanager that tells a pager. Debian's looks for its templates in /usr/share and nowhere else, so it sees
    /// them there, in a mount namespace of its own.
    fn alertmanager(executable: &Path, pager: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let text = format!(
            "route: {{receiver: pager, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
             receivers: [{{name: pager, webhook_configs: [{{url: 'http://{pager}/', send_resolved: true}}]}}]\n"
        );
        let package = (executable.ancestors().nth(3)).expect("it is in usr/bin of a package");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec"])
            .arg("mount -t overlay overlay -o \"lowerdir=$1/usr/share:/usr/share\" /usr/share; shift; exec \"$@\"")
            .arg("sh")
            .arg(package)
            .arg(executable)
            .arg(format!("--storage.path={}", folder.path().display()))
            .arg("--cluster.listen-address=");
        Self::start(command, &text, folder)
    }

    fn start(mut command: Command, configuration: &str, folder: tempfile::TempDir) -> Self {
        let file = folder.path().join("configuration.yml");
        fs::write(&file, configuration).expect("temporary files can be written");
        // Free a moment ago; neither can choose one itself.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port").to_string();
        let child = command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Self {
            child,
            address,
            _folder: folder,
        };
        tool::eventually("the server is ready", Duration::from_secs(30), || {
            Connection::open(&server.address)
                .is_ok_and(|mut connection| connection.get("/-/ready").status == 200)
        });
        server
    }

    /// The series that a query finds.
    fn query(&mut self, query: &str) -> Vec<Value> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(query)));
        answer["data"]["result"].as_array().expect("a list").clone()
    }

    /// The values of a label, asked for as a variable of Grafana's: `label_values(series, label)`.
    fn label_values(&mut self, query: &str) -> Vec<Value> {
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inner
            .and_then(|inner| inner.rsplit_once(", "))
            .expect("a query for a variable");
        let path = format!("/api/v1/label/{label}/values?match[]={}", encoded(series));
        self.ask(&path)["data"].as_array().expect("a list").clone()
    }

    fn ask(&mut self, path: &str) -> Value {
        let mut connection = Connection::open(&self.address).expect("the server listens");
        let answer = connection.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rules, with those about leaks waiting for seconds instead of minutes.
fn impatient() -> String {
    let rules = read(&repository().join("deploy/prometheus/leaktrace.rules.yml"));
    let (leaks, itself) = (rules.split_once("- name: leaktrace-itself")).expect("two groups");
    let shorter = leaks.replace("for: 5m", "for: 5s");
    assert_ne!(shorter, leaks);
    format!("{shorter}- name: leaktrace-itself{itself}")
}

fn encoded(query: &str) -> String {
    query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
