//! `snapshot` says what the runtime itself says.

use leaktrace_fixtures::build::Variant;
use leaktrace_fixtures::program::Program;

use crate::{needs, report, tool};

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_22() {
    check("1.22.10");
}

#[test]
fn a_snapshot_equals_the_runtimes_own_list_go_1_25() {
    check("1.25.5");
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
        assert_eq!(
            found["goroutines"]["total"],
            truth["goroutines"],
            "{go} {}",
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
        assert_eq!(found["target"]["go_version"], format!("go{go}"));
        assert_eq!(
            program.ask("truth").expect("fixtures answer"),
            truth,
            "the program was at rest"
        );
    }
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
