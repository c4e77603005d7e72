//! Which probes may be on now? Keeps what a program loses within its budget, and says why it changes anything.
//!
//! Fast to back off: an allowance of a few seconds' grant is all that a storm can spend, whenever it comes. Slow to
//! return: after each fall it waits longer, and it returns only to what would have fit into half the budget. Over any
//! time `T` a program loses at most `share × T`, what can be saved (5 s of grant, half of it more on the richest level),
//! and what is spent between the decision to take probes off and their being off.

use super::bucket::Bucket;
use super::{Level, Share, Spent, as_f64};
use crate::probe;

/// Decides for one target. Fed by [`Governor::observe`], which wants to be called every 20 to 100 ms.
#[derive(Clone, Debug)]
pub struct Governor {
    /// `None`: there is no budget.
    share: Option<Share>,
    /// The richest level that the user wants.
    most: Level,
    level: Level,
    phase: Phase,
    bucket: Bucket,
    /// A fall from a steady level into debt is given so much more before the next.
    floor_ns: f64,
    /// What births, ends and timers cost lately, as a part of a core.
    lifecycle: Rate,
    sample: Sample,
    backoff: Backoff,
    full_backoff: Backoff,
    tally: Tally,
}

/// A change of level, with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// When: CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// The level before.
    pub from: Level,
    /// The level from now on.
    pub to: Level,
    /// Why, as a sentence without its full stop.
    pub reason: String,
}

/// What a governor has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Changes to a poorer level.
    pub falls: u64,
    /// Changes to a richer level.
    pub returns: u64,
    /// Samples begun.
    pub samples: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Probes are on until the allowance is spent.
    Steady { since_ns: u64 },
    /// Probes are on for a sample.
    Sampling { since_ns: u64 },
    /// Probes are off, or going off, until the allowance is there again.
    Resting { since_ns: u64, judged: bool },
}

/// One sample and the rest after it.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// What it cost so far, with what was spent until the probes were off.
    spent_ns: f64,
    /// Samples in a row that show that everything could be heard again.
    cheap_in_row: u32,
    /// Samples in a row that do not.
    dear_in_row: u32,
    /// How far samples lie apart: a mean over some, in nanoseconds.
    apart_ns: f64,
}

/// The longest sample; one that costs its allowance ends earlier.
const SAMPLE_NS: u64 = 2_500_000_000;

/// The allowance of a sample: so much time's grant.
const SAMPLE_GRANT_NS: u64 = 2_000_000_000;

/// The shortest rest; as much again at most is added, so that samples do not beat in time with the program.
const REST_NS: u64 = 1_000_000_000;

/// It doubles with each dear sample, so often: the first few tell the rates, and each puts probes on and takes them off, which the
/// last percent of a server's answers would notice if it were every other second.
const REST_DOUBLES: u32 = 3;

/// Samples that lie further apart tell no rate: the level is then called none.
const RARE_NS: f64 = 60e9;

/// And sampled again when they would lie this close.
const OFTEN_NS: f64 = 20e9;

/// So many samples in a row must have fit before everything is heard again,
const CHEAP_SAMPLES: u32 = 3;

/// into this part of the budget.
const CHEAP: f64 = 0.5;

impl Governor {
    /// A governor whose probes go on now, on the richest level that the user wants; `share: None` keeps them there.
    #[must_use]
    pub fn new(share: Option<Share>, most: Level, now_ns: u64) -> Self {
        Self {
            share,
            most,
            level: most,
            phase: Phase::Steady { since_ns: now_ns },
            bucket: Bucket::new(share.unwrap_or(Share::DEFAULT), now_ns),
            floor_ns: 0.0,
            lifecycle: Rate::new(now_ns),
            sample: Sample::default(),
            backoff: Backoff::new(10_000_000_000, 600_000_000_000),
            full_backoff: Backoff::new(30_000_000_000, 3_600_000_000_000),
            tally: Tally::default(),
        }
    }

