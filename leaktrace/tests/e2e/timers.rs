//! Pending timers are what lies in the runtime's heaps, and belong to the lines that armed them.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::tool::Tool;
use crate::{needs, report, tool};

/// Pending timers by "main.go:31" and kind.
type Pending = BTreeMap<String, BTreeMap<String, u64>>;

fn truth(answer: &Value) -> Pending {
    serde_json::from_value(answer["pending"].clone()).expect("fixtures answer in this shape")
}

/// The same by kind alone.
fn by_kind(pending: &Pending) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for (kind, count) in pending.values().flatten() {
        *kinds.entry(kind.clone()).or_default() += count;
    }
    kinds
}

fn found_by_kind(found: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(found["timers"]["by_kind"].clone()).expect("kinds are counted")
}

#[test]
fn timers_of_each_kind_are_those_in_the_heaps() {
    for go in ["1.22.10", "1.25.5", "1.27.3"] {
        let Some(mut program) = needs::program("timers-mixed", go, &["-each", "500"]) else {
            return;
        };
        let truth = truth(&program.ask("timers").expect("fixtures answer"));
        let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
        assert_eq!(found_by_kind(&found), by_kind(&truth), "go {go}");
        assert_eq!(found["timers"]["total"], 2500, "go {go}");
    }
}

#[test]
fn a_million_timers_are_counted_exactly() {
    let arguments = ["-each", "200000"];
    let Some(mut program) = needs::program("timers-mixed", "1.27.3", &arguments) else {
        return;
    };
    let truth = truth(&program.ask("timers").expect("fixtures answer"));
    let pid = program.pid().to_string();
    let mut found = Value::Null;
    tool::eventually("all goroutines wait", Duration::from_secs(30), || {
        found = tool::json(&["snapshot", "--pid", &pid]);
        found["timers"]["total"] == 1_000_000
    });
    assert_eq!(found_by_kind(&found), by_kind(&truth));
}

#[test]
fn timers_armed_under_probes_belong_to_their_lines() {
    for go in ["1.22.10", "1.25.5", "1.27.3"] {
        let arguments = ["-wait", "-each", "300"];
        let Some(mut program) = needs::program("timers-mixed", go, &arguments) else {
            return;
        };
        let directory = tempfile::tempdir().expect("temporary folders can be made");
        let output = directory.path().join("report.json");
        let mut record = Tool::record(program.pid(), &output);
        crate::text::wait_for_probes(program.pid(), &mut record);
        let truth = truth(&program.ask("arm").expect("fixtures answer"));
        record.signal(Signal::SIGINT);
        let outcome = record.wait(Duration::from_secs(20));
        assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
        let found: Value = serde_json::from_slice(&std::fs::read(&output).expect("a report"))
            .expect("the report is JSON");
        assert_eq!(found_by_kind(&found), by_kind(&truth), "go {go}");
        for (place, kinds) in truth {
            for (kind, count) in kinds {
                // What sleeps is known as a goroutine; its timer passes none of the doors of package time.
                if kind == "sleep" {
                    continue;
                }
                let (_, line) = place.split_once(':').expect("file and line");
                let line = line.parse().expect("a line is a number");
                let site = report::site(&found, "timer", line)
                    .unwrap_or_else(|| panic!("go {go}: no {kind} at {place}"));
                assert_eq!(site["timer_kind"], kind, "go {go} {place}");
                assert_eq!(site["count"], count, "go {go} {place}");
                assert_eq!(site["created_total"], count, "go {go} {place}");
                assert_eq!(site["attributed"], true, "go {go} {place}");
            }
        }
    }
}
