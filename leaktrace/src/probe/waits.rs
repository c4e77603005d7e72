//! What the probes of level `full` keep in the kernel: who is blocked since when, and how long waits took.

use leaktrace_common::wait::{TotalsKey, Wait, WaitKey, WaitTotals};

use super::{AttachedSet, Probes};
use crate::address::RuntimeAddr;
use crate::event::{Goid, Ktime};

/// The waits of all goroutines that were made by one `go` statement, start with one function and waited for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockedTime {
    /// Return address of the `go` statement.
    pub gopc: RuntimeAddr,
    /// The first instruction that they run.
    pub startpc: RuntimeAddr,
    /// Index into the target's own table of wait reasons.
    pub wait_reason: u8,
    /// How long they waited.
    pub totals: WaitTotals,
}

impl Probes {
    /// Since when a goroutine has been blocked; `None` when the probes did not see it block, or saw it wake.
    #[must_use]
    pub fn blocked_since(&self, set: &AttachedSet, g: RuntimeAddr, goid: Goid) -> Option<Ktime> {
        let key = WaitKey {
            g: g.0,
            slot: set.slot().0.into(),
        };
        let wait: Wait = self.waits.get(&key, 0).ok()?;
        (wait.goid == goid.0 && wait.since_ns != 0).then_some(Ktime(wait.since_ns))
    }

    /// How long the goroutines of this process were blocked, since the probes of level `full` went on.
    #[must_use]
    pub fn blocked_times(&self, set: &AttachedSet) -> Vec<BlockedTime> {
        let slot = u32::from(set.slot().0);
        // The map may change while it is walked: an entry may be met twice, or not at all; none is ever removed here.
        let keys = self.wait_totals.keys().filter_map(Result::ok);
        let mut keys: Vec<TotalsKey> = keys.filter(|key| key.slot == slot).collect();
        keys.sort_unstable_by_key(|key| (key.gopc, key.startpc, key.reason));
        keys.dedup();
        keys.into_iter()
            .filter_map(|key| {
                Some(BlockedTime {
                    gopc: RuntimeAddr(key.gopc),
                    startpc: RuntimeAddr(key.startpc),
                    wait_reason: u8::try_from(key.reason).ok()?,
                    totals: self.wait_totals.get(&key, 0).ok()?,
                })
            })
            .collect()
    }

    /// Throws away what the last user of a slot left.
    pub(super) fn forget_waits(&mut self, slot: u16) {
        // Each failure means that the entry is gone already.
        let keys = self.waits.keys().filter_map(Result::ok);
        let stale: Vec<WaitKey> = keys.filter(|key| key.slot == u64::from(slot)).collect();
        for key in stale {
            let _ = self.waits.remove(&key);
        }
        let keys = self.wait_totals.keys().filter_map(Result::ok);
        let stale: Vec<TotalsKey> = keys.filter(|key| key.slot == u32::from(slot)).collect();
        for key in stale {
            let _ = self.wait_totals.remove(&key);
        }
    }
}