    /// Books what was spent since the last call and decides; answers with the change of level if there is one.
    /// What is wanted of the probes may change without one: ask [`Governor::probes`] after each call.
    pub fn observe(&mut self, now_ns: u64, spent: Spent) -> Option<Change> {
        let share = self.share?;
        if self.most == Level::None {
            return None;
        }
        if matches!(self.phase, Phase::Resting { .. }) {
            // What it would cost to hear is remembered while nothing is heard.
            self.lifecycle.skip(now_ns);
        } else {
            self.lifecycle.add(spent.lifecycle_ns, now_ns);
        }
        self.bucket.settle(share, now_ns, spent.total_ns());
        if let Phase::Steady { since_ns } = self.phase {
            self.backoff.ease(now_ns, since_ns);
            if self.level == Level::Full {
                self.full_backoff.ease(now_ns, since_ns);
            }
        }
        match self.phase {
            Phase::Steady { since_ns } => {
                if self.level < Level::Full {
                    // Spent until the probes were off that were just given up: that cannot be mended any more.
                    self.floor_ns -= spent.scheduling_ns;
                }
                self.steady(share, now_ns, since_ns)
            }
            Phase::Sampling { since_ns } => {
                self.sample.spent_ns += spent.total_ns();
                self.sampling(share, now_ns, since_ns)
            }
            Phase::Resting { since_ns, judged } => {
                self.sample.spent_ns += spent.total_ns();
                self.resting(share, now_ns, since_ns, judged)
            }
        }
    }

    /// Says that probes that were wanted are on only now: putting them on takes its time.
    pub fn attached(&mut self, now_ns: u64) {
        self.lifecycle.skip(now_ns);
        if let Phase::Sampling { since_ns } | Phase::Steady { since_ns } = &mut self.phase {
            *since_ns = now_ns;
        }
    }

    /// Says that probes that were wanted could not be put on: they are tried again after a rest.
    pub fn failed(&mut self, now_ns: u64) {
        self.backoff.fall(now_ns);
        self.level = Level::None;
        self.rest(now_ns);
    }

