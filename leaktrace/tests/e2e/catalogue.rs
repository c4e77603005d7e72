//! The rows of the leak catalogue that timers make: counted exactly by line on each release, with old timers and with new
//! ones, and judged.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::toolchain::Toolchain;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::tool::{Tool, UNBOUNDED};
use crate::{needs, report, text};

/// How a program is built and run.
#[derive(Clone)]
struct Way {
    toolchain: Toolchain,
    /// With the timers of Go 1.22, which newer releases bring back if asked (src/internal/godebugs/table.go: Removed 27).
    asynctimerchan: bool,
}

impl Way {
    /// Whether a channel timer that nobody waits on stays in a heap.
    fn has_old_timers(&self) -> bool {
        self.asynctimerchan || self.minor() < 23
    }

    fn minor(&self) -> u32 {
        let mut parts = self.toolchain.version().split('.');
        parts
            .nth(1)
            .and_then(|minor| minor.parse().ok())
            .expect("a version has a minor")
    }

    fn name(&self) -> String {
        let how = if self.asynctimerchan {
            " asynctimerchan=1"
        } else {
            ""
        };
        format!("go {}{how}", self.toolchain.version())
    }

    fn start(&self, fixture: &str, arguments: &[&str]) -> Program {
        let executable = build::build(fixture, &self.toolchain, Variant::DEFAULT);
        let mut command = Command::new(executable.expect("fixtures compile"));
        command.args(arguments);
        if self.asynctimerchan {
            command.env("GODEBUG", "asynctimerchan=1");
        }
        Program::spawn(&mut command).expect("fixtures start")
    }
}

/// Go 1.19, if Debian's is there.
fn debian() -> Option<Way> {
    let toolchain = Toolchain::debian();
    if toolchain.is_none() {
        needs::skip::<()>("needs Debian's Go 1.19: apt-get install golang-1.19");
    }
    toolchain.map(|toolchain| Way {
        toolchain,
        asynctimerchan: false,
    })
}

fn way(go: &str, asynctimerchan: bool) -> Option<Way> {
    needs::toolchain(go).map(|toolchain| Way {
        toolchain,
        asynctimerchan,
    })
}

/// A program that is recorded until it is told to end.
struct Watched {
    name: String,
    program: Program,
    tool: Tool,
    output: tempfile::NamedTempFile,
}

impl Watched {
    fn start(way: &Way, fixture: &str, arguments: &[&str], recording: &[&str]) -> Self {
        let program = way.start(fixture, arguments);
        let output = tempfile::NamedTempFile::new().expect("temporary files can be made");
        Self {
            name: format!("{fixture} {} with {}", arguments.join(" "), way.name()),
            tool: Tool::record_with(program.pid(), output.path(), recording),
            program,
            output,
        }
    }

    fn finish(self) -> Value {
        let outcome = self.tool.wait(Duration::from_secs(100));
        assert!(
            matches!(outcome.code, Some(0 | 1)),
            "{}: {}",
            self.name,
            outcome.stderr
        );
        let text = std::fs::read(self.output.path()).expect("the report is there");
        serde_json::from_slice(&text).expect("the report is JSON")
    }
}

/// What one line is to have.
#[derive(Clone, Copy)]
struct Line {
    mark: &'static str,
    kind: &'static str,
    timer_kind: Option<&'static str>,
    /// Alive with old timers, and with new ones.
    old: u64,
    new: u64,
}

const BURST: u64 = 200;

const fn line(mark: &'static str, kind: &'static str, timer_kind: Option<&'static str>) -> Line {
    Line {
        mark,
        kind,
        timer_kind,
        old: BURST,
        new: BURST,
    }
}

