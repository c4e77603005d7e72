//! The short form of `cargo xtask accuracy`: a few leaks are found at their lines, also by who hears no event at all or
//! begins again in the middle; healthy programs are not.

use std::thread;
use std::time::Duration;

use leaktrace_fixtures::build;
use leaktrace_fixtures::program::Program;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{address, series};
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, report, text, tool};

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

/// A burst that is over before the watch begins, and no growth: only the program's pointers tell.
const BURST: [&str; 6] = ["-rate", "0", "-burst", "20", "-held", "1000"];

#[test]
fn a_daemon_that_begins_again_says_the_same() {
    let Some(growing) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let burst = needs::program("range-no-close", "1.27.3", &BURST).expect("it was there before");
    // Workers that rest look the same, but for who could wake them.
    let pool = ["-warm", "1s", "-workers", "50", "-rate", "1"];
    let pool = needs::program("pool-warm-up", "1.27.3", &pool).expect("it was there before");
    let rules = rules("[rules.stalled]\nseconds = 4\n");
    let place = |name| {
        let line = build::marked_line(name, "LEAK: goroutine").expect("it is marked");
        format!("{name}/main.go:{line}\"")
    };
    let (growing_at, burst_at) = (place("handler-timeout"), place("range-no-close"));
    for time in ["first", "second"] {
        let mut command = tool::leaktrace();
        command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "1s"]);
        command.arg("--config").arg(rules.path());
        for program in [&growing, &burst, &pool] {
            command.args(["--pid", &program.pid().to_string()]);
        }
        let daemon = Tool::spawn(&mut command);
        let address = address(&daemon);
        let mut metrics = String::new();
        tool::eventually(
            &format!("the {time} daemon calls them leaks"),
            // Pointers are followed twice, and after the first time they rest a hundred times as long as that took.
            Duration::from_secs(180),
            || {
                metrics = scrape(&address);
                let leak = |labels: &[&str]| series(&metrics, "leaktrace_leak", labels);
                // Which rule says it first depends on how often this machine can count.
                leak(&[&growing_at]) == Some(1.0)
                    && leak(&[&burst_at, "certain-block"]) == Some(1.0)
            },
        );
        assert_eq!(
            series(&metrics, "leaktrace_leak", &["pool-warm-up"]).unwrap_or(0.0),
            0.0,
            "{metrics}"
        );
        // It is killed in the middle.
        daemon.signal(Signal::SIGKILL);
    }
}

#[test]
fn a_ring_that_overflows_changes_no_verdict() {
    let Some(growing) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let storm = ["-count", "300000", "-blocked", "0"];
    let mut storm = needs::program("spawn-million", "1.27.3", &storm).expect("it was there before");
    let healthy = needs::program("fan-out-healthy", "1.27.3", &[]).expect("it was there before");
    let mut command = tool::leaktrace();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "1s"]);
    command.args(["--budget", "off", "--host-budget", "off"]);
    for program in [&growing, &storm, &healthy] {
        command.args(["--pid", &program.pid().to_string()]);
    }
    let mut daemon = Tool::spawn(&mut command);
    let address = address(&daemon);
    text::wait_for_probes(storm.pid(), &mut daemon);
    text::wait_for_probes(growing.pid(), &mut daemon);
    // Nobody empties the ring, which holds 131,072 records, while 600,000 and those of the leak come.
    daemon.signal(Signal::SIGSTOP);
    let done = storm.ask("go").expect("fixtures answer");
    assert_eq!(done["done"], true);
    daemon.signal(Signal::SIGCONT);
    let line = build::marked_line("handler-timeout", "LEAK: goroutine").expect("it is marked");
    let place = format!("handler-timeout/main.go:{line}\"");
    let mut metrics = String::new();
    tool::eventually("it is called a leak", Duration::from_secs(180), || {
        metrics = scrape(&address);
        series(&metrics, "leaktrace_leak", &[&place]) == Some(1.0)
    });
    let own = ["handler-timeout", "ring full"];
    assert!(series(&metrics, "leaktrace_events_lost_total", &own) > Some(0.0));
    let lost = series(
        &metrics,
        "leaktrace_events_lost_total",
        &["spawn-million", "ring full"],
    );
    assert!(lost.is_some_and(|lost| lost > 100_000.0), "{lost:?}");
    for other in ["spawn-million", "fan-out-healthy"] {
        let leak = series(&metrics, "leaktrace_leak", &[other]);
        assert_eq!(leak.unwrap_or(0.0), 0.0, "{other}: {metrics}");
    }
}

