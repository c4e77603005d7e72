//! Which timer was armed where: what the events said of each address, for as long as it may matter.
//!
//! The runtime does not keep who armed a timer, so we do. An address says little by itself: it is used again after the
//! timer was freed, a stopped timer may be reset, and from Go 1.23 on one that nobody refers to is collected without a
//! word. So what is remembered counts only while it agrees with what the timer runs, and what is in no heap and has
//! not been heard of for long is forgotten first.
//!
//! While every event is heard, a new timer at an old address is heard of too. After a pause, or when events were lost, it
//! may not have been: then an address is in doubt until its timer is found to be due to the nanosecond as it was
//! armed. If it is not, nobody knows which timer it is, and it is forgotten.

use foldhash::HashMap;

use super::SiteId;
use crate::address::RuntimeAddr;
use crate::{census, event};

/// What is known of a timer that was armed under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Armed {
    /// Where it was made.
    pub site: SiteId,
    /// When it was made: 0 when that was not heard.
    pub made_ns: u64,
    /// When it was armed, or last armed again.
    pub at_ns: u64,
    /// When it is due, as it was armed last.
    pub when_ns: i64,
    /// 0 for a one-shot timer.
    pub period_ns: i64,
    /// What it runs.
    pub function: RuntimeAddr,
    /// For AfterFunc: the user's function. Else 0.
    pub callback: RuntimeAddr,
    /// What it does now.
    pub state: State,
    /// Whether something was missed since: the address may hold another timer.
    pub doubtful: bool,
}

/// What a timer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs; a ticker goes on after it fired.
    Runs,
    /// It was stopped.
    Stopped,
    /// It has fired, and was not armed again.
    Fired,
}

impl Armed {
    /// Whether a timer in a heap can be this one: the same address may be another timer by now, and then what it
    /// runs is another function.
    fn is(&self, timer: &census::Timer) -> bool {
        self.function == timer.function
            && self.callback == timer.callback
            && self.period_ns == timer.period_ns
    }

    /// Whether a timer is due as this one was armed. A ticker is, whole periods later.
    fn is_due(&self, when_ns: i64) -> bool {
        let later_ns = when_ns.wrapping_sub(self.when_ns);
        if self.period_ns > 0 {
            later_ns.rem_euclid(self.period_ns) == 0
        } else {
            later_ns == 0
        }
    }
}

/// All timers heard of, by address.
#[derive(Default)]
pub(super) struct ArmedTimers {
    by_address: HashMap<RuntimeAddr, Armed>,
    /// Where the last timer that fired with this callback was armed.
    fired: HashMap<RuntimeAddr, SiteId>,
    /// How many stand there stopped or fired.
    idle: usize,
    /// How many were forgotten although the program may still have them.
    pub forgotten: u64,
    /// How many were forgotten because after a pause nobody knew which timer was at their address.
    pub unproven: u64,
}

/// Most timers that are remembered; beyond, new ones are turned away and counted.
const MOST_ARMED: usize = 4 << 20;

/// Most timers remembered that were stopped or have fired: they matter only if they are reset.
const MOST_IDLE: usize = 64 << 10;

/// Above this many, those go at a census that are in no heap and have not been heard of for long.
const MANY: usize = 128 << 10;

/// How long that is.
const MEMORY_NS: u64 = 60_000_000_000;

/// Callbacks of AfterFunc that are told apart.
const MOST_CALLBACKS: usize = 4096;

impl ArmedTimers {
    /// Books a timer that was armed; whether there was room.
    pub fn insert(&mut self, timer: RuntimeAddr, armed: Armed) -> bool {
        if self.by_address.len() >= MOST_ARMED && !self.by_address.contains_key(&timer) {
            return false;
        }
        let idle = armed.state != State::Runs;
        let before = self.by_address.insert(timer, armed);
        let was_idle = before.is_some_and(|before| before.state != State::Runs);
        self.idle = self.idle + usize::from(idle) - usize::from(was_idle);
        if self.idle > MOST_IDLE {
            self.forget_idle();
        }
        true
    }

    /// Books that a timer was stopped. Answers with what it was before, if that is known.
    pub fn stop(&mut self, timer: RuntimeAddr) -> Option<Armed> {
        let armed = *self.by_address.get(&timer)?;
        if armed.doubtful {
            // It was armed before the pause or made in it: nothing tells.
            self.forget(timer);
            return None;
        }
        self.end(timer, State::Stopped);
        Some(armed)
    }

    /// Books that a timer fired, for the last time unless it is a ticker. Answers with what it was before, if that is
    /// known.
    pub fn fire(&mut self, timer: &event::Timer) -> Option<Armed> {
        let armed = self.by_address.get_mut(&timer.timer)?;
        let same = armed.function == timer.function
            && armed.period_ns == timer.period_ns
            && (armed.callback.0 == 0 || armed.callback == timer.callback);
        if armed.doubtful && !(same && armed.is_due(timer.when_ns)) {
            self.forget(timer.timer);
            return None;
        }
        armed.doubtful = false;
        let before = *armed;
        if armed.period_ns <= 0 {
            self.end(timer.timer, State::Fired);
        }
        Some(before)
    }

