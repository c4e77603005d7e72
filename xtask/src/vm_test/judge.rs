//! What a guest said, judged: its own truth against leaktrace's. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use leaktrace_fixtures::build::marked_line;

/// What init.sh has spawn-million do: goroutines that end, goroutines that stay.
const ENDED: u64 = 20_000;
const BLOCKED: u64 = 100;

/// Reads that may fail where reads may fail at all: a hundredth of the goroutines.
const MOST_FAULTS: u64 = 200;

/// The first Go release whose timers nobody waits for are collected.
const NEW_TIMERS: u32 = 23;

/// One check: how it failed, if it did; else what is to be said of it all the same.
pub type Check = Result<Option<String>, String>;

/// Names of the checks, in the order of [`judge`].
pub fn names(releases: &[&str]) -> Vec<String> {
    let mut names = vec!["check".to_owned()];
    for release in releases {
        for what in ["snapshot", "record", "detach", "timers"] {
            names.push(format!("{what} {release}"));
        }
    }
    names
}

/// Judges what the guest said. `may_fault`: a few of the probes' reads may have failed, if they were counted.
pub fn judge(lines: &[String], releases: &[&str], may_fault: bool) -> Vec<Check> {
    let said = Said::new(lines);
    let mut checks = vec![host(&said)];
    for release in releases {
        checks.push(snapshot(&said, release));
        checks.push(record(&said, release, may_fault));
        checks.push(detach(&said, release));
        checks.push(timers(&said, release));
    }
    checks
}

/// `leaktrace check` finds that probes work, and counted its own exactly.
fn host(said: &Said) -> Check {
    let answer = said.json("check")?;
    let failed: Vec<_> = array(&answer["findings"])
        .filter(|finding| finding["status"] == "failed")
        .map(|finding| format!("{}: {}", finding["name"], finding["found"]))
        .collect();
    equal("failed findings", failed, Vec::<String>::new())?;
    equal("usable", &answer["usable"], &Value::from("probes"))?;
    equal("exit code", said.text("check-exit")?, "0")
}

/// A snapshot equals the runtime's own list, by line and state.
fn snapshot(said: &Said, release: &str) -> Check {
    equal(
        "exit code",
        said.text(&format!("{release}/snapshot-exit"))?,
        "0",
    )?;
    let truth = said.json(&format!("{release}/truth"))?;
    let found = said.json(&format!("{release}/snapshot"))?;
    equal("states", states(&found), of_truth(&truth)?)?;
    equal(
        "goroutines",
        &found["goroutines"]["total"],
        &truth["goroutines"],
    )
}

/// A recording has every goroutine that came and went, and lost nothing.
fn record(said: &Said, release: &str, may_fault: bool) -> Check {
    let found = said.json(&format!("{release}/record")).map_err(|error| {
        format!(
            "{error}: {}",
            said.words(&format!("{release}/record-words"))
        )
    })?;
    let line = |marker| marked_line("spawn-million", marker).map_err(|error| error.to_string());
    let events = &found["events"];
    let hits = |kind: &str| events["hits"][kind].as_u64().unwrap_or(0);
    let stay = site(&found, "goroutine", line("LEAK: goroutine")?)?;
    let go = site(&found, "goroutine", line("healthy")?)?;
    equal("those that stay", number(&stay["count"]), BLOCKED)?;
    equal("those that end, alive", number(&go["count"]), 0)?;
    // The stack that made them was walked inside the kernel.
    let stack = array(&stay["creation_stack"]);
    let functions: Vec<_> = stack
        .filter_map(|frame| frame["function"].as_str())
        .collect();
    if !functions.contains(&"main.run") || !functions.contains(&"main.main") {
        return Err(format!("the creation stack is {functions:?}"));
    }
    let lost = number(&events["lost"]);
    if may_fault && lost > 0 && lost <= MOST_FAULTS {
        equal(
            "read faults",
            number(&events["lost_by_cause"]["read fault"]),
            lost,
        )?;
        // Each hit counts, whatever could be read; a goroutine of the runtime's own may come and go too.
        if hits("born") < ENDED + BLOCKED || hits("ended") < ENDED {
            return Err(format!(
                "not every birth and end was hit: {}",
                events["hits"]
            ));
        }
        return Ok(Some(format!(
            "{lost} reads failed and were counted, and what is alive is exact"
        )));
    }
    equal("lost events", lost, 0)?;
    let counts = |site: &Value| ["created_total", "ended_total"].map(|name| number(&site[name]));
    equal(
        "births and ends of those that stay",
        counts(stay),
        [BLOCKED, 0],
    )?;
    equal(
        "births and ends of those that end",
        counts(go),
        [ENDED, ENDED],
    )
}

/// The probes changed the program's code while they were on, and left nothing behind.
fn detach(said: &Said, release: &str) -> Check {
    let sums = said.text(&format!("{release}/text"))?;
    let [before, during, after] = sums.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("three checksums are wanted, not {sums:?}"));
    };
    if before == during {
        return Err("no probe was on".to_owned());
    }
    equal("code after detaching", after, before)?;
    // And the program lives on to tell.
    let truth = said.json(&format!("{release}/spawn-truth"))?;
    let alive = of_truth(&truth)?.into_values().flatten();
    equal(
        "goroutines after",
        alive.map(|(_, count)| count).sum(),
        BLOCKED,
    )
}

