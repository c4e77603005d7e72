//! Walks the timer heap of every P, in both shapes that the runtime has had.
//!
//! Until Go 1.22 `p.timers` is a slice of `*timer` (src/runtime/time.go at go1.22: the Go 1.14 design); since
//! Go 1.23 it is a `timers` structure with a heap of `{timer, when}` pairs. A slot may be torn, stale or
//! doubled while the heap is sifted, so a timer counts only when it names its owner itself.

use foldhash::{HashMap, HashMapExt, HashSet};

use super::{
    Census, CensusError, Fields, Layout, Memory, MemoryError, for_each_structure, read_addresses,
};
use crate::address::RuntimeAddr;
use crate::resolve::offsets::Offsets;

/// One pending timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Address of the `runtime.timer`, which is used again after it is freed.
    pub timer: RuntimeAddr,
    /// What made it; `None` for the runtime's own.
    pub kind: Option<TimerKind>,
    /// When it is due: CLOCK_MONOTONIC, nanoseconds.
    pub when_ns: i64,
    /// Its period in nanoseconds; 0 for a one-shot timer.
    pub period_ns: i64,
    /// The code that it runs when due.
    pub function: RuntimeAddr,
    /// For `time.AfterFunc`: the code of the user's function. Else 0.
    pub callback: RuntimeAddr,
}

/// What kind of timer, in the user's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TimerKind {
    /// `time.NewTimer`, `time.After`.
    Timer,
    /// `time.NewTicker`, `time.Tick`.
    Ticker,
    /// `time.AfterFunc`.
    AfterFunc,
    /// `time.Sleep`.
    Sleep,
    /// A network deadline, or a context's.
    Deadline,
}

impl TimerKind {
    /// Its name in JSON and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Ticker => "ticker",
            Self::AfterFunc => "afterfunc",
            Self::Sleep => "sleep",
            Self::Deadline => "deadline",
        }
    }
}

/// GOMAXPROCS has no limit since Go 1.10; machines have.
const MOST_PS: u64 = 1 << 16;

/// Most timers that we read, of all Ps together.
const MOST_TIMERS: u64 = 8 << 20;

/// `_Pdead` (src/runtime/runtime2.go).
const P_DEAD: u32 = 4;

/// Adds every pending timer to `census`, when it is known where the heaps are.
pub(super) fn walk(
    memory: &dyn Memory,
    layout: &Layout,
    census: &mut Census,
) -> Result<(), CensusError> {
    let Some(p_timers) = layout.offsets.p_timers else {
        return Ok(());
    };
    let mut heaps = Heaps::default();
    for p in processors(memory, layout)? {
        let owner = p.offset(u64::from(p_timers));
        match heaps.walk(memory, layout, p, owner, &mut census.unreadable) {
            Ok(()) => {}
            // The heap was moved while we read it: its timers are missing from this census, and counted as such.
            Err(CensusError::Memory(MemoryError::Unmapped { .. })) => census.unreadable += 1,
            Err(error) => return Err(error),
        }
    }
    let raw = heaps.found;
    let functions = follow(memory, raw.iter().map(|timer| timer.f))?;
    let kind_of = |timer: &RawTimer| {
        let function = functions.get(&timer.f).copied().unwrap_or_default();
        (
            function,
            layout.timer_functions.kind(function, timer.period_ns),
        )
    };
    let callbacks = follow(
        memory,
        raw.iter()
            .filter(|timer| kind_of(timer).1 == Some(TimerKind::AfterFunc))
            .map(|timer| timer.arg),
    )?;
    let timers = raw.iter().map(|timer| {
        let (function, kind) = kind_of(timer);
        let callback = match kind {
            Some(TimerKind::AfterFunc) => callbacks.get(&timer.arg).copied().unwrap_or_default(),
            _ => RuntimeAddr(0),
        };
        Timer {
            timer: timer.timer,
            kind,
            when_ns: timer.when_ns,
            period_ns: timer.period_ns,
            function,
            callback,
        }
    });
    census.timers = Some(timers.collect());
    Ok(())
}

/// The addresses of all Ps that are in use. `allp` changes only while the world is stopped.
fn processors(memory: &dyn Memory, layout: &Layout) -> Result<Vec<RuntimeAddr>, CensusError> {
    let array = memory.word(layout.allp)?;
    let count = memory.word(layout.allp.offset(8))?;
    if count > MOST_PS {
        return Err(CensusError::Implausible {
            what: "Ps",
            count,
            limit: MOST_PS,
        });
    }
    let mut addresses = read_addresses(memory, RuntimeAddr(array), count, 8)?;
    // Listed twice, a P would have its timers counted twice.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses.into_iter().map(RuntimeAddr).collect())
}

/// What was found in the heaps of all Ps.
#[derive(Default)]
struct Heaps {
    found: Vec<RawTimer>,
    /// How many entries the heaps had so far.
    entries: u64,
}

