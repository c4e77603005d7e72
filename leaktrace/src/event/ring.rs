//! The ring buffer, drained by the clock: the probes never wake anybody.
//!
//! At one million events a second the default ring holds an eighth of a second. What does not fit is
//! counted by the probes (`probe::Probes::lost`).

use aya::maps::{MapData, RingBuf};

use super::{Event, decode::decode};

/// The reading end of the ring buffer. There is one.
pub struct Ring {
    records: RingBuf<MapData>,
}

/// What one [`Ring::drain`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records taken out of the ring, all told.
    pub records: usize,
    /// Those among them that made no sense.
    pub undecodable: usize,
}

impl Ring {
    pub(crate) fn new(records: RingBuf<MapData>) -> Self {
        Self { records }
    }

    /// Hands at most `budget` records, in order, to `take`. Fewer than `budget` were there when
    /// `records < budget`; then it pays to sleep a while.
    pub fn drain(&mut self, budget: usize, mut take: impl FnMut(Event)) -> Drained {
        let mut drained = Drained::default();
        while drained.records < budget {
            let Some(record) = self.records.next() else {
                break;
            };
            drained.records += 1;
            match decode(&record) {
                Ok(event) => take(event),
                Err(_) => drained.undecodable += 1,
            }
        }
        drained
    }
}