    /// Whether nothing changes as long as little is spent. Otherwise time matters, and it wants to be called often.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.share.is_none() || matches!(self.phase, Phase::Steady { .. })
    }

    /// Whether something ends when it is called next: probes lie on for a sample.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.share.is_some() && matches!(self.phase, Phase::Sampling { .. })
    }

    /// What may be spent before the next call, in nanoseconds; `None`: anything.
    #[must_use]
    pub fn allowance_ns(&self) -> Option<f64> {
        self.share.map(|share| share.of(SAMPLE_GRANT_NS))
    }

    /// Which probes are to be on now.
    #[must_use]
    pub fn probes(&self) -> probe::Level {
        match (self.phase, self.level) {
            (Phase::Resting { .. }, _) => probe::Level::None,
            (Phase::Steady { .. }, Level::None) => probe::Level::None,
            (Phase::Steady { .. }, Level::Full) => probe::Level::Full,
            _ => probe::Level::Lifecycle,
        }
    }

    /// How much is heard.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// The budget; `None` when there is none.
    #[must_use]
    pub fn share(&self) -> Option<Share> {
        self.share
    }

    /// Another budget from now on: the host's is divided anew.
    pub fn set_share(&mut self, share: Share) {
        if self.share.is_some() {
            self.share = Some(share);
        }
    }

    /// What this target would lose were it heard all the time, as far as that is known.
    #[must_use]
    pub fn demand(&self) -> Share {
        Share(self.lifecycle.share)
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn steady(&mut self, share: Share, now_ns: u64, since_ns: u64) -> Option<Change> {
        let (balance, cap) = (self.bucket.balance_ns(), Bucket::cap_ns(share));
        self.floor_ns = self.floor_ns.max(balance - cap / 2.0).min(0.0);
        if balance <= self.floor_ns {
            let lasted = seconds(now_ns.saturating_sub(since_ns));
            return Some(self.fall(share, now_ns, lasted));
        }
        let held = now_ns.saturating_sub(since_ns.max(self.full_backoff.fell_ns));
        if self.level < self.most && held >= self.full_backoff.hold_ns && balance >= cap * 0.9 {
            self.phase = Phase::Steady { since_ns: now_ns };
            let reason = format!("for {} the budget of {share} was kept", seconds(held));
            return Some(self.change(now_ns, Level::Full, reason));
        }
        None
    }

    /// The allowance is spent.
    fn fall(&mut self, share: Share, now_ns: u64, lasted: String) -> Change {
        if self.level == Level::Full {
            self.full_backoff.fall(now_ns);
            if self.lifecycle.share <= share.0 * 0.8 {
                self.phase = Phase::Steady { since_ns: now_ns };
                self.floor_ns = self.bucket.balance_ns() - Bucket::cap_ns(share) / 2.0;
                let reason = format!(
                    "parks and wake-ups cost more than the budget of {share} within {lasted}"
                );
                return self.change(now_ns, Level::Lifecycle, reason);
            }
        }
        self.backoff.fall(now_ns);
        self.floor_ns = 0.0;
        self.sample = Sample {
            // What a sample is expected to cost at least; what is spent until the probes are off comes on top.
            spent_ns: share.of(SAMPLE_GRANT_NS),
            ..Sample::default()
        };
        self.rest(now_ns);
        let reason = format!(
            "within {lasted} the probes spent what the budget of {share} allows, lately {}",
            Share(self.lifecycle.share)
        );
        self.change(now_ns, Level::Sampled, reason)
    }

    fn sampling(&mut self, share: Share, now_ns: u64, since_ns: u64) -> Option<Change> {
        let lasted = now_ns.saturating_sub(since_ns);
        let spent = self.sample.spent_ns;
        if spent < share.of(SAMPLE_GRANT_NS) && lasted < SAMPLE_NS {
            return None;
        }
        let cheap = lasted >= SAMPLE_NS && spent <= share.of(lasted) * CHEAP;
        let Sample {
            cheap_in_row,
            dear_in_row,
            ..
        } = self.sample;
        (self.sample.cheap_in_row, self.sample.dear_in_row) = if cheap {
            (cheap_in_row.saturating_add(1), 0)
        } else {
            (0, dear_in_row.saturating_add(1))
        };
        if self.sample.cheap_in_row >= CHEAP_SAMPLES && self.backoff.allows(now_ns) {
            // The probes are on: they stay.
            self.phase = Phase::Steady { since_ns: now_ns };
            let reason = format!(
                "{} samples in a row cost less than half the budget of {share}",
                self.sample.cheap_in_row
            );
            return Some(self.change(now_ns, Level::Lifecycle, reason));
        }
        self.rest(now_ns);
        None
    }

    fn resting(
        &mut self,
        share: Share,
        now_ns: u64,
        since_ns: u64,
        judged: bool,
    ) -> Option<Change> {
        let rested = now_ns.saturating_sub(since_ns);
        // By now the probes are off, and what the sample cost is known.
        if rested < self.least_rest() {
            return None;
        }
        let wait_ns = self.bucket.wait_ns(share, self.sample.spent_ns);
        let change = if judged {
            None
        } else {
            self.phase = Phase::Resting {
                since_ns,
                judged: true,
            };
            self.judge(share, now_ns, as_f64(rested) + wait_ns)
        };
        let held = self.level != Level::None || self.backoff.allows(now_ns);
        if wait_ns <= 0.0 && held {
            self.phase = Phase::Sampling { since_ns: now_ns };
            self.sample.spent_ns = 0.0;
            self.tally.samples = self.tally.samples.saturating_add(1);
        }
        change
    }

    /// Whether samples are close enough to tell rates.
    fn judge(&mut self, share: Share, now_ns: u64, apart_ns: f64) -> Option<Change> {
        let before = self.sample.apart_ns;
        // A poll that comes late makes one sample dear.
        let apart_ns = if before > 0.0 {
            before + (apart_ns - before) / 4.0
        } else {
            apart_ns
        };
        self.sample.apart_ns = apart_ns;
        let cost = seconds_of(self.sample.spent_ns);
        if self.level != Level::None && apart_ns > RARE_NS {
            self.backoff.fall(now_ns);
            let reason = format!(
                "a sample costs {cost} of a core: with a budget of {share} one would have to wait {} for the next",
                seconds_of(apart_ns)
            );
            return Some(self.change(now_ns, Level::None, reason));
        }
        if self.level == Level::None && apart_ns > RARE_NS {
            self.backoff.fall(now_ns);
        } else if self.level == Level::None && apart_ns < OFTEN_NS && self.backoff.allows(now_ns) {
            let reason = format!("a sample cost only {cost} of a core");
            return Some(self.change(now_ns, Level::Sampled, reason));
        }
        None
    }

    fn rest(&mut self, now_ns: u64) {
        self.phase = Phase::Resting {
            since_ns: now_ns,
            judged: false,
        };
    }

    fn least_rest(&self) -> u64 {
        // Multiples of the golden ratio spread evenly over the unit interval, without a source of chance.
        let spread = (as_f64(self.tally.samples) * 0.618_033_988_75).fract();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a second in nanoseconds"
        )]
        let more = (as_f64(REST_NS) * spread) as u64;
        (REST_NS + more) << self.sample.dear_in_row.min(REST_DOUBLES)
    }

    fn change(&mut self, at_ns: u64, to: Level, reason: String) -> Change {
        let from = self.level;
        self.level = to;
        let count = if to < from {
            &mut self.tally.falls
        } else {
            &mut self.tally.returns
        };
        *count = count.saturating_add(1);
        Change {
            at_ns,
            from,
            to,
            reason,
        }
    }
}

