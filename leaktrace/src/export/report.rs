//! What is known of one target at one moment: the JSON of `snapshot` and `record`, and what all other renderers take.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::label;
use super::times::{self, Blocked, Lengths, LongWait, OldTimer};
use crate::address::RuntimeAddr;
use crate::budget::{Calibration, Estimates, Moment, Totals};
use crate::census::semaphores::Semaphore;
use crate::census::stacks::StackGroup;
use crate::census::waits::{Channel, SiteWait};
use crate::census::{Places, Status, TimerKind};
use crate::event::StackId;
use crate::ledger::{CallSite, Ledger, Sample, Site, SiteId, SiteKind, State, Symbols};
use crate::probe::BlockedTime;
use crate::resolve::Program;
use crate::resolve::pclntab::Frame;
use crate::target::whereabouts::Whereabouts;
use crate::verdict::{Level, Shape, Standings, Wait, remedy};

/// Version of the JSON shape. Fields are only ever added within one version.
pub const SCHEMA: &str = "leaktrace/v1";

/// What is known of one target.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Which process.
    pub target: Target,
    /// Its goroutines.
    pub goroutines: Goroutines,
    /// Its pending timers.
    pub timers: Timers,
    /// Every call site with something alive or counted; worst verdict first, then fastest growth, then largest count.
    pub sites: Vec<SiteReport>,
    /// How it was watched, and what was lost.
    pub events: Events,
}

/// Which process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Target {
    /// Process id.
    pub pid: i32,
    /// When it started, seconds since the epoch.
    pub start_time: f64,
    /// Path of its executable.
    pub exe: String,
    /// Go release, as in `go1.27.3`.
    pub go_version: String,
    /// Build id.
    pub build_id: String,
    /// Main module.
    pub module: String,
    /// Version of the main module.
    pub version: String,
    /// Revision in version control.
    pub vcs_revision: String,
    /// `amd64` or `arm64`.
    pub arch: &'static str,
    /// Id of its container; "" when it is in none.
    pub container_id: String,
    /// Name of its container in the pod.
    pub container: String,
    /// Its pod.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// Its systemd unit.
    pub unit: String,
}

impl Target {
    /// What is known of a process and its executable.
    #[must_use]
    pub fn new(pid: i32, start_time: f64, exe: String, program: &Program) -> Self {
        let build = &program.build;
        Self {
            pid,
            start_time,
            exe,
            go_version: build.go.text.clone(),
            build_id: program.build_id.clone(),
            module: build.module.clone(),
            version: build.module_version.clone(),
            vcs_revision: build.vcs_revision.clone(),
            arch: program.arch.name(),
            ..Self::default()
        }
    }

    /// The same with where the process lives.
    #[must_use]
    pub fn at(self, place: &Whereabouts) -> Self {
        let place = place.clone();
        Self {
            container_id: place.container_id,
            container: place.container,
            pod: place.pod,
            namespace: place.namespace,
            unit: place.unit,
            ..self
        }
    }
}

/// Totals over all goroutines.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Goroutines {
    /// What `runtime.NumGoroutine` would say.
    pub total: u64,
    /// The runtime's own, not in `total`.
    pub system: u64,
    /// `total` by state.
    pub by_state: BTreeMap<String, u64>,
    /// On how many events and census disagreed when they last met.
    pub drift: u64,
    /// Why they disagreed: "" when they did not, "events lost", or "unexplained", which is a defect of leaktrace.
    pub drift_cause: &'static str,
    /// Those that have been blocked for longest, as far as that is known; at most [`times::MOST_LISTED`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub longest_blocked: Vec<LongWait>,
}

