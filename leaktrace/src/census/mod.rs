//! What is really alive? The second witness: the runtime's own lists, read from outside.
//!
//! [`take`] walks `runtime.allgs` and every P's timer heap through [`Memory`], without stopping, signalling
//! or writing to the target. It knows nothing of probes and events; the ledger is where the two meet.
//! Everything read is taken for hostile: counts are bounded, pointers are only ever handed back to
//! [`Memory`], and what cannot be read is counted in [`Census::unreadable`].

// What is read here was written by the traced program. A test may panic, this code may not.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod core_file;
mod goroutines;
mod layout;
mod memory;
mod places;
pub mod reach;
mod self_check;
pub mod semaphores;
pub mod stacks;
mod timers;
pub mod waits;

pub use core_file::{CoreError, CoreFile, CoreMemory};
pub use goroutines::{Goroutine, Status};
pub use layout::{Anchors, ConnectionLoops, HeapLayout, Layout, SemaphoreTable, TimerFunctions};
pub use memory::{LiveMemory, Memory, MemoryError, Piece};
pub use places::Places;
pub use self_check::{Distrust, SelfCheck, self_check};
pub use timers::{Timer, TimerKind};

use crate::address::RuntimeAddr;

/// What was alive between two moments.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// When reading began: CLOCK_MONOTONIC, nanoseconds.
    pub started_ns: u64,
    /// When reading ended.
    pub finished_ns: u64,
    /// Every goroutine that was not dead, system goroutines too: up to 200,000 of them, all at one moment between the two.
    pub goroutines: Vec<Goroutine>,
    /// Every timer that was in a P's heap and neither stopped nor fired; `None` when it is not known where this
    /// binary keeps its heaps.
    pub timers: Option<Vec<Timer>>,
    /// Things that were listed but could not be read.
    pub unreadable: u64,
}

/// Why no census could be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CensusError {
    /// The memory as a whole is out of reach.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A count that no Go program reaches: wrong offsets, or a hostile program.
    #[error(
        "the runtime claims to have {count} {what}, more than the {limit} that leaktrace reads"
    )]
    Implausible {
        /// Of what.
        what: &'static str,
        /// How many it says there are.
        count: u64,
        /// How many we would read.
        limit: u64,
    },
    /// The list moved each time that we looked.
    #[error("the runtime's list of {what} changed during each of {tries} attempts to read it")]
    Unsteady {
        /// Of what.
        what: &'static str,
        /// How often we tried.
        tries: u32,
    },
}

/// Takes a census. `clock` answers CLOCK_MONOTONIC in nanoseconds; it is called at the start and at the end.
///
/// # Errors
/// When the memory is out of reach or its counts are implausible; single unreadable things are only counted.
pub fn take(
    memory: &dyn Memory,
    layout: &Layout,
    clock: &dyn Fn() -> u64,
) -> Result<Census, CensusError> {
    let mut census = Census {
        started_ns: clock(),
        ..Census::default()
    };
    goroutines::walk(memory, layout, &mut census)?;
    timers::walk(memory, layout, &mut census)?;
    census.finished_ns = clock();
    Ok(census)
}

/// Reads the names of the wait reasons from the target itself: their numbers change between releases.
///
/// # Errors
/// When the table cannot be read; a single name that cannot be read becomes "wait reason N".
pub fn wait_reasons(memory: &dyn Memory, layout: &Layout) -> Result<Vec<String>, CensusError> {
    /// Longer than any name in Go 1.27 (29 bytes), with room.
    const LONGEST: usize = 64;
    let count = usize::try_from(layout.wait_reason_count.min(255)).unwrap_or(255);
    let mut headers = vec![0; count * 16];
    memory.read(layout.wait_reasons, &mut headers)?;
    let names = headers
        .chunks_exact(16)
        .enumerate()
        .map(|(number, header)| {
            let mut cursor = Fields(header);
            let (address, length) = (cursor.word(0), cursor.word(8));
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let mut bytes = vec![0; length.min(LONGEST)];
            match memory.read(RuntimeAddr(address), &mut bytes) {
                // Number 0 is the empty string: a goroutine that never waited.
                Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(_) if length == 0 => String::new(),
                Err(_) => format!("wait reason {number}"),
            }
        })
        .collect();
    Ok(names)
}

