//! One verdict with all its evidence, for people and as JSON.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::report::{Events, SCHEMA, SiteReport, Target, seconds};
use super::{plot, text};
use crate::census::TimerKind;
use crate::ledger::{Ledger, Sample, Site, SiteKind};
use crate::verdict::Level;

/// What `explain` answers.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Which process.
    pub target: Target,
    /// How it was watched, and what was lost.
    pub events: Events,
    /// What was asked for; without that, all suspects and leaks, worst first.
    pub sites: Vec<Explained>,
}

/// One call site.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// What the report says of it.
    #[serde(flatten)]
    pub site: SiteReport,
    /// How many were alive over time.
    pub counts: Vec<Count>,
    /// How old those are that are alive; `None` when none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ages: Option<Ages>,
}

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Count {
    /// When, in seconds since the first reading.
    pub seconds: f64,
    /// How many were alive.
    pub count: u64,
}

/// How old those are that are alive, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ages {
    /// The youngest.
    pub youngest: f64,
    /// Half are older.
    pub median: f64,
    /// The oldest.
    pub oldest: f64,
    /// How many are at least that old: they were there before tracing began.
    pub lower_bounds: u64,
    /// How many have not moved at all for at least ten seconds (goroutines).
    pub not_moved: u64,
}

impl Explanation {
    /// Puts an answer together.
    #[must_use]
    pub fn new(target: Target, events: Events, sites: Vec<Explained>) -> Self {
        Self {
            schema: SCHEMA,
            target,
            events,
            sites,
        }
    }

    /// The worst verdict in it.
    #[must_use]
    pub fn worst(&self) -> Level {
        let verdicts = self.sites.iter().map(|explained| explained.site.verdict);
        verdicts.max().unwrap_or(Level::Ok)
    }
}

impl Explained {
    /// What the books say of a site of a report.
    #[must_use]
    pub fn new(report: &SiteReport, ledger: &Ledger, now_ns: u64) -> Self {
        let found = (ledger.sites.enumerate()).find(|(_, site)| is_of(site, report));
        let id = found.map(|(id, _)| id);
        let age = |since_ns: u64| now_ns.saturating_sub(since_ns);
        // Age, whether it is exact, and for how long it has not moved.
        let goroutines = (ledger.goroutines())
            .filter(|(_, live)| Some(live.site) == id)
            .map(|(_, live)| (age(live.since_ns), live.exact, age(live.still.since_ns())));
        let timers = (ledger.timers())
            .filter(|live| Some(live.site) == id)
            .map(|live| (age(live.since_ns), live.exact, 0));
        let mut alive: Vec<_> = goroutines.chain(timers).collect();
        alive.sort_unstable();
        let at = |index: usize| alive.get(index).map_or(0.0, |one| seconds(one.0));
        let ages = (!alive.is_empty()).then(|| Ages {
            youngest: at(0),
            median: at(alive.len() / 2),
            oldest: at(alive.len() - 1),
            lower_bounds: alive.iter().filter(|(_, exact, _)| !exact).count() as u64,
            not_moved: (alive.iter())
                .filter(|(_, _, still_ns)| *still_ns >= NOT_MOVED_NS)
                .count() as u64,
        });
        Self {
            site: report.clone(),
            counts: found.map_or_else(Vec::new, |(_, site)| counts(site.history.samples())),
            ages,
        }
    }
}

/// For how long one must have stood still to be counted as not moving.
const NOT_MOVED_NS: u64 = 10_000_000_000;

/// Whether a report's site is this one.
fn is_of(site: &Site, report: &SiteReport) -> bool {
    let timer = match site.kind {
        SiteKind::Timer(kind) => Some(kind.name()),
        SiteKind::Goroutine | SiteKind::SystemGoroutine => None,
    };
    timer == report.timer_kind
        && site.at.function == report.function
        && site.at.file == report.file
        && site.at.line == report.line
        && site.attributed == report.attributed
        && site.started_by.map(TimerKind::name) == report.started_by_timer
}

/// The readings as seconds since the first.
fn counts(samples: &[Sample]) -> Vec<Count> {
    let first_ns = samples.first().map_or(0, |first| first.at_ns);
    samples
        .iter()
        .map(|sample| Count {
            seconds: seconds(sample.at_ns.saturating_sub(first_ns)),
            count: sample.count,
        })
        .collect()
}

/// Renders it for people.
#[must_use]
pub fn render(explanation: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, explanation);
    out
}

fn write(out: &mut String, explanation: &Explanation) -> fmt::Result {
    let (target, events) = (&explanation.target, &explanation.events);
    let name = target.exe.rsplit('/').next().unwrap_or(&target.exe);
    writeln!(
        out,
        "{name} (pid {}), {}, watched for {:.0} s",
        target.pid, target.go_version, events.seconds
    )?;
    if explanation.sites.is_empty() {
        return writeln!(
            out,
            "\nnothing looks like a leak; name a call site to see what is known of it"
        );
    }
    for explained in &explanation.sites {
        writeln!(out)?;
        write_one(out, explained)?;
    }
    Ok(())
}

fn write_one(out: &mut String, explained: &Explained) -> fmt::Result {
    let site = &explained.site;
    match site.verdict {
        Level::Leak => text::write_finding(out, "LEAK", site)?,
        Level::Suspect => text::write_finding(out, "SUSPECT", site)?,
        Level::Ok | Level::NotYet => {
            let verdict = if site.judged {
                "ok"
            } else {
                "not watched for long enough to say"
            };
            text::write_place(out, &format!("{}: {verdict}", site.site), site)?;
        }
    }
    writeln!(out)?;
    let samples: Vec<Sample> = (explained.counts.iter())
        .map(|count| Sample {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "seconds of one run, which began at 0"
            )]
            at_ns: (count.seconds * 1e9) as u64,
            count: count.count,
        })
        .collect();
    writeln!(out, "  alive over time")?;
    out.push_str(&plot::draw(&samples));
    writeln!(
        out,
        "  {} created, {} ended while watched; {:+.1} a minute",
        site.created_total, site.ended_total, site.growth_per_minute
    )?;
    if let Some(ages) = &explained.ages {
        let bound = match ages.lower_bounds {
            0 => String::new(),
            count => format!("; {count} were there before, so theirs are lower bounds"),
        };
        writeln!(
            out,
            "  ages of the living: youngest {:.0} s, median {:.0} s, oldest {:.0} s{bound}",
            ages.youngest, ages.median, ages.oldest
        )?;
        if site.kind == "goroutine" {
            writeln!(
                out,
                "  {} of {} have not moved for ten seconds or more",
                ages.not_moved, site.count
            )?;
        }
    }
    let states: Vec<String> = (site.states.iter())
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if !states.is_empty() {
        writeln!(out, "  states: {}", states.join(", "))?;
    }
    Ok(())
}
