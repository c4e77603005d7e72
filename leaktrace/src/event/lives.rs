//! Which processes come and go, by the kernel's word: hints where to look into /proc, drained by the clock.

use aya::maps::{MapData, RingBuf};

use crate::target::Pid;

/// The reading end of the notes.
pub struct Lives {
    records: RingBuf<MapData>,
}

impl Lives {
    pub(crate) fn new(records: RingBuf<MapData>) -> Self {
        Self { records }
    }

    /// The processes that began or ended since the last call, at most `budget` of them, in order.
    pub fn drain(&mut self, budget: usize, mut take: impl FnMut(Pid)) {
        for _ in 0..budget {
            let Some(record) = self.records.next() else {
                return;
            };
            // A `LifeRecord`: which of both it was does not matter, for /proc is asked anyway.
            let pid = record.first_chunk().map(|pid| i32::from_ne_bytes(*pid));
            if let Some(pid) = pid.filter(|pid| *pid > 0) {
                take(Pid(pid));
            }
        }
    }
}