/// Totals over all pending timers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timers {
    /// How many are in the runtime's heaps.
    pub total: u64,
    /// The same by kind.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Whether the counts are missing: this binary does not tell where its heaps are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Those that have been armed for longest; at most [`times::MOST_LISTED`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oldest: Vec<OldTimer>,
    /// How many were forgotten because the program had too many: if it resets one, its line is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub forgotten: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One call site.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SiteReport {
    /// `goroutine` or `timer`.
    pub kind: &'static str,
    /// Full name of the function.
    pub function: String,
    /// Path as the compiler wrote it; "" when not known.
    pub file: String,
    /// Line; 0 when not known.
    pub line: u32,
    /// `pkg.Func dir/file.go:42`: the label of metrics, stable across rebuilds that do not move the line.
    pub site: String,
    /// Alive now.
    pub count: u64,
    /// `count` by state (goroutines).
    pub states: BTreeMap<String, u64>,
    /// What its goroutines run, or its timers call.
    pub start_function: String,
    /// Age of the oldest.
    pub oldest_seconds: f64,
    /// Whether the oldest is at least that old: it was there before tracing began.
    pub oldest_is_lower_bound: bool,
    /// Births heard of while tracing.
    pub created_total: u64,
    /// Ends heard of while tracing: goroutines that ended, timers that were stopped or fired.
    pub ended_total: u64,
    /// Whether the totals are in part estimates: only samples were heard for a while, to keep the budget.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// The timer that started its goroutines is of this kind, and the line is the one that armed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_by_timer: Option<&'static str>,
    /// Timers armed again while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rearmed_total: Option<u64>,
    /// Pending timers stopped while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_total: Option<u64>,
    /// Timers fired while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fired_total: Option<u64>,
    /// How fast `count` grows.
    pub growth_per_minute: f64,
    /// How many were alive over time, oldest first: seconds since the epoch, count. Only of the first [`MOST_HISTORIES`]
    /// sites, and not in the JSON of `record`: `/api/v1` adds it.
    #[serde(skip)]
    pub history: Vec<(f64, u64)>,
    /// Bytes of stack that its goroutines hold.
    pub stack_bytes: u64,
    /// Kind of the timers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_kind: Option<&'static str>,
    /// Their period: only for tickers that all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<f64>,
    /// How long before they are due its timers are armed, the shortest and the longest; of those armed while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub armed_for_seconds: Option<(f64, f64)>,
    /// How long those lived whose birth and end were both heard: goroutines until they ended, timers until they fired,
    /// were stopped or armed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetimes: Option<Lengths>,
    /// How long its goroutines were blocked, by wait reason (level full).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_time: Vec<Blocked>,
    /// Whether the line is where it was made; false for a timer armed before tracing, known by what it will call.
    pub attributed: bool,
    /// ok, suspect or leak.
    pub verdict: Level,
    /// Name of the rule that decided; "" when ok.
    pub rule: &'static str,
    /// The evidence as a sentence; "" when ok.
    pub evidence: String,
    /// Whether enough was seen to judge.
    pub judged: bool,
    /// How long after the first count it was judged so, in seconds; only of suspects and leaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_after_seconds: Option<f64>,
    /// How leaks of this shape are usually mended, where what is seen proves the shape; only of suspects and leaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
    /// A stack that made one of them, innermost first.
    pub creation_stack: Vec<CallSite>,
    /// Where its goroutines are, most first.
    pub blocked_stacks: Vec<BlockedStack>,
    /// The channels that its goroutines wait on, most waited on first; at most [`MOST_CHANNELS`].
    pub waits_on: Vec<WaitsOn>,
    /// On how many channels its goroutines wait in all.
    pub channels: u64,
    /// The semaphores (of mutexes, wait groups) that its goroutines wait for, most waited for first; at most
    /// [`MOST_CHANNELS`].
    pub waits_for: Vec<WaitsFor>,
    /// For how many semaphores its goroutines wait in all.
    pub semaphores: u64,
}

/// Goroutines of one site that are at one place.
#[derive(Clone, Debug, Serialize)]
pub struct BlockedStack {
    /// How many.
    pub count: u64,
    /// Their wait reason, or running, runnable, syscall.
    pub state: String,
    /// The lowest and the highest of their numbers.
    pub goids: (u64, u64),
    /// Where, innermost first; empty when they run.
    pub frames: Vec<CallSite>,
}

/// A channel that goroutines of one site wait on.
#[derive(Clone, Debug, Serialize)]
pub struct WaitsOn {
    /// Its address, in hexadecimal.
    pub channel: String,
    /// How many goroutines of this site.
    pub count: u64,
    /// Elements that it can hold.
    pub capacity: u64,
    /// Elements that it holds.
    pub length: u64,
    /// Whether it was closed.
    pub closed: bool,
    /// Goroutines of all sites that wait to receive from it alone.
    pub receivers: u64,
    /// Goroutines of all sites that wait to send to it alone.
    pub senders: u64,
    /// Goroutines of all sites that wait for it among others.
    pub selecting: u64,
}

