//! Level full: how long goroutines were blocked is what they measured themselves.

use std::time::Duration;

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::tool::Tool;
use crate::{needs, report, text};

#[test]
fn blocked_times_are_what_the_program_measured() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(mut program) = needs::program("blocked-times", go, &[]) else {
            return;
        };
        let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
        let mut tool = Tool::record_with(
            program.pid(),
            output.path(),
            &["--events", "full", "--budget", "off"],
        );
        text::wait_for_probes(program.pid(), &mut tool);
        let truth = program.ask("go").expect("the program measures");
        tool.signal(Signal::SIGINT);
        let outcome = tool.wait(Duration::from_secs(20));
        assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
        let text = std::fs::read(output.path()).expect("the report is there");
        let found: Value = serde_json::from_slice(&text).expect("the report is JSON");

        let line = build::marked_line("blocked-times", "asks").expect("the line is marked");
        let site = report::site(&found, "goroutine", line).expect("the line is in the report");
        let waits = site["blocked_time"].as_array().expect("it was blocked");
        let wait = waits
            .iter()
            .find(|wait| wait["state"] == "chan receive")
            .unwrap_or_else(|| panic!("go {go}: {site}"));
        // Each round it also sends, and may have to wait for that too: in another state.
        assert_eq!(wait["count"], truth["count"], "go {go}: {site}");
        let seconds = |value: &Value| value.as_f64().expect("a number");
        let (measured, traced) = (seconds(&truth["seconds"]), seconds(&wait["total_seconds"]));
        assert!(
            (traced / measured - 1.0).abs() < 0.1,
            "go {go}: {traced} of {measured}"
        );
        let mut agreeing = 0;
        for bucket in wait["buckets"].as_array().expect("it has buckets") {
            let nanoseconds = seconds(&bucket["below_seconds"]) * 1e9;
            let name = format!("{}ms", nanoseconds / 1e6);
            let true_count = truth["buckets"][&name].as_u64().unwrap_or(0);
            agreeing += report::number(&bucket["count"]).min(true_count);
        }
        let count = report::number(&truth["count"]);
        assert!(
            agreeing * 10 >= count * 9,
            "go {go}: {wait} against {truth}"
        );
    }
}

#[test]
fn blocked_since_is_exact_for_what_blocks_under_probes() {
    let arguments = ["-hold", "-rate", "0", "-burst", "50"];
    let Some(mut program) = needs::program("context-cancel", "1.27.3", &arguments) else {
        return;
    };
    let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
    let mut tool = Tool::record_with(
        program.pid(),
        output.path(),
        &["--events", "full", "--budget", "off"],
    );
    text::wait_for_probes(program.pid(), &mut tool);
    program.ask("begin").expect("fixtures answer");
    std::thread::sleep(Duration::from_secs(2));
    tool.signal(Signal::SIGINT);
    let outcome = tool.wait(Duration::from_secs(20));
    assert!(matches!(outcome.code, Some(0 | 1)), "{}", outcome.stderr);
    let text = std::fs::read(output.path()).expect("the report is there");
    let found: Value = serde_json::from_slice(&text).expect("the report is JSON");
    let longest = found["goroutines"]["longest_blocked"]
        .as_array()
        .expect("fifty are blocked");
    let exact: Vec<f64> = (longest.iter())
        .filter(|wait| wait["is_lower_bound"] == false && wait["state"] == "chan receive")
        .map(|wait| wait["blocked_seconds"].as_f64().expect("a number"))
        .collect();
    assert!(exact.len() >= 10, "{longest:?}");
    assert!(
        exact.iter().all(|seconds| (1.9..20.0).contains(seconds)),
        "{exact:?}"
    );
}
