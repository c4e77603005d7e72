//! What is known of all targets as Prometheus metrics. Names and labels are the contract of dashboards and alerts: doc/prometheus.md.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use std::collections::BTreeSet;

use super::Report;
use super::histograms::Histograms;
use super::report::SiteReport;
use crate::verdict::Level;
use crate::watcher::board::Board;

/// The media type of [`render`]'s answer.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Sites that keep a label of their own per target and kind; the others are summed as `other`.
pub const MOST_SITES: usize = 50;

/// Sites, and pairs of site and state, that keep histograms of their own per target; the others are summed as `other`. A
/// histogram is a dozen series.
pub const MOST_HISTOGRAMS: usize = 10;

/// Reasons of refusal that keep a label of their own; the others are summed as `other`.
const MOST_REASONS: usize = 20;

/// A target and its last report.
type Watched<'b> = (&'b str, &'b Report);

/// Everything for one scrape, in the Prometheus text format; without `details` no path of an executable.
///
/// # Errors
/// When two metrics share a name or a label is malformed: a defect of this module, never of a target.
pub fn render(board: &Board, details: bool) -> Result<Vec<u8>, prometheus::Error> {
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
    for row in board.targets() {
        up.with_label_values(&[&row.target]).set(i64::from(row.up));
    }
    registry.register(Box::new(up))?;
    let watched: Vec<Watched<'_>> = board
        .targets()
        .filter_map(|row| Some((row.target.as_str(), row.report.as_deref()?)))
        .collect();
    register_targets(&registry, &watched, &board.node, details)?;
    register_processes(&registry, board)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

/// How many processes there are of each sort, and what cannot be traced for which reason.
fn register_processes(registry: &Registry, board: &Board) -> Result<(), prometheus::Error> {
    let processes = gauge(
        "leaktrace_processes",
        "Processes of this machine, by what became of them: traced, waiting, refused, excluded, not go, ended.",
        &["status"],
    )?;
    let refused = gauge(
        "leaktrace_target_refused",
        "Processes that cannot be traced although they are Go programs, or may be, by reason.",
        &["reason"],
    )?;
    let mut reasons: BTreeSet<&str> = BTreeSet::new();
    for row in &board.rows {
        processes.with_label_values(&[row.status]).inc();
        if row.status == "refused" {
            // The first part of the sentence names the process.
            let reason = row
                .reason
                .split_once("): ")
                .map_or(&*row.reason, |(_, why)| why);
            let known = reasons.contains(reason) || reasons.len() < MOST_REASONS;
            let label = if known { reason } else { "other" };
            reasons.insert(label);
            refused.with_label_values(&[label]).inc();
        }
    }
    register(registry, processes)?;
    register(registry, refused)?;
    for (name, help, value) in [
        (
            "leaktrace_stranger_hits_total",
            "Hits of probes in processes that are not traced: they run the same file as traced ones.",
            board.stranger_hits,
        ),
        (
            "leaktrace_late_events_total",
            "Events that came after their target had ended.",
            board.late_events,
        ),
        (
            "leaktrace_processes_unlisted_total",
            "Processes that were not looked at because there are too many.",
            board.unlisted,
        ),
    ] {
        let total = counter(name, help, &[])?;
        total.with_label_values::<&str>(&[]).inc_by(value);
        register(registry, total)?;
    }
    Ok(())
}

fn register_targets(
    registry: &Registry,
    watched: &[Watched<'_>],
    node: &str,
    details: bool,
) -> Result<(), prometheus::Error> {
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
            "container",
            "container_id",
            "pod",
            "namespace",
            "owner",
            "unit",
            "node",
        ],
    )?;
    for (target, report) in watched {
        let facts = &report.target;
        info.with_label_values(&[
            *target,
            &facts.pid.to_string(),
            if details { &facts.exe } else { "" },
            &facts.go_version,
            &facts.build_id,
            &facts.module,
            &facts.version,
            &facts.vcs_revision,
            &facts.container,
            &facts.container_id,
            &facts.pod,
            &facts.namespace,
            &facts.owner,
            &facts.unit,
            node,
        ])
        .set(1);
    }
    register(registry, info)?;
    let memory = gauge(
        "leaktrace_target_memory_bytes",
        "Memory that the target holds: its resident set.",
        &["target"],
    )?;
    let limit = gauge(
        "leaktrace_target_memory_limit_bytes",
        "Memory that the target may hold: the lowest limit of its cgroups, else the machine's memory.",
        &["target"],
    )?;
    for (target, report) in watched {
        let facts = &report.target;
        for (gauge, bytes) in [
            (&memory, facts.memory_bytes),
            (&limit, facts.memory_limit_bytes),
        ] {
            // What is not known is left out: it would look like a program without memory.
            if bytes > 0 {
                gauge.with_label_values(&[target]).set(signed(bytes));
            }
        }
    }
    register(registry, memory)?;
    register(registry, limit)?;

    let drift = gauge(
        "leaktrace_census_drift",
        "Goroutines on which events and census disagreed when they last met.",
        &["target"],
    )?;
    for (target, report) in watched {
        drift
            .with_label_values(&[target])
            .set(signed(report.goroutines.drift));
    }
    register(registry, drift)?;
    let level = gauge(
        "leaktrace_events_level",
        "How much the probes hear: 0 none, 1 sampled, 2 lifecycle, 3 full.",
        &["target"],
    )?;
    for (target, report) in watched {
        level
            .with_label_values(&[target])
            .set(match report.events.level {
                "full" => 3,
                "lifecycle" => 2,
                "sampled" => 1,
                _ => 0,
            });
    }
    register(registry, level)?;
    let hits = counter(
        "leaktrace_probe_hits_total",
        "How often each probe was hit.",
        &["target", "probe"],
    )?;
    for (target, report) in watched {
        for (probe, count) in &report.events.hits {
            hits.with_label_values(&[*target, *probe]).inc_by(*count);
        }
    }
    register(registry, hits)?;
    register_cost(registry, watched)?;
    let lost = counter(
        "leaktrace_events_lost_total",
        "Events that were lost, by cause. Counts of live things are right again after the next census.",
        &["target", "cause"],
    )?;
    for (target, report) in watched {
        for (cause, count) in &report.events.lost_by_cause {
            lost.with_label_values(&[*target, *cause]).inc_by(*count);
        }
    }
    register(registry, lost)?;

    register_goroutines(registry, watched)?;
    register_timers(registry, watched)?;
    register_lifetimes(registry, watched)?;
    register_blocked(registry, watched)?;
    register_verdicts(registry, watched)
}

