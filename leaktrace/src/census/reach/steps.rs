//! The steps in which pointers are followed, and what is learnt from each.

use foldhash::{HashMap, HashMapExt};

use super::asleep::Asleep;
use super::heap::words;
use super::{ReachError, Waker, Walk};
use crate::address::RuntimeAddr;
use crate::census::{Fields, HeapLayout, Piece, TimerKind};

/// Objects with finalizers, cleanups or profile records.
const MOST_SPECIALS: usize = 1 << 17;

/// Roots of `runtime.semtable`.
const SEMAPHORE_ROOTS: u64 = 251;

/// What was found so far.
#[derive(Default)]
pub(super) struct Found {
    /// By index into the goroutines: who alone could wake it.
    pub(super) wakers: HashMap<usize, Waker>,
    /// Timers that nobody is left to stop.
    pub(super) forgotten: Vec<u64>,
}

impl Walk<'_> {
    /// What the program's variables and those who are awake refer to.
    pub(super) fn whoever_has_a_use(&mut self, heap: &HeapLayout) -> Result<(), ReachError> {
        for index in 0..self.scene.goroutines.len() {
            if !self.is_asleep(index) {
                self.wake(index)?;
            }
        }
        for variables in &heap.variables {
            self.variables(variables.start.0, variables.end.0)?;
        }
        self.specials()?;
        self.drain()
    }

    /// A function that a timer calls may wake anybody.
    pub(super) fn what_timers_call(&mut self, found: &mut Found) -> Result<(), ReachError> {
        let timers = self.scene.timers;
        let unmet = (timers.iter())
            .filter(|timer| timer.kind == Some(TimerKind::AfterFunc))
            .map(|timer| timer.timer.0)
            .filter(|timer| !self.spans.is_marked(*timer))
            .collect();
        found.forgotten = self.held_by_themselves(unmet)?;
        for timer in timers.iter().filter(|timer| !sends(timer.kind)) {
            self.found(timer.timer.0)?;
        }
        self.drain()
    }

    /// The end of a context wakes all that was made of it.
    pub(super) fn ends_of_contexts(&mut self, found: &mut Found) -> Result<(), ReachError> {
        while !self.children.is_empty() {
            let mut children = std::mem::take(&mut self.children);
            children.retain(|child| !self.spans.is_marked(*child));
            for (_, index) in self.waiters_in(&children)? {
                found.wakers.insert(index, Waker::Parent);
            }
            for child in children {
                self.found(child)?;
            }
            self.drain()?;
        }
        // From here on a list is as good as any other holder.
        self.cancelers.clear();
        Ok(())
    }

    /// A timer with a channel sends the time on that.
    pub(super) fn times_that_are_sent(
        &mut self,
        asleep: &Asleep,
        found: &mut Found,
    ) -> Result<(), ReachError> {
        let timers: Vec<u64> = (self.scene.timers.iter())
            .filter(|timer| sends(timer.kind))
            .map(|timer| timer.timer.0)
            .collect();
        let unmet: Vec<u64> = (timers.iter().copied())
            .filter(|timer| !self.spans.is_marked(*timer))
            .collect();
        let woken = self.waiters_in(&unmet)?;
        let mut by_timers: HashMap<usize, usize> = HashMap::new();
        for (_, index) in &woken {
            *by_timers.entry(*index).or_default() += 1;
        }
        for (timer, index) in woken {
            let in_vain = asleep.on(index).len() > by_timers.get(&index).copied().unwrap_or(0);
            if in_vain {
                found.forgotten.push(timer);
            }
            found.wakers.entry(index).or_insert(if in_vain {
                Waker::TimerInVain
            } else {
                Waker::Timer
            });
        }
        for timer in timers {
            self.found(timer)?;
        }
        self.drain()
    }

    /// Who still sleeps after all that.
    pub(super) fn who_is_left(&self, asleep: &Asleep, found: &mut Found) {
        for index in 0..self.scene.goroutines.len() {
            if self.is_asleep(index) {
                found.wakers.insert(index, Waker::Nobody);
            }
        }
        // Without the body the one that writes has no more to do than the one that reads.
        for (reads, writes) in &asleep.connections {
            if found.wakers.contains_key(reads) {
                for index in [Some(*reads), *writes].into_iter().flatten() {
                    found.wakers.insert(index, Waker::NobodyHasTheBody);
                }
            }
        }
    }

    /// Variables, without the trees of those who wait for semaphores: being in one wakes nobody.
    fn variables(&mut self, start: u64, end: u64) -> Result<(), ReachError> {
        let without = self.scene.layout.semaphores.map_or(end..end, |table| {
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
                let read = self.scene.memory.read_pieces(&pieces, &mut bytes)?;
                for (((start, special), bytes), read) in
                    chunk.iter().zip(bytes.chunks_exact(BYTES)).zip(read)
                {
                    let mut own = [0; BYTES];
                    own.copy_from_slice(bytes);
                    if !read {
                        // The last one of its page has nothing behind it.
                        let (head, _) = own.split_at_mut(16);
                        (self.scene.memory.read(RuntimeAddr(*special), head))
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
}

/// Whether timers of this kind send on a channel.
fn sends(kind: Option<TimerKind>) -> bool {
    matches!(kind, Some(TimerKind::Timer | TimerKind::Ticker))
}
