//! `check` tells root that all works, and anybody else what is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::needs;
use crate::tool::{self, Tool};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn root_can_use_probes_here() {
    let Some(()) = needs::root() else { return };
    let outcome = tool::run(&["check", "--format", "json"], SOON);
    let found = outcome.json();
    assert_eq!(outcome.code, Some(0), "{found}");
    assert_eq!(found["schema"], "leaktrace/v1");
    assert_eq!(found["usable"], "probes");
    let trial = findings(&found).last().expect("there are findings");
    assert_eq!(trial["name"], "a probe on leaktrace itself");
    let words = trial["found"].as_str().expect("each finding says what");
    assert!(words.contains("1000 of 1000 calls counted"), "{words}");
}

#[test]
fn without_privileges_each_failure_says_how_to_mend_it() {
    let (Some(()), Some(setpriv)) = (needs::root(), needs::setpriv()) else {
        return;
    };
    // Where everybody can start it, unlike the folder of the build.
    let directory = tempfile::tempdir().expect("temporary folders can be made");
    let copy = directory.path().join("leaktrace");
    fs::copy(env!("CARGO_BIN_EXE_leaktrace"), &copy).expect("the command can be copied");
    for path in [directory.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("they are ours");
    }
    let mut command = Command::new(setpriv);
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["check", "--format", "json"])
        .current_dir("/");
    let outcome = Tool::spawn(&mut command).wait(SOON);
    // The one other process that it may try is ours, which is root's.
    assert_eq!(outcome.code, Some(2), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "");
    let found: Value = serde_json::from_str(&outcome.stdout).expect("the answer is JSON");
    assert_eq!(found["usable"], "nothing");
    let failed = |finding: &&Value| finding["status"] == "failed";
    assert!(findings(&found).filter(failed).count() >= 3, "{found}");
    for finding in findings(&found) {
        assert_eq!(
            finding["mend"].is_string(),
            finding["status"] != "ok",
            "{finding}"
        );
    }
}

fn findings(answer: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    let findings = answer["findings"].as_array();
    findings.expect("the answer has findings").iter()
}
