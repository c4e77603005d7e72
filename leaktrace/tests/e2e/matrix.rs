//! Every Go release in every kind of binary: probes on and off without a trace, every goroutine counted at its line,
//! and a snapshot that says what the program says, also of one that is stopped.
//!
//! One test, because it ends in one table; `cargo xtask test` prints it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use std::{env, fs, thread};

use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::toolchain::{PINNED, Toolchain};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::tool::{Tool, UNBOUNDED};
use crate::{needs, report, text, tool};

/// The columns.
const KINDS: [Variant; 6] = [
    Variant::DEFAULT,
    Variant::STRIPPED,
    Variant {
        pie: true,
        ..Variant::DEFAULT
    },
    Variant {
        external: true,
        ..Variant::DEFAULT
    },
    Variant {
        pie: true,
        ..Variant::STRIPPED
    },
    Variant {
        static_pie: true,
        ..Variant::STRIPPED
    },
];

/// Goroutines that end, and that stay, in each cell.
const ENDED: u64 = 20_000;
const LEFT: u64 = 200;

/// Cells that are tried at one time.
const WORKERS: usize = 2;

/// One cell: a release and a kind of binary, and the programs for it.
struct Cell {
    release: String,
    kind: Variant,
    built: Result<[PathBuf; 2], String>,
}

#[test]
fn every_release_and_every_kind_of_binary() {
    let Some(()) = needs::root() else { return };
    let compiler = needs::gcc().is_some();
    let toolchains: Vec<Toolchain> = Toolchain::debian()
        .into_iter()
        .chain(
            PINNED
                .iter()
                .rev()
                .filter_map(|release| Toolchain::find(release.version)),
        )
        .collect();
    let releases: Vec<String> = toolchains
        .iter()
        .map(|go| go.version().to_owned())
        .collect();
    for release in PINNED
        .iter()
        .filter(|release| !releases.iter().any(|have| have == release.version))
    {
        needs::skip::<()>(&format!(
            "needs go {0}: cargo xtask go {0}",
            release.version
        ));
    }

    // One thread builds, release by release; the others try what is built.
    let (sender, cells) = mpsc::sync_channel(4);
    let cells = Mutex::new(cells);
    let results = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        scope.spawn(move || {
            for go in &toolchains {
                for kind in KINDS {
                    let cell = Cell {
                        release: go.version().to_owned(),
                        kind,
                        built: build_cell(go, kind, compiler),
                    };
                    if sender.send(cell).is_err() {
                        return;
                    }
                }
            }
        });
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = cells.lock().expect("no worker panics with the lock").recv();
                    let Ok(cell) = next else { return };
                    let found = verdict(&cell);
                    let mut results = results.lock().expect("no worker panics with the lock");
                    results.insert((cell.release, cell.kind.name()), found);
                }
            });
        }
    });
    let results = results
        .into_inner()
        .expect("no worker panics with the lock");
    let table = table(&releases, &results);
    println!("{table}");
    if let Some(path) = env::var_os("LEAKTRACE_MATRIX") {
        fs::write(path, &table).expect("LEAKTRACE_MATRIX can be written");
    }
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, found)| matches!(found, Found::Failed(_)))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// What became of a cell.
#[derive(Debug)]
enum Found {
    Traced,
    /// There is no such program here, for this reason.
    NotBuilt(String),
    Failed(String),
}

/// The two programs of a cell, or why there are none.
fn build_cell(go: &Toolchain, kind: Variant, compiler: bool) -> Result<[PathBuf; 2], String> {
    if (kind.external || kind.static_pie) && !compiler {
        return Err("no gcc".to_owned());
    }
    let build = |name| build::build(name, go, kind).map_err(|error| format!("{error:#}"));
    Ok([build("spawn-million")?, build("mixed-states")?])
}

fn verdict(cell: &Cell) -> Found {
    let [spawn, mixed] = match &cell.built {
        Ok(programs) => programs,
        Err(reason) if reason == "no gcc" => return Found::NotBuilt(reason.clone()),
        Err(reason) => return Found::Failed(reason.clone()),
    };
    if cell.kind.static_pie
        && let Err(error) = Program::start(spawn, &[])
    {
        // Old releases do not make working ones with every C library; nobody can trace what does not run.
        return Found::NotBuilt(format!("it does not run by itself: {error:#}"));
    }
    // A failure must not keep the other cells from being tried.
    let tried = catch_unwind(AssertUnwindSafe(|| {
        every_goroutine_is_counted(spawn);
        a_snapshot_is_the_truth(mixed);
    }));
    match tried {
        Ok(()) => Found::Traced,
        Err(panic) => Found::Failed(said(panic.as_ref())),
    }
}

/// The words of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

fn every_goroutine_is_counted(executable: &Path) {
    let (count, blocked) = (ENDED.to_string(), LEFT.to_string());
    let mut program = Program::start(executable, &["-count", &count, "-blocked", &blocked])
        .expect("fixtures start");
    let file = tempfile::NamedTempFile::new().expect("temporary files can be made");
    let mut tool = Tool::record_with(program.pid(), file.path(), &UNBOUNDED);
    text::wait_for_probes(program.pid(), &mut tool);
    let done = program.ask("go").expect("the goroutines end in time");
    assert_eq!(done["blocked"], LEFT);
    tool.signal(Signal::SIGINT);
    let outcome = tool.wait(Duration::from_secs(20));
    assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
    let found = fs::read(file.path()).expect("the report is there");
    let found: Value = serde_json::from_slice(&found).expect("the report is JSON");

    assert_eq!(found["events"]["lost"], 0, "{}", found["events"]);
    for (marker, live, born, ended) in [
        ("LEAK: goroutine", LEFT, LEFT, 0),
        ("healthy", 0, ENDED, ENDED),
    ] {
        let line = build::marked_line("spawn-million", marker).expect("the line is marked");
        let site = report::site(&found, "goroutine", line);
        let site = site.unwrap_or_else(|| panic!("line {line} is in the report"));
        let counts =
            ["count", "created_total", "ended_total"].map(|key| report::number(&site[key]));
        assert_eq!(counts, [live, born, ended], "{marker}");
    }
    assert_eq!(text::changed_bytes(program.pid()), 0, "a probe was left");
    assert!(program.is_alive());
}