/// A semaphore that goroutines of one site wait for.
#[derive(Clone, Debug, Serialize)]
pub struct WaitsFor {
    /// Its address, in hexadecimal: that of the field `sema` of a `sync.Mutex`, for one.
    pub semaphore: String,
    /// How many goroutines of this site.
    pub count: u64,
    /// Goroutines of all sites that wait for it.
    pub waiters: u64,
}

/// Frames of all stacks of a report. A binary whose tables lie can make thousands of one address.
const MOST_FRAMES: usize = 100_000;

/// Symbols that are asked for only so many frames.
struct Sparing<'s> {
    symbols: &'s dyn Symbols,
    left: Cell<usize>,
}

impl Sparing<'_> {
    fn spend(&self, frames: impl FnOnce() -> Vec<Frame>) -> Vec<Frame> {
        if self.left.get() == 0 {
            return Vec::new();
        }
        let frames = frames();
        // An address that tells nothing took time all the same.
        self.left
            .set(self.left.get().saturating_sub(frames.len().max(1)));
        frames
    }
}

impl Symbols for Sparing<'_> {
    fn frames_of_return(&self, pc: RuntimeAddr) -> Vec<Frame> {
        self.spend(|| self.symbols.frames_of_return(pc))
    }

    fn frames(&self, pc: RuntimeAddr) -> Vec<Frame> {
        self.spend(|| self.symbols.frames(pc))
    }

    fn stack(&self, stack: StackId) -> Vec<RuntimeAddr> {
        self.symbols.stack(stack)
    }

    fn timer_kind(&self, function: RuntimeAddr, period_ns: i64) -> Option<TimerKind> {
        self.symbols.timer_kind(function, period_ns)
    }
}

/// Sites, from the worst on, whose history is in a report.
pub const MOST_HISTORIES: usize = 200;

/// Channels, and semaphores, listed for each site.
pub const MOST_CHANNELS: usize = 5;

/// How it was watched, and what was lost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Events {
    /// `none`, `sampled`, `lifecycle` or `full`: how much is heard now.
    pub level: &'static str,
    /// What the program may lose, as a part of one core; null: anything.
    pub budget: Option<f64>,
    /// What it lost over the whole watch, as a part of one core: hits, times what one costs on this machine.
    pub overhead_measured: f64,
    /// The same over the last half minute.
    pub overhead_now: f64,
    /// What it lost, in seconds of a core, by kind of event.
    pub cost_seconds: BTreeMap<&'static str, f64>,
    /// What one hit costs on this machine; null without probes.
    pub hit_cost: Option<Calibration>,
    /// How often the level changed to keep the budget, and why.
    pub changes: LevelChanges,
    /// For so long nothing was heard and nothing is estimated, in seconds.
    pub unheard_seconds: f64,
    /// Events lost, all causes.
    pub lost: u64,
    /// The same by cause; only causes that occurred.
    pub lost_by_cause: BTreeMap<&'static str, u64>,
    /// Probe hits by kind of event.
    pub hits: BTreeMap<&'static str, u64>,
    /// Kinds of event that are not probed, and why.
    pub not_probed: BTreeMap<&'static str, String>,
    /// How long was watched, in seconds.
    pub seconds: f64,
}

/// How often the level changed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LevelChanges {
    /// To a poorer level.
    pub falls: u64,
    /// To a richer level.
    pub returns: u64,
    /// Samples taken.
    pub samples: u64,
    /// The latest changes, the last one last.
    pub latest: Vec<LevelChange>,
}

/// One change of level.
#[derive(Clone, Debug, Serialize)]
pub struct LevelChange {
    /// When, in seconds since the watch began.
    pub seconds: f64,
    /// The level before.
    pub from: &'static str,
    /// The level after.
    pub to: &'static str,
    /// Why, as a sentence.
    pub reason: String,
}

