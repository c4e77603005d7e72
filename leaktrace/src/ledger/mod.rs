//! Keep the books: who is alive, made where, since when.
//!
//! The ledger has one owner and two sources. [`Ledger::apply`] takes what the probes said, one event at a
//! time; [`Ledger::reconcile`] takes what the runtime itself has, and corrects the books with it. Their
//! disagreement is measured as [`Drift`]. It does no I/O and has no clock.

mod alive;
mod history;
mod reconcile;
mod site;
mod stillness;
mod symbolizer;
mod timers;

use alive::Alive;
pub use history::{History, Sample};
pub use site::{CallSite, Site, SiteId, SiteKind, Sites, Symbols};
pub use stillness::Stillness;
pub use symbolizer::Symbolizer;
use timers::{Armed, ArmedTimers};

use crate::address::RuntimeAddr;
use crate::census::TimerKind;
use crate::event::{self, Change, Event, Goid, Ktime, StackId};

/// The books of one target.
#[derive(Default)]
pub struct Ledger {
    /// Every call site met, with its totals.
    pub sites: Sites,
    goroutines: Alive,
    /// Those that were pending at the last census, in the order of their addresses.
    timers: Vec<LiveTimer>,
    /// Where each timer was armed that we heard of, pending or not: a stopped one may be reset.
    armed: ArmedTimers,
    /// Ends heard of since the last census began, with the time: a census may still have seen those alive.
    recent_ends: Vec<(Goid, u64)>,
    /// When births began to be heard; `None` without probes.
    listening_since_ns: Option<u64>,
    /// Whether there was a time in which nothing was heard.
    paused: bool,
    /// When the last such time began, while it goes on.
    deaf_since_ns: Option<u64>,
    /// The last disagreement between events and census.
    pub drift: Drift,
    /// What was turned away because a bound was reached.
    pub turned_away: u64,
    /// Sum of all disagreements since the start.
    pub drift_total: u64,
    /// Whether the last census could not tell where the timers are.
    pub timers_unknown: bool,
    last_census_ns: Option<u64>,
}

/// A goroutine that is alive as far as the books know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveGoroutine {
    /// Where its `go` statement is.
    pub site: SiteId,
    /// When it was born, or first seen when `exact` is false: CLOCK_MONOTONIC, nanoseconds.
    pub since_ns: u64,
    /// Whether `since_ns` is its birth.
    pub exact: bool,
    /// What the last census saw it do.
    pub state: State,
    /// Bytes of its stack at the last census; 4 GiB for whatever claims to be larger.
    pub stack_bytes: u32,
    /// Since when it waits, or waits at least when `waits_exact` is false; 0 when it does not, or that is not known.
    pub waits_since_ns: u64,
    /// Whether `waits_since_ns` is when it blocked: only the probes of level full see that.
    pub waits_exact: bool,
    /// Since when it has not moved.
    pub still: Stillness,
}

/// A timer that was pending at the last census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTimer {
    /// Address of the `runtime.timer`.
    pub timer: RuntimeAddr,
    /// Where it was armed, as far as known.
    pub site: SiteId,
    /// When it was armed, or first seen when `exact` is false.
    pub since_ns: u64,
    /// Whether `since_ns` is when it was armed.
    pub exact: bool,
    /// Since when each census has found it pending: arming it again does not make it a new one.
    pub there_since_ns: u64,
    /// When it is due: CLOCK_MONOTONIC, nanoseconds; the target may say anything.
    pub when_ns: i64,
    /// Its period in nanoseconds; 0 for a one-shot timer.
    pub period_ns: i64,
}

/// What a goroutine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Born since the last census.
    New,
    /// On a run queue.
    Runnable,
    /// Executing.
    Running,
    /// In a system call or C code.
    Syscall,
    /// Stopped to be suspended.
    Preempted,
    /// Blocked, for the wait reason with this number in the target's own table.
    Waiting(u8),
}

/// How far events and census were apart when they last met. At rest both are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Alive in the runtime, unknown to the books although births were heard.
    pub missed_births: u64,
    /// Alive in the books, gone from the runtime.
    pub missed_ends: u64,
}

impl Drift {
    /// Goroutines on which the two witnesses disagree.
    #[must_use]
    pub fn total(self) -> u64 {
        self.missed_births + self.missed_ends
    }
}

/// Most live goroutines in the books; beyond, births are turned away and counted until a census.
const MOST_GOROUTINES: usize = 8 << 20;

/// Samples end before this.
const LONGER_THAN_A_SAMPLE_NS: u64 = 10_000_000_000;

impl Ledger {
    /// Says that from now on every birth is heard of: a goroutine that a census finds later without one is drift.
    pub fn listen(&mut self, now_ns: u64) {
        self.listening_since_ns = Some(now_ns);
        self.deaf_since_ns = None;
    }

