//! Who could still wake a goroutine, or stop a timer? Follows every pointer of the program from outside, as its own garbage
//! collector does.
//!
//! A goroutine that waits on channels or semaphores which nothing else refers to waits for ever. The way to tell is that of
//! Go 1.27's goroutineleak profile (src/runtime/mgc.go: `findMaybeRunnableGoroutines`): what variables and the stacks of
//! runnable goroutines refer to is alive; a goroutine that waits for something alive is alive, too, and so is what its stack
//! refers to; who is left over at the end is stranded.
//!
//! Two things keep others without having any use for them: a context lists the contexts made of it, and the heaps of timers
//! list the timers. So pointers are followed in steps ([`look`]): first without either, then with the functions that timers
//! call, the contexts, and the timers that send on channels. In which step somebody wakes says who alone could wake him
//! ([`Waker`]), and a timer that nothing led to before its own step was forgotten by whoever could stop it.
//!
//! Every word that could be a pointer is taken for one, so that too much counts as alive rather than too little. The
//! program runs on meanwhile and may move a pointer past the reader: one walk is no proof, and callers want two to agree.

use foldhash::{HashMap, HashMapExt};

use self::asleep::Asleep;
use self::heap::{Spans, words};
use self::steps::Found;
use super::semaphores::Semaphore;
use super::waits::{Channel, Waits};
use super::{
    CensusError, Goroutine, Layout, Memory, MemoryError, Piece, Timer, for_each_structure, timers,
};
use crate::address::RuntimeAddr;
use crate::event::Goid;

mod asleep;
mod heap;
mod keepers;
mod steps;

/// Goroutines of a program that is looked through.
const MOST_GOROUTINES: usize = 200_000;
/// Bytes that are read of its variables, stacks and objects.
const MOST_BYTES: u64 = 256 << 20;
/// Stretches that wait to be read.
const MOST_WORK: usize = 1 << 21;
/// Time, in nanoseconds: other targets wait meanwhile.
const MOST_NS: u64 = 2_000_000_000;

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

/// Who alone could still wake a goroutine, as far as memory shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waker {
    /// Nobody: nothing else refers to what it waits for.
    Nobody,
    /// Nobody who matters: it keeps a connection, and nothing else refers to the body of a response that has to be read or
    /// closed first. The end of the request's context would end it, too.
    NobodyHasTheBody,
    /// The end of the context that its own was made of: nothing else has its context, or the function that cancels that.
    Parent,
    /// Its timer, and it waits for nothing else.
    Timer,
    /// Its timer: it waits for more, but nothing else refers to that.
    TimerInVain,
}

/// What following all pointers told, and what it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Goroutines that hardly anybody could wake, in the order of their numbers.
    pub alone: Vec<(Goid, Waker)>,
    /// Pending timers that nobody is left to stop, in the order of their addresses: nothing but the timer itself leads to
    /// what holds it and nobody waits for that, or only goroutines that it wakes in vain refer to it.
    pub forgotten: Vec<RuntimeAddr>,
    /// Bytes of variables, stacks and objects that were looked at.
    pub bytes: u64,
    /// Nanoseconds.
    pub took_ns: u64,
}

/// A program between two moments, as the census found it.
#[derive(Clone, Copy)]
pub struct Scene<'s> {
    /// Its memory.
    pub memory: &'s dyn Memory,
    /// Where the runtime keeps what.
    pub layout: &'s Layout,
    /// Names of the wait reasons, by number.
    pub wait_reasons: &'s [String],
    /// All its goroutines.
    pub goroutines: &'s [Goroutine],
    /// All its pending timers, as far as they are known.
    pub timers: &'s [Timer],
    /// The channels that they wait on.
    pub channels: &'s Waits<Channel>,
    /// The semaphores that they wait for.
    pub semaphores: &'s Waits<Semaphore>,
}

