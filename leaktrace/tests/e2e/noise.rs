//! Programs with very many timers that are nobody's leak: the user's lines are right, and the noise is not in the list.

use std::time::{Duration, Instant};

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{address, series};
use crate::http::Connection;
use crate::tool::{Tool, UNBOUNDED};
use crate::{needs, report, text, tool};

/// Records a program for a while, from before the line "begin" if it waits for that.
fn watch(fixture: &str, go: &str, arguments: &[&str], seconds: u64) -> Option<Value> {
    let program = needs::program(fixture, go, arguments)?;
    let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
    let mut tool = Tool::record_with(program.pid(), output.path(), &UNBOUNDED);
    text::wait_for_probes(program.pid(), &mut tool);
    std::thread::sleep(Duration::from_secs(seconds));
    tool.signal(Signal::SIGINT);
    let outcome = tool.wait(Duration::from_secs(30));
    assert_eq!(
        outcome.code,
        Some(0),
        "{fixture} with go {go}: {}",
        outcome.stderr
    );
    let text = std::fs::read(output.path()).expect("the report is there");
    Some(serde_json::from_slice(&text).expect("the report is JSON"))
}

fn line(fixture: &str, mark: &str) -> u32 {
    build::marked_line(fixture, mark).expect("the line is marked")
}

/// Pending timers that are the user's: of lines in main.go.
fn users(found: &Value) -> Vec<(u64, u64)> {
    let sites = report::sites(found).filter(|site| site["kind"] == "timer");
    let users = sites.filter(|site| {
        site["file"]
            .as_str()
            .is_some_and(|file| file.ends_with("/main.go"))
    });
    users
        .map(|site| {
            (
                report::number(&site["line"]),
                report::number(&site["count"]),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[test]
fn sleeps_are_no_timers_of_any_line() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(found) = watch("sleepers", go, &["-count", "5000"], 3) else {
            return;
        };
        let sleeping = found["timers"]["by_kind"]["sleep"].as_u64().unwrap_or(0);
        assert!(sleeping > 0, "go {go}: {}", found["timers"]);
        let oldest = found["timers"]["oldest"].as_array();
        assert_eq!(
            oldest.map(Vec::len),
            Some(1),
            "go {go}: only the ticker is in the list"
        );
        // The ticker is older than the probes, so it has no line; nothing else has one.
        assert_eq!(users(&found), [], "go {go}");
        assert_eq!(found["timers"]["by_kind"]["ticker"], 1, "go {go}");
        let site =
            report::site(&found, "goroutine", line("sleepers", "healthy")).expect("they are alive");
        assert_eq!(site["count"], 5000, "go {go}");
    }
}

#[test]
fn deadlines_of_connections_are_not_the_users_timers() {
    let count = if needs::descriptors() > 10_100 {
        10_000
    } else {
        400
    };
    for go in ["1.22.10", "1.27.3"] {
        let Some(found) = watch("deadlines", go, &["-count", &count.to_string()], 3) else {
            return;
        };
        let deadlines = found["timers"]["by_kind"]["deadline"].as_u64().unwrap_or(0);
        assert!(deadlines >= count, "go {go}: {}", found["timers"]);
        assert_eq!(found["timers"]["by_kind"]["afterfunc"], count, "go {go}");
        let serve = report::site(&found, "goroutine", line("deadlines", "healthy: serve"));
        assert_eq!(serve.expect("they are alive")["count"], count, "go {go}");
        // Deadlines are armed thousands of times a second, and none of it is heard.
        for kind in ["armed", "rearmed", "stopped"] {
            assert_eq!(
                found["events"]["hits"][kind].as_u64().unwrap_or(0),
                0,
                "go {go}"
            );
        }
    }
}

#[test]
fn contexts_that_end_are_counted_at_their_lines_and_do_not_stay() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(found) = watch("contexts", go, &["-rate", "2000"], 4) else {
            return;
        };
        let site =
            report::site(&found, "timer", line("contexts", "request")).expect("they were armed");
        let total = |name: &str| report::number(&site[name]);
        assert_eq!(site["timer_kind"], "deadline");
        assert!(total("created_total") > 2000, "go {go}: {site}");
        let (stopped, fired) = (total("stopped_total"), total("fired_total"));
        assert!(fired > 0 && stopped > 5 * fired, "go {go}: {site}");
        // Alive, or between two events of the last moment.
        let open = total("created_total") - stopped - fired;
        assert!(open.abs_diff(total("count")) <= 50, "go {go}: {site}");
        // A context's child whose parent ends sooner has no timer of its own.
        assert_eq!(
            report::site(&found, "timer", line("contexts", "query")),
            None,
            "go {go}"
        );
        // What the timers that fired have started belongs to the same line.
        let started = report::site(&found, "goroutine", line("contexts", "request"))
            .unwrap_or_else(|| panic!("go {go}: {}", found["sites"]));
        assert_eq!(
            started["started_by_timer"], "deadline",
            "go {go}: {started}"
        );
        assert!(
            report::number(&started["created_total"]).abs_diff(fired) <= 5,
            "go {go}: {started}"
        );
        assert_eq!(found["events"]["lost"], 0, "go {go}");
    }
}

