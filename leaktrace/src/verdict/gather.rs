//! Gathers the evidence of one moment from the books, for all sites at once.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::evidence::{Around, Due, Evidence, Place, Subject, Tally};
use super::reach::Reach;
use super::span::{self, SPANS};
use super::wait::Wait;
use super::{Config, Usual};
use crate::census::reach::Waker;
use crate::census::stacks::StackGroup;
use crate::census::{Places, TimerKind};
use crate::ledger::{Ledger, LiveGoroutine, LiveTimer, Site, SiteId, SiteKind, State, Symbols};

/// What the books say just after a census.
pub struct Moment<'m> {
    /// The books.
    pub ledger: &'m Ledger,
    /// What addresses mean.
    pub symbols: &'m dyn Symbols,
    /// Names of the wait reasons, by number.
    pub wait_reasons: &'m [String],
    /// Where goroutines are and what they wait on, when this census looked.
    pub places: Option<&'m Places>,
    /// How long it took to see who could still be woken, when this census looked.
    pub reached: Option<Duration>,
    /// Whether the binary tells where its pointers are, so that they can be followed at all.
    pub has_pointers: bool,
    /// When the program started: CLOCK_MONOTONIC, nanoseconds.
    pub started_ns: u64,
    /// When the first census ended.
    pub watched_since_ns: u64,
    /// When this census ended.
    pub now_ns: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Moment<'_> {
    /// The evidence of every site with something alive, or in `also`.
    pub(super) fn evidence(
        &self,
        config: &Config,
        places: &HashMap<SiteId, Place>,
        reach: &Reach,
        also: impl Fn(SiteId) -> bool,
    ) -> Vec<(SiteId, Evidence)> {
        let waits: Vec<Wait> = (self.wait_reasons.iter())
            .map(|reason| Wait::of_reason(reason))
            .collect();
        let watched_ns = self.now_ns.saturating_sub(self.watched_since_ns);
        let spans = SPANS.iter().filter(|span| **span <= watched_ns).count();
        let mut around = Around::default();
        let mut tallies: HashMap<SiteId, Tally> = HashMap::new();
        for (goid, live) in self.ledger.goroutines() {
            let wait = wait_of(live.state, &waits);
            match wait {
                Wait::Send | Wait::Receive | Wait::Select => around.channel_waiters += 1,
                Wait::Network => around.network_waiters += 1,
                _ => {}
            }
            let tally = tallies.entry(live.site).or_default();
            self.add_goroutine(tally, live, wait, spans, config);
            if wait != Wait::Runs
                && let Some(waker) = reach.waker(goid)
            {
                self.add_alone(tally, live, waker, config);
            }
        }
        for timer in self.ledger.timers() {
            match subject(&self.ledger.sites[timer.site]) {
                Some(Subject::Timers(TimerKind::Timer | TimerKind::Ticker)) => {
                    around.channel_timers += 1;
                }
                Some(Subject::NetworkDeadlines) => around.network_deadlines += 1,
                _ => {}
            }
            let tally = tallies.entry(timer.site).or_default();
            self.add_timer(tally, timer, spans, config);
            if reach.is_forgotten(timer.timer) {
                self.add_forgotten(tally, timer, config);
            }
        }
        let due = self.due();
        let pointers_tell = self.has_pointers && reach.can_tell(config);
        (self.ledger.sites.enumerate())
            .filter(|(id, site)| site.live > 0 || also(*id))
            .filter_map(|(id, site)| {
                let subject = subject(site)?;
                let mut tally = tallies.remove(&id).unwrap_or_default();
                tally.confirmed = site.leaked;
                let spans = span::spans(
                    |from_ns| site.history.since(from_ns),
                    (self.watched_since_ns, self.now_ns),
                    &tally.born,
                    &tally.stuck,
                );
                let evidence = Evidence {
                    subject,
                    attributed: site.attributed,
                    count: site.live,
                    created: site.created,
                    ended: site.ended,
                    growth_per_minute: site.history.growth_per_minute(),
                    spans,
                    tally,
                    place: places.get(&id).cloned(),
                    usual: usual(site),
                    due: due.get(&*site.start_function).copied().unwrap_or_default(),
                    program: around,
                    pointers_tell,
                };
                Some((id, evidence))
            })
            .collect()
    }

    /// Whether something was born while we listened, later than the start of the program.
    fn is_late(&self, exact: bool, since_ns: u64, start_up_seconds: u64) -> bool {
        let start_up_ns = start_up_seconds.saturating_mul(SECOND_NS);
        exact && since_ns >= self.started_ns.saturating_add(start_up_ns)
    }

    fn add_alone(&self, tally: &mut Tally, live: &LiveGoroutine, waker: Waker, config: &Config) {
        let since_ns = match waker {
            Waker::Nobody | Waker::NobodyHasTheBody | Waker::Parent => live.still.since_ns(),
            // It wakes now and then.
            Waker::Timer | Waker::TimerInVain => live.since_ns,
        };
        let long_ns = config.stalled.seconds.saturating_mul(SECOND_NS);
        if self.now_ns.saturating_sub(since_ns) < long_ns {
            return;
        }
        tally.alone.add(waker);
        if self.is_late(live.exact, live.since_ns, config.looping.start_up_seconds) {
            tally.alone_late.add(waker);
        }
    }

    fn add_forgotten(&self, tally: &mut Tally, timer: &LiveTimer, config: &Config) {
        let there_ns = self.now_ns.saturating_sub(timer.there_since_ns);
        let late = self.is_late(timer.exact, timer.since_ns, config.looping.start_up_seconds);
        let stays = timer.period_ns > 0 || self.due_ns(timer) >= far_ns(config);
        if late && stays && there_ns >= config.stalled.seconds.saturating_mul(SECOND_NS) {
            tally.forgotten += 1;
        }
    }

    /// Until a timer is due, in nanoseconds.
    fn due_ns(&self, timer: &LiveTimer) -> u64 {
        let when_ns = u64::try_from(timer.when_ns).unwrap_or(0);
        when_ns.saturating_sub(self.now_ns)
    }

    fn add_goroutine(
        &self,
        tally: &mut Tally,
        live: &LiveGoroutine,
        wait: Wait,
        spans: usize,
        config: &Config,
    ) {
        let age_ns = self.now_ns.saturating_sub(live.since_ns);
        let still_ns = match wait {
            Wait::Runs => 0,
            _ => self.now_ns.saturating_sub(live.still.since_ns()),
        };
        tally.oldest_ns = tally.oldest_ns.max(age_ns);
        tally.born.add(age_ns, spans);
        tally.stuck.add(still_ns, spans);
        let kind = wait as usize;
        if let Some(count) = tally.waits.get_mut(kind) {
            *count += 1;
        }
        if still_ns >= config.stalled.seconds.saturating_mul(SECOND_NS)
            && let Some(count) = tally.still.get_mut(kind)
        {
            *count += 1;
        }
        if let Some(longest) = tally.longest_still_ns.get_mut(kind) {
            *longest = still_ns.max(*longest);
        }
        let late = |start_up_seconds| self.is_late(live.exact, live.since_ns, start_up_seconds);
        if late(config.old_outlier.start_up_seconds)
            && let Some(longest) = tally.longest_still_late_ns.get_mut(kind)
        {
            *longest = still_ns.max(*longest);
        }
        if matches!(wait, Wait::NilChannel | Wait::NoCases)
            && late(config.certain_block.start_up_seconds)
        {
            tally.certain_and_new += 1;
        }
        if age_ns >= config.stalled.seconds.saturating_mul(SECOND_NS)
            && late(config.looping.start_up_seconds)
        {
            tally.late += 1;
        }
    }

    /// What became of timers when they were due, by the function that they call: those that are older than the probes are
    /// of no line, but tell what becomes of the others.
    fn due(&self) -> HashMap<&str, Due> {
        let mut all: HashMap<&str, Due> = HashMap::new();
        for site in self.ledger.sites.iter() {
            if site.kind == SiteKind::Timer(TimerKind::AfterFunc) && site.fired > 0 {
                let due = all.entry(&site.start_function).or_default();
                due.fired += site.fired;
                due.renewed += site.renewed;
            }
        }
        all
    }

    fn add_timer(&self, tally: &mut Tally, timer: &LiveTimer, spans: usize, config: &Config) {
        let age_ns = self.now_ns.saturating_sub(timer.since_ns);
        tally.oldest_ns = tally.oldest_ns.max(age_ns);
        let there_ns = self.now_ns.saturating_sub(timer.there_since_ns);
        tally.born.add(there_ns, spans);
        if there_ns >= config.stalled.seconds.saturating_mul(SECOND_NS) {
            tally.long_pending += 1;
        }
        let due_ns = self.due_ns(timer);
        if due_ns >= far_ns(config) {
            tally.due_late += 1;
        } else {
            // How long it runs in all, for that is how long it takes until as many fire as are armed.
            let runs_ns = due_ns.saturating_add(age_ns);
            tally.longest_due_ns = tally.longest_due_ns.max(runs_ns);
        }
    }

    /// Where the goroutines of each site are, if this census looked.
    pub(super) fn look(&self) -> Option<HashMap<SiteId, Place>> {
        let looked = self.places?;
        let sites = &self.ledger.sites;
        let mut places: HashMap<SiteId, Place> = HashMap::new();
        // The largest group of a site comes first.
        for group in (looked.stacks.iter()).filter(|group| !group.stack.is_empty()) {
            // Goroutines that timers started share all but their number with those of other lines.
            let known = || sites.known_goroutine(group.gopc, group.startpc);
            if let Some(id) = self.ledger.site_of(group.goids.0).or_else(known) {
                let place = places.entry(id).or_default();
                if place.functions.is_empty() {
                    place.functions = self.functions(group);
                }
            }
        }
        for wait in &looked.channels {
            if let Some(id) = sites.known_goroutine(wait.gopc, wait.startpc) {
                let place = places.entry(id).or_default();
                place.channels += 1;
                place.waiting += wait.count;
                place.most_on_one = place.most_on_one.max(wait.count);
                if wait.on.receivers + wait.on.selecting > 0 {
                    place.with_receivers += 1;
                }
            }
        }
        Some(places)
    }

    fn functions(&self, group: &StackGroup) -> Vec<String> {
        let innermost = group.stack.first().map(|pc| self.symbols.frames(*pc));
        let callers = (group.stack.iter().skip(1)).map(|pc| self.symbols.frames_of_return(*pc));
        innermost
            .into_iter()
            .chain(callers)
            .flatten()
            .map(|frame| frame.function)
            .collect()
    }
}

