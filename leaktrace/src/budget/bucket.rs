//! What may still be spent: time of a core, granted steadily, saved up to a bound, and owed when overspent.

use super::{Share, as_f64};

/// An allowance that grows with time. Its balance is below zero when more was spent than granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    balance_ns: f64,
    at_ns: u64,
}

/// So much time's grant can be saved. What a calm minute leaves over must not pay for a storm, so it is short.
const SAVED: f64 = 5e9;

/// So much time's grant is there at the start, when nothing is known of the program.
const FIRST: f64 = 2e9;

impl Bucket {
    /// An allowance that begins now.
    pub fn new(share: Share, now_ns: u64) -> Self {
        Self {
            balance_ns: share.0 * FIRST,
            at_ns: now_ns,
        }
    }

    /// The most that can be saved with this share, in nanoseconds.
    pub fn cap_ns(share: Share) -> f64 {
        share.0 * SAVED
    }

    /// Grants what is due, and takes what was spent.
    pub fn settle(&mut self, share: Share, now_ns: u64, spent_ns: f64) {
        let elapsed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        self.balance_ns =
            (self.balance_ns + share.of(elapsed)).min(Self::cap_ns(share)) - spent_ns.max(0.0);
    }

    /// What is left, in nanoseconds; below zero what is owed.
    pub fn balance_ns(&self) -> f64 {
        self.balance_ns
    }

    /// How long nothing may be spent until so much is there, in nanoseconds. What cannot be saved is not waited for.
    pub fn wait_ns(&self, share: Share, wanted_ns: f64) -> f64 {
        let missing = wanted_ns.min(Self::cap_ns(share)) - self.balance_ns;
        if missing <= 0.0 {
            0.0
        } else if share.0 > 0.0 {
            missing / share.0
        } else {
            as_f64(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_saves_up_to_a_bound_and_owes_without_one() {
        let share = Share(0.01);
        let mut bucket = Bucket::new(share, 0);
        assert_eq!(bucket.balance_ns(), 20e6);
        bucket.settle(share, 3_600_000_000_000, 0.0);
        assert_eq!(bucket.balance_ns(), 50e6);
        bucket.settle(share, 3_600_000_000_000, 150e6);
        assert_eq!(bucket.balance_ns(), -100e6);
        assert_eq!(bucket.wait_ns(share, 0.0), 10e9);
        assert_eq!(bucket.wait_ns(share, 1e12), 15e9);
    }

    #[test]
    fn a_clock_that_goes_back_grants_nothing() {
        let share = Share(0.01);
        let mut bucket = Bucket::new(share, 1_000_000_000);
        bucket.settle(share, 0, 0.0);
        bucket.settle(share, 1_000_000_000, 0.0);
        assert_eq!(bucket.balance_ns(), 20e6);
    }
}
