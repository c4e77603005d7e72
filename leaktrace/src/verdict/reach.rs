//! Who was found to wait for what nothing else refers to, and when to look again: following every pointer of a program
//! costs time, so it is done where it would decide, ever less often while it tells nothing new.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::{Config, Evidence, Level, Wait};
use crate::event::Goid;

/// What was found so far, and when the next look is due.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// How many looks in a row found each.
    found: HashMap<Goid, u32>,
    /// Looks in a row that found nothing new.
    fruitless: u32,
    /// How many rested when somebody last looked.
    resting: u64,
    /// Not before: CLOCK_MONOTONIC, nanoseconds.
    due_ns: u64,
}

/// Looks that must agree: the program moves its pointers while they are followed.
const AGREE: u32 = 2;

/// Least time between two looks, in nanoseconds.
const PAUSE_NS: u64 = 10_000_000_000;

/// How many times as long as a look takes nothing is done until the next.
const REST: u64 = 100;

/// Longest pause after looks that found nothing, in nanoseconds.
const LONGEST_PAUSE_NS: u64 = 3_600_000_000_000;

impl Reach {
    /// Whether two looks in a row found that nobody can wake a goroutine.
    pub(super) fn is_stranded(&self, goid: Goid) -> bool {
        self.found.get(&goid).is_some_and(|looks| *looks >= AGREE)
    }

    /// Takes in what a look found that took so long; `None` where it could not tell.
    pub(super) fn hear(&mut self, stranded: Option<&[Goid]>, took: Duration, now_ns: u64) {
        let mut found = HashMap::new();
        let mut news = false;
        for goid in stranded.unwrap_or_default() {
            let before = self.found.get(goid).copied().unwrap_or(0);
            // A first look is worth a second one.
            news |= before < AGREE;
            found.insert(*goid, before.saturating_add(1));
        }
        self.found = found;
        self.fruitless = if news {
            0
        } else {
            self.fruitless.saturating_add(1)
        };
        let rest_ns = u64::try_from(took.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_mul(REST);
        let pause_ns = (PAUSE_NS.max(rest_ns))
            .saturating_mul(1 << self.fruitless.min(16))
            .min(LONGEST_PAUSE_NS.max(rest_ns));
        self.due_ns = now_ns.saturating_add(pause_ns);
    }

    /// Whether to look, while so many rest in all.
    pub(super) fn wants(&mut self, resting: u64, config: &Config, now_ns: u64) -> bool {
        if resting == 0 || !config.certain_block.enabled || !config.certain_block.follow_pointers {
            return false;
        }
        // Others came to rest since: what was fruitless may not be so now.
        if self.fruitless > 0 && resting >= self.resting.saturating_add(config.stalled.crowd) {
            self.fruitless = 0;
            self.due_ns = self.due_ns.min(now_ns.saturating_add(PAUSE_NS));
            self.resting = resting;
        }
        if now_ns < self.due_ns {
            return false;
        }
        self.resting = resting;
        true
    }
}

/// How many goroutines of a site rest where following pointers would decide.
pub(super) fn resting(evidence: &Evidence, level: Level, config: &Config) -> u64 {
    let tells = |wait| {
        matches!(
            wait,
            Wait::Send
                | Wait::Receive
                | Wait::Select
                | Wait::WaitGroup
                | Wait::Cond
                | Wait::Semaphore
                | Wait::Coroutine
        )
    };
    match evidence.still_wait() {
        Some((wait, still))
            if level < Level::Leak
                && evidence.is_goroutines()
                && tells(wait)
                && still >= config.stalled.crowd =>
        {
            still
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn two_looks_must_agree() {
        let mut reach = Reach::default();
        reach.hear(Some(&[Goid(7), Goid(8)]), SHORT, 0);
        assert!(!reach.is_stranded(Goid(7)));
        reach.hear(Some(&[Goid(7)]), SHORT, 10 * SECOND);
        assert!(reach.is_stranded(Goid(7)));
        assert!(!reach.is_stranded(Goid(8)));
        reach.hear(None, SHORT, 20 * SECOND);
        assert!(!reach.is_stranded(Goid(7)));
    }

    #[test]
    fn a_look_that_tells_nothing_is_seldom_repeated() {
        let (config, mut reach) = (Config::default(), Reach::default());
        let mut looks = 0;
        for second in 0..3600 {
            if reach.wants(100, &config, second * SECOND) {
                looks += 1;
                reach.hear(Some(&[]), SHORT, second * SECOND);
            }
        }
        assert!(looks < 12, "{looks}");
        // Until others come to rest.
        assert!(!reach.wants(110, &config, 3600 * SECOND));
        assert!(reach.wants(110, &config, 3611 * SECOND));
    }

    #[test]
    fn a_long_look_is_followed_by_a_long_rest() {
        let (config, mut reach) = (Config::default(), Reach::default());
        assert!(!reach.wants(0, &config, 0));
        assert!(reach.wants(10, &config, 0));
        reach.hear(Some(&[Goid(1)]), Duration::from_secs(1), 0);
        assert!(!reach.wants(10, &config, 99 * SECOND));
        assert!(reach.wants(10, &config, 100 * SECOND));
    }

    #[test]
    fn nobody_looks_where_it_is_turned_off() {
        let (mut config, mut reach) = (Config::default(), Reach::default());
        config.certain_block.follow_pointers = false;
        assert!(!reach.wants(100, &config, 0));
    }
}
