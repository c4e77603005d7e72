//! The shapes of `/api/v1`. Fields are only ever added within one version.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::Report;
use super::report::{Events, Goroutines, SCHEMA, SiteReport, Target, Timers};
use crate::verdict::Level;
use crate::watcher::board::{Board, Row};

/// `/api/v1/targets`
#[derive(Serialize)]
pub struct Targets<'b> {
    schema: &'static str,
    targets: Vec<Listed<'b>>,
}

/// One process and, if it is traced, how it is.
#[derive(Serialize)]
struct Listed<'b> {
    #[serde(flatten)]
    row: Cow<'b, Row>,
    #[serde(flatten)]
    summary: Option<Summary<'b>>,
}

/// What the last report of a target comes to.
#[derive(Serialize)]
struct Summary<'b> {
    go_version: &'b str,
    /// Of its pod; "" when it is in none.
    namespace: &'b str,
    /// What made the pod.
    owner: &'b str,
    pod: &'b str,
    pod_labels: &'b [String],
    container: &'b str,
    goroutines: u64,
    timers: u64,
    leaks: usize,
    suspects: usize,
    /// Call sites with something alive of which too little was seen to judge.
    not_yet: usize,
}

/// Every process of the machine: whether it is traced, and if not, why. Without `details` no path is named.
#[must_use]
pub fn targets(board: &Board, details: bool) -> Targets<'_> {
    let rows = board.rows.iter();
    Targets {
        schema: SCHEMA,
        targets: rows
            .map(|row| Listed {
                row: if details {
                    Cow::Borrowed(row)
                } else {
                    Cow::Owned(row.clone().without_path())
                },
                summary: row.report.as_deref().map(summary),
            })
            .collect(),
    }
}

fn summary(report: &Report) -> Summary<'_> {
    let judged = |level| (report.sites.iter()).filter(move |site| site.verdict == level);
    Summary {
        go_version: &report.target.go_version,
        namespace: &report.target.namespace,
        owner: &report.target.owner,
        pod: &report.target.pod,
        pod_labels: &report.target.pod_labels,
        container: &report.target.container,
        goroutines: report.goroutines.total,
        timers: report.timers.total,
        leaks: judged(Level::Leak).count(),
        suspects: judged(Level::Suspect).count(),
        not_yet: judged(Level::NotYet).filter(|site| site.count > 0).count(),
    }
}

/// `/api/v1/targets/{id}`
#[derive(Serialize)]
pub struct OneTarget<'b> {
    schema: &'static str,
    #[serde(flatten)]
    row: &'b Row,
    /// `null` when it is not traced.
    report: Option<WithHistory<'b>>,
}

/// A report as `record` gives it, and what was alive of each site over time.
#[derive(Serialize)]
struct WithHistory<'b> {
    schema: &'static str,
    target: &'b Target,
    goroutines: &'b Goroutines,
    timers: &'b Timers,
    sites: Vec<SiteWithHistory<'b>>,
    events: &'b Events,
}

#[derive(Serialize)]
struct SiteWithHistory<'b> {
    #[serde(flatten)]
    site: &'b SiteReport,
    /// Seconds since the epoch, count; oldest first.
    history: &'b [(f64, u64)],
}

/// One process with what is known of it.
#[must_use]
pub fn target<'b>(row: &'b Row, report: Option<&'b Report>) -> OneTarget<'b> {
    OneTarget {
        schema: SCHEMA,
        row,
        report: report.map(|report| WithHistory {
            schema: report.schema,
            target: &report.target,
            goroutines: &report.goroutines,
            timers: &report.timers,
            sites: (report.sites.iter())
                .map(|site| SiteWithHistory {
                    site,
                    history: &site.history,
                })
                .collect(),
            events: &report.events,
        }),
    }
}

/// `/api/v1/leaks`
#[derive(Serialize)]
pub struct Leaks<'b> {
    schema: &'static str,
    leaks: Vec<Leak<'b>>,
}

/// One call site that leaks, or may.
#[derive(Serialize)]
struct Leak<'b> {
    id: &'b str,
    pid: i32,
    target: &'b str,
    kind: &'static str,
    site: &'b str,
    verdict: Level,
    rule: &'static str,
    evidence: &'b str,
    count: u64,
    oldest_seconds: f64,
    oldest_is_lower_bound: bool,
    growth_per_minute: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timer_kind: Option<&'static str>,
    states: &'b BTreeMap<String, u64>,
    /// Seconds since the epoch, count; oldest first.
    history: &'b [(f64, u64)],
}

/// Every call site that leaks, or may: the worst first, then those that grow fastest.
#[must_use]
pub fn leaks(board: &Board) -> Leaks<'_> {
    let mut leaks = Vec::new();
    for row in &board.rows {
        let sites = row.report.iter().flat_map(|report| &report.sites);
        let guilty = sites.filter(|site| site.verdict > Level::Ok);
        leaks.extend(guilty.map(|site| Leak {
            id: &row.id,
            pid: row.pid,
            target: &row.target,
            kind: site.kind,
            site: &site.site,
            verdict: site.verdict,
            rule: site.rule,
            evidence: &site.evidence,
            count: site.count,
            oldest_seconds: site.oldest_seconds,
            oldest_is_lower_bound: site.oldest_is_lower_bound,
            growth_per_minute: site.growth_per_minute,
            timer_kind: site.timer_kind,
            states: &site.states,
            history: &site.history,
        }));
    }
    leaks.sort_by(|one, other| {
        let by_growth = other.growth_per_minute.total_cmp(&one.growth_per_minute);
        other.verdict.cmp(&one.verdict).then(by_growth)
    });
    Leaks {
        schema: SCHEMA,
        leaks,
    }
}