/// Old timers that pile up are found at their line; where they are collected, nothing is.
fn timers(said: &Said, release: &str) -> Check {
    let found = said.json(&format!("{release}/timers")).map_err(|error| {
        format!(
            "{error}: {}",
            said.words(&format!("{release}/timers-words"))
        )
    })?;
    let exit = said.text(&format!("{release}/timers-exit"))?;
    let minor: u32 = release
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok())
        .ok_or("a release has a minor number")?;
    if minor >= NEW_TIMERS {
        return equal("exit code", exit, "0");
    }
    let line = marked_line("time-after-loop", "LEAK: timer").map_err(|error| error.to_string())?;
    let leak = site(&found, "timer", line)?;
    equal("verdict", &leak["verdict"], &Value::from("leak"))?;
    equal("exit code", exit, "1")
}

/// The guest's lines by their first word.
struct Said<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Said<'a> {
    fn new(lines: &'a [String]) -> Self {
        Self(
            lines
                .iter()
                .map(|line| line.split_once(' ').unwrap_or((line, "")))
                .collect(),
        )
    }

    fn text(&self, key: &str) -> Result<&'a str, String> {
        let late = || match self.0.get("late") {
            Some(what) => format!("the guest never said {key}; it waited in vain for {what}"),
            None => format!("the guest never said {key}"),
        };
        self.0.get(key).copied().ok_or_else(late)
    }

    /// What a command complained of.
    fn words(&self, key: &str) -> &'a str {
        self.0.get(key).copied().unwrap_or("")
    }

    fn json(&self, key: &str) -> Result<Value, String> {
        let text = self.text(key)?;
        serde_json::from_str(text).map_err(|error| format!("{key} is no JSON: {error}"))
    }
}

/// Goroutines by "main.go:31" and state.
type States = BTreeMap<String, BTreeMap<String, u64>>;

/// As a report of leaktrace has them.
fn states(report: &Value) -> States {
    let mut states = States::new();
    for site in array(&report["sites"]).filter(|site| site["kind"] == "goroutine") {
        let place = place(site);
        if place.starts_with("main.go:") {
            for (state, count) in site["states"].as_object().into_iter().flatten() {
                let by_state = states.entry(place.clone()).or_default();
                *by_state.entry(state.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
    }
    states
}

/// As the program itself has them.
fn of_truth(truth: &Value) -> Result<States, String> {
    serde_json::from_value(truth["states"].clone())
        .map_err(|error| format!("the program's answer has no states: {error}"))
}

fn site<'a>(report: &'a Value, kind: &str, line: u32) -> Result<&'a Value, String> {
    let wanted = format!("main.go:{line}");
    array(&report["sites"])
        .find(|site| site["kind"] == kind && place(site) == wanted)
        .ok_or_else(|| format!("no {kind} of {wanted} in the report"))
}

/// "main.go:31".
fn place(site: &Value) -> String {
    let file = site["file"].as_str().map(Path::new);
    let name = file.and_then(Path::file_name).unwrap_or_default();
    format!("{}:{}", name.display(), site["line"])
}

/// A count; what is none is larger than any.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Check {
    if found == wanted {
        return Ok(None);
    }
    Err(format!("{what}: {found:?}, not {wanted:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name() {
        let releases = ["1.22.10", "1.27.3"];
        assert_eq!(judge(&[], &releases, true).len(), names(&releases).len());
    }

    #[test]
    fn a_silent_guest_fails_every_check() {
        let checks = judge(&["late /tmp/out ready".to_owned()], &["1.27.3"], true);
        for check in checks {
            let reason = check.expect_err("nothing was said");
            assert!(reason.contains("waited in vain for /tmp/out"), "{reason}");
        }
    }

    #[test]
    fn a_wrong_count_is_told() {
        let truth = r#"1.27.3/truth {"goroutines":3,"states":{"main.go:7":{"select":2}}}"#;
        let snapshot = |count: u32| {
            format!(
                r#"1.27.3/snapshot {{"goroutines":{{"total":3}},"sites":[{{"kind":"goroutine","file":"/x/main.go","line":7,"states":{{"select":{count}}}}}]}}"#
            )
        };
        let check = |count| {
            let lines = [
                truth.to_owned(),
                snapshot(count),
                "1.27.3/snapshot-exit 0".to_owned(),
            ];
            super::snapshot(&Said::new(&lines), "1.27.3")
        };
        assert_eq!(check(2), Ok(None));
        assert!(check(1).is_err_and(|reason| reason.starts_with("states: ")));
    }

    #[test]
    fn code_must_change_and_change_back() {
        let check = |sums: &str| {
            let lines = [
                format!("1.27.3/text {sums}"),
                r#"1.27.3/spawn-truth {"states":{"main.go:7":{"chan receive":100}}}"#.to_owned(),
            ];
            detach(&Said::new(&lines), "1.27.3")
        };
        assert_eq!(check("a b a"), Ok(None));
        assert!(check("a a a").is_err());
        assert!(check("a b b").is_err());
        assert!(check("a b").is_err());
    }
}
