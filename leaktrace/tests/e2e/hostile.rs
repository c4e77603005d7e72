//! A program that forges its own runtime structures gets a sentence or an answer, soon, and never a crash of ours.

use std::thread;
use std::time::Duration;

use leaktrace_fixtures::program::Program;

use crate::{needs, report, tool};

#[test]
fn a_program_that_forges_its_lists_is_refused_or_counted_within_bounds() {
    for forge in ["length", "pointer", "goroutines"] {
        // The linker of Go 1.23 and later refuses such programs.
        let Some(program) = needs::program("forger", "1.22.10", &["-forge", forge]) else {
            return;
        };
        let pid = program.pid().to_string();
        let arguments = ["snapshot", "--pid", &pid, "--format", "json"];
        let outcome = tool::run(&arguments, Duration::from_secs(10));
        match outcome.code {
            Some(0) => assert_eq!(forge, "goroutines", "{}", outcome.stdout),
            Some(2) => assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr),
            code => panic!("{forge}: {code:?}: {}", outcome.stderr),
        }
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert!(outcome.took < Duration::from_secs(5), "{:?}", outcome.took);

        // Another program beside it is counted as ever.
        let Some(mut healthy) = needs::program("mixed-states", "1.22.10", &[]) else {
            return;
        };
        assert_counted(&mut healthy);
    }
}

fn assert_counted(program: &mut Program) {
    let truth = program.ask("truth").expect("fixtures answer");
    let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
    assert_eq!(report::states(&found), report::truth(&truth));
}

#[test]
fn under_churn_every_goroutine_found_is_one_that_there_is() {
    // Main goes on when the last of a batch has told it to, not when all have ended: on each P one may be about to, and one may
    // have been preempted there.
    let cores = thread::available_parallelism().expect("they can be counted");
    let most = 1 + 100 + 2 * cores.get() as u64;
    for go in ["1.22.10", "1.27.3"] {
        let Some(program) = needs::program("spawn-storm", go, &["-batch", "100"]) else {
            return;
        };
        let line = leaktrace_fixtures::build::marked_line("spawn-storm", "healthy")
            .expect("the fixture has one such line");
        for _ in 0..30 {
            let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
            let total = report::number(&found["goroutines"]["total"]);
            assert!((1..=most).contains(&total), "go {go}: {total}");
            for site in report::sites(&found).filter(|site| site["kind"] == "goroutine") {
                let here = site["line"] == line || site["function"] == "runtime.main";
                assert!(here, "go {go}: {site}");
            }
        }
    }
}
