//! A crowd that comes at once and stays, with no growth before or after: it is a leak where nobody is left who could end it,
//! and nothing is said of one that somebody holds.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use leaktrace_fixtures::build;
use leaktrace_fixtures::program::Program;
use serde_json::Value;

use crate::daemon::address;
use crate::http::Connection;
use crate::tool::Tool;
use crate::{needs, text, tool};

/// Short times: the programs are new, and nobody waits half a minute.
const RULES: &str = "[rules.stalled]\nseconds = 4\n[rules.looping]\nstart-up-seconds = 0\n";

/// Sixty at once when told to, and no more.
const CROWD: [&str; 5] = ["-hold", "-rate", "0", "-burst", "60"];

/// What a crowd is to be called, and where.
struct Expected {
    program: &'static str,
    verdict: &'static str,
    rule: &'static str,
    /// How its lines are marked; none for those of net/http.
    things: &'static [&'static str],
}

const CROWDS: [Expected; 7] = [
    Expected {
        program: "ticker-goroutines",
        verdict: "leak",
        rule: "looping",
        things: &["goroutine", "timer"],
    },
    Expected {
        program: "context-cancel",
        verdict: "leak",
        rule: "lost-cancel",
        things: &["goroutine"],
    },
    Expected {
        program: "context-timeout",
        verdict: "leak",
        rule: "timer-pile-up",
        things: &["timer"],
    },
    Expected {
        program: "afterfunc-session",
        verdict: "leak",
        rule: "timer-pile-up",
        things: &["timer"],
    },
    Expected {
        program: "body-not-closed",
        verdict: "leak",
        rule: "certain-block",
        things: &[],
    },
    // Its memory is that of a job that is meant to go round.
    Expected {
        program: "poll-forever",
        verdict: "suspect",
        rule: "looping",
        things: &["goroutine"],
    },
    // Theirs is that of connections whose peers have nothing to say.
    Expected {
        program: "accept-no-deadline",
        verdict: "suspect",
        rule: "stalled",
        things: &["goroutine"],
    },
];

#[test]
fn with_the_timers_of_go_1_22() {
    crowds_that_nobody_can_end_are_found("1.22.10");
}

#[test]
fn with_the_timers_of_go_1_27() {
    crowds_that_nobody_can_end_are_found("1.27.3");
}

fn crowds_that_nobody_can_end_are_found(go: &str) {
    let names = CROWDS.iter().map(|one| one.program).chain(["kept-crowd"]);
    let programs: Option<Vec<(&str, Program)>> = names
        .map(|name| Some((name, needs::program(name, go, &CROWD)?)))
        .collect();
    let Some(mut programs) = programs else {
        return;
    };
    let rules = tempfile::NamedTempFile::new().expect("temporary files can be made");
    std::fs::write(rules.path(), RULES).expect("they can be written");
    let mut command = tool::leaktrace();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--interval", "1s"]);
    command.arg("--config").arg(rules.path());
    for (_, program) in &programs {
        command.args(["--pid", &program.pid().to_string()]);
    }
    let mut daemon = Tool::spawn(&mut command);
    let address = address(&daemon);
    for (_, program) in &programs {
        text::wait_for_probes(program.pid(), &mut daemon);
    }
    for (_, program) in &mut programs {
        program.ask("begin").expect("fixtures answer");
    }
    let expected: BTreeSet<String> = CROWDS.iter().flat_map(places).collect();
    let deadline = Instant::now() + Duration::from_secs(180);
    let mut found = said(&address);
    while !expected.is_subset(&found) {
        assert!(
            Instant::now() < deadline,
            "go{go}: expected {expected:#?}, found {found:#?}"
        );
        thread::sleep(Duration::from_millis(200));
        found = said(&address);
    }
    // Nothing else, and nothing of the crowd that somebody holds.
    let others: Vec<&String> = (found.iter())
        .filter(|line| line.contains("kept-crowd") || line.starts_with("leak"))
        .filter(|line| !expected.contains(*line))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
}

/// "leak goroutine ticker-goroutines main.go:32 (looping)".
fn places(one: &Expected) -> Vec<String> {
    let (verdict, program) = (one.verdict, one.program);
    if one.things.is_empty() {
        return vec![format!(
            "{verdict} goroutine {program} transport.go ({})",
            one.rule
        )];
    }
    let mut places = Vec::new();
    for thing in one.things {
        let rule = match (*thing, one.rule) {
            ("timer", "looping") => "unstopped-ticker",
            (_, rule) => rule,
        };
        let lines = build::marked_lines(program, &format!("LEAK: {thing}"));
        for line in lines.expect("they are marked") {
            places.push(format!(
                "{verdict} {thing} {program} main.go:{line} ({rule})"
            ));
        }
    }
    places
}

/// The same of all that the daemon calls a leak or suspect.
fn said(address: &str) -> BTreeSet<String> {
    let mut connection = Connection::open(address).expect("the daemon listens");
    let leaks = connection.get("/api/v1/leaks").body;
    let leaks: Value = serde_json::from_str(&leaks).expect("it is JSON");
    let leaks = leaks["leaks"].as_array().cloned().unwrap_or_default();
    let of = |leak: &Value| {
        let text = |field: &str| leak[field].as_str().unwrap_or_default().to_owned();
        let site = text("site");
        let place = match site.rsplit_once('/') {
            Some((_, place)) if place.starts_with("transport.go:") => "transport.go",
            Some((_, place)) => place,
            None => &site,
        };
        let (verdict, kind, target, rule) =
            (text("verdict"), text("kind"), text("target"), text("rule"));
        format!("{verdict} {kind} {target} {place} ({rule})")
    };
    leaks.iter().map(of).collect()
}