/// What a report is made of besides the ledger.
pub struct Facts<'f> {
    /// Which process.
    pub target: Target,
    /// Its executable.
    pub program: &'f Program,
    /// Names of its wait reasons, by number.
    pub wait_reasons: &'f [String],
    /// Where its goroutines are.
    pub places: &'f Places,
    /// What was judged of each call site.
    pub standings: &'f Standings,
    /// When the first census ended: CLOCK_MONOTONIC, nanoseconds.
    pub watched_since_ns: u64,
    /// How long its goroutines were blocked: empty below level full.
    pub blocked: &'f [BlockedTime],
    /// How it was watched.
    pub events: Events,
    /// What was not heard between samples, as of that moment; `None` without probes.
    pub hidden: Option<(&'f Estimates, Moment)>,
    /// When the last census ended: CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// The same in seconds since the epoch.
    pub now_unix: f64,
}

impl Report {
    /// Draws up the report.
    #[must_use]
    pub fn new(ledger: &Ledger, symbols: &dyn Symbols, facts: Facts<'_>) -> Self {
        let symbols = &Sparing {
            symbols,
            left: Cell::new(MOST_FRAMES),
        };
        let mut tallies: BTreeMap<SiteId, Tally<'_>> = BTreeMap::new();
        for (_, live) in ledger.goroutines() {
            let tally = tallies.entry(live.site).or_default();
            *tally.states.entry(live.state).or_default() += 1;
            // A target may claim any size.
            tally.stack_bytes = tally.stack_bytes.saturating_add(live.stack_bytes);
            tally.meet(live.since_ns, live.exact);
        }
        for timer in ledger.timers() {
            let tally = tallies.entry(timer.site).or_default();
            tally.meet(timer.since_ns, timer.exact);
            tally.meet_period(timer.period_ns);
        }

        for group in &facts.places.stacks {
            // Goroutines that timers started share all but their number with those of other lines.
            let known = || ledger.sites.known_goroutine(group.gopc, group.startpc);
            if let Some(id) = ledger.site_of(group.goids.0).or_else(known) {
                tallies.entry(id).or_default().stacks.push(group);
            }
        }
        for wait in facts.blocked {
            if let Some(id) = ledger.sites.known_goroutine(wait.gopc, wait.startpc) {
                tallies.entry(id).or_default().blocked.push(wait);
            }
        }
        for wait in &facts.places.channels {
            if let Some(id) = ledger.sites.known_goroutine(wait.gopc, wait.startpc) {
                tallies.entry(id).or_default().channels.push(wait);
            }
        }
        for wait in &facts.places.semaphores {
            if let Some(id) = ledger.sites.known_goroutine(wait.gopc, wait.startpc) {
                tallies.entry(id).or_default().semaphores.push(wait);
            }
        }

        let build = &facts.program.build;
        let mut goroutines = Goroutines {
            longest_blocked: times::longest_waits(ledger, facts.wait_reasons, build, facts.now_ns),
            drift: ledger.drift.total(),
            drift_cause: match (ledger.drift.total(), facts.events.lost) {
                (0, _) => "",
                (_, 0) => "unexplained",
                _ => "events lost",
            },
            ..Goroutines::default()
        };
        let mut timers = Timers {
            unknown: ledger.timers_unknown,
            oldest: times::oldest_timers(ledger, build, facts.now_ns),
            forgotten: ledger.forgotten_timers(),
            ..Timers::default()
        };
        let mut sites = Vec::new();
        for (index, (id, site)) in ledger.sites.enumerate().enumerate() {
            let tally = tallies.remove(&id).unwrap_or_default();
            match site.kind {
                SiteKind::SystemGoroutine => {
                    goroutines.system += site.live;
                    continue;
                }
                SiteKind::Goroutine => {
                    goroutines.total += site.live;
                    for (state, count) in &tally.states {
                        let name = state_name(*state, facts.wait_reasons);
                        *goroutines.by_state.entry(name).or_default() += count;
                    }
                }
                SiteKind::Timer(kind) => {
                    timers.total += site.live;
                    if site.live > 0 {
                        *timers.by_kind.entry(kind.name()).or_default() += site.live;
                    }
                }
            }
            if site.live > 0 || site.created > 0 || site.ended > 0 || !tally.blocked.is_empty() {
                let hidden = (facts.hidden)
                    .map_or_else(Totals::default, |(hidden, now)| hidden.hidden(index, now));
                sites.push(site_report(id, site, hidden, tally, symbols, &facts));
            }
        }
        sites.sort_by(|a, b| {
            (b.verdict, b.growth_per_minute.max(0.0).round(), b.count)
                .partial_cmp(&(a.verdict, a.growth_per_minute.max(0.0).round(), a.count))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| a.site.cmp(&b.site))
        });
        for site in sites.iter_mut().skip(MOST_HISTORIES) {
            site.history = Vec::new();
        }
        Self {
            schema: SCHEMA,
            target: facts.target,
            goroutines,
            timers,
            sites,
            events: facts.events,
        }
    }

    /// The worst verdict of all sites.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.sites
            .iter()
            .map(|site| site.verdict)
            .max()
            .unwrap_or(Level::Ok)
    }
}

