//! Who could still wake a goroutine? Follows every pointer of the program from outside, as its own garbage collector does.
//!
//! A goroutine that waits on channels or semaphores which nothing else refers to waits for ever. The way to tell is that of
//! Go 1.27's goroutineleak profile (src/runtime/mgc.go: `findMaybeRunnableGoroutines`): what variables and the stacks of
//! runnable goroutines refer to is alive; a goroutine that waits for something alive is alive, too, and so is what its stack
//! refers to; who is left over at the end is stranded.
//!
//! Every word that could be a pointer is taken for one, so that too much counts as alive rather than too little. The
//! program runs on meanwhile and may move a pointer past the reader: one walk is no proof, and callers want two to agree.

use foldhash::{HashMap, HashMapExt};

use super::semaphores::Semaphore;
use super::waits::{Channel, Waits};
use super::{Fields, Goroutine, HeapLayout, Layout, Memory, MemoryError, Piece, Status};
use super::{for_each_structure, read_addresses};
use crate::address::RuntimeAddr;
use crate::event::Goid;

/// Goroutines of a program that is looked through.
const MOST_GOROUTINES: usize = 200_000;
/// Spans of its heap.
const MOST_SPANS: u64 = 1 << 18;
/// Objects in those, one bit each.
const MOST_OBJECTS: u64 = 1 << 27;
/// Bytes that are read of it.
const MOST_BYTES: u64 = 256 << 20;
/// Stretches that wait to be read.
const MOST_WORK: usize = 1 << 21;
/// Objects with finalizers, cleanups or profile records.
const MOST_SPECIALS: usize = 1 << 17;
/// Time, in nanoseconds: other targets wait meanwhile.
const MOST_NS: u64 = 2_000_000_000;

/// src/runtime/mheap.go: `mSpanInUse`.
const IN_USE: u8 = 1;
/// src/runtime/malloc.go: `pageSize`.
const PAGE: u64 = 8 << 10;
/// Roots of `runtime.semtable`.
const SEMAPHORE_ROOTS: u64 = 251;

/// Why it is not known who is stranded.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The memory as a whole is out of reach.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The binary has no symbol table or no debug information.
    #[error("the binary does not tell where its heap is")]
    Unknown,
    /// Looking would cost too much.
    #[error("it has more {0} than are looked through")]
    TooMuch(&'static str),
    /// Looking has taken longer than it may.
    #[error("it takes more than two seconds to look through")]
    TooLong,
    /// A part that must be read could not be.
    #[error("a part of its memory could not be read")]
    Unreadable,
}

/// What following all pointers told, and what it took.
#[derive(Debug, PartialEq, Eq)]
pub struct Reached {
    /// The goroutines that wait for what nobody else refers to, in the order of their numbers.
    pub stranded: Vec<Goid>,
    /// Bytes of variables, stacks and objects that were looked at.
    pub bytes: u64,
    /// Nanoseconds.
    pub took_ns: u64,
}

/// Looks for the goroutines that wait for what nobody else refers to. `clock` answers CLOCK_MONOTONIC in nanoseconds: after
/// two seconds this gives up.
///
/// # Errors
/// When that cannot be told.
pub fn stranded(
    memory: &dyn Memory,
    layout: &Layout,
    wait_reasons: &[String],
    goroutines: &[Goroutine],
    channels: &Waits<Channel>,
    semaphores: &Waits<Semaphore>,
    clock: &dyn Fn() -> u64,
) -> Result<Reached, ReachError> {
    let began_ns = clock();
    let heap = layout.heap.as_ref().ok_or(ReachError::Unknown)?;
    if goroutines.len() > MOST_GOROUTINES {
        return Err(ReachError::TooMuch("goroutines"));
    }
    // Who waits for more than was looked at could be woken by that.
    if channels.left_out > 0 {
        return Err(ReachError::TooMuch("channels"));
    }
    let mut walk = Walk {
        memory,
        spans: Spans::read(memory, heap)?,
        work: Vec::new(),
        bytes: 0,
        waiters: HashMap::new(),
        stacks: stacks(memory, layout, goroutines)?,
        goroutines,
        asleep: vec![false; goroutines.len()],
        clock,
        until_ns: began_ns.saturating_add(MOST_NS),
    };
    // The list of all goroutines refers to each: that wakes nobody.
    for goroutine in goroutines {
        walk.spans.mark(goroutine.g.0);
    }
    walk.wait_for(layout, wait_reasons, channels, semaphores)?;
    for index in 0..goroutines.len() {
        if !walk.asleep.get(index).copied().unwrap_or_default() {
            walk.wake(index)?;
        }
    }
    for variables in &heap.variables {
        walk.variables(layout, variables.start.0, variables.end.0)?;
    }
    walk.specials()?;
    walk.drain()?;
    let mut stranded: Vec<Goid> = (goroutines.iter())
        .zip(&walk.asleep)
        .filter(|(_, asleep)| **asleep)
        .map(|(goroutine, _)| goroutine.goid)
        .collect();
    stranded.sort_unstable();
    Ok(Reached {
        stranded,
        bytes: walk.bytes,
        took_ns: clock().saturating_sub(began_ns),
    })
}