/// Every site of every target that counts goroutines, or else timers: target, label, site.
fn sites<'b>(watched: &[Watched<'b>], timers: bool) -> Vec<(&'b str, &'b str, &'b SiteReport)> {
    let mut all = Vec::new();
    for (target, report) in watched {
        let sites = report.sites.iter();
        let wanted: Vec<_> = sites
            .filter(|site| site.timer_kind.is_some() == timers)
            .collect();
        let labelled = labelled(&wanted).into_iter();
        all.extend(labelled.map(|(label, site)| (*target, label, site)));
    }
    all
}

fn register_cost(registry: &Registry, watched: &[Watched<'_>]) -> Result<(), prometheus::Error> {
    let cost = CounterVec::new(
        Opts::new(
            "leaktrace_probe_cost_seconds_total",
            "Time that each probe took from the target's threads: hits, times what one costs on this machine.",
        ),
        &["target", "probe"],
    )?;
    let overhead = float_gauge(
        "leaktrace_overhead_ratio",
        "What the target loses to the probes over the last half minute, as a part of one core.",
        &["target"],
    )?;
    let budget = float_gauge(
        "leaktrace_budget_ratio",
        "What the target may lose, as a part of one core; no series without a budget.",
        &["target"],
    )?;
    let price = float_gauge(
        "leaktrace_probe_cost_seconds",
        "What one hit of a probe costs on this machine: twice what is measured on leaktrace itself, whose caches are warm.",
        &["work"],
    )?;
    let changes = counter(
        "leaktrace_events_level_changes_total",
        "How often the level changed to keep the budget.",
        &["target", "direction"],
    )?;
    for (target, report) in watched {
        let events = &report.events;
        for (probe, seconds) in &events.cost_seconds {
            cost.with_label_values(&[*target, *probe]).inc_by(*seconds);
        }
        overhead
            .with_label_values(&[target])
            .set(events.overhead_now);
        if let Some(share) = events.budget {
            budget.with_label_values(&[target]).set(share);
        }
        if let Some(hit) = events.hit_cost {
            let with_stack = hit.emulated_ns + hit.stack_ns;
            price
                .with_label_values(&["record"])
                .set(hit.emulated_ns / 1e9);
            price
                .with_label_values(&["record with stack"])
                .set(with_stack / 1e9);
        }
        for (direction, count) in [
            ("poorer", events.changes.falls),
            ("richer", events.changes.returns),
        ] {
            changes
                .with_label_values(&[*target, direction])
                .inc_by(count);
        }
    }
    register(registry, cost)?;
    register(registry, overhead)?;
    register(registry, budget)?;
    register(registry, price)?;
    register(registry, changes)
}

fn register_goroutines(
    registry: &Registry,
    watched: &[Watched<'_>],
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
    for (target, site, report) in sites(watched, false) {
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

fn register_timers(registry: &Registry, watched: &[Watched<'_>]) -> Result<(), prometheus::Error> {
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
    let armed_longer = gauge(
        "leaktrace_timers_armed_longer",
        "Pending timers that have been armed for longer than so many seconds.",
        &["target", "seconds"],
    )?;
    let forgotten = counter(
        "leaktrace_timers_forgotten_total",
        "Timers whose call site is not known any more: too many of them, or something was not heard.",
        &["target", "cause"],
    )?;
    for (target, report) in watched {
        for (cause, count) in [
            ("too many", report.timers.forgotten),
            ("not heard", report.timers.unproven),
        ] {
            forgotten.with_label_values(&[*target, cause]).inc_by(count);
        }
        for site in &report.timers.armed_longer {
            for one in &site.longer_than {
                armed_longer
                    .with_label_values(&[*target, &*one.seconds.to_string()])
                    .add(signed(one.count));
            }
        }
    }
    for (target, site, report) in sites(watched, true) {
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
    register(registry, armed_longer)?;
    register(registry, forgotten)?;
    register(registry, oldest)
}

fn register_lifetimes(
    registry: &Registry,
    watched: &[Watched<'_>],
) -> Result<(), prometheus::Error> {
    let mut goroutines = Histograms::new(
        "leaktrace_goroutine_lifetime_seconds",
        "How long goroutines lived whose birth and end were both heard.",
        &["target", "site"],
    )?;
    let mut timers = Histograms::new(
        "leaktrace_timer_lifetime_seconds",
        "How long timers were pending until they fired, were stopped or armed again.",
        &["target", "site", "kind"],
    )?;
    for (target, report) in watched {
        for (family, of_timers) in [(&mut goroutines, false), (&mut timers, true)] {
            let sites = report.sites.iter();
            let mut lived: Vec<_> = sites
                .filter(|site| site.timer_kind.is_some() == of_timers)
                .filter_map(|site| Some((site, site.lifetimes.as_ref()?)))
                .collect();
            lived.sort_by_key(|(site, lengths)| std::cmp::Reverse((site.verdict, lengths.count)));
            for (rank, (site, lengths)) in lived.into_iter().enumerate() {
                let label = if rank < MOST_HISTOGRAMS {
                    &site.site
                } else {
                    "other"
                };
                match site.timer_kind {
                    Some(kind) => family.add(&[target, label, kind], lengths),
                    None => family.add(&[target, label], lengths),
                }
            }
        }
    }
    register(registry, goroutines)?;
    register(registry, timers)
}

/// What level full hears of waits.
fn register_blocked(registry: &Registry, watched: &[Watched<'_>]) -> Result<(), prometheus::Error> {
    let mut blocked = Histograms::new(
        "leaktrace_goroutine_blocked_seconds",
        "How long goroutines were blocked, by call site and wait reason, on level full.",
        &["target", "site", "state"],
    )?;
    let unheard = counter(
        "leaktrace_goroutine_waits_unheard_total",
        "Waits that are not in leaktrace_goroutine_blocked_seconds, because their end was not heard.",
        &["target"],
    )?;
    for (target, report) in watched {
        let waits = report.sites.iter();
        let mut waits: Vec<_> = waits
            .flat_map(|site| site.blocked_time.iter().map(move |wait| (site, wait)))
            .collect();
        waits.sort_by(|(a, one), (b, other)| {
            let total = other
                .lengths
                .total_seconds
                .total_cmp(&one.lengths.total_seconds);
            b.verdict.cmp(&a.verdict).then(total)
        });
        if !waits.is_empty() {
            let count = waits.iter().map(|(_, wait)| wait.unheard).sum();
            unheard.with_label_values(&[target]).inc_by(count);
        }
        for (rank, (site, wait)) in waits.into_iter().enumerate() {
            let (label, state) = if rank < MOST_HISTOGRAMS {
                (&*site.site, &*wait.state)
            } else {
                ("other", "other")
            };
            blocked.add(&[target, label, state], &wait.lengths);
        }
    }
    register(registry, blocked)?;
    register(registry, unheard)
}

fn register_verdicts(
    registry: &Registry,
    watched: &[Watched<'_>],
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
    for (target, report) in watched {
        for site in (report.sites.iter()).filter(|site| site.verdict == Level::Leak) {
            leak.with_label_values(&[*target, site.kind, &site.site, site.rule])
                .set(1);
            growth
                .with_label_values(&[*target, site.kind, &site.site])
                .set(site.growth_per_minute * 60.0);
        }
    }
    register(registry, leak)?;
    register(registry, growth)
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
