//! `daemon --pid` serves what it counts, and ends when told to.

use std::time::{Duration, Instant};

use leaktrace_fixtures::build;
use nix::sys::signal::Signal;

use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, text, tool};

#[test]
fn a_daemon_serves_metrics_and_ends_when_told() {
    let Some(mut program) =
        needs::program("handler-timeout", "1.27.3", &["-burst", "40", "-rate", "0"])
    else {
        return;
    };
    let pid = program.pid().to_string();
    let mut daemon =
        Tool::spawn(tool::leaktrace().args(["daemon", "--pid", &pid, "--listen", "127.0.0.1:0"]));
    let mut connection = Connection::open(&address(&daemon)).expect("the daemon listens");
    assert_eq!(connection.get("/healthz").status, 200);
    assert_eq!(connection.get("/no-such-page").status, 404);

    let line =
        build::marked_line("handler-timeout", "LEAK: goroutine").expect("the line is marked");
    let place = format!("main.go:{line}\"");
    let mut metrics = String::new();
    tool::eventually(
        "40 goroutines are on /metrics",
        Duration::from_secs(20),
        || {
            let answer = connection.get("/metrics");
            assert_eq!(answer.status, 200);
            metrics = answer.body;
            series(
                &metrics,
                "leaktrace_goroutines",
                &[&place, "state=\"chan send\""],
            ) == Some(40.0)
        },
    );
    for name in [
        "leaktrace_goroutines_created_total",
        "leaktrace_goroutines_ended_total",
        "leaktrace_goroutine_oldest_age_seconds",
    ] {
        assert!(
            series(&metrics, name, &[&place]).is_some(),
            "{name} is in\n{metrics}"
        );
    }
    for name in [
        "leaktrace_target_info",
        "leaktrace_target_up",
        "leaktrace_build_info",
    ] {
        assert_eq!(
            series(&metrics, name, &[]),
            Some(1.0),
            "{name} is in\n{metrics}"
        );
    }
    assert!(
        metrics.contains("# TYPE leaktrace_goroutines gauge"),
        "{metrics}"
    );

    text::wait_for_probes(program.pid(), &mut daemon);
    // The connection stays open: a daemon does not wait for idle clients.
    let told = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let outcome = daemon.wait(Duration::from_secs(2));
    assert_eq!(
        outcome.code,
        Some(0),
        "after {:?}: {}",
        told.elapsed(),
        outcome.stderr
    );
    assert_eq!(text::changed_bytes(program.pid()), 0);
    assert!(program.is_alive());
}

#[test]
fn gos_own_tool_shows_the_leaking_functions() {
    let Some(goroutines) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let timers = needs::program("time-after-loop", "1.22.10", &[]).expect("it was there before");
    let toolchain = needs::toolchain("1.22.10").expect("it was there before");
    let mut command = tool::leaktrace();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "1s"]);
    for program in [&goroutines, &timers] {
        command.args(["--pid", &program.pid().to_string()]);
    }
    let daemon = Tool::spawn(&mut command);
    let address = address(&daemon);
    let mut connection = Connection::open(&address).expect("the daemon listens");
    tool::eventually("timers have their line", Duration::from_secs(20), || {
        let metrics = connection.get("/metrics").body;
        series(&metrics, "leaktrace_timers_pending", &["main.consume"]) > Some(0.0)
    });
    // It keeps what it fetches.
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    for (profile, target, function) in [
        ("goroutine", "handler-timeout", "main.handle.func1"),
        ("timer", "time-after-loop", "main.consume"),
    ] {
        let url = format!("http://{address}/debug/pprof/{profile}?target={target}");
        let mut pprof = toolchain.go();
        pprof.args(["tool", "pprof", "-top", "-cum", &url]);
        let output = pprof.env("PPROF_TMPDIR", folder.path()).output();
        let output = output.expect("the toolchain runs");
        let top = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(top.contains(function), "{profile}: {top}");
    }
}

/// Where a starting daemon listens, by its own words.
pub fn address(daemon: &Tool) -> String {
    loop {
        let line = daemon.error_line(Duration::from_secs(20));
        if let Some((_, rest)) = line.split_once("listening on http://") {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            return rest[..end.unwrap_or(rest.len())].to_owned();
        }
    }
}

/// The value of the first series with this name whose labels contain all of these.
pub fn series(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    metrics.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_name = rest.starts_with('{') || rest.starts_with(' ');
        let value = rest.rsplit(' ').next()?;
        (is_name && labels.iter().all(|label| rest.contains(label))).then(|| value.parse().ok())?
    })
}