/// Stretch of the stack of each goroutine that is in use; all of it for who runs.
fn stacks(
    memory: &dyn Memory,
    layout: &Layout,
    goroutines: &[Goroutine],
) -> Result<HashMap<u64, (u64, u64)>, MemoryError> {
    let by_address: HashMap<u64, &Goroutine> = (goroutines.iter())
        .map(|goroutine| (goroutine.g.0, goroutine))
        .collect();
    let stack = layout.offsets.g_stack as usize;
    let mut stacks = HashMap::with_capacity(goroutines.len());
    for_each_structure(
        memory,
        &mut by_address.keys().copied().collect(),
        stack + 16,
        &mut 0,
        |address, mut fields| {
            let high = fields.word(stack + 8);
            if let Some(goroutine) = by_address.get(&address) {
                let used = match goroutine.depth {
                    0 => goroutine.stack_bytes,
                    depth => depth.min(goroutine.stack_bytes),
                };
                stacks.insert(address, (high.saturating_sub(used), high));
            }
        },
    )?;
    Ok(stacks)
}

/// What is alive so far, and what of it was not looked at yet.
struct Walk<'w> {
    memory: &'w dyn Memory,
    spans: Spans,
    work: Vec<(u64, u64)>,
    bytes: u64,
    /// Object -> goroutines that whoever has it can wake.
    waiters: HashMap<u64, Vec<usize>>,
    stacks: HashMap<u64, (u64, u64)>,
    goroutines: &'w [Goroutine],
    /// By index: waits, and nobody was found who could wake it.
    asleep: Vec<bool>,
    clock: &'w dyn Fn() -> u64,
    until_ns: u64,
}

