//! The memory of a process as bytes: what the census walks through.
//!
//! Form: the number of the release, flags, the number of wait reasons; then the bytes at [`BASE`]. The runtime's lists
//! lie at their beginning. From [`ECHO`] on the same bytes are seen again and again, so that long lists can be read.

use std::cell::Cell;

use leaktrace::address::RuntimeAddr;
use leaktrace::census::{
    Anchors, Layout, Memory, MemoryError, Piece, SemaphoreTable, TimerFunctions, TimerKind,
};
use leaktrace::resolve::offsets::Offsets;

use crate::{number, offsets_of};

/// Where the bytes lie.
pub const BASE: u64 = 0x1000;
/// Where they are seen again and again.
pub const ECHO: u64 = 0x1000_0000;
const ECHO_BYTES: u64 = 1 << 20;

/// Offsets from [`BASE`] of the runtime's variables.
pub const ALLGLEN: u64 = 0;
/// `runtime.allgptr`.
pub const ALLGPTR: u64 = 8;
/// `runtime.allp`.
pub const ALLP: u64 = 16;
/// `runtime.waitReasonStrings`.
pub const WAIT_REASONS: u64 = 64;
/// Entries of `runtime.main` and `runtime.forcegchelper`.
pub const MAIN: u64 = 0x50_1000;
/// See [`MAIN`].
pub const FORCE_GC: u64 = 0x50_2000;
/// The code of the functions that timers run: an AfterFunc's, a timer's, a sleep's.
pub const FUNCTIONS: [(u64, TimerKind); 3] = [
    (0x50_0000, TimerKind::AfterFunc),
    (0x50_0100, TimerKind::Timer),
    (0x50_0200, TimerKind::Sleep),
];

/// A process made of a few bytes, which may change while it is read.
pub struct Bytes<'d> {
    bytes: &'d [u8],
    changing: bool,
    reads: Cell<u64>,
}

/// The process, and where the runtime keeps what in it.
#[must_use]
pub fn process(mut data: &[u8]) -> (Bytes<'_>, Layout) {
    let offsets = offsets_of(u8::try_from(number(&mut data, 1)).unwrap_or(0));
    let flags = number(&mut data, 1);
    let wait_reason_count = number(&mut data, 1);
    let memory = Bytes {
        bytes: data,
        changing: flags & 1 != 0,
        reads: Cell::new(0),
    };
    (memory, layout(offsets, wait_reason_count))
}

/// The offsets of a release, but for the timers of a P: they lie behind kilobytes that nobody reads, and would only
/// make inputs long.
#[must_use]
pub fn small(offsets: &Offsets) -> Offsets {
    Offsets {
        p_timers: offsets.p_timers.map(|_| 64),
        ..offsets.clone()
    }
}

/// Where such a process keeps the runtime's lists.
fn layout(offsets: &Offsets, wait_reason_count: u64) -> Layout {
    let at = |offset| RuntimeAddr(BASE + offset);
    let functions = FUNCTIONS.map(|(code, kind)| (RuntimeAddr(code), kind));
    Layout {
        heap: None,
        semaphores: Some(SemaphoreTable {
            roots: RuntimeAddr(ECHO),
            stride: 64,
        }),
        allglen: at(ALLGLEN),
        allgptr: at(ALLGPTR),
        allp: at(ALLP),
        wait_reasons: at(WAIT_REASONS),
        wait_reason_count,
        offsets: small(offsets),
        timer_functions: TimerFunctions::new(functions.into()),
        anchors: Anchors {
            code: RuntimeAddr(MAIN)..RuntimeAddr(MAIN + (1 << 20)),
            main: Some(RuntimeAddr(MAIN)),
            force_gc: Some(RuntimeAddr(FORCE_GC)),
        },
    }
}

impl Bytes<'_> {
    fn fill(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let end = address.checked_add(buffer.len() as u64)?;
        if address >= ECHO {
            if end > ECHO + ECHO_BYTES || self.bytes.is_empty() {
                return None;
            }
            let skip = usize::try_from(address - ECHO).ok()? % self.bytes.len();
            let echo = self.bytes.iter().cycle().skip(skip);
            for (to, from) in buffer.iter_mut().zip(echo) {
                *to = *from;
            }
        } else {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            let end = start.checked_add(buffer.len())?;
            buffer.copy_from_slice(self.bytes.get(start..end)?);
        }
        if self.changing {
            // Each reading differs from the one before, in a place that moves on.
            let turn = self.reads.get();
            self.reads.set(turn.wrapping_add(1));
            let place = usize::try_from(turn).ok()?.checked_rem(buffer.len());
            if let Some(byte) = place.and_then(|place| buffer.get_mut(place)) {
                *byte ^= 1;
            }
        }
        Some(())
    }
}

impl Memory for Bytes<'_> {
    fn read_pieces(&self, pieces: &[Piece], buffer: &mut [u8]) -> Result<Vec<bool>, MemoryError> {
        let mut rest = buffer;
        let mut read = Vec::new();
        for piece in pieces {
            let (part, after) = std::mem::take(&mut rest)
                .split_at_mut_checked(piece.bytes)
                .expect("the buffer is as long as the pieces together");
            rest = after;
            read.push(self.fill(piece.address.0, part).is_some());
        }
        assert!(rest.is_empty(), "a buffer longer than its pieces");
        Ok(read)
    }
}