/// Fixture, more arguments, and what its lines have after a burst.
fn rows() -> Vec<(&'static str, &'static [&'static str], Vec<Line>)> {
    let timer = |kind| line("LEAK: timer", "timer", Some(kind));
    let goroutine = line("LEAK: goroutine", "goroutine", None);
    let collected = |kind| Line {
        new: 0,
        ..timer(kind)
    };
    vec![
        // The timer of the wait that goes on was armed last, and the first before the probes went on.
        (
            "time-after-loop",
            &[],
            vec![Line {
                new: 1,
                ..timer("timer")
            }],
        ),
        (
            "publisher-after",
            &[],
            vec![Line {
                old: 0,
                new: 0,
                ..line("churn", "timer", Some("timer"))
            }],
        ),
        ("ticker-goroutines", &[], vec![timer("ticker"), goroutine]),
        (
            "ticker-range",
            &[],
            vec![
                Line {
                    old: 0,
                    new: 0,
                    ..line("stopped", "timer", Some("ticker"))
                },
                goroutine,
            ],
        ),
        ("ticker-dropped", &[], vec![collected("ticker")]),
        ("context-cancel", &[], vec![goroutine]),
        ("context-timeout", &[], vec![timer("deadline")]),
        ("afterfunc-session", &[], vec![timer("afterfunc")]),
        // The timers have fired, and what they call stays: it belongs to the same line.
        (
            "afterfunc-session",
            &["-stuck", "-every", "100ms"],
            vec![
                Line {
                    old: 0,
                    new: 0,
                    ..timer("afterfunc")
                },
                line("LEAK: timer", "goroutine", None),
            ],
        ),
        ("tick-per-request", &[], vec![collected("ticker")]),
    ]
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_19() {
    if let Some(way) = debian() {
        each_line_has_what_the_runtime_has(&way);
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_22() {
    if let Some(way) = way("1.22.10", false) {
        each_line_has_what_the_runtime_has(&way);
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_23() {
    if let Some(way) = way("1.23.9", false) {
        each_line_has_what_the_runtime_has(&way);
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_25_with_old_timers() {
    if let Some(way) = way("1.25.5", true) {
        each_line_has_what_the_runtime_has(&way);
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_23_and_1_26_with_old_timers() {
    if needs::quick() {
        return needs::skip::<()>("a quick run has old timers in go 1.25 only").unwrap_or_default();
    }
    for go in ["1.23.9", "1.26.6"] {
        if let Some(way) = way(go, true) {
            each_line_has_what_the_runtime_has(&way);
        }
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_25() {
    if let Some(way) = way("1.25.5", false) {
        each_line_has_what_the_runtime_has(&way);
    }
}

#[test]
fn each_line_has_what_the_runtime_has_go_1_27() {
    if let Some(way) = way("1.27.3", false) {
        each_line_has_what_the_runtime_has(&way);
    }
}

/// All rows at once: bursts under probes, then the counts by line.
fn each_line_has_what_the_runtime_has(way: &Way) {
    if needs::root().is_none() {
        return;
    }
    let burst = BURST.to_string();
    let mut watched = Vec::new();
    for (fixture, more, lines) in rows() {
        let arguments = [&["-hold", "-rate", "0", "-burst", &burst], more].concat();
        watched.push((
            fixture,
            lines,
            Watched::start(way, fixture, &arguments, &UNBOUNDED),
        ));
    }
    for (_, _, one) in &mut watched {
        text::wait_for_probes(one.program.pid(), &mut one.tool);
    }
    for (_, _, one) in &mut watched {
        one.program.ask("begin").expect("fixtures answer");
    }
    // Timers of 100 ms fire, tickers of 50 ms are stopped.
    std::thread::sleep(Duration::from_secs(1));
    for (fixture, lines, mut one) in watched {
        let name = one.name.clone();
        if let Some(pending) =
            one.program.ask("pending").expect("fixtures answer")["pending"].as_u64()
        {
            assert_eq!(pending, BURST, "{name}");
        }
        one.tool.signal(Signal::SIGINT);
        let found = one.finish();
        assert_eq!(found["events"]["lost"], 0, "{name}");
        for line in lines {
            let number = build::marked_line(fixture, line.mark).expect("the line is marked");
            let site = report::site(&found, line.kind, number)
                .unwrap_or_else(|| panic!("{name}: nothing at line {number}: {}", found["sites"]));
            let expected = if way.has_old_timers() {
                line.old
            } else {
                line.new
            };
            assert_eq!(site["count"], expected, "{name}: {site}");
            assert_eq!(site["attributed"], true, "{name}: {site}");
            if let Some(kind) = line.timer_kind {
                assert_eq!(site["timer_kind"], kind, "{name}: {site}");
                // A publisher arms a timer for each of its ten subscribers.
                let made = if fixture == "publisher-after" {
                    10 * BURST
                } else {
                    BURST
                };
                assert_eq!(site["created_total"], made, "{name}: {site}");
            }
            if fixture == "time-after-loop" {
                let armed_for = site["armed_for_seconds"][1].as_f64().expect("a length");
                assert!((armed_for - 180.0).abs() < 0.1, "{name}: {site}");
            }
            if site["timer_kind"] == "ticker" {
                let period = site["armed_for_seconds"][0].as_f64();
                let expected = if fixture == "ticker-range" {
                    0.01
                } else {
                    60.0
                };
                assert_eq!(period, Some(expected), "{name}: {site}");
            }
            if fixture == "ticker-range" && line.kind == "timer" {
                assert_eq!(site["stopped_total"], BURST, "{name}: {site}");
                assert_eq!(site["lifetimes"]["count"], BURST, "{name}: {site}");
            }
            if fixture == "afterfunc-session" && line.kind == "goroutine" {
                assert_eq!(site["started_by_timer"], "afterfunc", "{name}: {site}");
                assert_eq!(site["created_total"], BURST, "{name}: {site}");
            }
        }
        // What lies in the heaps besides is not the user's, but for what was armed before: the wait of the loop's first turn.
        let unknown: u64 = report::sites(&found)
            .filter(|site| site["kind"] == "timer" && site["attributed"] == false)
            .filter(|site| site["timer_kind"] != "sleep")
            .map(|site| report::number(&site["count"]))
            .sum();
        let before = u64::from(fixture == "time-after-loop" && way.has_old_timers());
        assert_eq!(unknown, before, "{name}: {}", found["sites"]);
    }
}

/// The lines that are to be found, by kind, of each program with its arguments; everything else is to be fine.
type Leaks = BTreeMap<&'static str, Vec<(&'static str, &'static str)>>;

/// Programs at their own rates, all at once for as long as a rise takes to be believed: the leaks are found at their lines,
/// and nothing else.
fn leaks_are_found(programs: &[(&Way, Leaks)]) {
    if needs::root().is_none() {
        return;
    }
    let watched: Vec<_> = (programs.iter())
        .flat_map(|(way, leaks)| {
            leaks
                .iter()
                .map(move |(program, lines)| (*way, *program, lines))
        })
        .map(|(way, program, lines)| {
            let mut words = program.split(' ');
            let fixture = words.next().unwrap_or_default();
            let arguments: Vec<&str> = words.collect();
            (
                fixture,
                lines,
                Watched::start(way, fixture, &arguments, &["--duration", "55s"]),
            )
        })
        .collect();
    for (fixture, lines, one) in watched {
        let name = one.name.clone();
        let found = one.finish();
        let mut expected: Vec<_> = (lines.iter())
            .map(|(kind, mark)| {
                let line = build::marked_line(fixture, mark).expect("the line is marked");
                ((*kind).to_owned(), u64::from(line))
            })
            .collect();
        expected.sort();
        let mut leaking: Vec<_> = report::sites(&found)
            .filter(|site| site["verdict"] == "leak")
            .map(|site| {
                let kind = site["kind"].as_str().unwrap_or_default().to_owned();
                (kind, report::number(&site["line"]))
            })
            .collect();
        leaking.sort();
        assert_eq!(leaking, expected, "{name}: {:?}", histories(&found));
    }
}

/// What to look at when the verdict is another than expected.
fn histories(found: &Value) -> Vec<String> {
    let sites = report::sites(found);
    sites
        .map(|site| {
            format!(
                "{} {} {} {}",
                site["kind"], site["line"], site["verdict"], site["evidence"]
            )
        })
        .collect()
}

const TIMER: (&str, &str) = ("timer", "LEAK: timer");
const GOROUTINE: (&str, &str) = ("goroutine", "LEAK: goroutine");

fn catalogue(old_timers: bool) -> Leaks {
    let collected = if old_timers { vec![TIMER] } else { Vec::new() };
    BTreeMap::from([
        ("time-after-loop", collected.clone()),
        ("publisher-after", Vec::new()),
        ("publisher-after-healthy", Vec::new()),
        ("ticker-goroutines", vec![TIMER, GOROUTINE]),
        ("ticker-goroutines-healthy", Vec::new()),
        ("ticker-range", vec![GOROUTINE]),
        ("ticker-range-healthy", Vec::new()),
        ("ticker-dropped", collected.clone()),
        ("ticker-dropped-healthy", Vec::new()),
        ("context-cancel", vec![GOROUTINE]),
        ("context-cancel-healthy", Vec::new()),
        ("context-timeout", vec![TIMER]),
        ("context-timeout-healthy", Vec::new()),
        ("afterfunc-session", vec![TIMER]),
        ("afterfunc-session-healthy", Vec::new()),
        // Armed again each time, or forgotten when due: that is told as soon as some were due.
        ("afterfunc-session -every 25s", vec![TIMER]),
        ("afterfunc-session-healthy -every 25s -forget", Vec::new()),
        ("tick-per-request", collected),
        ("tick-per-request-healthy", Vec::new()),
    ])
}

/// The rows that timers make on each release, all at once. It takes a minute, whatever their number: a rise takes that long to
/// be believed. The healthy twins are tried on one release of each kind of timers, and in a long run on all.
#[test]
fn what_timers_leak_is_found_and_what_new_ones_do_not_leak_is_not() {
    let mut ways: Vec<Way> = debian().into_iter().collect();
    let mut releases = vec![
        ("1.22.10", false),
        ("1.23.9", false),
        ("1.23.9", true),
        ("1.25.5", false),
        ("1.25.5", true),
        ("1.27.3", false),
    ];
    if needs::quick() {
        needs::skip::<()>("a quick run judges the rows in go 1.22 and 1.27 only");
        ways.clear();
        releases.retain(|(go, _)| ["1.22.10", "1.27.3"].contains(go));
    }
    ways.extend((releases.into_iter()).filter_map(|(go, asynctimerchan)| way(go, asynctimerchan)));
    let programs: Vec<(&Way, Leaks)> = (ways.iter())
        .map(|way| {
            let mut leaks = catalogue(way.has_old_timers());
            if !needs::long() && ![22, 27].contains(&way.minor()) {
                leaks.retain(|program, _| !program.contains("-healthy"));
            }
            (way, leaks)
        })
        .collect();
    leaks_are_found(&programs);
}