/// Starts mixed-states and compares, while it runs and while it is stopped.
pub fn a_snapshot_is_the_truth(executable: &Path) {
    let mut program = Program::start(executable, &[]).expect("fixtures start");
    let truth = program.ask("truth").expect("fixtures answer");
    let pid = program.pid();
    compare(pid, &truth, "running");
    let process = Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"));
    kill(process, Signal::SIGSTOP).expect("it is ours");
    tool::eventually("it has stopped", Duration::from_secs(10), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        stat.contains(") T ")
    });
    compare(pid, &truth, "stopped");
    kill(process, Signal::SIGCONT).expect("it is ours");
    assert_eq!(program.ask("truth").expect("it goes on"), truth);
}

fn compare(pid: u32, truth: &Value, when: &str) {
    let found = tool::json(&["snapshot", "--pid", &pid.to_string()]);
    assert_eq!(report::states(&found), report::truth(truth), "{when}");
    assert_eq!(found["goroutines"]["total"], truth["goroutines"], "{when}");
}

/// Releases down, kinds of binary across; reasons below.
fn table(releases: &[String], results: &BTreeMap<(String, String), Found>) -> String {
    let mut out = format!("{:<9}", "go");
    let mut notes = String::new();
    // Writing to a String does not fail.
    for kind in KINDS {
        let _ = write!(out, "{:<21}", kind.name());
    }
    for release in releases {
        let _ = write!(out, "\n{release:<9}");
        for kind in KINDS {
            let cell = match results.get(&(release.clone(), kind.name())) {
                Some(Found::Traced) => "traced",
                Some(Found::NotBuilt(reason)) => {
                    let _ = writeln!(notes, "{release} {}: no program: {reason}", kind.name());
                    "no program"
                }
                Some(Found::Failed(reason)) => {
                    let _ = writeln!(notes, "{release} {}: {reason}", kind.name());
                    "FAILED"
                }
                None => "not tried",
            };
            let _ = write!(out, "{cell:<21}");
        }
    }
    let lines: Vec<_> = out.lines().map(str::trim_end).collect();
    format!("{}\n{notes}", lines.join("\n"))
}

/// A foreign program, killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn esbuild_of_go_1_18() {
    esbuild("esbuild-linux-64", "0.14.30", "go1.18");
}

#[test]
fn esbuild_of_go_1_20() {
    esbuild("@esbuild/linux-x64", "0.17.10", "go1.20");
}

#[test]
fn esbuild_of_go_1_26_without_build_information() {
    esbuild("@esbuild/linux-x64", "0.28.2", "go1.26.5");
}

#[test]
fn esbuild_of_go_1_17_is_refused() {
    let Some(executable) = needs::esbuild("esbuild-linux-64", "0.13.15") else {
        return;
    };
    let path = executable.to_str().expect("our paths are UTF-8");
    let outcome = tool::run(&["inspect", path], Duration::from_secs(10));
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("go1.17.2, which is too old"),
        "{}",
        outcome.stderr
    );
}

/// A stripped server of a release without a toolchain: probes on, snapshot, probes off; and the snapshot against
/// what the runtime prints of its goroutines when it is told to quit.
fn esbuild(package: &str, version: &str, go: &str) {
    let (Some(()), Some(executable)) = (needs::root(), needs::esbuild(package, version)) else {
        return;
    };
    // It serves as long as its standard input is open, and says where.
    let child = Command::new(executable)
        .args(["--serve=127.0.0.1:0", "--log-level=info"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut server = Server(child.expect("esbuild starts"));
    let mut stderr = server.0.stderr.take().expect("stderr is piped");
    let pid = server.0.id();
    let mut first = [0; 1];
    stderr
        .read_exact(&mut first)
        .expect("esbuild says where it serves");

    let file = tempfile::NamedTempFile::new().expect("temporary files can be made");
    let mut tool = Tool::record(pid, file.path());
    assert!(text::wait_for_probes(pid, &mut tool) >= 2);
    tool.signal(Signal::SIGINT);
    let outcome = tool.wait(Duration::from_secs(20));
    assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
    assert_eq!(text::changed_bytes(pid), 0, "a probe was left");
    let found = tool::json(&["snapshot", "--pid", &pid.to_string()]);
    assert_eq!(found["target"]["go_version"], go);

    kill(
        Pid::from_raw(i32::try_from(pid).expect("a pid is an i32")),
        Signal::SIGQUIT,
    )
    .expect("it is ours");
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("Go prints UTF-8");
    let ended = server.0.wait().expect("it ends");
    assert!(
        ended.code() == Some(2) || ended.signal().is_some(),
        "{ended}"
    );
    // Number 0 is the thread's own stack, no goroutine.
    let printed = said
        .lines()
        .filter(|line| {
            line.starts_with("goroutine ")
                && line.ends_with("]:")
                && !line.starts_with("goroutine 0 ")
        })
        .count();
    // The runtime's own are printed too, unless a signal handler of the program's own is in between.
    let total = report::number(&found["goroutines"]["total"]);
    let system = report::number(&found["goroutines"]["system"]);
    let printed = u64::try_from(printed).expect("a count");
    assert!(
        printed == total || printed == total + system,
        "{total} and {system} are not {printed}: {said}"
    );
}
