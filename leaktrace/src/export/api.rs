//! The shapes of `/api/v1`. Fields are only ever added within one version.

use serde::Serialize;

use super::Report;
use super::report::SCHEMA;
use crate::verdict::Level;
use crate::watcher::board::{Board, Row};

/// `/api/v1/targets`
#[derive(Serialize)]
pub struct Targets<'b> {
    schema: &'static str,
    targets: &'b [Row],
}

/// Every process of the machine: whether it is traced, and if not, why.
#[must_use]
pub fn targets(board: &Board) -> Targets<'_> {
    Targets {
        schema: SCHEMA,
        targets: &board.rows,
    }
}

/// `/api/v1/targets/{id}`
#[derive(Serialize)]
pub struct OneTarget<'b> {
    schema: &'static str,
    #[serde(flatten)]
    row: &'b Row,
    /// `null` when it is not traced.
    report: Option<&'b Report>,
}

/// One process with what is known of it.
#[must_use]
pub fn target<'b>(row: &'b Row, report: Option<&'b Report>) -> OneTarget<'b> {
    OneTarget {
        schema: SCHEMA,
        row,
        report,
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
    growth_per_minute: f64,
}

/// Every call site that leaks, or may: the worst first, then those that grow fastest.
#[must_use]
pub fn leaks(board: &Board) -> Leaks<'_> {
    let mut leaks = Vec::new();
    for row in &board.rows {
        let sites = row.report.iter().flat_map(|report| &report.sites);
        let guilty = sites.filter(|site| site.verdict != Level::Ok);
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
            growth_per_minute: site.growth_per_minute,
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
