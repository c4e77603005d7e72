//! The short form of `cargo xtask accuracy`: a few leaks are found at their lines, also by who hears no event at all or
//! begins again in the middle; healthy programs are not.

use std::thread;
use std::time::Duration;

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{address, series};
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, report, tool};

/// Watches a fixture; its report.
fn watch(name: &str, arguments: &[&str]) -> Option<Value> {
    let program = needs::program(name, "1.27.3", &[])?;
    let pid = program.pid().to_string();
    let record = ["record", "--duration", "20s", "--format", "json", "--pid"];
    let typed: Vec<&str> = (record.into_iter())
        .chain([pid.as_str()])
        .chain(arguments.iter().copied())
        .collect();
    Some(tool::run(&typed, Duration::from_secs(60)).json())
}

/// What is wrong with the verdicts on a fixture.
fn mistakes(name: &str, report: &Value) -> Vec<String> {
    let lines = build::marked_lines(name, "LEAK: goroutine").unwrap_or_default();
    let mut mistakes = Vec::new();
    for line in &lines {
        let site = report::site(report, "goroutine", *line);
        if site.is_none_or(|site| site["verdict"] != "leak") {
            mistakes.push(format!("{name}: line {line} is not found: {site:?}"));
        }
    }
    for site in report::sites(report).filter(|site| site["verdict"] != "ok") {
        if !lines.iter().any(|line| site["line"] == *line) {
            mistakes.push(format!("{name}: {site}"));
        }
    }
    mistakes
}

#[test]
fn leaks_are_found_at_their_lines_and_healthy_programs_are_silent() {
    let programs: [(&str, &[&str]); 7] = [
        ("mutex-held", &[]),
        ("nil-channel", &[]),
        ("fan-out", &[]),
        // With no events at all, the census still answers.
        ("handler-timeout", &["--events", "none"]),
        ("pool-warm-up", &[]),
        ("fan-out-healthy", &[]),
        ("thousand-tickers", &[]),
    ];
    // Side by side, for each is to be watched for a while.
    let found: Vec<Vec<String>> = thread::scope(|scope| {
        let watches: Vec<_> = (programs.iter())
            .map(|(name, arguments)| {
                scope.spawn(|| {
                    let report = watch(name, arguments);
                    report.map_or_else(Vec::new, |report| mistakes(name, &report))
                })
            })
            .collect();
        (watches.into_iter())
            .map(|watch| watch.join().expect("a watch ends with a report"))
            .collect()
    });
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_daemon_that_begins_again_says_the_same() {
    let Some(program) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let line = build::marked_line("handler-timeout", "LEAK: goroutine").expect("it is marked");
    let place = format!("main.go:{line}\"");
    let pid = program.pid().to_string();
    for time in ["first", "second"] {
        let arguments = [
            "daemon",
            "--listen",
            "127.0.0.1:0",
            "--interval",
            "1s",
            "--pid",
        ];
        let daemon = Tool::spawn(tool::leaktrace().args(arguments).arg(&pid));
        let mut connection = Connection::open(&address(&daemon)).expect("the daemon listens");
        tool::eventually(
            &format!("the {time} daemon calls it a leak"),
            Duration::from_secs(40),
            || {
                let metrics = connection.get("/metrics").body;
                series(&metrics, "leaktrace_leak", &[&place, "stuck-and-growing"]) == Some(1.0)
            },
        );
        // It is killed in the middle.
        daemon.signal(Signal::SIGKILL);
    }
}