    /// Books that a timer was armed again, at a time when everything was heard or before `gap_ns`, when that ended.
    /// Answers with what it was before, if that is known.
    pub fn rearm(
        &mut self,
        timer: &event::Timer,
        at_ns: u64,
        gap_ns: Option<u64>,
    ) -> Option<Armed> {
        let armed = self.by_address.get_mut(&timer.timer)?;
        if armed.doubtful && gap_ns.is_none_or(|gap_ns| at_ns > gap_ns) {
            self.forget(timer.timer);
            return None;
        }
        let before = *armed;
        if armed.state != State::Runs {
            self.idle -= 1;
        }
        armed.at_ns = at_ns;
        armed.when_ns = timer.when_ns;
        armed.period_ns = timer.period_ns;
        armed.state = State::Runs;
        Some(before)
    }

    /// What was heard of a timer that a census found pending, if it is provably the same.
    pub fn pending(&mut self, timer: &census::Timer) -> Option<Armed> {
        let armed = self.by_address.get_mut(&timer.timer)?;
        let same = armed.is(timer);
        if armed.doubtful {
            if !same || !armed.is_due(timer.when_ns) {
                self.forget(timer.timer);
                return None;
            }
            armed.doubtful = false;
        }
        same.then_some(*armed)
    }

    /// Something was missed since `since_ns`: every address may hold another timer by now. Of those that were armed
    /// again meanwhile nothing can be proven any more.
    pub fn doubt(&mut self, since_ns: u64) {
        let before = self.by_address.len();
        self.retain(|_, armed| armed.at_ns == armed.made_ns || armed.at_ns < since_ns);
        let gone = (before - self.by_address.len()) as u64;
        self.unproven += gone;
        self.forgotten -= gone;
        for armed in self.by_address.values_mut() {
            armed.doubtful = true;
        }
    }

    fn end(&mut self, timer: RuntimeAddr, state: State) {
        let Some(armed) = self.by_address.get_mut(&timer) else {
            return;
        };
        // Stopped after it has fired, or twice: that stops nothing.
        if armed.state == State::Runs {
            armed.state = state;
            self.idle += 1;
            if self.idle > MOST_IDLE {
                self.forget_idle();
            }
        }
    }

    fn forget(&mut self, timer: RuntimeAddr) {
        if let Some(armed) = self.by_address.remove(&timer) {
            self.idle -= usize::from(armed.state != State::Runs);
            self.unproven += 1;
        }
    }

    /// Remembers which line armed the timer that runs `callback` now.
    pub fn note_fired(&mut self, callback: RuntimeAddr, site: SiteId) {
        if self.fired.len() >= MOST_CALLBACKS && !self.fired.contains_key(&callback) {
            self.fired.clear();
        }
        self.fired.insert(callback, site);
    }

    /// Where the timer was armed that started a goroutine at `startpc`: the one that is known to have fired, or the
    /// last that did with this function.
    pub fn starter(&self, timer: Option<RuntimeAddr>, startpc: RuntimeAddr) -> Option<SiteId> {
        timer
            .and_then(|timer| self.by_address.get(&timer))
            .filter(|armed| armed.callback == startpc && !armed.doubtful)
            .map(|armed| armed.site)
            .or_else(|| self.fired.get(&startpc).copied())
    }

    /// After a census: once there are many, forgets those that are in no heap and have not been heard of for long.
    pub fn sweep(&mut self, pending: &dyn Fn(RuntimeAddr) -> bool, started_ns: u64) {
        if self.by_address.len() <= MANY {
            return;
        }
        let oldest = started_ns.saturating_sub(MEMORY_NS);
        self.retain(|timer, armed| armed.at_ns >= oldest || pending(timer));
        self.by_address.shrink_to(MANY);
    }

    /// Forgets the older half of those that were stopped or have fired.
    fn forget_idle(&mut self) {
        let mut ages: Vec<u64> = (self.by_address.values())
            .filter(|armed| armed.state != State::Runs)
            .map(|armed| armed.at_ns)
            .collect();
        if ages.is_empty() {
            return;
        }
        let middle = ages.len() / 2;
        let median = *ages.select_nth_unstable(middle).1;
        self.retain(|_, armed| armed.state == State::Runs || armed.at_ns > median);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    fn retain(&mut self, keep: impl Fn(RuntimeAddr, &Armed) -> bool) {
        let before = self.by_address.len();
        let mut idle = 0;
        self.by_address.retain(|timer, armed| {
            let kept = keep(*timer, armed);
            idle += usize::from(kept && armed.state != State::Runs);
            kept
        });
        self.idle = idle;
        self.forgotten += (before - self.by_address.len()) as u64;
    }
}