/// The largest structure that is read whole: a `g` has less than 500 bytes, the others less than that.
const MOST_STRUCTURE_BYTES: usize = 4096;

/// How many structures of one list may be unreadable before the others are left alone.
const MOST_UNREADABLE: u64 = 1 << 16;

/// Bytes of a list that are read at once.
const LIST_STEP: u64 = 1 << 20;

/// Reads a list of `count` entries of `entry_bytes` bytes each (a divisor of [`LIST_STEP`]) that begin with an address; those that are 0 are left out.
/// Room is made only for what is really there.
fn read_addresses(
    memory: &dyn Memory,
    array: RuntimeAddr,
    count: u64,
    entry_bytes: usize,
) -> Result<Vec<u64>, MemoryError> {
    let mut addresses = Vec::new();
    let mut bytes = Vec::new();
    let mut at = 0_u64;
    let total = count.saturating_mul(entry_bytes as u64);
    while at < total {
        let step = (total - at).min(LIST_STEP);
        bytes.resize(usize::try_from(step).unwrap_or(0), 0);
        memory.read(array.offset(at), &mut bytes)?;
        let entries = bytes.chunks_exact(entry_bytes);
        addresses.extend(
            entries
                .map(|entry| Fields(entry).word(0))
                .filter(|address| *address != 0),
        );
        at += step;
    }
    Ok(addresses)
}

/// Bytes of one structure of the target. Offsets beyond its end read as 0: the caller sized the bytes from
/// the same layout, so that happens only when the layout itself is wrong, and a zero is refused further on.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn word(&mut self, offset: usize) -> u64 {
        self.array(offset).map_or(0, u64::from_le_bytes)
    }

    fn half(&mut self, offset: usize) -> u32 {
        self.array(offset).map_or(0, u32::from_le_bytes)
    }

    fn byte(&mut self, offset: usize) -> u8 {
        self.array(offset).map_or(0, |[byte]: [u8; 1]| byte)
    }

    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}