/// Timers that are due later than this will not bound themselves soon.
fn far_ns(config: &Config) -> u64 {
    (config.timer_pile_up.far_seconds).saturating_mul(SECOND_NS)
}

fn wait_of(state: State, waits: &[Wait]) -> Wait {
    match state {
        State::New | State::Runnable | State::Running | State::Preempted => Wait::Runs,
        State::Syscall => Wait::Syscall,
        State::Waiting(reason) => waits
            .get(usize::from(reason))
            .copied()
            .unwrap_or(Wait::Other),
    }
}

/// `None` for what is the runtime's own.
fn subject(site: &Site) -> Option<Subject> {
    match site.kind {
        SiteKind::SystemGoroutine => None,
        SiteKind::Goroutine if site.start_function == "runtime.main" => Some(Subject::Main),
        SiteKind::Goroutine => Some(Subject::Goroutines),
        SiteKind::Timer(TimerKind::Deadline)
            if !site.attributed && site.start_function.is_empty() =>
        {
            Some(Subject::NetworkDeadlines)
        }
        SiteKind::Timer(kind) => Some(Subject::Timers(kind)),
    }
}

/// How long things of this site usually live, as far as their ends were heard of.
fn usual(site: &Site) -> Option<Usual> {
    Some(Usual {
        ended: site.lifetimes.count(),
        lifetime_ns: site.lifetimes.below_ns(990)?,
    })
}
