//! `snapshot` says what the runtime itself says.

use std::time::Duration;

use leaktrace_fixtures::build::Variant;
use leaktrace_fixtures::program::Program;
use serde_json::Value;

use crate::{needs, report, tool};

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_19() {
    check("1.19");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_21() {
    check("1.21.13");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_22() {
    check("1.22.10");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_23() {
    check("1.23.9");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_24() {
    check("1.24.11");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_25() {
    check("1.25.5");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_26() {
    check("1.26.6");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_27() {
    check("1.27.3");
}

/// Counts by line and state, and the total, with and without symbols.
fn check(go: &str) {
    for variant in [Variant::DEFAULT, Variant::STRIPPED] {
        let Some(()) = needs::root() else { return };
        let Some(executable) = needs::fixture("mixed-states", go, variant) else {
            return;
        };
        let mut program = Program::start(&executable, &[]).expect("fixtures start");
        let truth = program.ask("truth").expect("fixtures answer");
        let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
        assert_eq!(
            report::states(&found),
            report::truth(&truth),
            "{go} {}",
            variant.name()
        );
        // Before Go 1.22 the wrapper of a go statement, which tracebacks leave out, has a name like any closure.
        if !["1.19", "1.21.13"].contains(&go) {
            assert_eq!(
                report::stacks(&found),
                report::true_stacks(&truth),
                "{go} {}",
                variant.name()
            );
        }
        assert_eq!(
            found["goroutines"]["total"],
            truth["goroutines"],
            "{go} {}",
            variant.name()
        );

        let semaphores = program.ask("semaphores").expect("fixtures answer");
        assert_eq!(
            semaphores_by_reason(&found, &semaphores),
            [4, 1, 2],
            "{go} {}: {found:#}",
            variant.name()
        );

        let goroutines = report::sites(&found).filter(|site| site["kind"] == "goroutine");
        let sum: u64 = goroutines.map(|site| report::number(&site["count"])).sum();
        assert_eq!(
            found["goroutines"]["total"], sum,
            "the sites add up to the total"
        );
        assert_eq!(found["schema"], "leaktrace/v1");
        assert_eq!(found["target"]["pid"], program.pid());
        let version = found["target"]["go_version"].as_str();
        assert!(version.is_some_and(|version| version.starts_with(&format!("go{go}"))));
        assert_eq!(
            program.ask("truth").expect("fixtures answer"),
            truth,
            "the program was at rest"
        );
    }
}

/// How many goroutines wait for the mutex, the read-write mutex and the wait group of `mixed-states`, by the addresses
/// that the program itself tells. From the wait reason alone nothing is counted.
fn semaphores_by_reason(found: &Value, truth: &Value) -> [u64; 3] {
    let of = |reasons: &[&str], name: &str| {
        report::sites(found)
            .filter(|site| {
                reasons
                    .iter()
                    .any(|reason| !site["states"][reason].is_null())
            })
            .flat_map(|site| site["waits_for"].as_array().into_iter().flatten())
            .filter(|wait| wait["semaphore"] == truth[name] && wait["waiters"] == wait["count"])
            .map(|wait| report::number(&wait["count"]))
            .sum()
    };
    [
        of(&["sync.Mutex.Lock", "semacquire"], "sync.Mutex.Lock"),
        of(&["sync.RWMutex.RLock", "semacquire"], "sync.RWMutex.RLock"),
        of(
            &["sync.WaitGroup.Wait", "semacquire"],
            "sync.WaitGroup.Wait",
        ),
    ]
}

#[test]
fn a_snapshot_puts_no_probe_on() {
    let Some(program) = needs::program("mixed-states", "1.27.3", &[]) else {
        return;
    };
    let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
    assert_eq!(found["events"]["level"], "none");
    assert_eq!(crate::text::changed_bytes(program.pid()), 0);
}

#[test]
fn a_core_file_says_the_same_as_the_process_it_was_made_of() {
    for go in ["1.22.10", "1.27.3"] {
        let Some(program) = needs::program("mixed-states", go, &[]) else {
            return;
        };
        let directory = tempfile::tempdir().expect("temporary folders can be made");
        let Some(core) = needs::core(program.pid(), directory.path()) else {
            return;
        };
        let pid = program.pid().to_string();
        let live = tool::json(&["snapshot", "--pid", &pid]);
        drop(program);
        let core = core.to_str().expect("its path is text");
        let dead = tool::json(&["snapshot", "--core", core]);
        assert_eq!(dead["target"]["pid"], live["target"]["pid"]);
        assert_eq!(dead["goroutines"], live["goroutines"], "{go}");
        for part in ["total", "by_kind"] {
            assert_eq!(dead["timers"][part], live["timers"][part], "{go}");
        }
        assert_eq!(report::states(&dead), report::states(&live), "{go}");
        assert_eq!(report::stacks(&dead), report::stacks(&live), "{go}");
    }
}

#[test]
fn all_formats_tell_the_same() {
    let Some(program) = needs::program("mixed-states", "1.27.3", &[]) else {
        return;
    };
    let directory = tempfile::tempdir().expect("temporary folders can be made");
    let pid = program.pid().to_string();
    let written = |format: &str| {
        let path = directory.path().join(format);
        let file = path.to_str().expect("its path is text").to_owned();
        let arguments = ["snapshot", "--pid", &pid, "--format", format, "-o", &file];
        let outcome = tool::run(&arguments, Duration::from_secs(30));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        file
    };
    let (json, profile, folded) = (written("json"), written("pprof"), written("folded"));
    for pair in [[&json, &profile], [&profile, &json], [&json, &json]] {
        let changes = tool::json(&["diff", pair[0], pair[1]]);
        assert_eq!(changes["sites"], serde_json::json!([]), "{pair:?}");
    }

    let folded = std::fs::read_to_string(folded).expect("folded stacks are text");
    let counts = folded.lines().map(|line| {
        let (_, count) = line.rsplit_once(' ').expect("a count ends each line");
        count.parse::<u64>().expect("a count is a number")
    });
    let report = tool::json(&["snapshot", "--pid", &pid]);
    let total = report::number(&report["goroutines"]["total"]);
    assert_eq!(counts.sum::<u64>(), total);

    // Go's own tool opens the profile, and names what a stripped binary does not.
    let Some(toolchain) = needs::toolchain("1.22.10") else {
        return;
    };
    let output = toolchain
        .go()
        .args(["tool", "pprof", "-sample_index=goroutine", "-top", &profile])
        .output()
        .expect("the toolchain runs");
    let top = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(top.contains(&format!("of {total} total")), "{top}");
    assert!(top.contains("main.receive"), "{top}");
}