/// Copies structures of `size` bytes at each of `addresses` and shows them one by one to `visit`, in the
/// order of their addresses. Neighbours are read as one piece: the runtime allocates structures of one kind
/// side by side, and a piece costs more than the bytes between two of them.
///
/// What overlaps the one before it, or is larger than any structure of the runtime that is read, is forged or misread;
/// it is not shown, but counted in `unreadable`. After [`MOST_UNREADABLE`] of those nothing more is read.
fn for_each_structure(
    memory: &dyn Memory,
    addresses: &mut Vec<u64>,
    size: usize,
    unreadable: &mut u64,
    mut visit: impl FnMut(u64, Fields<'_>),
) -> Result<(), MemoryError> {
    /// Bytes between two structures that are cheaper to copy than to skip.
    const GAP: u64 = 512;
    /// Longest piece; a page that is not mapped inside loses no more than this.
    const LONGEST_PIECE: u64 = 256 << 10;
    /// Bytes copied before they are looked at: bounds our own memory.
    const BATCH: usize = 1 << 20;

    let size_u64 = size as u64;
    addresses.sort_unstable();
    addresses.dedup();
    let listed = addresses.len();
    let mut free_from = 0;
    addresses.retain(|&address| {
        let end = address.checked_add(size_u64);
        let apart = size <= MOST_STRUCTURE_BYTES && address >= free_from && end.is_some();
        if apart {
            free_from = end.unwrap_or(u64::MAX);
        }
        apart
    });
    *unreadable += (listed - addresses.len()) as u64;
    let most_unreadable = unreadable.saturating_add(MOST_UNREADABLE);
    let mut buffer = Vec::new();
    let mut rest = addresses.as_slice();
    while !rest.is_empty() {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut batch_bytes = 0;
        let mut taken = 0;
        for &address in rest {
            if let Some(last) = pieces.last_mut() {
                let end = last.address.0.saturating_add(last.bytes as u64);
                let grown = address
                    .saturating_add(size_u64)
                    .saturating_sub(last.address.0);
                if address.saturating_sub(end) <= GAP && grown <= LONGEST_PIECE {
                    let bytes = usize::try_from(grown).unwrap_or(last.bytes).max(last.bytes);
                    batch_bytes += bytes - last.bytes;
                    last.bytes = bytes;
                    taken += 1;
                    continue;
                }
            }
            if batch_bytes + size > BATCH {
                break;
            }
            pieces.push(Piece {
                address: RuntimeAddr(address),
                bytes: size,
            });
            batch_bytes += size;
            taken += 1;
        }
        if buffer.len() < batch_bytes {
            // Not resized, for that would copy what is in it.
            buffer = vec![0; batch_bytes];
        }
        let into = buffer.get_mut(..batch_bytes).unwrap_or_default();
        let read = memory.read_pieces(&pieces, into)?;
        let (batch, next) = rest.split_at(taken);
        rest = next;
        let mut wanted = batch.iter().copied().peekable();
        let mut filled = 0_usize;
        for (piece, read) in pieces.iter().zip(read) {
            let bytes = buffer.get(filled..filled + piece.bytes).unwrap_or_default();
            filled += piece.bytes;
            let end = piece.address.0.saturating_add(piece.bytes as u64);
            while let Some(address) = wanted.next_if(|address| *address < end) {
                if read {
                    let start = usize::try_from(address - piece.address.0).unwrap_or(usize::MAX);
                    visit(address, Fields(bytes.get(start..).unwrap_or_default()));
                    continue;
                }
                // One bad page spoils a whole piece: read its structures one by one.
                let mut alone = vec![0; size];
                match memory.read(RuntimeAddr(address), &mut alone) {
                    Ok(()) => visit(address, Fields(&alone)),
                    Err(MemoryError::Unmapped { .. }) => *unreadable += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        if *unreadable > most_unreadable {
            // Each costs a call of its own. Honest lists have next to none.
            *unreadable += rest.len() as u64;
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Memory made of a few mapped regions.
    pub(in crate::census) struct Regions(pub BTreeMap<u64, Vec<u8>>);

    impl Memory for Regions {
        fn read_pieces(
            &self,
            pieces: &[Piece],
            buffer: &mut [u8],
        ) -> Result<Vec<bool>, MemoryError> {
            let mut filled = 0;
            Ok(pieces
                .iter()
                .map(|piece| {
                    let out = &mut buffer[filled..filled + piece.bytes];
                    filled += piece.bytes;
                    let found =
                        self.0
                            .range(..=piece.address.0)
                            .next_back()
                            .and_then(|(start, bytes)| {
                                let skip = usize::try_from(piece.address.0 - start).ok()?;
                                bytes.get(skip..skip.checked_add(piece.bytes)?)
                            });
                    found.is_some_and(|bytes| {
                        out.copy_from_slice(bytes);
                        true
                    })
                })
                .collect())
        }
    }

    #[test]
    fn structures_are_seen_once_each_whatever_their_spacing() {
        let mut region = vec![0; 1 << 20];
        let mut addresses = Vec::new();
        let mut at = 0;
        let mut step = 16;
        while at + 16 < region.len() {
            region[at..at + 8].copy_from_slice(&(at as u64).to_le_bytes());
            addresses.push(0x1000 + at as u64);
            at += step;
            step = (step * 7 + 8) % 4096 + 16;
        }
        let expected = addresses.clone();
        addresses.push(expected[3]); // Listed twice.
        addresses.push(0x9000_0000); // Not mapped.
        let memory = Regions(BTreeMap::from([(0x1000, region)]));
        let mut seen = Vec::new();
        let mut unreadable = 0;
        for_each_structure(
            &memory,
            &mut addresses,
            16,
            &mut unreadable,
            |at, mut fields| {
                assert_eq!(fields.word(0) + 0x1000, at);
                seen.push(at);
            },
        )
        .expect("regions never fail as a whole");
        assert_eq!(seen, expected);
        assert_eq!(unreadable, 1);
    }
}