impl Heaps {
    fn walk(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        p: RuntimeAddr,
        owner: RuntimeAddr,
        unreadable: &mut u64,
    ) -> Result<(), CensusError> {
        let offsets = &layout.offsets;
        let mut status = [0; 4];
        memory.read(p.offset(u64::from(offsets.p_status)), &mut status)?;
        if u32::from_le_bytes(status) == P_DEAD {
            return Ok(());
        }
        // The slice header of the heap: at p.timers until Go 1.22, in the timers structure since.
        let (header, entry_bytes) = match offsets.timers_heap {
            Some(heap) => (owner.offset(u64::from(heap)), 16),
            None => (owner, 8),
        };
        let array = memory.word(header)?;
        let count = memory.word(header.offset(8))?;
        let entries = self.entries.saturating_add(count);
        if entries > MOST_TIMERS {
            return Err(CensusError::Implausible {
                what: "timers",
                count: entries,
                limit: MOST_TIMERS,
            });
        }
        self.entries = entries;
        let mut addresses = read_addresses(memory, RuntimeAddr(array), count, entry_bytes)?;

        let expected_owner = if offsets.timers_heap.is_some() {
            owner
        } else {
            p
        };
        for_each_structure(
            memory,
            &mut addresses,
            span(offsets),
            unreadable,
            |address, fields| {
                self.found
                    .extend(parse(layout, expected_owner, address, fields));
            },
        )?;
        Ok(())
    }
}

/// A timer whose function values have not been followed yet.
struct RawTimer {
    timer: RuntimeAddr,
    when_ns: i64,
    period_ns: i64,
    /// `*funcval`.
    f: u64,
    /// The data word of `arg`.
    arg: u64,
}

/// Bytes from the start of a `timer` to the end of the last field that we read.
fn span(offsets: &Offsets) -> usize {
    let always = [
        offsets.timer_when + 8,
        offsets.timer_period + 8,
        offsets.timer_f + 8,
        offsets.timer_arg + 16,
    ];
    let sometimes = [
        offsets.timer_ts.map(|at| at + 8),
        offsets.timer_pp.map(|at| at + 8),
        offsets.timer_nextwhen.map(|at| at + 8),
        offsets.timer_status.map(|at| at + 4),
        offsets.timer_state.map(|at| at + 1),
        offsets.timer_is_fake.map(|at| at + 1),
    ];
    let ends = always.into_iter().chain(sometimes.into_iter().flatten());
    ends.max().unwrap_or(0) as usize
}

fn parse(
    layout: &Layout,
    owner: RuntimeAddr,
    address: u64,
    mut fields: Fields<'_>,
) -> Option<RawTimer> {
    let offsets = &layout.offsets;
    #[expect(clippy::cast_possible_wrap, reason = "times are signed in the runtime")]
    let mut when_ns = fields.word(offsets.timer_when as usize) as i64;
    if let Some(ts) = offsets.timer_ts {
        // timerZombie: stopped, still in the heap (src/runtime/time.go at go1.23).
        const ZOMBIE: u8 = 4;
        let fake = offsets
            .timer_is_fake
            .is_some_and(|at| fields.byte(at as usize) != 0);
        let state = offsets.timer_state.map_or(0, |at| fields.byte(at as usize));
        if fields.word(ts as usize) != owner.0 || state & ZOMBIE != 0 || fake {
            return None;
        }
    } else {
        let status = offsets
            .timer_status
            .map_or(0, |at| fields.half(at as usize));
        // timerDeleted, timerRemoving, timerRemoved and timerNoStatus are not pending (time.go at go1.22).
        let pending = matches!(status, 1 | 2 | 6..=9);
        if fields.word(offsets.timer_pp? as usize) != owner.0 || !pending {
            return None;
        }
        // timerModifiedEarlier and timerModifiedLater keep the new time apart until the heap is sorted.
        if let (7 | 8, Some(at)) = (status, offsets.timer_nextwhen) {
            #[expect(clippy::cast_possible_wrap, reason = "times are signed in the runtime")]
            {
                when_ns = fields.word(at as usize) as i64;
            }
        }
    }
    #[expect(clippy::cast_possible_wrap, reason = "times are signed in the runtime")]
    let period_ns = fields.word(offsets.timer_period as usize) as i64;
    Some(RawTimer {
        timer: RuntimeAddr(address),
        when_ns,
        period_ns,
        f: fields.word(offsets.timer_f as usize),
        arg: fields.word(offsets.timer_arg as usize + 8),
    })
}

/// The code of each function value: a `*funcval`'s first word. Those that cannot be read are left out.
fn follow(
    memory: &dyn Memory,
    function_values: impl Iterator<Item = u64>,
) -> Result<HashMap<u64, RuntimeAddr>, CensusError> {
    let distinct: HashSet<u64> = function_values.filter(|address| *address != 0).collect();
    let mut codes = HashMap::with_capacity(distinct.len());
    // A function value that is gone belongs to a timer that fired meanwhile: the timer is counted, not its code.
    let mut gone = 0;
    for_each_structure(
        memory,
        &mut distinct.into_iter().collect(),
        8,
        &mut gone,
        |address, mut fields| {
            codes.insert(address, RuntimeAddr(fields.word(0)));
        },
    )?;
    Ok(codes)
}
