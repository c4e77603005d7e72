//! The report as Prometheus metrics. Names and labels are the contract of dashboards and alerts: doc/prometheus.md.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::Report;
use super::report::SiteReport;
use crate::verdict::Level;

/// The media type of [`render`]'s answer.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Sites that keep a label of their own per target and kind; the others are summed as `other`.
pub const MOST_SITES: usize = 50;

/// A target as the metrics see it.
pub enum Watched<'r> {
    /// It runs; this is the last report.
    Up(&'r Report),
    /// It is gone: its name, for `leaktrace_target_up`.
    Down(String),
}

/// Everything for one scrape, in the Prometheus text format.
///
/// # Errors
/// When two metrics share a name or a label is malformed: a defect of this module, never of a target.
pub fn render(watched: &Watched<'_>) -> Result<Vec<u8>, prometheus::Error> {
    let registry = Registry::new();
    let build = gauge(
        "leaktrace_build_info",
        "Version of leaktrace; the value is always 1.",
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))?;
    let up = gauge(
        "leaktrace_target_up",
        "Whether the target is alive and its last census succeeded.",
        &["target"],
    )?;
    match watched {
        Watched::Up(report) => {
            up.with_label_values(&[name(report)]).set(1);
            register_target(&registry, report)?;
        }
        Watched::Down(name) => up.with_label_values(&[name]).set(0),
    }
    registry.register(Box::new(up))?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

fn register_target(registry: &Registry, report: &Report) -> Result<(), prometheus::Error> {
    let target = name(report);
    let info = gauge(
        "leaktrace_target_info",
        "What is known of the target; the value is always 1.",
        &[
            "target",
            "pid",
            "exe",
            "go_version",
            "build_id",
            "module",
            "version",
            "vcs_revision",
        ],
    )?;
    let facts = &report.target;
    info.with_label_values(&[
        target,
        &facts.pid.to_string(),
        &facts.exe,
        &facts.go_version,
        &facts.build_id,
        &facts.module,
        &facts.version,
        &facts.vcs_revision,
    ])
    .set(1);
    register(registry, info)?;

    let drift = gauge(
        "leaktrace_census_drift",
        "Goroutines on which events and census disagreed when they last met.",
        &["target"],
    )?;
    drift
        .with_label_values(&[target])
        .set(signed(report.goroutines.drift));
    register(registry, drift)?;
    let level = gauge(
        "leaktrace_events_level",
        "How much the probes hear: 0 none, 1 sampled, 2 lifecycle, 3 full.",
        &["target"],
    )?;
    level
        .with_label_values(&[target])
        .set(match report.events.level {
            "full" => 3,
            "lifecycle" => 2,
            "sampled" => 1,
            _ => 0,
        });
    register(registry, level)?;
    let hits = counter(
        "leaktrace_probe_hits_total",
        "How often each probe was hit.",
        &["target", "probe"],
    )?;
    for (probe, count) in &report.events.hits {
        hits.with_label_values(&[target, *probe]).inc_by(*count);
    }
    register(registry, hits)?;
    register_cost(registry, target, report)?;
    let lost = counter(
        "leaktrace_events_lost_total",
        "Events that were lost, by cause. Counts of live things are right again after the next census.",
        &["target", "cause"],
    )?;
    for (cause, count) in &report.events.lost_by_cause {
        lost.with_label_values(&[target, *cause]).inc_by(*count);
    }
    register(registry, lost)?;

    let (goroutines, timers): (Vec<&SiteReport>, Vec<&SiteReport>) = report
        .sites
        .iter()
        .partition(|site| site.timer_kind.is_none());
    register_goroutines(registry, target, &goroutines)?;
    register_timers(registry, target, &timers)?;
    register_verdicts(registry, target, report)
}

fn register_cost(
    registry: &Registry,
    target: &str,
    report: &Report,
) -> Result<(), prometheus::Error> {
    let events = &report.events;
    let cost = CounterVec::new(
        Opts::new(
            "leaktrace_probe_cost_seconds_total",
            "Time that each probe took from the target's threads: hits, times what one costs on this machine.",
        ),
        &["target", "probe"],
    )?;
    for (probe, seconds) in &events.cost_seconds {
        cost.with_label_values(&[target, *probe]).inc_by(*seconds);
    }
    register(registry, cost)?;
    let overhead = float_gauge(
        "leaktrace_overhead_ratio",
        "What the target loses to the probes over the last half minute, as a part of one core.",
        &["target"],
    )?;
    overhead
        .with_label_values(&[target])
        .set(events.overhead_now);
    register(registry, overhead)?;
    let budget = float_gauge(
        "leaktrace_budget_ratio",
        "What the target may lose, as a part of one core; no series without a budget.",
        &["target"],
    )?;
    if let Some(share) = events.budget {
        budget.with_label_values(&[target]).set(share);
    }
    register(registry, budget)?;
    let price = float_gauge(
        "leaktrace_probe_cost_seconds",
        "What one hit of a probe costs on this machine, as measured on leaktrace itself.",
        &["work"],
    )?;
    if let Some(hit) = events.hit_cost {
        price
            .with_label_values(&["record"])
            .set(hit.emulated_ns / 1e9);
        price
            .with_label_values(&["record with stack"])
            .set((hit.emulated_ns + hit.stack_ns) / 1e9);
    }
    register(registry, price)?;
    let changes = counter(
        "leaktrace_events_level_changes_total",
        "How often the level changed to keep the budget.",
        &["target", "direction"],
    )?;
    for (direction, count) in [
        ("poorer", events.changes.falls),
        ("richer", events.changes.returns),
    ] {
        changes
            .with_label_values(&[target, direction])
            .inc_by(count);
    }
    register(registry, changes)
}