/// Looks for the goroutines that hardly anybody could wake, and for the timers that nobody could stop. `clock` answers
/// CLOCK_MONOTONIC in nanoseconds: after two seconds this gives up.
///
/// # Errors
/// When that cannot be told.
pub fn look(scene: &Scene<'_>, clock: &dyn Fn() -> u64) -> Result<Reached, ReachError> {
    let began_ns = clock();
    let heap = scene.layout.heap.as_ref().ok_or(ReachError::Unknown)?;
    if scene.goroutines.len() > MOST_GOROUTINES {
        return Err(ReachError::TooMuch("goroutines"));
    }
    // Who waits for more than was looked at could be woken by that.
    if scene.channels.left_out > 0 {
        return Err(ReachError::TooMuch("channels"));
    }
    let heaps = timers::heaps(scene.memory, scene.layout).map_err(|error| match error {
        CensusError::Memory(error) => ReachError::Memory(error),
        _ => ReachError::TooMuch("processors"),
    })?;
    let mut walk = Walk {
        scene,
        spans: Spans::read(scene.memory, heap)?,
        cancelers: keepers::cancelers(scene.memory, heap)?,
        children: Vec::new(),
        work: Vec::new(),
        bytes: 0,
        waiters: HashMap::new(),
        stacks: stacks(scene.memory, scene.layout, scene.goroutines)?,
        asleep: vec![false; scene.goroutines.len()],
        clock,
        until_ns: began_ns.saturating_add(MOST_NS),
    };
    // The list of all goroutines refers to each: that wakes nobody. Nor do the Ps with their heaps of timers; among what they
    // count are addresses of pages, which look like pointers to the first object there.
    for goroutine in scene.goroutines {
        walk.spans.mark(goroutine.g.0);
    }
    for (p, array) in &heaps {
        walk.spans.mark(*p);
        walk.spans.mark(*array);
    }
    let asleep = Asleep::find(&walk)?;
    walk.lay_down(&asleep);
    let mut found = Found::default();
    walk.whoever_has_a_use(heap)?;
    walk.what_timers_call(&mut found)?;
    walk.ends_of_contexts(&mut found)?;
    walk.times_that_are_sent(&asleep, &mut found)?;
    // Those that were armed since the census counted them.
    for (_, array) in heaps {
        if let Some((base, bytes)) = walk.spans.extent(array) {
            walk.push(base, bytes)?;
        }
    }
    walk.drain()?;
    walk.who_is_left(&asleep, &mut found);
    let mut alone: Vec<(Goid, Waker)> = (found.wakers.into_iter())
        .filter_map(|(index, waker)| Some((scene.goroutines.get(index)?.goid, waker)))
        .collect();
    alone.sort_unstable_by_key(|(goid, _)| *goid);
    let mut forgotten = found.forgotten;
    forgotten.sort_unstable();
    forgotten.dedup();
    Ok(Reached {
        alone,
        forgotten: forgotten.into_iter().map(RuntimeAddr).collect(),
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
                stacks.insert(address, (high.saturating_sub(used.into()), high));
            }
        },
    )?;
    Ok(stacks)
}

/// What is alive so far, and what of it was not looked at yet.
struct Walk<'w> {
    scene: &'w Scene<'w>,
    spans: Spans,
    /// The tables of methods by which a context lists those made of it ([`keepers::cancelers`]).
    cancelers: Vec<u64>,
    /// Contexts that only such a list was met to refer to so far.
    children: Vec<u64>,
    work: Vec<(u64, u64)>,
    bytes: u64,
    /// Object -> goroutines that whoever has it can wake.
    waiters: HashMap<u64, Vec<usize>>,
    stacks: HashMap<u64, (u64, u64)>,
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

    fn is_asleep(&self, index: usize) -> bool {
        self.asleep.get(index).copied().unwrap_or_default()
    }

    /// Notes who waits for what.
    fn lay_down(&mut self, all: &Asleep) {
        for (index, objects) in all.iter() {
            if let Some(asleep) = self.asleep.get_mut(index) {
                *asleep = true;
                for object in objects {
                    self.waiters.entry(*object).or_default().push(index);
                }
            }
        }
    }

    /// A goroutine runs, or may: what it refers to is alive.
    fn wake(&mut self, index: usize) -> Result<(), ReachError> {
        let Some(goroutine) = self.scene.goroutines.get(index) else {
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
            if self.is_asleep(index) {
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
            if self.children.len() > MOST_WORK {
                return Err(ReachError::TooMuch("contexts"));
            }
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
            let read = self.scene.memory.read_pieces(&pieces, &mut buffer)?;
            if read.contains(&false) {
                return Err(ReachError::Unreadable);
            }
            for (start, bytes) in places {
                let stretch = (start.checked_add(bytes)).and_then(|end| buffer.get(start..end));
                let mut before = 0;
                for word in words(stretch.unwrap_or_default()) {
                    if self.cancelers.contains(&before) {
                        self.children.push(word);
                    } else if !self.spans.are_bounds_of_stack(before, word) {
                        self.found(word)?;
                    }
                    before = word;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
