//! What is known of one target at one moment: the JSON of `snapshot` and `record`, and what all other renderers take.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::label;
use crate::address::RuntimeAddr;
use crate::census::stacks::StackGroup;
use crate::census::waits::SiteWait;
use crate::census::{Status, TimerKind};
use crate::event::StackId;
use crate::ledger::{CallSite, Ledger, Site, SiteId, SiteKind, State, Symbols};
use crate::resolve::Program;
use crate::resolve::pclntab::Frame;
use crate::target::whereabouts::Whereabouts;
use crate::verdict::{self, Evidence, Level};

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
}

/// One call site.
#[derive(Clone, Debug, Serialize)]
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
    /// Timers stopped while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_total: Option<u64>,
    /// Timers fired while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fired_total: Option<u64>,
    /// How fast `count` grows.
    pub growth_per_minute: f64,
    /// Bytes of stack that its goroutines hold.
    pub stack_bytes: u64,
    /// Kind of the timers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_kind: Option<&'static str>,
    /// Their period: only for tickers that all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<f64>,
    /// Whether the line is where it was made; false for a timer armed before tracing, known by what it will call.
    pub attributed: bool,
    /// ok, suspect or leak.
    pub verdict: Level,
    /// Name of the rule that decided; "" when ok.
    pub rule: &'static str,
    /// The evidence as a sentence; "" when ok.
    pub evidence: String,
    /// A stack that made one of them, innermost first.
    pub creation_stack: Vec<CallSite>,
    /// Where its goroutines are, most first.
    pub blocked_stacks: Vec<BlockedStack>,
    /// The channels that its goroutines wait on, most waited on first; at most [`MOST_CHANNELS`].
    pub waits_on: Vec<WaitsOn>,
    /// On how many channels its goroutines wait in all.
    pub channels: u64,
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

/// Channels listed for each site.
pub const MOST_CHANNELS: usize = 5;

/// What a census saw of places: empty when it only counted.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Where goroutines are.
    pub stacks: Vec<StackGroup>,
    /// What they wait on.
    pub waits: Vec<SiteWait>,
}

/// How it was watched, and what was lost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Events {
    /// `none`, `lifecycle` or `full`.
    pub level: &'static str,
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
    /// How it was watched.
    pub events: Events,
    /// When the last census ended: CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
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
            if let Some(id) = ledger.sites.known_goroutine(group.gopc, group.startpc) {
                tallies.entry(id).or_default().stacks.push(group);
            }
        }
        for wait in &facts.places.waits {
            if let Some(id) = ledger.sites.known_goroutine(wait.gopc, wait.startpc) {
                tallies.entry(id).or_default().waits.push(wait);
            }
        }

        let mut goroutines = Goroutines {
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
            ..Timers::default()
        };
        let mut sites = Vec::new();
        for (id, site) in ledger.sites.enumerate() {
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
            if site.live > 0 || site.created > 0 || site.ended > 0 {
                sites.push(site_report(site, tally, symbols, &facts));
            }
        }
        sites.sort_by(|a, b| {
            (b.verdict, b.growth_per_minute.max(0.0).round(), b.count)
                .partial_cmp(&(a.verdict, a.growth_per_minute.max(0.0).round(), a.count))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| a.site.cmp(&b.site))
        });
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
    waits: Vec<&'p SiteWait>,
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

fn site_report(site: &Site, tally: Tally, symbols: &dyn Symbols, facts: &Facts<'_>) -> SiteReport {
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for (state, count) in tally.states {
        *states
            .entry(state_name(state, facts.wait_reasons))
            .or_default() += count;
    }
    let by_state: Vec<(String, u64)> = states
        .iter()
        .map(|(state, count)| (state.clone(), *count))
        .collect();
    let (kind, things, timer_kind) = match site.kind {
        SiteKind::Timer(kind) => ("timer", "timers", Some(kind.name())),
        SiteKind::Goroutine | SiteKind::SystemGoroutine => ("goroutine", "goroutines", None),
    };
    let growth_per_minute = site.history.growth_per_minute();
    let verdict = verdict::judge(&Evidence {
        things,
        count: site.live,
        states: &by_state,
        samples: site.history.samples(),
        growth_per_minute,
    });
    let (since_ns, exact) = tally.oldest.unwrap_or((facts.now_ns, true));
    let is_timer = timer_kind.is_some();
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
        created_total: site.created,
        ended_total: if !is_timer {
            site.ended
        } else if is_ticker {
            // A ticker goes on after it fired.
            site.stopped
        } else {
            site.stopped + site.fired
        },
        stopped_total: is_timer.then_some(site.stopped),
        fired_total: is_timer.then_some(site.fired),
        growth_per_minute: (growth_per_minute * 10.0).round() / 10.0,
        stack_bytes: tally.stack_bytes,
        timer_kind,
        period_seconds: tally
            .period
            .flatten()
            .filter(|period| *period > 0)
            .map(|period| seconds(period.unsigned_abs())),
        attributed: site.attributed,
        verdict: verdict.level,
        rule: verdict.rule,
        evidence: verdict.sentence,
        creation_stack: site
            .creation_stack
            .map(|stack| creation_stack(&symbols.stack(stack), symbols))
            .unwrap_or_default(),
        blocked_stacks: blocked_stacks(&tally.stacks, symbols, facts.wait_reasons),
        channels: tally.waits.len() as u64,
        waits_on: tally
            .waits
            .iter()
            .take(MOST_CHANNELS)
            .map(|wait| waits_on(wait))
            .collect(),
    }
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

fn waits_on(wait: &SiteWait) -> WaitsOn {
    let channel = &wait.channel;
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

fn state_name(state: State, wait_reasons: &[String]) -> String {
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
fn seconds(ns: u64) -> f64 {
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