fn register_goroutines(
    registry: &Registry,
    target: &str,
    sites: &[&SiteReport],
) -> Result<(), prometheus::Error> {
    let labels = ["target", "site"];
    let live = gauge(
        "leaktrace_goroutines",
        "Goroutines alive, by call site of the go statement and by state.",
        &["target", "site", "state"],
    )?;
    let created = counter(
        "leaktrace_goroutines_created_total",
        "Goroutines created since tracing began.",
        &labels,
    )?;
    let ended = counter(
        "leaktrace_goroutines_ended_total",
        "Goroutines that ended since tracing began.",
        &labels,
    )?;
    let oldest = float_gauge(
        "leaktrace_goroutine_oldest_age_seconds",
        "Age of the oldest goroutine alive; for one older than the tracing, how long it was watched.",
        &labels,
    )?;
    let stack = gauge(
        "leaktrace_goroutine_stack_bytes",
        "Stack memory of the goroutines alive, in bytes.",
        &labels,
    )?;
    for (site, report) in labelled(sites) {
        for (state, count) in &report.states {
            live.with_label_values(&[target, site, state])
                .add(signed(*count));
        }
        let values = [target, site];
        created
            .with_label_values(&values)
            .inc_by(report.created_total);
        ended.with_label_values(&values).inc_by(report.ended_total);
        let age = oldest.with_label_values(&values);
        age.set(age.get().max(report.oldest_seconds));
        stack
            .with_label_values(&values)
            .add(signed(report.stack_bytes));
    }
    register(registry, live)?;
    register(registry, created)?;
    register(registry, ended)?;
    register(registry, oldest)?;
    register(registry, stack)
}

fn register_timers(
    registry: &Registry,
    target: &str,
    sites: &[&SiteReport],
) -> Result<(), prometheus::Error> {
    let labels = ["target", "site", "kind"];
    let pending = gauge(
        "leaktrace_timers_pending",
        "Timers in the runtime's heaps, by call site that armed them.",
        &labels,
    )?;
    let created = counter(
        "leaktrace_timers_created_total",
        "Timers created since tracing began.",
        &labels,
    )?;
    let stopped = counter(
        "leaktrace_timers_stopped_total",
        "Calls that stopped a timer since tracing began.",
        &labels,
    )?;
    let fired = counter(
        "leaktrace_timers_fired_total",
        "Times that a timer fired since tracing began.",
        &labels,
    )?;
    let oldest = float_gauge(
        "leaktrace_timer_oldest_age_seconds",
        "Time since the oldest pending timer was armed; for one older than the tracing, how long it was watched.",
        &labels,
    )?;
    for (site, report) in labelled(sites) {
        let values = [target, site, report.timer_kind.unwrap_or("timer")];
        pending.with_label_values(&values).add(signed(report.count));
        created
            .with_label_values(&values)
            .inc_by(report.created_total);
        stopped
            .with_label_values(&values)
            .inc_by(report.stopped_total.unwrap_or(0));
        fired
            .with_label_values(&values)
            .inc_by(report.fired_total.unwrap_or(0));
        let age = oldest.with_label_values(&values);
        age.set(age.get().max(report.oldest_seconds));
    }
    register(registry, pending)?;
    register(registry, created)?;
    register(registry, stopped)?;
    register(registry, fired)?;
    register(registry, oldest)
}

fn register_verdicts(
    registry: &Registry,
    target: &str,
    report: &Report,
) -> Result<(), prometheus::Error> {
    let leak = gauge(
        "leaktrace_leak",
        "1 for each call site that leaks, with the rule that says so.",
        &["target", "kind", "site", "rule"],
    )?;
    let growth = float_gauge(
        "leaktrace_leak_growth_per_hour",
        "How much each leaking call site grows in an hour.",
        &["target", "kind", "site"],
    )?;
    for site in report
        .sites
        .iter()
        .filter(|site| site.verdict == Level::Leak)
    {
        leak.with_label_values(&[target, site.kind, &site.site, site.rule])
            .set(1);
        growth
            .with_label_values(&[target, site.kind, &site.site])
            .set(site.growth_per_minute * 60.0);
    }
    register(registry, leak)?;
    register(registry, growth)
}

/// The name that stays the same across restarts.
fn name(report: &Report) -> &str {
    target_name(&report.target.exe)
}

/// The name of a target known only by its executable: the file's name.
#[must_use]
pub fn target_name(exe: &str) -> &str {
    let path = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    path.rsplit('/').next().unwrap_or(path)
}

/// Each site with its label: its own for those with a verdict and the largest, `other` for the rest, so that sums stay exact.
fn labelled<'s>(sites: &[&'s SiteReport]) -> Vec<(&'s str, &'s SiteReport)> {
    let mut by_size = sites.to_vec();
    by_size.sort_by_key(|site| std::cmp::Reverse((site.verdict, site.count, site.created_total)));
    by_size
        .into_iter()
        .enumerate()
        .map(|(rank, site)| {
            let label = if rank < MOST_SITES {
                site.site.as_str()
            } else {
                "other"
            };
            (label, site)
        })
        .collect()
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn float_gauge(name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    GaugeVec::new(Opts::new(name, help), labels)
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn register(
    registry: &Registry,
    metric: impl Collector + 'static,
) -> Result<(), prometheus::Error> {
    registry.register(Box::new(metric))
}

/// Prometheus gauges are signed; no count here comes near the edge.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
