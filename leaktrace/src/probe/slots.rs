//! Slots: a row for each traced process in every map that is indexed by one.

use std::rc::{Rc, Weak};

use aya::{
    maps::{MapData, MapError, PerCpuArray, PerCpuValues},
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
        for (table, stride) in [(&mut self.lost, Loss::COUNT), (&mut self.hits, Kind::COUNT)] {
            let row = u32::from(slot) * stride;
            for index in row..row + stride {
                set_on_all_cpus(table, index, 0)?;
            }
        }
        // Whoever has a budget says so.
        set_on_all_cpus(&mut self.allowance, u32::from(slot), u64::MAX)?;
        let filled = BinaryConfig {
            filled: 1,
            ..binary
        };
        self.binaries
            .set(u32::from(slot), filled, 0)
            .map_err(|error| map_error("binaries", &error))
    }
}

/// Gives an entry the same value on every CPU.
pub(super) fn set_on_all_cpus(
    table: &mut PerCpuArray<MapData, u64>,
    index: u32,
    value: u64,
) -> Result<(), ProbeError> {
    let cpus = nr_cpus().map_err(|(_, error)| map_error("counters", &error))?;
    let values =
        PerCpuValues::try_from(vec![value; cpus]).map_err(|error| map_error("counters", &error))?;
    table
        .set(index, values, 0)
        .map_err(|error| map_error("counters", &error))
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