/// What the live things of one site add up to.
#[derive(Default)]
struct Tally<'p> {
    stacks: Vec<&'p StackGroup>,
    channels: Vec<&'p SiteWait<Channel>>,
    semaphores: Vec<&'p SiteWait<Semaphore>>,
    blocked: Vec<&'p BlockedTime>,
    states: BTreeMap<State, u64>,
    stack_bytes: u64,
    oldest: Option<(u64, bool)>,
    period: Option<Option<i64>>,
}

impl Tally<'_> {
    fn meet(&mut self, since_ns: u64, exact: bool) {
        // Of two equally old, the one whose age is only a lower bound may be older.
        let met = (since_ns, exact);
        self.oldest = Some(self.oldest.map_or(met, |oldest| oldest.min(met)));
    }

    fn meet_period(&mut self, period_ns: i64) {
        self.period = Some(match self.period {
            None => Some(period_ns),
            Some(same) => same.filter(|same| *same == period_ns),
        });
    }
}

fn site_report(
    id: SiteId,
    site: &Site,
    hidden: Totals,
    mut tally: Tally,
    symbols: &dyn Symbols,
    facts: &Facts<'_>,
) -> SiteReport {
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for (state, count) in std::mem::take(&mut tally.states) {
        *states
            .entry(state_name(state, facts.wait_reasons))
            .or_default() += count;
    }
    let (kind, timer_kind) = match site.kind {
        SiteKind::Timer(kind) => ("timer", Some(kind.name())),
        SiteKind::Goroutine | SiteKind::SystemGoroutine => ("goroutine", None),
    };
    let growth_per_minute = site.history.growth_per_minute();
    let standing = facts.standings.of(id);
    let level = standing.map_or(Level::NotYet, |standing| standing.level);
    let found = standing.filter(|_| level > Level::Ok);
    let blocked_stacks = blocked_stacks(&tally.stacks, symbols, facts.wait_reasons);
    let creation_stack = site
        .creation_stack
        .map(|stack| creation_stack(&symbols.stack(stack), symbols));
    let (since_ns, exact) = tally.oldest.unwrap_or((facts.now_ns, true));
    let is_timer = timer_kind.is_some();
    let [created, ended, stopped, fired] = [
        site.created.saturating_add(hidden[0]),
        site.ended.saturating_add(hidden[1]),
        site.stopped.saturating_add(hidden[2]),
        site.fired.saturating_add(hidden[3]),
    ];
    let is_ticker = timer_kind == Some("ticker");
    SiteReport {
        kind,
        function: site.at.function.clone(),
        file: site.at.file.clone(),
        line: site.at.line,
        site: label::of(&site.at, &facts.program.build),
        count: site.live,
        states,
        start_function: site.start_function.clone(),
        oldest_seconds: seconds(facts.now_ns.saturating_sub(since_ns)),
        oldest_is_lower_bound: !exact,
        created_total: created,
        ended_total: if !is_timer {
            ended
        } else if is_ticker {
            // A ticker goes on after it fired.
            stopped
        } else {
            stopped.saturating_add(fired)
        },
        estimated: hidden != Totals::default(),
        started_by_timer: site.started_by.map(TimerKind::name),
        rearmed_total: is_timer.then_some(site.rearmed.saturating_add(hidden[4])),
        stopped_total: is_timer.then_some(stopped),
        fired_total: is_timer.then_some(fired),
        history: history(site.history.samples(), facts),
        growth_per_minute: (growth_per_minute * 10.0).round() / 10.0,
        stack_bytes: tally.stack_bytes,
        timer_kind,
        period_seconds: tally
            .period
            .flatten()
            .filter(|period| *period > 0)
            .map(|period| seconds(period.unsigned_abs())),
        armed_for_seconds: (site.armed_for_ns)
            .map(|(shortest, longest)| (seconds(shortest), seconds(longest))),
        lifetimes: Lengths::of(&site.lifetimes),
        blocked_time: times::blocked(&tally.blocked, facts.wait_reasons),
        attributed: site.attributed,
        verdict: level.max(Level::Ok),
        rule: found.map_or("", |found| found.rule),
        evidence: found.map_or_else(String::new, |found| found.sentence.clone()),
        judged: level > Level::NotYet,
        verdict_after_seconds: found
            .map(|found| seconds(found.since_ns.saturating_sub(facts.watched_since_ns))),
        remedy: found.and_then(|found| {
            how_to_mend(
                site,
                &tally,
                &blocked_stacks,
                symbols,
                found.rule == "looping",
            )
        }),
        creation_stack: creation_stack.unwrap_or_default(),
        blocked_stacks,
        channels: tally.channels.len() as u64,
        waits_on: tally
            .channels
            .iter()
            .take(MOST_CHANNELS)
            .map(|wait| waits_on(wait))
            .collect(),
        semaphores: tally.semaphores.len() as u64,
        waits_for: tally
            .semaphores
            .iter()
            .take(MOST_CHANNELS)
            .map(|wait| WaitsFor {
                semaphore: wait.on.address.to_string(),
                count: wait.count,
                waiters: wait.on.waiters,
            })
            .collect(),
    }
}