#[test]
fn one_goroutine_alone_is_suspect_by_age_and_a_leak_where_memory_proves_it() {
    let one = ["-rate", "0", "-burst", "1"];
    let Some(stuck) = needs::program("handler-timeout", "1.27.3", &one) else {
        return;
    };
    let hold = ["-hold", "-rate", "0", "-burst", "1"];
    let mut nil = needs::program("nil-channel", "1.27.3", &hold).expect("it was there before");
    // The program is some seconds old.
    let rules = rules(
        "[rules.old-outlier]\nalone-seconds = 5\n[rules.certain-block]\nstart-up-seconds = 0\n",
    );
    let record = |pid: u32| {
        let mut command = tool::leaktrace();
        command.args(["record", "--duration", "12s", "--format", "json", "--pid"]);
        command
            .arg(pid.to_string())
            .arg("--config")
            .arg(rules.path());
        Tool::spawn(&mut command)
    };
    let (of_stuck, mut of_nil) = (record(stuck.pid()), record(nil.pid()));
    text::wait_for_probes(nil.pid(), &mut of_nil);
    nil.ask("begin").expect("fixtures answer");
    for (name, tool, verdict, rule, code) in [
        ("handler-timeout", of_stuck, "suspect", "old-outlier", 0),
        ("nil-channel", of_nil, "leak", "certain-block", 1),
    ] {
        let outcome = tool.wait(Duration::from_secs(40));
        let found = outcome.json();
        let lines = build::marked_lines(name, "LEAK: goroutine").expect("they are marked");
        let site = (lines.iter())
            .filter_map(|line| report::site(&found, "goroutine", *line))
            .find(|site| site["verdict"] == verdict);
        let site = site.unwrap_or_else(|| panic!("{name}: {}", found["sites"]));
        assert_eq!(
            (&site["rule"], &site["count"]),
            (&rule.into(), &1.into()),
            "{site}"
        );
        assert_eq!(outcome.code, Some(code), "{name}");
    }
}

#[test]
fn a_program_is_asked_about_its_leaks_only_when_that_is_allowed() {
    let burst = ["-rate", "0", "-burst", "60"];
    let Some(one) = needs::program("tells-leaks", "1.27.3", &burst) else {
        return;
    };
    let other = needs::program("tells-leaks", "1.27.3", &burst).expect("it was there before");
    let line = build::marked_line("tells-leaks", "LEAK: goroutine").expect("it is marked");
    let rules = rules("[rules.stalled]\nseconds = 4\n");
    let record = |program: &Program, confirm: bool| {
        let mut command = tool::leaktrace();
        command.args(["record", "--duration", "14s", "--format", "json", "--pid"]);
        command.arg(program.pid().to_string());
        command.arg("--config").arg(rules.path());
        command.args(confirm.then_some("--confirm"));
        (Tool::spawn(&mut command), confirm)
    };
    for (tool, confirm) in [record(&one, true), record(&other, false)] {
        let found = tool.wait(Duration::from_secs(60)).json();
        let site = report::site(&found, "goroutine", line).expect("it is found");
        assert_eq!(site["verdict"], "leak", "{site}");
        let confirmed = site["confirmed"].as_u64();
        assert_eq!(confirmed.is_some_and(|count| count > 50), confirm, "{site}");
    }
}

/// What a scraper is told that connects for it.
fn scrape(address: &str) -> String {
    let mut connection = Connection::open(address).expect("the daemon listens");
    connection.get("/metrics").body
}

/// A configuration file.
fn rules(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("temporary files can be made");
    std::fs::write(file.path(), text).expect("they can be written");
    file
}
