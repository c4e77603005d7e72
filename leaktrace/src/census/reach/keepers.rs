//! What keeps others without having any use for them: contexts that list those made of them, and timers.

use foldhash::{HashSet, HashSetExt};

use super::heap::words;
use super::{MOST_BYTES, ReachError, Walk};
use crate::address::RuntimeAddr;
use crate::census::{HeapLayout, Memory, Piece, for_each_structure, read_addresses};

/// Tables of methods in a program.
const MOST_ITABS: u64 = 1 << 18;

/// Objects that are looked at one by one; of more the others count as if somebody had a use for them.
const MOST_ASKED: usize = 1 << 17;

/// The tables of methods of the interface `context.canceler`: a context lists those made of it as keys of a map, pairs of
/// such a table and a pointer (src/context/context.go, Go 1.18 to 1.27: `cancelCtx.children`). Empty where it is not known
/// where the tables are: then a context counts as if it had a use for those.
pub(super) fn cancelers(memory: &dyn Memory, heap: &HeapLayout) -> Result<Vec<u64>, ReachError> {
    // src/runtime/iface.go: `itabTableType`; src/internal/abi/iface.go: `ITab`, whose methods are in the order of their
    // names, exported ones first: Done, cancel.
    const ENTRIES: u64 = 16;
    const CANCEL: u64 = 32;
    let Some(table) = heap.itab_table.filter(|_| !heap.cancels.is_empty()) else {
        return Ok(Vec::new());
    };
    let table = RuntimeAddr(memory.word(table)?);
    let size = memory.word(table)?;
    if size > MOST_ITABS {
        return Err(ReachError::TooMuch("tables of methods"));
    }
    let itabs = read_addresses(memory, table.offset(ENTRIES), size, 8)?;
    // Those with one method are shorter: what lies there is something else, or nothing, and none of ours.
    let mut second: Vec<u64> = (itabs.iter())
        .filter(|itab| **itab != 0)
        .filter_map(|itab| itab.checked_add(CANCEL))
        .collect();
    let mut found = Vec::new();
    for_each_structure(memory, &mut second, 8, &mut 0, |method, mut fields| {
        if heap.cancels.contains(&RuntimeAddr(fields.word(0))) {
            found.push(method - CANCEL);
        }
    })?;
    Ok(found)
}

impl Walk<'_> {
    /// The goroutines that still sleep and wait for something that one of these objects refers to itself, each with that
    /// object's address.
    pub(super) fn waiters_in(&mut self, objects: &[u64]) -> Result<Vec<(u64, usize)>, ReachError> {
        let mut found = Vec::new();
        if self.waiters.is_empty() {
            return Ok(found);
        }
        let asked: Vec<(u64, u64)> = (objects.iter().take(MOST_ASKED))
            .map(|object| (*object, *object))
            .collect();
        self.for_each_object(&asked, |walk, object, bytes| {
            let mut own: Vec<u64> = words(bytes)
                .filter_map(|word| walk.spans.base(word))
                .collect();
            own.sort_unstable();
            own.dedup();
            for waiter in (own.iter())
                .filter_map(|base| walk.waiters.get(base))
                .flatten()
            {
                if walk.is_asleep(*waiter) {
                    found.push((object, *waiter));
                }
            }
        })?;
        Ok(found)
    }

    /// Of timers that nothing was met to refer to: those that what they call has a hold of, so as to arm or to stop them,
    /// and nobody waits for.
    pub(super) fn held_by_themselves(
        &mut self,
        mut timers: Vec<u64>,
    ) -> Result<Vec<u64>, ReachError> {
        /// Timer, function value, what the function belongs to, which has the timer; and one between.
        const STEPS: usize = 4;
        /// Objects that are looked at for each timer, in the middle.
        const EACH: usize = 16;
        timers.truncate(MOST_ASKED);
        let most = timers.len().saturating_mul(EACH);
        let mut held: HashSet<u64> = HashSet::new();
        let mut waited_for: HashSet<u64> = HashSet::new();
        let mut met: HashSet<(u64, u64)> = HashSet::new();
        let mut now: Vec<(u64, u64)> = timers.iter().map(|timer| (*timer, *timer)).collect();
        for step in 0..STEPS {
            let mut next = Vec::new();
            self.for_each_object(&now, |walk, timer, bytes| {
                let own = walk.spans.base(timer);
                for base in words(bytes).filter_map(|word| walk.spans.base(word)) {
                    if Some(base) == own {
                        if step > 0 {
                            held.insert(timer);
                        }
                    } else if walk.waiters.contains_key(&base) {
                        waited_for.insert(timer);
                    } else if !walk.spans.is_marked(base)
                        && met.len() < most
                        && met.insert((timer, base))
                    {
                        next.push((timer, base));
                    }
                }
            })?;
            next.retain(|(timer, _)| !waited_for.contains(timer));
            now = next;
        }
        Ok(held.difference(&waited_for).copied().collect())
    }

    /// Shows the bytes of objects, each with what it was asked for by.
    fn for_each_object(
        &mut self,
        objects: &[(u64, u64)],
        mut visit: impl FnMut(&Self, u64, &[u8]),
    ) -> Result<(), ReachError> {
        /// Contexts, timers, function values and what they belong to are small; of larger ones this much is looked at.
        const LONGEST: u64 = 1 << 10;
        for chunk in objects.chunks(1024) {
            self.in_time()?;
            let (mut asked, mut pieces, mut total) = (Vec::new(), Vec::new(), 0_u64);
            for (by, object) in chunk {
                let Some((base, bytes)) = self.spans.extent(*object) else {
                    continue;
                };
                let bytes = bytes.min(LONGEST);
                asked.push(*by);
                total += bytes;
                pieces.push(Piece {
                    address: RuntimeAddr(base),
                    bytes: usize::try_from(bytes).unwrap_or(0),
                });
            }
            self.bytes = self.bytes.saturating_add(total);
            if self.bytes > MOST_BYTES {
                return Err(ReachError::TooMuch("memory"));
            }
            let mut buffer = vec![0; usize::try_from(total).unwrap_or(0)];
            let read = self.scene.memory.read_pieces(&pieces, &mut buffer)?;
            if read.contains(&false) {
                return Err(ReachError::Unreadable);
            }
            let mut rest = buffer.as_slice();
            for (by, piece) in asked.into_iter().zip(pieces) {
                let (own, after) = rest.split_at_checked(piece.bytes).unwrap_or((rest, &[]));
                visit(self, by, own);
                rest = after;
            }
        }
        Ok(())
    }
}
