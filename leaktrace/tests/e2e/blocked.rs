//! Level full: how long goroutines were blocked is what they measured themselves.

use std::time::Duration;

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::http::Connection;
use crate::tool::Tool;
use crate::{daemon, needs, report, text, tool};

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
fn a_daemon_exports_blocked_times_as_histograms() {
    let Some(mut program) = needs::program("blocked-times", "1.27.3", &[]) else {
        return;
    };
    let pid = program.pid().to_string();
    let arguments = ["daemon", "--pid", &pid, "--listen", "127.0.0.1:0"];
    let more = ["--events", "full", "--budget", "off", "--interval", "250ms"];
    let mut daemon = Tool::spawn(tool::leaktrace().args(arguments).args(more));
    let address = daemon::address(&daemon);
    let mut connection = Connection::open(&address).expect("the daemon listens");
    text::wait_for_probes(program.pid(), &mut daemon);
    let truth = program.ask("go").expect("the program measures");
    let count = truth["count"].as_f64().expect("a number");
    let line = build::marked_line("blocked-times", "asks").expect("the line is marked");
    let labels = [&*format!("main.go:{line}\""), "state=\"chan receive\""];
    let mut metrics = String::new();
    let name = "leaktrace_goroutine_blocked_seconds";
    tool::eventually("all waits are exported", Duration::from_secs(20), || {
        metrics = connection.get("/metrics").body;
        daemon::series(&metrics, &format!("{name}_count"), &labels) == Some(count)
    });
    let sum = daemon::series(&metrics, &format!("{name}_sum"), &labels).expect("it has a sum");
    let measured = truth["seconds"].as_f64().expect("a number");
    assert!((sum / measured - 1.0).abs() < 0.1, "{sum} of {measured}");
    let below = |edge: &str| {
        let edge = format!("le=\"{edge}\"");
        let labels = [labels[0], labels[1], &edge];
        daemon::series(&metrics, &format!("{name}_bucket"), &labels).expect("it has buckets")
    };
    assert!(below("0.000016384") <= below("0.008388608"), "{metrics}");
    assert!((below("+Inf") - count).abs() < 0.5, "{metrics}");
    assert!(metrics.contains("# TYPE leaktrace_goroutine_blocked_seconds histogram"));
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