    /// Says that nothing that happens after `now_ns` is heard of: what a census corrects is no drift until births are
    /// heard again and another census has seeded the books, and a timer may be another at the same address.
    pub fn deafen(&mut self, now_ns: u64) {
        self.listening_since_ns = None;
        self.deaf_since_ns = Some(now_ns);
        self.paused = true;
        self.armed.doubt(now_ns);
    }

    /// Says that since `since_ns` some events were lost, nobody knows which.
    pub fn missed(&mut self, since_ns: u64) {
        self.armed.doubt(since_ns);
    }

    /// Whether something may have been missed since this moment, because there was a pause.
    fn is_before_a_pause(&self, at: Ktime) -> bool {
        self.paused
            && self
                .listening_since_ns
                .is_none_or(|since_ns| at.0 < since_ns)
    }

    /// Whether how long things live is told by what is heard: in a short sample only short lives begin and end.
    fn tells_lifetimes(&self, at: Ktime) -> bool {
        !self.paused
            || (self.listening_since_ns)
                .is_some_and(|since_ns| at.0.saturating_sub(since_ns) >= LONGER_THAN_A_SAMPLE_NS)
    }

    /// Takes one event. `symbols` is asked only about call sites not met before.
    pub fn apply(&mut self, event: &Event, symbols: &dyn Symbols) {
        match &event.change {
            Change::Born {
                goroutine,
                stack,
                timer,
                ..
            } => self.born(event.at, goroutine, *stack, *timer, symbols),
            Change::Ended(goroutine) => self.ended(event.at, goroutine, symbols),
            Change::Armed { timer, stack } => self.armed(event.at, timer, *stack, symbols),
            Change::Rearmed(timer) => self.rearmed(event.at, timer),
            Change::Stopped { timer } => self.stopped(event.at, *timer),
            Change::Fired(timer) => self.fired(event.at, timer, symbols),
        }
    }

    fn born(
        &mut self,
        at: Ktime,
        goroutine: &event::Goroutine,
        stack: Option<StackId>,
        timer: Option<RuntimeAddr>,
        symbols: &dyn Symbols,
    ) {
        let mut site = self
            .sites
            .of_goroutine(goroutine.gopc, goroutine.startpc, symbols);
        if self.sites[site].started_by.is_some()
            && let Some(armed_at) = self.armed.starter(timer, goroutine.startpc)
        {
            site = self
                .sites
                .of_timer_goroutine(armed_at, goroutine.startpc, symbols);
        }
        let books = &mut self.sites[site];
        books.created += 1;
        if let Some(stack) = stack {
            books.creation_stack.get_or_insert(stack);
        }
        if self.goroutines.len() >= MOST_GOROUTINES {
            self.turned_away += 1;
            return;
        }
        let live = LiveGoroutine {
            site,
            since_ns: at.0,
            exact: true,
            state: State::New,
            stack_bytes: 0,
            waits_since_ns: 0,
            waits_exact: false,
            still: Stillness::moving(at.0),
        };
        self.sites[site].live += 1;
        if let Some(before) = self.goroutines.insert(goroutine.goid, live) {
            // Numbers are never used again: the same birth was told twice, or the target forges its memory.
            self.sites[before.site].live -= 1;
        }
    }

    fn ended(&mut self, at: Ktime, goroutine: &event::Goroutine, symbols: &dyn Symbols) {
        let tells = self.tells_lifetimes(at);
        if self.recent_ends.len() < MOST_GOROUTINES {
            self.recent_ends.push((goroutine.goid, at.0));
        } else {
            self.turned_away += 1;
        }
        let site = match self.goroutines.remove(goroutine.goid) {
            Some(live) => {
                let books = &mut self.sites[live.site];
                books.live -= 1;
                if live.exact && tells {
                    books.lifetimes.record(at.0.saturating_sub(live.since_ns));
                }
                live.site
            }
            None => self
                .sites
                .of_goroutine(goroutine.gopc, goroutine.startpc, symbols),
        };
        self.sites[site].ended += 1;
    }

    fn armed(
        &mut self,
        at: Ktime,
        timer: &event::Timer,
        stack: Option<StackId>,
        symbols: &dyn Symbols,
    ) {
        // Only AfterFunc's argument is a function; what the probe read there for others means nothing.
        let callback = match symbols.timer_kind(timer.function, timer.period_ns) {
            Some(TimerKind::AfterFunc) => timer.callback,
            Some(_) => RuntimeAddr(0),
            None => return,
        };
        let Some(site) =
            self.sites
                .of_timer(timer.function, callback, timer.period_ns, stack, symbols)
        else {
            return;
        };
        let books = &mut self.sites[site];
        books.created += 1;
        if let Some(stack) = stack {
            books.creation_stack.get_or_insert(stack);
        }
        books.note_length(at, timer);
        let armed = Armed {
            site,
            made_ns: at.0,
            at_ns: at.0,
            when_ns: timer.when_ns,
            period_ns: timer.period_ns,
            function: timer.function,
            callback,
            state: timers::State::Runs,
            doubtful: self.is_before_a_pause(at),
        };
        if !self.armed.insert(timer.timer, armed) {
            self.turned_away += 1;
        }
    }