/// At default settings, five programs at once. Deadlines cost nothing; sleeps cost when they end, for the probe of timers that
/// fire is hit. What is heard costs no more than the budget, or is heard less, for a reason that is told. What is alive
/// is counted right either way.
#[test]
fn noise_stays_within_the_budget() {
    let connections = if needs::descriptors() > 10_100 {
        10_000
    } else {
        400
    };
    let count = connections.to_string();
    let mut programs = Vec::new();
    for (fixture, go, arguments, quiet) in [
        ("sleepers", "1.22.10", ["-count", "5000"], false),
        ("sleepers", "1.27.3", ["-count", "100"], true),
        ("deadlines", "1.27.3", ["-count", &count], true),
        ("contexts", "1.27.3", ["-rate", "200"], true),
        ("contexts", "1.22.10", ["-rate", "20000"], false),
    ] {
        let Some(program) = needs::program(fixture, go, &arguments) else {
            return;
        };
        programs.push((format!("{fixture} with go {go}"), program, quiet));
    }
    let mut command = tool::leaktrace();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "1s"]);
    for (_, program, _) in &programs {
        command.args(["--pid", &program.pid().to_string()]);
    }
    let daemon = Tool::spawn(&mut command);
    let mut connection = Connection::open(&address(&daemon)).expect("the daemon listens");
    let mut ask = |path: &str| {
        let answer = connection.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    };
    let begin = Instant::now();
    let mut worst = vec![0.0_f64; programs.len()];
    while begin.elapsed() < Duration::from_secs(8) {
        std::thread::sleep(Duration::from_millis(500));
        let metrics = ask("/metrics");
        for ((name, program, quiet), worst) in programs.iter().zip(&mut worst) {
            let pid = format!("pid=\"{}\"", program.pid());
            let info = (metrics.lines())
                .find(|line| line.starts_with("leaktrace_target_info") && line.contains(&pid));
            let target = info
                .and_then(|line| line.split("target=\"").nth(1)?.split('"').next())
                .unwrap_or_else(|| panic!("{name} has no target in\n{metrics}"));
            let target = format!("target=\"{target}\"");
            let value = |name: &str| series(&metrics, name, &[&target]);
            let overhead = value("leaktrace_overhead_ratio").expect("it is exported");
            let budget = value("leaktrace_budget_ratio").expect("it is exported");
            let level = value("leaktrace_events_level").expect("it is exported");
            *worst = worst.max(overhead);
            assert!(budget <= 0.01, "{name}: {budget}");
            if *quiet {
                assert!(
                    overhead <= budget && level > 1.0,
                    "{name}: {overhead}, {level}"
                );
            } else {
                assert!(
                    overhead <= budget || level <= 1.0,
                    "{name}: {overhead}, {level}"
                );
            }
        }
    }
    println!("lost of a core, at most: {worst:?}");
    let mut report_of = |pid: u32| {
        let answer: Value = serde_json::from_str(&ask(&format!("/api/v1/targets/{pid}")))
            .expect("the answer is JSON");
        answer["report"].clone()
    };
    for (name, program, quiet) in &programs {
        let found = &report_of(program.pid());
        let events = &found["events"];
        assert_eq!(found["goroutines"]["drift"], 0, "{name}: {events}");
        let alive = |fixture, mark| {
            let site = report::site(found, "goroutine", line(fixture, mark));
            site.map_or(0, |site| report::number(&site["count"]))
        };
        if name.starts_with("sleepers") {
            let sleepers = if *quiet { 100 } else { 5000 };
            assert_eq!(alive("sleepers", "healthy"), sleepers, "{name}");
        } else if name.starts_with("deadlines") {
            assert_eq!(alive("deadlines", "healthy: serve"), connections, "{name}");
            // A timer that is sifted in its heap by a thread which the kernel put aside just then is in no place of it: it is
            // counted again with the next census, and none is ever counted twice.
            let mut sessions = 0;
            tool::eventually("each has its session", Duration::from_secs(5), || {
                let found = report_of(program.pid());
                sessions = report::number(&found["timers"]["by_kind"]["afterfunc"]);
                sessions >= connections
            });
            assert_eq!(sessions, connections, "{name}");
        }
        let verdicts = report::sites(found).filter(|site| site["verdict"] != "ok");
        assert_eq!(verdicts.count(), 0, "{name}: {}", found["sites"]);
        let changes = &events["changes"]["latest"];
        if *quiet {
            assert_eq!(changes, &serde_json::json!([]), "{name}");
        } else {
            let reason = changes[0]["reason"].as_str().unwrap_or_default();
            assert!(!reason.is_empty(), "{name}: {events}");
            let cost = events["overhead_measured"].as_f64().expect("a number");
            // What it may save up besides, and what it takes until the probes are off.
            assert!(cost < 0.03, "{name}: {events}");
        }
    }
}

