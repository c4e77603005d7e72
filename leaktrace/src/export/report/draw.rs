//! A report is drawn up from the books, the census and what was heard.

use std::cell::Cell;
use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _};

use super::{
    BlockedStack, Events, Goroutines, MOST_CHANNELS, MOST_HISTORIES, Report, SCHEMA, SiteReport,
    Target, Timers, WaitsFor, WaitsOn,
};
use crate::address::RuntimeAddr;
use crate::budget::{Estimates, Moment, Totals};
use crate::census::semaphores::Semaphore;
use crate::census::stacks::StackGroup;
use crate::census::waits::{Channel, SiteWait};
use crate::census::{Places, Status, TimerKind};
use crate::event::StackId;
use crate::export::{label, times};
use crate::ledger::{CallSite, Ledger, Sample, Site, SiteId, SiteKind, State, Symbols};
use crate::probe::BlockedTime;
use crate::resolve::Program;
use crate::resolve::pclntab::Frame;
use crate::verdict::{Level, Shape, Standings, Wait, remedy};

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
        let mut tallies: HashMap<SiteId, Tally<'_>> = HashMap::default();
        for (_, live) in ledger.goroutines() {
            let tally = tallies.entry(live.site).or_default();
            *tally.states.entry(live.state).or_default() += 1;
            // A target may claim any size.
            tally.stack_bytes = tally
                .stack_bytes
                .saturating_add(u64::from(live.stack_bytes));
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
            armed_longer: times::armed_longer(ledger, build, facts.now_ns),
            forgotten: ledger.forgotten_timers(),
            unproven: ledger.unproven_timers(),
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
            // One that was armed again after it fired goes on.
            stopped.saturating_add(fired).saturating_sub(site.renewed)
        },
        estimated: hidden != Totals::default(),
        started_by_timer: site.started_by.map(TimerKind::name),
        rearmed_total: is_timer.then_some(site.rearmed.saturating_add(hidden[4])),
        renewed_total: is_timer.then_some(site.renewed),
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
        lifetimes: times::Lengths::of(&site.lifetimes),
        blocked_time: times::blocked(&tally.blocked, facts.wait_reasons),
        attributed: site.attributed,
        verdict: level.max(Level::Ok),
        rule: found.map_or("", |found| found.rule),
        evidence: found.map_or_else(String::new, |found| found.sentence.clone()),
        confirmed: site.leaked,
        judged: level > Level::NotYet,
        verdict_after_seconds: found
            .map(|found| seconds(found.since_ns.saturating_sub(facts.watched_since_ns))),
        remedy: found
            .and_then(|found| how_to_mend(site, &tally, &blocked_stacks, symbols, found.rule)),
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
    rule: &str,
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
        rule,
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

pub(in crate::export) fn state_name(state: State, wait_reasons: &[String]) -> String {
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
pub(in crate::export) fn seconds(ns: u64) -> f64 {
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