    /// A timer that is reset from elsewhere still belongs to the place where it was made.
    fn rearmed(&mut self, at: Ktime, timer: &event::Timer) {
        let tells = self.tells_lifetimes(at);
        let Some(before) = self.armed.rearm(timer, at.0, self.deaf_since_ns) else {
            return;
        };
        let books = &mut self.sites[before.site];
        books.rearmed += 1;
        books.note_length(at, timer);
        match before.state {
            timers::State::Runs if tells => {
                books.lifetimes.record(at.0.saturating_sub(before.at_ns));
            }
            timers::State::Fired => books.renewed += 1,
            timers::State::Runs | timers::State::Stopped => {}
        }
    }

    /// Many a timer is stopped after it has fired, or twice: that stops nothing.
    fn stopped(&mut self, at: Ktime, timer: RuntimeAddr) {
        let tells = self.tells_lifetimes(at);
        if let Some(armed) = self.armed.stop(timer)
            && armed.state == timers::State::Runs
        {
            let books = &mut self.sites[armed.site];
            books.stopped += 1;
            if tells {
                books.lifetimes.record(at.0.saturating_sub(armed.at_ns));
            }
        }
    }

    fn fired(&mut self, at: Ktime, timer: &event::Timer, symbols: &dyn Symbols) {
        let tells = self.tells_lifetimes(at);
        let Some(armed) = self.armed.fire(timer) else {
            self.fired_unknown(at, timer, symbols);
            return;
        };
        let books = &mut self.sites[armed.site];
        books.fired += 1;
        if armed.callback.0 != 0 {
            self.armed.note_fired(armed.callback, armed.site);
        }
        // A ticker goes on.
        if armed.period_ns <= 0 && armed.state == timers::State::Runs && tells {
            books.lifetimes.record(at.0.saturating_sub(armed.at_ns));
        }
    }

    /// A timer fired that nobody heard being armed. What it calls may arm it again: that is told from one that ends.
    fn fired_unknown(&mut self, at: Ktime, timer: &event::Timer, symbols: &dyn Symbols) {
        if timer.period_ns > 0
            || symbols.timer_kind(timer.function, 0) != Some(TimerKind::AfterFunc)
        {
            return;
        }
        let Some(site) = self
            .sites
            .of_timer(timer.function, timer.callback, 0, None, symbols)
        else {
            return;
        };
        self.sites[site].fired += 1;
        let armed = Armed {
            site,
            made_ns: 0,
            at_ns: at.0,
            when_ns: timer.when_ns,
            period_ns: 0,
            function: timer.function,
            callback: timer.callback,
            state: timers::State::Fired,
            doubtful: self.is_before_a_pause(at),
        };
        if !self.armed.insert(timer.timer, armed) {
            self.turned_away += 1;
        }
    }

    /// Says since when a goroutine that the last census saw waiting has been waiting: the probes saw it block.
    pub fn waits_since(&mut self, goid: Goid, since_ns: u64) {
        if let Some(live) = self.goroutines.get_mut(goid)
            && matches!(live.state, State::Waiting(_))
        {
            live.waits_since_ns = since_ns;
            live.waits_exact = true;
        }
    }

    /// Timers forgotten because there were too many, although the program may yet reset them.
    #[must_use]
    pub fn forgotten_timers(&self) -> u64 {
        self.armed.forgotten
    }

    /// Timers whose line is not known any more because nothing was heard for a while: another may have their address.
    #[must_use]
    pub fn unproven_timers(&self) -> u64 {
        self.armed.unproven
    }

    /// Notes how many are alive at each site now, for growth.
    pub fn sample(&mut self, now_ns: u64) {
        for site in self.sites.iter_mut() {
            site.history.push(Sample {
                at_ns: now_ns,
                count: site.live,
            });
        }
    }

    /// All live goroutines.
    pub fn goroutines(&self) -> impl Iterator<Item = (Goid, &LiveGoroutine)> {
        self.goroutines.iter()
    }

    /// Where a live goroutine was made.
    #[must_use]
    pub fn site_of(&self, goid: Goid) -> Option<SiteId> {
        self.goroutines.get(goid).map(|live| live.site)
    }

    /// All pending timers as of the last census.
    pub fn timers(&self) -> impl Iterator<Item = &LiveTimer> {
        self.timers.iter()
    }

    /// Stacks that the sites refer to: the only ones worth keeping.
    pub fn creation_stacks(&self) -> impl Iterator<Item = StackId> {
        self.sites.iter().filter_map(|site| site.creation_stack)
    }
}

#[cfg(test)]
mod tests;
