//! `record` counts every goroutine, judges, and ends when told to.

use std::fs;
use std::time::Duration;

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::tool::Tool;
use crate::{needs, report, text, tool};

#[test]
fn of_a_million_goroutines_the_thousand_that_stay_are_left_go_1_22() {
    spawn_million("1.22.10");
}

#[test]
fn of_a_million_goroutines_the_thousand_that_stay_are_left_go_1_27() {
    spawn_million("1.27.3");
}

fn spawn_million(go: &str) {
    let Some(mut program) = needs::program("spawn-million", go, &[]) else {
        return;
    };
    let (mut tool, file) = record(program.pid());
    text::wait_for_probes(program.pid(), &mut tool);
    let done = program.ask("go").expect("a million goroutines end in time");
    assert_eq!(done["blocked"], 1000);
    tool.signal(Signal::SIGINT);
    let found = finished(tool, &file);

    let line = build::marked_line("spawn-million", "LEAK: goroutine").expect("the line is marked");
    let site = report::site(&found, "goroutine", line).expect("the line is in the report");
    assert_eq!(site["count"], 1000);
    if report::number(&found["events"]["lost"]) == 0 {
        let difference =
            report::number(&site["created_total"]) - report::number(&site["ended_total"]);
        assert_eq!(difference, 1000, "{site}");
        let line = build::marked_line("spawn-million", "healthy").expect("the line is marked");
        let site =
            report::site(&found, "goroutine", line).expect("what came and went is in the report");
        assert_eq!(
            (&site["count"], &site["created_total"], &site["ended_total"]),
            (
                &Value::from(0),
                &Value::from(1_000_000),
                &Value::from(1_000_000)
            )
        );
    }
}

#[test]
fn an_interrupted_record_reports_what_it_saw_and_detaches() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let Some(mut program) =
            needs::program("handler-timeout", "1.27.3", &["-burst", "50", "-rate", "0"])
        else {
            return;
        };
        let line =
            build::marked_line("handler-timeout", "LEAK: goroutine").expect("the line is marked");
        tool::eventually(
            "50 handlers have timed out",
            Duration::from_secs(10),
            || {
                program.ask("truth").expect("fixtures answer")["states"][format!("main.go:{line}")]
                    ["chan send"]
                    == 50
            },
        );
        let (mut tool, file) = record(program.pid());
        text::wait_for_probes(program.pid(), &mut tool);
        tool.signal(signal);
        let found = finished(tool, &file);
        let site = report::site(&found, "goroutine", line).expect("the line is in the report");
        assert_eq!(site["count"], 50);
        assert_eq!(site["states"]["chan send"], 50);
        assert_eq!(
            text::changed_bytes(program.pid()),
            0,
            "{signal} leaves no probe"
        );
        assert!(program.is_alive());
    }
}

#[test]
fn a_handler_that_leaves_its_workers_behind_is_a_leak() {
    let found = watch("handler-timeout", "1.27.3");
    let Some((code, found)) = found else { return };
    let line =
        build::marked_line("handler-timeout", "LEAK: goroutine").expect("the line is marked");
    let site = report::site(&found, "goroutine", line).expect("the line is in the report");
    assert_eq!(site["verdict"], "leak", "{site}");
    assert!(site["states"]["chan send"].as_u64() > Some(0), "{site}");
    assert_eq!(code, Some(1));
}

#[test]
fn old_timers_that_pile_up_in_a_loop_are_a_leak() {
    let found = watch("time-after-loop", "1.22.10");
    let Some((code, found)) = found else { return };
    let line = build::marked_line("time-after-loop", "LEAK: timer").expect("the line is marked");
    let site = report::site(&found, "timer", line).expect("the line is in the report");
    assert_eq!(site["verdict"], "leak", "{site}");
    assert_eq!(code, Some(1));
}

#[test]
fn nothing_is_found_in_healthy_programs() {
    // From Go 1.23 the same loop leaks nothing.
    for (name, go) in [
        ("handler-timeout-healthy", "1.27.3"),
        ("time-after-loop-healthy", "1.22.10"),
        ("time-after-loop", "1.27.3"),
    ] {
        let found = watch(name, go);
        let Some((code, found)) = found else { return };
        let leaks: Vec<_> = report::sites(&found)
            .filter(|site| site["verdict"] == "leak")
            .collect();
        assert!(leaks.is_empty(), "{name} with go {go}: {leaks:?}");
        assert_eq!(code, Some(0), "{name} with go {go}");
    }
}

/// Records a fixture at its default rate for a while, as a user would.
fn watch(name: &str, go: &str) -> Option<(Option<i32>, Value)> {
    let program = needs::program(name, go, &[])?;
    let pid = program.pid().to_string();
    let arguments = [
        "record",
        "--pid",
        &pid,
        "--duration",
        "20s",
        "--format",
        "json",
    ];
    let outcome = tool::run(&arguments, Duration::from_secs(40));
    Some((outcome.code, outcome.json()))
}

/// Starts a recording that ends when it is told to.
fn record(pid: u32) -> (Tool, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("temporary files can be made");
    (Tool::record(pid, file.path()), file)
}

/// Waits for a recording that was told to end, and reads its report.
fn finished(tool: Tool, file: &tempfile::NamedTempFile) -> Value {
    let outcome = tool.wait(Duration::from_secs(10));
    assert!(
        matches!(outcome.code, Some(0 | 1)),
        "exit code {:?}: {}",
        outcome.code,
        outcome.stderr
    );
    let text = fs::read(file.path()).expect("the report is there");
    serde_json::from_slice(&text).expect("the report is JSON")
}
