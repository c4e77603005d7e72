//! Since when a goroutine has not moved: not run at all, as far as two looks at it can tell.

use std::hash::BuildHasher as _;

use crate::census::{Goroutine, Status};

/// What a goroutine looked like when it was last seen, and since when it has looked like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stillness {
    /// A fingerprint of what changes when a goroutine runs; 0 while it runs.
    mark: u32,
    /// Nanoseconds in two halves: there may be a million of these, each beside other words of 32 bits.
    since: [u32; 2],
}

impl Stillness {
    /// Of a goroutine that moves now, or was just born.
    #[must_use]
    pub fn moving(now_ns: u64) -> Self {
        Self::new(0, now_ns)
    }

    fn new(mark: u32, since_ns: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = since_ns.to_le_bytes();
        Self {
            mark,
            since: [
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            ],
        }
    }

    /// Since when it has not moved at the latest: CLOCK_MONOTONIC, nanoseconds.
    #[must_use]
    pub fn since_ns(self) -> u64 {
        u64::from(self.since[0]) | u64::from(self.since[1]) << 32
    }

    /// Of a goroutine met for the first time. Only the garbage collector may know since when it waits.
    #[must_use]
    pub fn first_seen(goroutine: &Goroutine, now_ns: u64) -> Self {
        let mark = mark(goroutine);
        let since_ns = match goroutine.waiting_since_ns {
            0 => now_ns,
            _ if mark == 0 => now_ns,
            since => since.min(now_ns),
        };
        Self::new(mark, since_ns)
    }

    /// Of a goroutine that was seen before as `self`.
    #[must_use]
    pub fn seen_again(self, goroutine: &Goroutine, now_ns: u64) -> Self {
        let now = Self::first_seen(goroutine, now_ns);
        if now.mark != 0 && now.mark == self.mark {
            Self::new(now.mark, now.since_ns().min(self.since_ns()))
        } else {
            now
        }
    }
}

/// The same for two looks at a goroutine that did not run in between. The counter of its stops alone tells where it is
/// known; elsewhere, what it waits by and how deep its stack is tell most moves.
fn mark(goroutine: &Goroutine) -> u32 {
    if !matches!(goroutine.status, Status::Waiting | Status::Syscall) {
        return 0;
    }
    let hash = foldhash::fast::FixedState::default().hash_one((
        goroutine.status,
        goroutine.wait_reason,
        goroutine.stops,
        goroutine.depth,
        goroutine.waiting,
    ));
    // Half of the hash is enough to tell two looks apart; 0 is taken.
    u32::try_from(hash >> 32).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::RuntimeAddr;
    use crate::event::Goid;

    fn waiting(stops: u8) -> Goroutine {
        Goroutine {
            goid: Goid(7),
            g: RuntimeAddr(1),
            status: Status::Waiting,
            wait_reason: 3,
            gopc: RuntimeAddr(2),
            startpc: RuntimeAddr(3),
            stack_bytes: 2048,
            depth: 200,
            waiting_since_ns: 0,
            waiting: 99,
            stops,
            leaked: false,
        }
    }

    #[test]
    fn still_as_long_as_it_has_not_run() {
        let first = Stillness::first_seen(&waiting(5), 100);
        let second = first.seen_again(&waiting(5), 200);
        assert_eq!(second.since_ns(), 100);
        // It ran and came back to the same place.
        assert_eq!(second.seen_again(&waiting(6), 300).since_ns(), 300);
    }

    #[test]
    fn running_is_never_still() {
        let running = Goroutine {
            status: Status::Running,
            ..waiting(5)
        };
        let still = Stillness::first_seen(&running, 100);
        assert_eq!(still.seen_again(&running, 200).since_ns(), 200);
    }

    #[test]
    fn the_garbage_collector_knows_of_earlier() {
        let collected = Goroutine {
            waiting_since_ns: 40,
            ..waiting(5)
        };
        assert_eq!(Stillness::first_seen(&collected, 100).since_ns(), 40);
        let still = Stillness::first_seen(&waiting(5), 100);
        assert_eq!(still.seen_again(&collected, 200).since_ns(), 40);
        // A time to come is not believed.
        let forged = Goroutine {
            waiting_since_ns: 999,
            ..waiting(5)
        };
        assert_eq!(Stillness::first_seen(&forged, 100).since_ns(), 100);
    }
}
