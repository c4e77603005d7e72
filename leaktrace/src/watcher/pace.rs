//! How often targets are counted: as their users wish, for as long as all together take no more of this machine than they may.

use std::time::Duration;

use crate::budget::{Share, even_share};

/// Part of one core that counting may take, all targets together: those that take much are counted less often.
const CENSUS_BUDGET: Share = Share(0.005);

/// What a count takes, and how often it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effort {
    /// Work of one count.
    pub worked: Duration,
    /// Time between two counts, were all of them free.
    pub interval: Duration,
}

impl Effort {
    fn demand(self) -> Share {
        Share(self.worked.as_secs_f64() / self.interval.as_secs_f64().max(1e-3))
    }

    /// Time between two counts of this target, among `all`, of which it is one.
    pub fn pause(self, all: impl Iterator<Item = Self>) -> Duration {
        let demands: Vec<Share> = all.map(Self::demand).collect();
        let share = even_share(CENSUS_BUDGET, CENSUS_BUDGET, &demands);
        // As long as a year, should it come to that.
        let pause = (self.worked.as_secs_f64() / share.0.max(1e-12)).min(3e7);
        self.interval.max(Duration::from_secs_f64(pause))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn effort(worked_us: u64) -> Effort {
        Effort {
            worked: Duration::from_micros(worked_us),
            interval: Duration::from_secs(5),
        }
    }

    #[test]
    fn what_takes_little_is_counted_as_often_as_is_wished() {
        let few = [effort(3000); 3];
        assert_eq!(few[0].pause(few.into_iter()), Duration::from_secs(5));
        // One with a million goroutines is counted less often, and only that one.
        let mixed = [effort(3000), effort(3000), effort(500_000)];
        assert_eq!(mixed[0].pause(mixed.into_iter()), Duration::from_secs(5));
        let large = mixed[2].pause(mixed.into_iter());
        assert!(large > Duration::from_secs(100), "{large:?}");
        assert!(large < Duration::from_secs(140), "{large:?}");
    }

    #[test]
    fn one_that_was_never_counted_or_took_no_time_is_no_trouble() {
        let none = [effort(0)];
        assert_eq!(none[0].pause(none.into_iter()), Duration::from_secs(5));
        assert_eq!(none[0].pause(std::iter::empty()), Duration::from_secs(5));
        let endless = Effort {
            worked: Duration::MAX,
            interval: Duration::ZERO,
        };
        assert!(endless.pause([endless; 2].into_iter()) > Duration::from_secs(1 << 20));
    }

    proptest! {
        #[test]
        fn all_together_take_what_they_may(
            worked in prop::collection::vec(0_u64..3_000_000, 1..300),
        ) {
            let all: Vec<Effort> = worked.into_iter().map(effort).collect();
            let taken: f64 = all
                .iter()
                .map(|one| {
                    one.worked.as_secs_f64() / one.pause(all.iter().copied()).as_secs_f64()
                })
                .sum();
            prop_assert!(taken <= CENSUS_BUDGET.0 * 1.000_001, "{taken}");
        }
    }
}