/// How long a richer level is not tried again: longer after each fall, shorter after each calm while.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    hold_ns: u64,
    least_ns: u64,
    most_ns: u64,
    fell_ns: u64,
    eased_ns: u64,
}

/// A while on the richer level without a fall.
const CALM_NS: u64 = 600_000_000_000;

impl Backoff {
    fn new(least_ns: u64, most_ns: u64) -> Self {
        Self {
            hold_ns: least_ns / 2,
            least_ns: least_ns / 2,
            most_ns,
            fell_ns: 0,
            eased_ns: 0,
        }
    }

    fn fall(&mut self, now_ns: u64) {
        self.hold_ns = self.hold_ns.saturating_mul(2).min(self.most_ns);
        (self.fell_ns, self.eased_ns) = (now_ns, now_ns);
    }

    fn allows(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.fell_ns) >= self.hold_ns
    }

    /// Called while the richer level lasts, since `since_ns`.
    fn ease(&mut self, now_ns: u64, since_ns: u64) {
        if now_ns.saturating_sub(self.eased_ns.max(since_ns)) >= CALM_NS {
            self.hold_ns = (self.hold_ns / 2).max(self.least_ns);
            self.eased_ns = now_ns;
        }
    }
}

/// What is spent lately while probes are on: a mean in which the last half second counts most.
#[derive(Clone, Copy, Debug)]
struct Rate {
    share: f64,
    at_ns: u64,
}

impl Rate {
    fn new(now_ns: u64) -> Self {
        Self {
            share: 0.0,
            at_ns: now_ns,
        }
    }

    fn add(&mut self, spent_ns: f64, now_ns: u64) {
        let elapsed = as_f64(now_ns.saturating_sub(self.at_ns));
        if elapsed > 0.0 {
            let fades = (-elapsed / 2e8).exp();
            self.share = self.share * fades + spent_ns / elapsed * (1.0 - fades);
            self.at_ns = now_ns;
        }
    }

    /// Lets time pass in which nothing can be learnt.
    fn skip(&mut self, now_ns: u64) {
        self.at_ns = self.at_ns.max(now_ns);
    }
}

fn seconds(ns: u64) -> String {
    seconds_of(as_f64(ns))
}

fn seconds_of(ns: f64) -> String {
    if ns < 1e9 {
        format!("{:.0} ms", ns / 1e6)
    } else if ns < 120e9 {
        format!("{:.0} s", ns / 1e9)
    } else {
        format!("{:.0} min", ns / 60e9)
    }
}

#[cfg(test)]
mod tests;
