//! Which timer was armed where: what the events said of each address, for as long as it may matter.
//!
//! The runtime does not keep who armed a timer, so we do. An address says little by itself: it is used again after the
//! timer was freed, a stopped timer may be reset, and from Go 1.23 on one that nobody refers to is collected without a
//! word. So what is remembered counts only while it agrees with what the timer runs, and what is in no heap and has
//! not been heard of for long is forgotten first.

use foldhash::HashMap;

use super::SiteId;
use crate::address::RuntimeAddr;
use crate::census;

/// What is known of a timer that was armed under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Armed {
    /// Where it was made.
    pub site: SiteId,
    /// When it was armed, or last armed again.
    pub at_ns: u64,
    /// 0 for a one-shot timer.
    pub period_ns: i64,
    /// What it runs.
    pub function: RuntimeAddr,
    /// For AfterFunc: the user's function. Else 0.
    pub callback: RuntimeAddr,
    /// Whether it was neither stopped nor has fired since (a ticker goes on after it fired).
    pub running: bool,
}

impl Armed {
    /// Whether a timer in a heap can be this one: the same address may be another timer by now, and then what it
    /// runs is another function.
    pub fn is(&self, timer: &census::Timer) -> bool {
        self.function == timer.function
            && self.callback == timer.callback
            && self.period_ns == timer.period_ns
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
    pub fn get(&self, timer: RuntimeAddr) -> Option<&Armed> {
        self.by_address.get(&timer)
    }

    /// Books a timer that was armed; whether there was room.
    pub fn insert(&mut self, timer: RuntimeAddr, armed: Armed) -> bool {
        if self.by_address.len() >= MOST_ARMED && !self.by_address.contains_key(&timer) {
            return false;
        }
        if let Some(before) = self.by_address.insert(timer, armed)
            && !before.running
        {
            self.idle -= 1;
        }
        true
    }

    /// Books that a timer was stopped or has fired for the last time. Answers with what it was, and whether it ran.
    pub fn end(&mut self, timer: RuntimeAddr) -> Option<(Armed, bool)> {
        let armed = self.by_address.get_mut(&timer)?;
        let (before, ran) = (*armed, armed.running);
        if ran {
            armed.running = false;
            self.idle += 1;
            if self.idle > MOST_IDLE {
                self.forget_idle();
            }
        }
        Some((before, ran))
    }

    /// Books that a timer was armed again. Answers with what it was.
    pub fn rearm(&mut self, timer: RuntimeAddr, at_ns: u64, period_ns: i64) -> Option<Armed> {
        let armed = self.by_address.get_mut(&timer)?;
        let before = *armed;
        if !armed.running {
            self.idle -= 1;
        }
        armed.at_ns = at_ns;
        armed.period_ns = period_ns;
        armed.running = true;
        Some(before)
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
            .filter(|armed| armed.callback == startpc)
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
            .filter(|armed| !armed.running)
            .map(|armed| armed.at_ns)
            .collect();
        if ages.is_empty() {
            return;
        }
        let middle = ages.len() / 2;
        let median = *ages.select_nth_unstable(middle).1;
        self.retain(|_, armed| armed.running || armed.at_ns > median);
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
            idle += usize::from(kept && !armed.running);
            kept
        });
        self.idle = idle;
        self.forgotten += (before - self.by_address.len()) as u64;
    }
}
