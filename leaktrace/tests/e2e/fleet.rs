//! `daemon` over many processes: who comes is found, who goes is forgotten, and nobody else is touched.
//!
//! The daemon is told to watch this project's programs only, because other Go programs may run on this machine.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leaktrace_fixtures::build::Variant;
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{address, series};
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, text, tool};

/// How soon who comes and goes has to show.
const SOON: Duration = Duration::from_secs(2);

const RELEASES: [&str; 5] = ["1.21.13", "1.22.10", "1.24.11", "1.26.6", "1.27.3"];

#[test]
fn ten_go_programs_among_others_are_found_and_forgotten() {
    let Some(executables) = releases("handler-timeout") else {
        return;
    };
    let start = |index: usize| Started::new(&executables[index % executables.len()]);
    let other = |index: usize| match index % 3 {
        0 => Other::start(Command::new("sleep").arg("600")),
        1 => Other::start(Command::new("sh").args(["-c", "read x"])),
        _ => Other::start(Command::new("tail").args(["-f", "/dev/null"])),
    };
    // Half of them are there before the daemon.
    let mut programs: Vec<Started> = (0..5).map(start).collect();
    let mut others: Vec<Other> = (0..5).map(other).collect();
    let mut daemon = Fleet::start(&[]);
    for program in &programs {
        daemon.waits_for(program);
    }
    // The others come one by one, in pairs of one that is Go and one that is not.
    for index in 5..10 {
        others.push(other(index));
        let program = start(index);
        daemon.waits_for(&program);
        programs.push(program);
    }

    let metrics = daemon.get("/metrics");
    let up = |label: &str| {
        let label = format!("target=\"{label}\"");
        series(&metrics, "leaktrace_target_up", &[&label])
    };
    // Ten processes of one name: each has a label of its own.
    assert_eq!(up("handler-timeout"), Some(1.0), "{metrics}");
    for number in 2..=10 {
        assert_eq!(up(&format!("handler-timeout#{number}")), Some(1.0));
    }
    for program in &programs {
        let row = daemon.row(program.pid());
        assert_eq!(row["status"], "traced", "{row}");
        let pid = format!("pid=\"{}\"", program.pid());
        let release = format!("go_version=\"go{}\"", program.release);
        let target = format!("target=\"{}\"", row["target"].as_str().expect("a label"));
        let info = series(
            &metrics,
            "leaktrace_target_info",
            &[&pid, &release, &target],
        );
        assert_eq!(info, Some(1.0), "{pid} {release}");
        // Two of each release: those of one file share their probes.
        assert_eq!(daemon.count(program.pid()), 30);
    }
    for other in &others {
        let row = daemon.row(other.0.id());
        assert!(
            row["status"] == "excluded" || row["status"] == "not go",
            "{row}"
        );
        assert_ne!(row["reason"], "", "{row}");
        assert_eq!(text::changed_bytes(other.0.id()), 0);
    }

    // They go in another order than they came.
    while !programs.is_empty() {
        let program = programs.remove(programs.len() / 2);
        let (pid, end) = (program.pid(), Instant::now());
        drop(program);
        let pid = format!("pid=\"{pid}\"");
        loop {
            let asked = end.elapsed();
            if !daemon.get("/metrics").contains(&pid) {
                break;
            }
            assert!(asked < SOON, "{pid} is still in the metrics");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert!(!daemon.get("/metrics").contains("target=\""));
    assert!(others.iter_mut().all(Other::is_alive));
}

#[test]
fn exec_in_place_deleted_files_and_new_releases_side_by_side() {
    let Some(executables) = releases("handler-timeout") else {
        return;
    };
    let directory = tempfile::tempdir_in(target_dir().join("fixtures")).expect("a folder");
    let place = directory.path().join("server");
    fs::copy(&executables[1].1, &place).expect("a copy");
    let arguments = ["-burst", "30", "-rate", "0"];
    let old = Program::start(&place, &arguments).expect("it starts");
    // An upgrade: another file under the same name, while the old one still runs.
    fs::remove_file(&place).expect("ours");
    fs::copy(&executables[4].1, &place).expect("a copy");
    let new = Program::start(&place, &arguments).expect("it starts");
    let mut daemon = Fleet::start(&[]);
    daemon.waits_for_pid(old.pid(), Instant::now());
    daemon.waits_for_pid(new.pid(), Instant::now());
    for (program, release) in [(&old, "go1.22.10"), (&new, "go1.27.3")] {
        let answer = daemon.target(program.pid());
        assert_eq!(answer["report"]["target"]["go_version"], release);
        let label = answer["target"].as_str().expect("a label");
        assert!(label == "server" || label == "server#2", "{label}");
    }

    // A shell that becomes a Go program: the same process, another program.
    let script = format!(
        "sleep 1; exec {} -burst 30 -rate 0",
        executables[0].1.display()
    );
    let shell = Other::start(Command::new("sh").args(["-c", &script]));
    let pid = shell.0.id();
    tool::eventually("it is a shell", SOON, || {
        daemon.row(pid)["status"] == "excluded"
    });
    tool::eventually("it is a Go program", Duration::from_secs(5), || {
        daemon.row(pid)["status"] == "traced"
    });
    assert_eq!(daemon.row(pid)["target"], "handler-timeout");
    assert_eq!(daemon.count(pid), 30);
}

#[test]
fn hundreds_of_short_lived_programs_do_not_flood_the_log() {
    let Some(executable) = needs::fixture("mixed-states", "1.27.3", Variant::DEFAULT) else {
        return;
    };
    let Some(steady) = needs::program("handler-timeout", "1.27.3", &["-burst", "30", "-rate", "0"])
    else {
        return;
    };
    let mut daemon = Fleet::start(&[]);
    daemon.waits_for_pid(steady.pid(), Instant::now());
    for _ in 0..15 {
        let batch: Vec<_> = (0..20)
            .map(|_| Other::start(Command::new(&executable).args(["-for", "20ms"])))
            .collect();
        for mut program in batch {
            program.0.wait().expect("it ends by itself");
        }
    }
    assert_eq!(daemon.count(steady.pid()), 30);
    tool::eventually("they are forgotten", SOON, || {
        let metrics = daemon.get("/metrics");
        !metrics.contains("target=\"mixed-states")
    });
    let said = daemon.stop();
    assert!(said.lines().count() < 80, "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_hostile_program_leaves_the_others_watched() {
    let Some(steady) = needs::program("handler-timeout", "1.27.3", &["-burst", "30", "-rate", "0"])
    else {
        return;
    };
    let mut daemon = Fleet::start(&[]);
    daemon.waits_for_pid(steady.pid(), Instant::now());
    let mut forgers = Vec::new();
    for forge in ["length", "pointer", "goroutines"] {
        forgers.extend(needs::program("forger", "1.22.10", &["-forge", forge]));
    }
    let refused = |row: &Value| row["status"] == "refused" || row["status"] == "traced";
    for forger in &forgers {
        let patience = Duration::from_secs(30);
        tool::eventually("it is decided upon", patience, || {
            refused(&daemon.row(forger.pid()))
        });
        assert_eq!(daemon.count(steady.pid()), 30);
    }
    let row = daemon.row(steady.pid());
    assert_eq!(
        (&row["status"], &row["up"]),
        (&"traced".into(), &true.into())
    );
}

#[test]
fn names_and_exclusions_choose() {
    let arguments = ["-burst", "30", "-rate", "0"];
    let Some(wanted) = needs::program("handler-timeout", "1.27.3", &arguments) else {
        return;
    };
    let Some(unwanted) = needs::program("mixed-states", "1.27.3", &[]) else {
        return;
    };
    let mut daemon = Fleet::start(&["--exclude-name", "mixed-*"]);
    daemon.waits_for_pid(wanted.pid(), Instant::now());
    tool::eventually("it is excluded", SOON, || {
        daemon.row(unwanted.pid())["status"] == "excluded"
    });
    let reason = daemon.row(unwanted.pid())["reason"].clone();
    assert_eq!(reason, "its name is excluded by \"mixed-*\"");
    assert_eq!(text::changed_bytes(unwanted.pid()), 0);
    for path in ["/debug/pprof/goroutine", "/debug/pprof/timer"] {
        let status = |daemon: &mut Fleet, target: &str| {
            daemon.connection.get(&format!("{path}{target}")).status
        };
        assert_eq!(status(&mut daemon, "?target=handler-timeout"), 200);
        assert_eq!(status(&mut daemon, "?target=nobody"), 404);
        assert_eq!(status(&mut daemon, ""), 400);
    }
    let leaks: Value = serde_json::from_str(&daemon.get("/api/v1/leaks")).expect("JSON");
    assert!(leaks["leaks"].is_array());
}

#[test]
fn the_configuration_is_read_again_and_a_wrong_one_refused() {
    let arguments = ["-burst", "30", "-rate", "0"];
    let Some(first) = needs::program("handler-timeout", "1.27.3", &arguments) else {
        return;
    };
    let Some(second) = needs::program("mixed-states", "1.27.3", &[]) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("leaktrace.toml");
    let watch = |name: &str, events: &str| {
        let ours = target_dir().join("fixtures");
        let text = format!(
            "interval = \"500ms\"\nevents = \"{events}\"\n[watch]\nexe = [\"{}/*/{name}\"]\n",
            ours.display()
        );
        fs::write(&file, text).expect("ours");
    };
    watch("handler-timeout", "auto");
    let mut command = tool::leaktrace();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--config"]);
    let mut daemon = Fleet::of(Tool::spawn(command.arg(&file)));
    daemon.waits_for_pid(first.pid(), Instant::now());
    assert_ne!(text::changed_bytes(first.pid()), 0);
    tool::eventually("the other is not wanted", SOON, || {
        daemon.row(second.pid())["status"] == "excluded"
    });

    fs::write(&file, "nonsense = 1").expect("ours");
    daemon.tool.signal(Signal::SIGHUP);
    loop {
        let line = daemon.tool.error_line(SOON);
        if line.contains("stays as it was") {
            assert!(line.contains("line 1: unknown field `nonsense`"), "{line}");
            break;
        }
    }
    assert_eq!(daemon.row(first.pid())["status"], "traced");

    // Without probes, and then the other one.
    watch("handler-timeout", "none");
    daemon.tool.signal(Signal::SIGHUP);
    tool::eventually("the probes are off", SOON, || {
        text::changed_bytes(first.pid()) == 0
    });
    // It is taken in anew.
    let path = format!("/api/v1/targets/{}", first.pid());
    tool::eventually("it is counted again", SOON, || {
        daemon.connection.get(&path).status == 200
    });
    assert_eq!(daemon.count(first.pid()), 30);
    watch("mixed-states", "auto");
    daemon.tool.signal(Signal::SIGHUP);
    daemon.waits_for_pid(second.pid(), Instant::now());
    assert_eq!(daemon.row(first.pid())["status"], "excluded");
}

#[test]
fn options_beat_the_environment_which_beats_the_file() {
    let arguments = ["-burst", "30", "-rate", "0"];
    let Some(program) = needs::program("handler-timeout", "1.27.3", &arguments) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("leaktrace.toml");
    let write = |last: u8, budget: &str| {
        let text =
            format!("listen = \"127.0.0.{last}:0\"\nbudget = \"{budget}\"\ninterval = \"500ms\"\n");
        fs::write(&file, text).expect("ours");
    };
    write(2, "3%");
    let pid = program.pid().to_string();
    let start = |environment: Option<&str>, option: Option<&str>| {
        let mut command = tool::leaktrace();
        command
            .args(["daemon", "--pid", &pid, "--config"])
            .arg(&file);
        command.envs(environment.map(|address| ("LEAKTRACE_LISTEN", address)));
        command.args(option.iter().flat_map(|address| ["--listen", *address]));
        Fleet::of(Tool::spawn(&mut command))
    };
    let all = start(Some("127.0.0.3:0"), Some("127.0.0.4:0"));
    assert!(all.address.starts_with("127.0.0.4:"), "{}", all.address);
    let two = start(Some("127.0.0.3:0"), None);
    assert!(two.address.starts_with("127.0.0.3:"), "{}", two.address);
    drop((all, two));

    let mut daemon = start(None, None);
    assert!(
        daemon.address.starts_with("127.0.0.2:"),
        "{}",
        daemon.address
    );
    let budget = |daemon: &mut Fleet| {
        series(
            &daemon.get("/metrics"),
            "leaktrace_budget_ratio",
            &["target="],
        )
    };
    tool::eventually("the file's budget", SOON, || {
        budget(&mut daemon) == Some(0.03)
    });
    // Another address and another budget take effect; what was connected stays.
    write(5, "2%");
    daemon.tool.signal(Signal::SIGHUP);
    let moved = address(&daemon.tool);
    assert!(moved.starts_with("127.0.0.5:"), "{moved}");
    tool::eventually("the new budget", SOON, || budget(&mut daemon) == Some(0.02));
    assert!(
        TcpStream::connect(&daemon.address).is_err(),
        "nobody listens there any more"
    );
    daemon.connection = Connection::open(&moved).expect("the daemon listens");
    assert_eq!(daemon.count(program.pid()), 30);
    // An address that cannot be had changes nothing at all.
    let line_with = |daemon: &Fleet, what: &str| loop {
        let line = daemon.tool.error_line(SOON);
        if line.contains(what) {
            break line;
        }
    };
    fs::write(&file, "listen = \"192.0.2.1:1\"\nbudget = \"4%\"\n").expect("ours");
    daemon.tool.signal(Signal::SIGHUP);
    let line = line_with(&daemon, "stays as it was");
    assert!(line.contains("cannot listen on 192.0.2.1:1"), "{line}");
    assert_eq!(budget(&mut daemon), Some(0.02));
}

#[test]
fn a_thousand_slow_clients_keep_nobody_waiting() {
    const CLIENTS: usize = 1000;
    let Some(steady) = needs::program("handler-timeout", "1.27.3", &["-burst", "30", "-rate", "0"])
    else {
        return;
    };
    let files = Resource::RLIMIT_NOFILE;
    let (_, most) = getrlimit(files).expect("a limit");
    setrlimit(files, most, most).expect("it may be used up");
    let mut daemon = Fleet::start(&[]);
    daemon.waits_for_pid(steady.pid(), Instant::now());
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = TcpStream::connect(&daemon.address).expect("the daemon listens");
        // A piece of a request, or a whole one whose answer is not read. A client that was closed may not write.
        let request = [
            "GET /metrics HTTP/1.1\r\nHost: x",
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        let _ = client.write_all(request[number % 2].as_bytes());
        clients.push(client);
    }
    for _ in 0..10 {
        let begin = Instant::now();
        let mut connection = Connection::open(&daemon.address).expect("the daemon listens");
        assert_eq!(connection.get("/metrics").status, 200);
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
    drop(clients);

    // Headers without end are cut off.
    let mut client = TcpStream::connect(&daemon.address).expect("the daemon listens");
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(64 << 10));
    let _ = client.write_all(endless.as_bytes());
    let mut answer = Vec::new();
    // Either an answer or a closed connection, but no waiting for the rest.
    let _ = client.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    daemon.connection = Connection::open(&daemon.address).expect("the daemon listens");
    assert_eq!(daemon.count(steady.pid()), 30);
}

/// A running Go program, and when it was started.
struct Started {
    program: Program,
    release: &'static str,
    at: Instant,
}

impl Started {
    fn new((release, executable): &(&'static str, PathBuf)) -> Self {
        let at = Instant::now();
        let arguments = ["-burst", "30", "-rate", "0"];
        Self {
            program: Program::start(executable, &arguments).expect("fixtures start"),
            release,
            at,
        }
    }

    fn pid(&self) -> u32 {
        self.program.pid()
    }
}

/// A process of no interest. Dropping it kills it.
struct Other(Child);

impl Other {
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(quiet.spawn().expect("it starts"))
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon that watches this project's programs.
struct Fleet {
    tool: Tool,
    address: String,
    connection: Connection,
    began: Instant,
}

impl Fleet {
    fn start(arguments: &[&str]) -> Self {
        let ours = target_dir().join("fixtures").join("*");
        let mut command = tool::leaktrace();
        command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "500ms"]);
        command.arg("--exe").arg(ours).args(arguments);
        Self::of(Tool::spawn(&mut command))
    }

    fn of(tool: Tool) -> Self {
        let address = address(&tool);
        let connection = Connection::open(&address).expect("the daemon listens");
        Self {
            tool,
            address,
            connection,
            began: Instant::now(),
        }
    }

    fn get(&mut self, path: &str) -> String {
        let answer = self.connection.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// What is said of one process; `null` when it is not known.
    fn row(&mut self, pid: u32) -> Value {
        let all: Value = serde_json::from_str(&self.get("/api/v1/targets")).expect("JSON");
        let mut rows = all["targets"].as_array().expect("a list").iter();
        rows.find(|row| row["pid"] == pid)
            .cloned()
            .unwrap_or_default()
    }

    fn target(&mut self, pid: u32) -> Value {
        serde_json::from_str(&self.get(&format!("/api/v1/targets/{pid}"))).expect("JSON")
    }

    /// The goroutines that the handler of that program leaves behind.
    fn count(&mut self, pid: u32) -> u64 {
        let answer = self.target(pid);
        let sites = answer["report"]["sites"].as_array().expect("sites");
        let site = sites
            .iter()
            .find(|site| site["kind"] == "goroutine" && site["states"].get("chan send").is_some());
        site.map_or(0, |site| site["count"].as_u64().expect("a number"))
    }

    /// A program must show soon after it or the daemon was started, whichever was later.
    fn waits_for(&mut self, program: &Started) {
        self.waits_for_pid(program.pid(), program.at);
    }

    fn waits_for_pid(&mut self, pid: u32, since: Instant) {
        let since = since.max(self.began);
        let shown = format!("pid=\"{pid}\"");
        loop {
            // What counts is when the page was asked for: this test may be kept waiting too.
            let asked = since.elapsed();
            if self.get("/metrics").contains(&shown) {
                return;
            }
            let row = self.row(pid);
            assert!(asked < SOON, "not watched in time: {row}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it, and answers with its log.
    fn stop(self) -> String {
        self.tool.signal(Signal::SIGTERM);
        let outcome = self.tool.wait(Duration::from_secs(5));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stderr
    }
}

/// A fixture built by each of five releases.
fn releases(name: &str) -> Option<Vec<(&'static str, PathBuf)>> {
    needs::root()?;
    let build = |release: &'static str| {
        let executable = needs::fixture(name, release, Variant::DEFAULT)?;
        Some((release, Path::new(&executable).to_owned()))
    };
    RELEASES.into_iter().map(build).collect()
}
