//! Slots: a row for each traced process in every map that is indexed by one.

use std::rc::{Rc, Weak};

use aya::{
    maps::{MapError, PerCpuValues},
    util::nr_cpus,
};
use leaktrace_common::{
    binary::BinaryConfig,
    event::{Kind, Loss},
    limits::SLOTS,
    stack::StackKey,
};

use super::{ProbeError, Probes, load::with_causes};

impl Probes {
    /// A slot that nobody uses, the longest unused first, so that late events of its last user are gone.
    pub(super) fn lease_slot(&mut self) -> Result<(u16, Rc<()>), ProbeError> {
        let count = SLOTS as usize;
        self.slots.resize_with(count, Weak::new);
        let free = (0..count)
            .map(|step| (self.next_slot + step) % count)
            .find(|&index| {
                self.slots
                    .get(index)
                    .is_some_and(|user| user.strong_count() == 0)
            });
        let (Some(index), lease) = (free, Rc::new(())) else {
            return Err(ProbeError::NoSlot(SLOTS));
        };
        if let Some(user) = self.slots.get_mut(index) {
            *user = Rc::downgrade(&lease);
        }
        self.next_slot = (index + 1) % count;
        let number = u16::try_from(index).map_err(|_| ProbeError::NoSlot(SLOTS))?;
        Ok((number, lease))
    }

    /// Clears what the last user of the slot left, and tells the programs about the binary.
    pub(super) fn prepare(&mut self, slot: u16, binary: BinaryConfig) -> Result<(), ProbeError> {
        let stale: Vec<u64> = self
            .stacks
            .keys()
            .filter_map(Result::ok)
            .filter(|&key| StackKey::from_bits(key).is_some_and(|key| key.slot() == slot))
            .collect();
        for key in stale {
            match self.stacks.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error("stacks", &error)),
            }
        }
        self.forget_waits(slot);
        let cpus = nr_cpus().map_err(|(_, error)| map_error("counters", &error))?;
        for (table, stride) in [(&mut self.lost, Loss::COUNT), (&mut self.hits, Kind::COUNT)] {
            let row = u32::from(slot) * stride;
            for index in row..row + stride {
                let zeros = PerCpuValues::try_from(vec![0; cpus])
                    .map_err(|error| map_error("counters", &error))?;
                table
                    .set(index, zeros, 0)
                    .map_err(|error| map_error("counters", &error))?;
            }
        }
        let filled = BinaryConfig {
            filled: 1,
            ..binary
        };
        self.binaries
            .set(u32::from(slot), filled, 0)
            .map_err(|error| map_error("binaries", &error))
    }
}

pub(super) fn map_error(
    map: &'static str,
    error: &(dyn std::error::Error + 'static),
) -> ProbeError {
    ProbeError::Map {
        map,
        error: with_causes(error),
    }
}