/// The storm is more than the budget allows, so a part of it is not heard, and of that the addresses of timers which were
/// heard are used again, by another line that calls the same function.
#[test]
fn a_timer_at_a_used_address_is_not_taken_for_the_one_before() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(mut program) = needs::program("timer-million", go, &["-count", "250000"]) else {
            return;
        };
        let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
        let mut tool = Tool::record_with(program.pid(), output.path(), &["--duration", "1h"]);
        text::wait_for_probes(program.pid(), &mut tool);
        for _ in 0..5 {
            program.ask("go").expect("a storm ends in time");
            // Sampled now and then.
            std::thread::sleep(Duration::from_millis(700));
        }
        tool.signal(Signal::SIGINT);
        let outcome = tool.wait(Duration::from_secs(30));
        assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
        let text = std::fs::read(output.path()).expect("the report is there");
        let found: Value = serde_json::from_slice(&text).expect("the report is JSON");
        let falls = report::number(&found["events"]["changes"]["falls"]);
        assert!(falls > 0, "go {go}: {}", found["events"]);
        let pending = |mark| {
            let site = report::site(&found, "timer", line("timer-million", mark));
            site.map_or(0, |site| report::number(&site["count"]))
        };
        assert_eq!(pending("churn"), 0, "go {go}: {}", found["sites"]);
        let kept = pending("kept");
        let unknown: u64 = report::sites(&found)
            .filter(|site| site["timer_kind"] == "afterfunc" && site["attributed"] == false)
            .map(|site| report::number(&site["count"]))
            .sum();
        println!(
            "go {go}: {kept} at their line, {unknown} unknown; unproven {}",
            found["timers"]["unproven"]
        );
        assert_eq!(kept + unknown, 5 * 250, "go {go}: {}", found["sites"]);
        assert!(
            kept > 0,
            "go {go}: what was heard is known: {}",
            found["sites"]
        );
    }
}

/// Resident bytes of a process.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the process lives");
    let pages: u64 = (text.split(' ').nth(1))
        .and_then(|pages| pages.parse().ok())
        .expect("statm has numbers");
    pages * 4096
}

/// `cargo xtask churn` does the same with ten million.
#[test]
fn a_million_timers_armed_and_stopped_leave_nothing_behind() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(mut program) = needs::program("timer-million", go, &["-count", "250000"]) else {
            return;
        };
        let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
        let mut tool = Tool::record_with(program.pid(), output.path(), &UNBOUNDED);
        text::wait_for_probes(program.pid(), &mut tool);
        program.ask("go").expect("a storm ends in time");
        let warm = resident(tool.pid());
        for _ in 0..3 {
            program.ask("go").expect("a storm ends in time");
        }
        let grown = resident(tool.pid()).saturating_sub(warm);
        assert!(grown < 16 << 20, "go {go}: {grown} bytes more than {warm}");
        tool.signal(Signal::SIGINT);
        let outcome = tool.wait(Duration::from_secs(30));
        assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
        let text = std::fs::read(output.path()).expect("the report is there");
        let found: Value = serde_json::from_slice(&text).expect("the report is JSON");
        let kept =
            report::site(&found, "timer", line("timer-million", "kept")).expect("some are kept");
        assert_eq!(found["timers"]["by_kind"]["afterfunc"], 1000, "go {go}");
        let churn =
            report::site(&found, "timer", line("timer-million", "churn")).expect("many were armed");
        assert_eq!(churn["count"], 0, "go {go}: {churn}");
        assert_eq!(found["goroutines"]["drift"], 0, "go {go}");
        // On a busy machine the ring may overflow: those that were not heard are pending all the same.
        if found["events"]["lost"] == 0 {
            assert_eq!(kept["count"], 1000, "go {go}: {kept}");
            for total in ["created_total", "stopped_total"] {
                assert_eq!(churn[total], 1_000_000, "go {go}: {churn}");
            }
        }
    }
}