impl Walk<'_> {
    fn in_time(&self) -> Result<(), ReachError> {
        if (self.clock)() > self.until_ns {
            return Err(ReachError::TooLong);
        }
        Ok(())
    }

    /// Notes who waits for what, where all of that lies in the heap. Everybody else counts as awake.
    fn wait_for(
        &mut self,
        layout: &Layout,
        wait_reasons: &[String],
        channels: &Waits<Channel>,
        semaphores: &Waits<Semaphore>,
    ) -> Result<(), ReachError> {
        /// A select that names more is not followed to its end.
        const MOST_CASES: usize = 63;
        let mut on: HashMap<usize, Vec<u64>> = HashMap::new();
        for (index, thing) in &channels.edges {
            if let Some(channel) = channels.things.get(*thing) {
                on.entry(*index).or_default().push(channel.address.0);
            }
        }
        for (index, thing) in &semaphores.edges {
            if let Some(semaphore) = semaphores.things.get(*thing) {
                on.entry(*index).or_default().push(semaphore.address.0);
            }
        }
        for (index, goroutine) in self.goroutines.iter().enumerate() {
            let reason = wait_reasons.get(usize::from(goroutine.wait_reason));
            let own = match reason.map(String::as_str) {
                _ if goroutine.status != Status::Waiting || on.contains_key(&index) => None,
                // The runtime's `coro` begins with its goroutine (src/runtime/coro.go).
                Some("coroutine") => Some(0),
                // Before Go 1.26 only its own stack says by which `sudog` it hangs in the list of the Cond.
                Some("sync.Cond.Wait") => Some(layout.offsets.sudog_g),
                _ => None,
            };
            if let Some(back) = own
                && let Some(object) = self.refers_back(goroutine, u64::from(back))?
            {
                on.insert(index, vec![object]);
            }
        }
        for (index, things) in on {
            let objects: Option<Vec<u64>> = (things.iter())
                .map(|thing| self.spans.base(*thing))
                .collect();
            let Some(objects) = objects.filter(|_| things.len() <= MOST_CASES) else {
                continue;
            };
            if let Some(asleep) = self.asleep.get_mut(index) {
                *asleep = true;
                for object in objects {
                    self.waiters.entry(object).or_default().push(index);
                }
            }
        }
        Ok(())
    }

    /// The one object that a goroutine's own stack refers to and that names the goroutine, `back` bytes from its start.
    fn refers_back(&self, goroutine: &Goroutine, back: u64) -> Result<Option<u64>, ReachError> {
        /// Of a stack: it blocks in the innermost frames.
        const MOST: u64 = 2 << 10;
        self.in_time()?;
        let Some(&(low, high)) = self.stacks.get(&goroutine.g.0) else {
            return Ok(None);
        };
        let used = high.saturating_sub(low).min(MOST);
        let mut bytes = vec![0; usize::try_from(used).unwrap_or(0)];
        match self.memory.read(RuntimeAddr(low), &mut bytes) {
            Err(MemoryError::Unmapped { .. }) => return Ok(None),
            other => other?,
        }
        let mut objects: Vec<u64> = words(&bytes)
            .filter_map(|word| self.spans.base(word))
            .collect();
        objects.sort_unstable();
        objects.dedup();
        let mut found = None;
        for object in objects {
            match self.memory.word(RuntimeAddr(object).offset(back)) {
                Ok(word) if word == goroutine.g.0 && found.replace(object).is_some() => {
                    return Ok(None);
                }
                Ok(_) | Err(MemoryError::Unmapped { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// A goroutine runs, or may: what it refers to is alive.
    fn wake(&mut self, index: usize) -> Result<(), ReachError> {
        let Some(goroutine) = self.goroutines.get(index) else {
            return Ok(());
        };
        if let Some(asleep) = self.asleep.get_mut(index) {
            *asleep = false;
        }
        let &(low, high) = self
            .stacks
            .get(&goroutine.g.0)
            .ok_or(ReachError::Unreadable)?;
        self.push(low, high.saturating_sub(low))?;
        // Its deferred calls.
        if let Some((base, bytes)) = self.spans.extent(goroutine.g.0) {
            self.push(base, bytes)?;
        }
        Ok(())
    }

    /// Variables, without the trees of those who wait for semaphores: being in one wakes nobody.
    fn variables(&mut self, layout: &Layout, start: u64, end: u64) -> Result<(), ReachError> {
        let without = layout.semaphores.map_or(end..end, |table| {
            let bytes = SEMAPHORE_ROOTS.saturating_mul(table.stride);
            table.roots.0.clamp(start, end)..table.roots.0.saturating_add(bytes).clamp(start, end)
        });
        self.push(start, without.start.saturating_sub(start))?;
        self.push(without.end, end.saturating_sub(without.end))
    }

    /// What happens to an object when it is collected may wake somebody: such objects are alive.
    fn specials(&mut self) -> Result<(), ReachError> {
        let mut listed = std::mem::take(&mut self.spans.specials);
        let mut met = 0;
        while !listed.is_empty() {
            met += listed.len();
            if met > MOST_SPECIALS {
                return Err(ReachError::TooMuch("objects with finalizers"));
            }
            let mut next = Vec::new();
            for chunk in listed.chunks(1024) {
                self.in_time()?;
                // src/runtime/mheap.go: `special` and what follows it in those that call a function.
                const BYTES: usize = 32;
                let pieces: Vec<Piece> = (chunk.iter())
                    .map(|(_, special)| Piece {
                        address: RuntimeAddr(*special),
                        bytes: BYTES,
                    })
                    .collect();
                let mut bytes = vec![0; BYTES * pieces.len()];
                let read = self.memory.read_pieces(&pieces, &mut bytes)?;
                for (((start, special), bytes), read) in
                    chunk.iter().zip(bytes.chunks_exact(BYTES)).zip(read)
                {
                    let mut own = [0; BYTES];
                    own.copy_from_slice(bytes);
                    if !read {
                        // The last one of its page has nothing behind it.
                        let (head, _) = own.split_at_mut(16);
                        (self.memory.read(RuntimeAddr(*special), head))
                            .map_err(|_| ReachError::Unreadable)?;
                    }
                    let mut fields = Fields(&own);
                    let following = fields.word(0);
                    // A word from Go 1.24 on, before that its low half.
                    let object = start.saturating_add(fields.word(8) & 0xffff);
                    self.found(object)?;
                    for word in words(&own) {
                        self.found(word)?;
                    }
                    if following != 0 {
                        next.push((*start, following));
                    }
                }
            }
            listed = next;
        }
        Ok(())
    }

    fn push(&mut self, mut address: u64, mut bytes: u64) -> Result<(), ReachError> {
        /// Longest stretch that is read at once.
        const LONGEST: u64 = 64 << 10;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MOST_BYTES {
            return Err(ReachError::TooMuch("memory"));
        }
        while bytes > 0 {
            let now = bytes.min(LONGEST);
            self.work.push((address, now));
            address = address.saturating_add(now);
            bytes -= now;
        }
        if self.work.len() > MOST_WORK {
            return Err(ReachError::TooMuch("objects"));
        }
        Ok(())
    }

    /// A word was met that may be a pointer.
    fn found(&mut self, word: u64) -> Result<(), ReachError> {
        let Some((base, bytes, has_pointers)) = self.spans.mark(word) else {
            return Ok(());
        };
        if has_pointers {
            self.push(base, bytes)?;
        }
        for index in self.waiters.remove(&base).unwrap_or_default() {
            if self.asleep.get(index).copied().unwrap_or_default() {
                self.wake(index)?;
            }
        }
        Ok(())
    }

    /// Reads until nothing new is met.
    fn drain(&mut self) -> Result<(), ReachError> {
        /// Bytes read before they are looked at: bounds our own memory.
        const BATCH: u64 = 2 << 20;
        /// Bytes between two objects that are cheaper to copy than to skip.
        const GAP: u64 = 256;
        const LONGEST: u64 = 64 << 10;
        let mut buffer = Vec::new();
        while !self.work.is_empty() {
            self.in_time()?;
            let mut batch = Vec::new();
            let mut total = 0;
            while total < BATCH
                && let Some((address, bytes)) = self.work.pop()
            {
                total += bytes;
                batch.push((address, bytes));
            }
            batch.sort_unstable();
            let mut pieces: Vec<Piece> = Vec::new();
            // Of each stretch: where its bytes begin in the buffer.
            let mut places: Vec<(usize, usize)> = Vec::new();
            let mut filled = 0;
            for (address, bytes) in batch {
                let bytes = usize::try_from(bytes).unwrap_or(0);
                if let Some(last) = pieces.last_mut() {
                    let start = filled - last.bytes;
                    let into = address.saturating_sub(last.address.0);
                    let grown = into.saturating_add(bytes as u64);
                    let gap = into.saturating_sub(last.bytes as u64);
                    if gap <= GAP && grown <= LONGEST {
                        let into = usize::try_from(into).unwrap_or(usize::MAX);
                        let grown = usize::try_from(grown).unwrap_or(0).max(last.bytes);
                        filled += grown - last.bytes;
                        last.bytes = grown;
                        places.push((start.saturating_add(into), bytes));
                        continue;
                    }
                }
                pieces.push(Piece {
                    address: RuntimeAddr(address),
                    bytes,
                });
                places.push((filled, bytes));
                filled += bytes;
            }
            buffer.clear();
            buffer.resize(filled, 0);
            let read = self.memory.read_pieces(&pieces, &mut buffer)?;
            if read.contains(&false) {
                return Err(ReachError::Unreadable);
            }
            for (start, bytes) in places {
                let stretch = (start.checked_add(bytes)).and_then(|end| buffer.get(start..end));
                for word in words(stretch.unwrap_or_default()) {
                    self.found(word)?;
                }
            }
        }
        Ok(())
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
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
struct Spans {
    /// In the order of their addresses.
    all: Vec<Span>,
    marks: Vec<u64>,
    /// Start of a span, and its first special.
    specials: Vec<(u64, u64)>,
    low: u64,
    high: u64,
}

impl Spans {
    fn read(memory: &dyn Memory, heap: &HeapLayout) -> Result<Self, ReachError> {
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

    /// Start and length of the object that an address lies in.
    fn extent(&self, address: u64) -> Option<(u64, u64)> {
        let (span, number) = self.locate(address)?;
        let base = span.start + number * span.element_bytes;
        Some((base, span.element_bytes.min(span.end - base)))
    }

    fn base(&self, address: u64) -> Option<u64> {
        self.extent(address).map(|(base, _)| base)
    }

    /// Marks the object that an address lies in; where it is and whether it has pointers, if it was not marked before.
    fn mark(&mut self, address: u64) -> Option<(u64, u64, bool)> {
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

#[cfg(test)]
mod tests;
