//! Walks the timer heap of every P, in both shapes that the runtime has had.
//!
//! Until Go 1.22 `p.timers` is a slice of `*timer` (src/runtime/time.go at go1.22: the Go 1.14 design); since
//! Go 1.23 it is a `timers` structure with a heap of `{timer, when}` pairs. A slot may be torn, stale or
//! doubled while the heap is sifted, so a timer counts once, and only when it names one of the heaps as its owner.

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

/// Functions of timers that are told apart: packages time, net, context and the runtime have a dozen.
const MOST_FUNCTIONS: usize = 4096;

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
    let (mut heaps, mut entries) = (Vec::new(), 0_u64);
    for p in processors(memory, layout)? {
        match heap_of(memory, layout, p, p.offset(u64::from(p_timers))) {
            Ok(None) => {}
            Ok(Some(heap)) => {
                entries = entries.saturating_add(heap.entries);
                plausible(entries)?;
                heaps.push(heap);
            }
            // Its timers are missing from this census, and counted as such.
            Err(MemoryError::Unmapped { .. }) => census.unreadable += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let mut timers = read_timers(memory, layout, &heaps, &mut census.unreadable)?;

    // A handful of functions, the runtime's own and package time's; those of AfterFunc are as many as its timers.
    let mut functions: Vec<u64> = Vec::new();
    for timer in &timers {
        if let Err(at) = functions.binary_search(&timer.function.0)
            && functions.len() < MOST_FUNCTIONS
        {
            functions.insert(at, timer.function.0);
        }
    }
    let functions = follow(memory, functions)?;
    for timer in &mut timers {
        timer.function = code(&functions, timer.function);
        timer.kind = layout.timer_functions.kind(timer.function, timer.period_ns);
    }
    let calls_back = |timer: &Timer| timer.kind == Some(TimerKind::AfterFunc);
    let callbacks = timers.iter().filter(|timer| calls_back(timer));
    let callbacks = follow(memory, callbacks.map(|timer| timer.callback.0).collect())?;
    for timer in &mut timers {
        timer.callback = if calls_back(timer) {
            code(&callbacks, timer.callback)
        } else {
            RuntimeAddr(0)
        };
    }
    census.timers = Some(timers);
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

/// The heap of one P.
struct Heap {
    /// Whom its timers name as their owner: the P until Go 1.22, its `timers` structure since.
    owner: u64,
    /// The header of its slice: at `p.timers` until Go 1.22, in the `timers` structure since.
    header: RuntimeAddr,
    /// How many entries it had when it was found.
    entries: u64,
}

/// The heap of a P, unless that is dead.
fn heap_of(
    memory: &dyn Memory,
    layout: &Layout,
    p: RuntimeAddr,
    timers: RuntimeAddr,
) -> Result<Option<Heap>, MemoryError> {
    let mut status = [0; 4];
    memory.read(p.offset(u64::from(layout.offsets.p_status)), &mut status)?;
    if u32::from_le_bytes(status) == P_DEAD {
        return Ok(None);
    }
    let (owner, header) = match layout.offsets.timers_heap {
        Some(heap) => (timers.0, timers.offset(u64::from(heap))),
        None => (p.0, timers),
    };
    Ok(Some(Heap {
        owner,
        header,
        entries: memory.word(header.offset(8))?,
    }))
}

/// All Ps, each with where its heap keeps the entries; 0 where it has none, or that is not known.
pub(super) fn heaps(memory: &dyn Memory, layout: &Layout) -> Result<Vec<(u64, u64)>, CensusError> {
    let mut heaps = Vec::new();
    for p in processors(memory, layout)? {
        let timers = (layout.offsets.p_timers).map(|timers| p.offset(u64::from(timers)));
        let array = match timers.map(|timers| heap_of(memory, layout, p, timers)) {
            Some(Ok(Some(heap))) => memory.word(heap.header)?,
            None | Some(Ok(None) | Err(MemoryError::Unmapped { .. })) => 0,
            Some(Err(error)) => return Err(error.into()),
        };
        heaps.push((p.0, array));
    }
    Ok(heaps)
}

/// Refuses more timers than we read.
fn plausible(count: u64) -> Result<(), CensusError> {
    if count > MOST_TIMERS {
        return Err(CensusError::Implausible {
            what: "timers",
            count,
            limit: MOST_TIMERS,
        });
    }
    Ok(())
}

/// Reads the timers themselves, in the order of their addresses. Their functions are not followed yet.
fn read_timers(
    memory: &dyn Memory,
    layout: &Layout,
    heaps: &[Heap],
    unreadable: &mut u64,
) -> Result<Vec<Timer>, CensusError> {
    /// Timers that room is made for at once: pages that are not filled cost nothing.
    const ROOM: usize = 1 << 20;
    let entry_bytes = match layout.offsets.timers_heap {
        Some(_) => 16,
        None => 8,
    };
    let mut listed = Vec::new();
    for heap in heaps {
        match append_heap(memory, heap, entry_bytes, &mut listed) {
            Ok(()) => {}
            // The heap was moved meanwhile: what is missing of it in this census is counted as one.
            Err(CensusError::Memory(MemoryError::Unmapped { .. })) => *unreadable += 1,
            Err(error) => return Err(error),
        }
    }
    let mut owners: Vec<u64> = heaps.iter().map(|heap| heap.owner).collect();
    owners.sort_unstable();
    let mut found = Vec::with_capacity(listed.len().min(ROOM));
    for_each_structure(
        memory,
        &mut listed,
        span(&layout.offsets),
        unreadable,
        |address, fields| found.extend(parse(layout, &owners, address, fields)),
    )?;
    Ok(found)
}

/// Adds the addresses of the timers of a heap.
///
/// The heap changes meanwhile: an entry may be sifted from where was not read yet to where was read already, or be pushed
/// behind the last one by a timer that is added. So it is read again, its length too, until two readings are the same or
/// it does not come to rest, and what any of them saw is added.
fn append_heap(
    memory: &dyn Memory,
    heap: &Heap,
    entry_bytes: usize,
    listed: &mut Vec<u64>,
) -> Result<(), CensusError> {
    const READINGS: usize = 4;
    let begin = listed.len();
    let mut before = Vec::new();
    for reading in 0..READINGS {
        let array = memory.word(heap.header)?;
        let count = memory.word(heap.header.offset(8))?;
        plausible((begin as u64).saturating_add(count))?;
        let now = read_addresses(memory, RuntimeAddr(array), count, entry_bytes)?;
        if reading > 0 && now == before {
            break;
        }
        let mut places = before.iter();
        listed.extend(now.iter().filter(|address| places.next() != Some(*address)));
        before = now;
        // All of it may have moved once; a heap that is another each time is not worth more of our memory.
        if listed.len() - begin >= 2 * before.len() {
            break;
        }
    }
    Ok(())
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

/// A pending timer as it stands there: `function` and `callback` are still the addresses of function values.
fn parse(layout: &Layout, owners: &[u64], address: u64, mut fields: Fields<'_>) -> Option<Timer> {
    let offsets = &layout.offsets;
    let is_owner = |named: u64| owners.binary_search(&named).is_ok();
    #[expect(clippy::cast_possible_wrap, reason = "times are signed in the runtime")]
    let mut when_ns = fields.word(offsets.timer_when as usize) as i64;
    if let Some(ts) = offsets.timer_ts {
        // timerZombie: stopped, still in the heap (src/runtime/time.go at go1.23).
        const ZOMBIE: u8 = 4;
        let fake = offsets
            .timer_is_fake
            .is_some_and(|at| fields.byte(at as usize) != 0);
        let state = offsets.timer_state.map_or(0, |at| fields.byte(at as usize));
        if !is_owner(fields.word(ts as usize)) || state & ZOMBIE != 0 || fake {
            return None;
        }
    } else {
        let status = offsets
            .timer_status
            .map_or(0, |at| fields.half(at as usize));
        // timerDeleted, timerRemoving, timerRemoved and timerNoStatus are not pending (time.go at go1.22).
        let pending = matches!(status, 1 | 2 | 6..=9);
        if !is_owner(fields.word(offsets.timer_pp? as usize)) || !pending {
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
    Some(Timer {
        timer: RuntimeAddr(address),
        kind: None,
        when_ns,
        period_ns,
        function: RuntimeAddr(fields.word(offsets.timer_f as usize)),
        callback: RuntimeAddr(fields.word(offsets.timer_arg as usize + 8)),
    })
}

/// The code of each function value, a `*funcval`'s first word, in the order of their addresses. Those that cannot be
/// read are left out.
fn follow(
    memory: &dyn Memory,
    mut function_values: Vec<u64>,
) -> Result<Vec<(u64, RuntimeAddr)>, CensusError> {
    function_values.retain(|address| *address != 0);
    let mut codes = Vec::with_capacity(function_values.len());
    // A function value that is gone belongs to a timer that fired meanwhile: the timer is counted, not its code.
    let mut gone = 0;
    for_each_structure(
        memory,
        &mut function_values,
        8,
        &mut gone,
        |address, mut fields| codes.push((address, RuntimeAddr(fields.word(0)))),
    )?;
    Ok(codes)
}

/// The code of one function value; 0 when it could not be read.
fn code(codes: &[(u64, RuntimeAddr)], function_value: RuntimeAddr) -> RuntimeAddr {
    codes
        .binary_search_by_key(&function_value.0, |(address, _)| *address)
        .ok()
        .and_then(|at| codes.get(at))
        .map_or(RuntimeAddr(0), |(_, code)| *code)
}
