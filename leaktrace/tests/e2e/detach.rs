//! However leaktrace ends, the target goes on, and no probe stays in it.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::tool::Tool;
use crate::{needs, report, text, tool};

#[test]
fn a_killed_leaktrace_leaves_the_target_running_and_unprobed() {
    let Some(mut program) = needs::program("handler-timeout", "1.27.3", &["-rate", "200"]) else {
        return;
    };
    let directory = tempfile::tempdir().expect("temporary folders can be made");
    let mut record = Tool::record(program.pid(), &directory.path().join("report.json"));
    let probes = text::wait_for_probes(program.pid(), &mut record);
    assert!(
        probes >= 2,
        "births and ends are probed, found {probes} probes"
    );
    record.signal(Signal::SIGKILL);
    let outcome = record.wait(Duration::from_secs(5));
    assert_eq!(outcome.code, None, "a killed process has no exit code");

    // The kernel takes probes off when their last descriptor is closed, a moment after the process is gone.
    tool::eventually("no probe is left", Duration::from_secs(5), || {
        text::changed_bytes(program.pid()) == 0
    });
    let mut goroutines =
        || report::number(&program.ask("truth").expect("the target answers")["goroutines"]);
    let before = goroutines();
    tool::eventually(
        "the target goes on leaking",
        Duration::from_secs(10),
        || goroutines() > before,
    );
    assert!(program.is_alive());
}
