//! Who was found that hardly anybody could wake, and when to look again: following every pointer of a program costs time, so
//! it is done where it would decide, ever less often while it tells nothing new.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::{Config, Evidence, Level, Subject, Wait};
use crate::address::RuntimeAddr;
use crate::census::TimerKind;
use crate::census::reach::{Reached, Waker};
use crate::event::Goid;

/// What was found so far, and when the next look is due.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// Who could wake each, and how many looks in a row found that.
    alone: HashMap<Goid, (Waker, u32)>,
    /// Timers that nobody could stop, and how many looks in a row found that.
    forgotten: HashMap<RuntimeAddr, u32>,
    /// Whether the last look could not tell.
    in_the_dark: bool,
    /// Looks in a row that found nothing new.
    fruitless: u32,
    /// How many were in doubt when somebody last looked.
    in_doubt: u64,
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
    /// Who alone could wake a goroutine, if two looks in a row found the same.
    pub(super) fn waker(&self, goid: Goid) -> Option<Waker> {
        let (waker, looks) = self.alone.get(&goid)?;
        (*looks >= AGREE).then_some(*waker)
    }

    /// Whether two looks in a row found that nobody could stop a timer.
    pub(super) fn is_forgotten(&self, timer: RuntimeAddr) -> bool {
        self.forgotten
            .get(&timer)
            .is_some_and(|looks| *looks >= AGREE)
    }

    /// Whether looking tells, as far as is known.
    pub(super) fn can_tell(&self, config: &Config) -> bool {
        config.certain_block.enabled && config.certain_block.follow_pointers && !self.in_the_dark
    }

    /// Takes in what a look found that took so long; `None` where it could not tell.
    pub(super) fn hear(&mut self, reached: Option<&Reached>, took: Duration, now_ns: u64) {
        // A first look is worth a second one.
        let mut news = false;
        let mut once_more = |before: u32| {
            news |= before < AGREE;
            before.saturating_add(1)
        };
        let (mut alone, mut forgotten) = (HashMap::new(), HashMap::new());
        if let Some(reached) = reached {
            for (goid, waker) in &reached.alone {
                let before = self.alone.get(goid).filter(|(was, _)| was == waker);
                let looks = once_more(before.map_or(0, |(_, looks)| *looks));
                alone.insert(*goid, (*waker, looks));
            }
            for timer in &reached.forgotten {
                let looks = once_more(self.forgotten.get(timer).copied().unwrap_or(0));
                forgotten.insert(*timer, looks);
            }
        }
        (self.alone, self.forgotten) = (alone, forgotten);
        self.in_the_dark = reached.is_none();
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

    /// Whether to look, while so many are in doubt.
    pub(super) fn wants(&mut self, in_doubt: u64, config: &Config, now_ns: u64) -> bool {
        if in_doubt == 0 || !config.certain_block.enabled || !config.certain_block.follow_pointers {
            return false;
        }
        // Others came since: what was fruitless may not be so now.
        if self.fruitless > 0 && in_doubt >= self.in_doubt.saturating_add(config.stalled.crowd) {
            self.fruitless = 0;
            self.due_ns = self.due_ns.min(now_ns.saturating_add(PAUSE_NS));
            self.in_doubt = in_doubt;
        }
        if now_ns < self.due_ns {
            return false;
        }
        self.in_doubt = in_doubt;
        true
    }
}

/// How many goroutines or timers of a site are where following pointers would decide.
pub(super) fn in_doubt(evidence: &Evidence, level: Level, config: &Config) -> u64 {
    if level >= Level::Leak {
        return 0;
    }
    let tally = &evidence.tally;
    match evidence.subject {
        Subject::Goroutines => {
            let still = match evidence.still_wait() {
                Some((wait, still)) if tells(wait) && still >= config.stalled.crowd => still,
                _ => 0,
            };
            // A crowd that came late and stays, though it may wake now and then.
            let late = match evidence.wait() {
                Some(Wait::Receive | Wait::Select) if tally.late >= config.looping.crowd => {
                    tally.late
                }
                _ => 0,
            };
            still.max(late)
        }
        Subject::Timers(TimerKind::AfterFunc | TimerKind::Deadline) => {
            let many = tally.due_late.min(tally.long_pending);
            if many >= config.timer_pile_up.crowd {
                many
            } else {
                0
            }
        }
        Subject::Timers(_) | Subject::Main | Subject::NetworkDeadlines => 0,
    }
}

/// Whether whoever waits so can be woken through memory alone.
fn tells(wait: Wait) -> bool {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn two_looks_must_agree() {
        let mut reach = Reach::default();
        let timer = RuntimeAddr(0x100);
        let found = |alone: &[(u64, Waker)], forgotten: &[RuntimeAddr]| Reached {
            alone: (alone.iter())
                .map(|(goid, waker)| (Goid(*goid), *waker))
                .collect(),
            forgotten: forgotten.to_vec(),
            ..Reached::default()
        };
        let (nobody, parent) = (Waker::Nobody, Waker::Parent);
        let first = found(&[(7, nobody), (8, nobody), (9, parent)], &[timer]);
        reach.hear(Some(&first), SHORT, 0);
        assert_eq!(
            (reach.waker(Goid(7)), reach.is_forgotten(timer)),
            (None, false)
        );
        let second = found(&[(7, nobody), (9, nobody)], &[timer]);
        reach.hear(Some(&second), SHORT, 10 * SECOND);
        assert_eq!(reach.waker(Goid(7)), Some(nobody));
        assert!(reach.is_forgotten(timer));
        assert_eq!(reach.waker(Goid(8)), None);
        // They must agree on who could.
        assert_eq!(reach.waker(Goid(9)), None);
        reach.hear(None, SHORT, 20 * SECOND);
        assert_eq!(
            (reach.waker(Goid(7)), reach.is_forgotten(timer)),
            (None, false)
        );
    }

    #[test]
    fn a_look_that_tells_nothing_is_seldom_repeated() {
        let (config, mut reach) = (Config::default(), Reach::default());
        let mut looks = 0;
        for second in 0..3600 {
            if reach.wants(100, &config, second * SECOND) {
                looks += 1;
                reach.hear(Some(&Reached::default()), SHORT, second * SECOND);
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
        let found = Reached {
            alone: vec![(Goid(1), Waker::Nobody)],
            ..Reached::default()
        };
        reach.hear(Some(&found), Duration::from_secs(1), 0);
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