/// Readings with the time of day.
fn history(samples: &[Sample], facts: &Facts<'_>) -> Vec<(f64, u64)> {
    let unix = |sample: &Sample| {
        let ago = seconds(facts.now_ns.saturating_sub(sample.at_ns));
        ((facts.now_unix - ago) * 10.0).round() / 10.0
    };
    samples
        .iter()
        .map(|sample| (unix(sample), sample.count))
        .collect()
}

/// How leaks of the shape that is seen are usually mended.
fn how_to_mend(
    site: &Site,
    tally: &Tally<'_>,
    blocked: &[BlockedStack],
    symbols: &dyn Symbols,
    looping: bool,
) -> Option<&'static str> {
    let most = blocked.first();
    let blocked_in: Vec<String> = (most.into_iter())
        .flat_map(|stack| stack.frames.iter().map(|frame| frame.function.clone()))
        .collect();
    let made_by: Vec<String> = (site.creation_stack.into_iter())
        .flat_map(|stack| symbols.stack(stack))
        .flat_map(|pc| symbols.frames_of_return(pc))
        .map(|frame| frame.function)
        .chain([site.at.function.clone()])
        .collect();
    let mut capacities = tally.channels.iter().map(|wait| wait.on.capacity);
    let first = capacities.next();
    remedy(&Shape {
        wait: most.map(|stack| Wait::of_reason(&stack.state).seen_on(&blocked_in)),
        timer: match site.kind {
            SiteKind::Timer(kind) => Some(kind),
            SiteKind::Goroutine | SiteKind::SystemGoroutine => None,
        },
        blocked_in: &blocked_in,
        made_by: &made_by,
        looping,
        channels: tally.channels.len() as u64,
        capacity: first.filter(|first| capacities.all(|other| other == *first)),
    })
}

