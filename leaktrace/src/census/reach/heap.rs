//! The heap as the garbage collector sees it: spans of objects of one size, and a bit for each.

use crate::address::RuntimeAddr;
use crate::census::{HeapLayout, Memory, for_each_structure, read_addresses};

use super::ReachError;

/// Spans of a heap that is looked through.
const MOST_SPANS: u64 = 1 << 18;
/// Objects in those, one bit each.
const MOST_OBJECTS: u64 = 1 << 27;
/// src/runtime/mheap.go: `mSpanInUse`.
pub(super) const IN_USE: u8 = 1;
/// src/runtime/malloc.go: `pageSize`.
pub(super) const PAGE: u64 = 8 << 10;

/// The words of a stretch of memory, each of which may be a pointer.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    (bytes.chunks_exact(8)).filter_map(|word| word.first_chunk().copied().map(u64::from_le_bytes))
}

/// A stretch of the heap with objects of one size.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    element_bytes: u64,
    has_pointers: bool,
    /// The bit of its first object.
    first: u64,
}

/// The heap.
pub(super) struct Spans {
    /// In the order of their addresses.
    all: Vec<Span>,
    marks: Vec<u64>,
    /// Start of a span, and its first special.
    pub(super) specials: Vec<(u64, u64)>,
    low: u64,
    high: u64,
}

impl Spans {
    pub(super) fn read(memory: &dyn Memory, heap: &HeapLayout) -> Result<Self, ReachError> {
        let offsets = &heap.offsets;
        let list = heap.mheap.offset(u64::from(offsets.allspans));
        let count = memory.word(list.offset(8))?;
        if count > MOST_SPANS {
            return Err(ReachError::TooMuch("spans"));
        }
        let mut addresses = read_addresses(memory, RuntimeAddr(memory.word(list)?), count, 8)?;
        let ends = [
            offsets.start + 8,
            offsets.pages + 8,
            offsets.element_bytes + 8,
            offsets.state + 1,
            offsets.class + 1,
            offsets.specials + 8,
        ];
        let size = ends.into_iter().max().unwrap_or(0) as usize;
        let mut all = Vec::new();
        let mut specials = Vec::new();
        let mut unreadable = 0;
        for_each_structure(
            memory,
            &mut addresses,
            size,
            &mut unreadable,
            |_, mut fields| {
                let start = fields.word(offsets.start as usize);
                let bytes = fields.word(offsets.pages as usize).checked_mul(PAGE);
                let end = bytes.and_then(|bytes| start.checked_add(bytes));
                let element_bytes = fields.word(offsets.element_bytes as usize);
                let Some(end) = end.filter(|end| {
                    fields.byte(offsets.state as usize) == IN_USE
                        && *end > start
                        && (8..=*end - start).contains(&element_bytes)
                }) else {
                    return;
                };
                all.push(Span {
                    start,
                    end,
                    element_bytes,
                    has_pointers: fields.byte(offsets.class as usize) & 1 == 0,
                    first: 0,
                });
                let special = fields.word(offsets.specials as usize);
                if special != 0 {
                    specials.push((start, special));
                }
            },
        )?;
        if unreadable > 0 {
            return Err(ReachError::Unreadable);
        }
        all.sort_unstable_by_key(|span| span.start);
        let mut objects = 0_u64;
        for span in &mut all {
            span.first = objects;
            let own = (span.end - span.start).div_ceil(span.element_bytes);
            objects = objects.saturating_add(own);
        }
        if objects > MOST_OBJECTS {
            return Err(ReachError::TooMuch("objects"));
        }
        Ok(Self {
            low: all.first().map_or(u64::MAX, |span| span.start),
            high: all.iter().map(|span| span.end).max().unwrap_or(0),
            all,
            marks: vec![0; usize::try_from(objects.div_ceil(64)).unwrap_or(0)],
            specials,
        })
    }

    /// The span that an address lies in, and which of its objects.
    fn locate(&self, address: u64) -> Option<(&Span, u64)> {
        if address < self.low || address >= self.high {
            return None;
        }
        let after = self.all.partition_point(|span| span.start <= address);
        let span = self.all.get(after.checked_sub(1)?)?;
        (address < span.end).then(|| (span, (address - span.start) / span.element_bytes))
    }

    /// Whether two words that follow each other are the bounds of a stack, `stack.lo` and `stack.hi` (src/runtime/runtime2.go):
    /// the second is the address of whatever lies behind the stack, and refers to nothing. A stack lies in no span of objects,
    /// and is a power of two long, 2 KiB or more.
    pub(super) fn are_bounds_of_stack(&self, low: u64, high: u64) -> bool {
        const LEAST: u64 = 2 << 10;
        let bytes = high.wrapping_sub(low);
        bytes.is_power_of_two()
            && bytes >= LEAST
            && low < high
            && low.is_multiple_of(LEAST)
            && low >= self.low
            && self.locate(low).is_none()
    }

    /// Start and length of the object that an address lies in.
    pub(super) fn extent(&self, address: u64) -> Option<(u64, u64)> {
        let (span, number) = self.locate(address)?;
        let base = span.start + number * span.element_bytes;
        Some((base, span.element_bytes.min(span.end - base)))
    }

    pub(super) fn base(&self, address: u64) -> Option<u64> {
        self.extent(address).map(|(base, _)| base)
    }

    /// Whether the object that an address lies in was marked; what is not in the heap counts as marked.
    pub(super) fn is_marked(&self, address: u64) -> bool {
        self.locate(address).is_none_or(|(span, number)| {
            let bit = span.first + number;
            let word = usize::try_from(bit / 64).map(|word| self.marks.get(word));
            matches!(word, Ok(Some(word)) if word & 1 << (bit % 64) != 0)
        })
    }

    /// Marks the object that an address lies in; where it is and whether it has pointers, if it was not marked before.
    pub(super) fn mark(&mut self, address: u64) -> Option<(u64, u64, bool)> {
        let (span, number) = self.locate(address)?;
        let bit = span.first + number;
        let base = span.start + number * span.element_bytes;
        let (bytes, has_pointers) = (span.element_bytes.min(span.end - base), span.has_pointers);
        let word = self.marks.get_mut(usize::try_from(bit / 64).ok()?)?;
        let mask = 1 << (bit % 64);
        if *word & mask != 0 {
            return None;
        }
        *word |= mask;
        Some((base, bytes, has_pointers))
    }
}