/// One entry for each distinct stack and state, most first: groups of one stack may differ in what they left on it.
fn blocked_stacks(
    groups: &[&StackGroup],
    symbols: &dyn Symbols,
    wait_reasons: &[String],
) -> Vec<BlockedStack> {
    let mut stacks: Vec<BlockedStack> = Vec::new();
    let mut places: HashMap<(&[RuntimeAddr], State), usize> = HashMap::new();
    for group in groups {
        let state = match group.status {
            Status::Waiting => State::Waiting(group.wait_reason),
            Status::Runnable => State::Runnable,
            Status::Running => State::Running,
            Status::Syscall => State::Syscall,
            Status::Preempted => State::Preempted,
        };
        let place = *places
            .entry((group.stack.as_slice(), state))
            .or_insert(stacks.len());
        match stacks.get_mut(place) {
            Some(stack) => {
                stack.count += group.count;
                stack.goids.0 = stack.goids.0.min(group.goids.0.0);
                stack.goids.1 = stack.goids.1.max(group.goids.1.0);
            }
            None => stacks.push(BlockedStack {
                count: group.count,
                state: state_name(state, wait_reasons),
                goids: (group.goids.0.0, group.goids.1.0),
                frames: frames_of(&group.stack, symbols),
            }),
        }
    }
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.count));
    stacks
}

/// The frames of a parked goroutine: the innermost address is where it is, the others are where calls return to.
fn frames_of(stack: &[RuntimeAddr], symbols: &dyn Symbols) -> Vec<CallSite> {
    let innermost = stack.first().map(|pc| symbols.frames(*pc));
    let callers = stack.iter().skip(1).map(|pc| symbols.frames_of_return(*pc));
    innermost
        .into_iter()
        .chain(callers)
        .flatten()
        .map(|frame| CallSite {
            function: frame.function,
            file: frame.file,
            line: frame.line,
        })
        .collect()
}

fn waits_on(wait: &SiteWait<Channel>) -> WaitsOn {
    let channel = &wait.on;
    WaitsOn {
        channel: channel.address.to_string(),
        count: wait.count,
        capacity: channel.capacity,
        length: channel.length,
        closed: channel.closed,
        receivers: channel.receivers,
        senders: channel.senders,
        selecting: channel.selecting,
    }
}

/// The stack as a user reads it: inlined calls expanded, without the runtime's own frames at either end.
fn creation_stack(stack: &[RuntimeAddr], symbols: &dyn Symbols) -> Vec<CallSite> {
    stack
        .iter()
        .flat_map(|pc| symbols.frames_of_return(*pc))
        .filter(|frame| !frame.function.starts_with("runtime."))
        .map(|frame| CallSite {
            function: frame.function,
            file: frame.file,
            line: frame.line,
        })
        .collect()
}

pub(super) fn state_name(state: State, wait_reasons: &[String]) -> String {
    match state {
        State::New => "new".to_owned(),
        State::Runnable => "runnable".to_owned(),
        State::Running => "running".to_owned(),
        State::Syscall => "syscall".to_owned(),
        State::Preempted => "preempted".to_owned(),
        State::Waiting(reason) => match wait_reasons.get(usize::from(reason)) {
            Some(name) if !name.is_empty() => name.clone(),
            Some(_) => "waiting".to_owned(),
            None => format!("wait reason {reason}"),
        },
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an age in nanoseconds loses less than a microsecond in a year"
)]
pub(super) fn seconds(ns: u64) -> f64 {
    (ns as f64 / 1e9 * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every address stands for ten calls.
    struct Deep;

    impl Symbols for Deep {
        fn frames_of_return(&self, _: RuntimeAddr) -> Vec<Frame> {
            let frame = Frame {
                function: "main.f".to_owned(),
                file: "main.go".to_owned(),
                line: 1,
                inlined: true,
            };
            vec![frame; 10]
        }

        fn frames(&self, pc: RuntimeAddr) -> Vec<Frame> {
            self.frames_of_return(pc)
        }

        fn stack(&self, _: StackId) -> Vec<RuntimeAddr> {
            Vec::new()
        }

        fn timer_kind(&self, _: RuntimeAddr, _: i64) -> Option<TimerKind> {
            None
        }
    }

    #[test]
    fn a_report_has_so_many_frames_and_no_more() {
        let symbols = Sparing {
            symbols: &Deep,
            left: Cell::new(25),
        };
        let stack = vec![RuntimeAddr(1); 100];
        // The last that is begun is finished.
        assert_eq!(frames_of(&stack, &symbols).len(), 30);
        assert_eq!(frames_of(&stack, &symbols).len(), 0);
    }
}
