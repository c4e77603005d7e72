//! Is this really the memory of the runtime that we take it for? Asked before anything in it is believed.
//!
//! A release that is not what it claims, a patched runtime or a wrong decoding would make every number wrong in
//! silence. The runtime contradicts itself then: stacks are no powers of two, a thread runs another goroutine than
//! the one that names it, or the goroutine that forces garbage collections, which every Go program has and which
//! never ends, is not where it must be. Pure: it reads through [`Memory`] only, and little of it.

use std::ops::Range;

use super::{CensusError, Fields, Layout, Memory, MemoryError, Status, wait_reasons};
use crate::address::RuntimeAddr;
use crate::resolve::offsets::Offsets;

/// What a check that succeeded has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfCheck {
    /// The names of the wait reasons.
    pub wait_reasons: Vec<String>,
    /// Live goroutines that were looked at.
    pub goroutines: usize,
    /// Of those, the ones that a thread says it runs.
    pub on_threads: usize,
    /// Timers that name the heap which holds them.
    pub timers: usize,
}

/// Why the memory is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The lists are empty: the program is a few microseconds old, or was stopped then.
    #[error("its Go runtime has not started yet")]
    NotStarted,
    /// The names of the wait reasons are others than any release has.
    #[error("the names of its wait reasons make no sense")]
    WaitReasons,
    /// More than any program has, or less than every program has.
    #[error("it claims to have {count} {what}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
    },
    /// A goroutine contradicts itself.
    #[error("the goroutine at {g} has {what} that cannot be")]
    Goroutine {
        /// Address of its `g`.
        g: RuntimeAddr,
        /// Which field.
        what: &'static str,
    },
    /// A goroutine that every program has is not there, or is not what it must be.
    #[error("the goroutine that begins in {0} is not among its goroutines")]
    NoAnchor(&'static str),
    /// No thread runs the goroutine that says so.
    #[error("its threads and its goroutines contradict each other")]
    Threads,
    /// A P contradicts itself.
    #[error("its P number {0} makes no sense")]
    Processor(u64),
    /// A heap of timers contradicts itself.
    #[error("the timers of its P number {0} make no sense")]
    Timers(u64),
}

/// Goroutines looked at from either end of the list: the oldest are the runtime's own, the newest the busiest.
const SAMPLE: u64 = 256;
/// Ps looked at.
const MOST_PS: u64 = 64;
/// Timers looked at in one heap.
const TIMERS: u64 = 32;
/// How often something that moves is read before it is held against the program.
const TRIES: u32 = 5;
/// Slots of allgs, Ps and room for timers beyond which nothing is believed.
const PLAUSIBLE_SLOTS: Range<u64> = 1..(16 << 20) + 1;
const PLAUSIBLE_PS: Range<u64> = 1..(1 << 16) + 1;
const PLAUSIBLE_TIMERS: u64 = 16 << 20;
/// Goroutine stacks are powers of two (src/runtime/stack.go: stackalloc), from 2 KiB to what SetMaxStack allows.
const PLAUSIBLE_STACK: Range<u64> = 2048..(1 << 40);
/// Goids are handed out one by one; a program that starts a million a second needs nine years for this many.
const PLAUSIBLE_GOID: Range<u64> = 1..(1 << 48);
/// Wait reasons that every release from 1.18 on has under these names.
const KNOWN_REASONS: [&str; 7] = [
    "chan receive",
    "chan send",
    "select",
    "IO wait",
    "semacquire",
    "sleep",
    FORCE_GC,
];
/// What the goroutine that forces garbage collections waits for (src/runtime/proc.go: forcegchelper).
const FORCE_GC: &str = "force gc (idle)";

/// Reads a sample of everything that the census reads, and looks for contradictions.
///
/// # Errors
/// A [`Distrust`]: nothing that is read with this layout may be believed. The program moves meanwhile, so a caller
/// asks again before it gives up.
pub fn self_check(memory: &dyn Memory, layout: &Layout) -> Result<SelfCheck, Distrust> {
    let mut seen = SelfCheck {
        wait_reasons: check_wait_reasons(memory, layout)?,
        ..SelfCheck::default()
    };
    check_goroutines(memory, layout, &mut seen)?;
    check_processors(memory, layout, &mut seen)?;
    Ok(seen)
}

fn check_wait_reasons(memory: &dyn Memory, layout: &Layout) -> Result<Vec<String>, Distrust> {
    let names = wait_reasons(memory, layout).map_err(|error| match error {
        CensusError::Memory(error) => Distrust::Memory(error),
        _ => Distrust::WaitReasons,
    })?;
    let printable = |name: &String| name.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    let sane = names.first().is_some_and(String::is_empty)
        && names.iter().all(printable)
        && KNOWN_REASONS
            .iter()
            .all(|known| names.iter().any(|name| name == known));
    sane.then_some(names).ok_or(Distrust::WaitReasons)
}

fn check_goroutines(
    memory: &dyn Memory,
    layout: &Layout,
    seen: &mut SelfCheck,
) -> Result<(), Distrust> {
    let mut helper = false;
    let mut with_thread = 0_usize;
    for g in sample(memory, layout)? {
        let Some(fields) = consistent(memory, layout, g)? else {
            continue;
        };
        if fields.goid == 1 && Some(fields.startpc) != layout.anchors.main {
            return Err(Distrust::NoAnchor("runtime.main"));
        }
        let Some(status) = Status::from_number(fields.status) else {
            continue;
        };
        seen.goroutines += 1;
        if Some(fields.startpc) == layout.anchors.force_gc {
            let reason = seen.wait_reasons.get(usize::from(fields.wait_reason));
            let waits = status != Status::Waiting || reason.is_some_and(|name| name == FORCE_GC);
            helper |= waits && layout.anchors.code.contains(&fields.gopc);
        }
        if matches!(status, Status::Running | Status::Syscall) && fields.m.0 != 0 {
            with_thread += 1;
            seen.on_threads += usize::from(runs(memory, &layout.offsets, g, fields.m)?);
        }
    }
    if !helper {
        return Err(match seen.goroutines {
            // The first few goroutines come one after another while the program starts.
            0..4 => Distrust::NotStarted,
            _ => Distrust::NoAnchor("runtime.forcegchelper"),
        });
    }
    // A goroutine that moves from thread to thread may be caught in between, but not all of them.
    if with_thread > 0 && seen.on_threads == 0 {
        return Err(Distrust::Threads);
    }
    Ok(())
}

/// The addresses of the first and the last goroutines in the list.
fn sample(memory: &dyn Memory, layout: &Layout) -> Result<Vec<RuntimeAddr>, Distrust> {
    let count = memory.word(layout.allglen)?;
    let array = memory.word(layout.allgptr)?;
    if count == 0 || array == 0 {
        return Err(Distrust::NotStarted);
    }
    if !PLAUSIBLE_SLOTS.contains(&count) || array % 8 != 0 {
        return Err(Distrust::Count {
            what: "goroutines",
            count,
        });
    }
    let first = words(memory, RuntimeAddr(array), count.min(SAMPLE))?;
    let rest = (count - count.min(SAMPLE)).min(SAMPLE);
    let last = RuntimeAddr(array).offset((count - rest) * 8);
    let mut all = first;
    all.extend(words(memory, last, rest)?);
    if let Some(odd) = all.iter().find(|g| g.0 == 0 || g.0 % 8 != 0) {
        return Err(Distrust::Goroutine {
            g: *odd,
            what: "an address",
        });
    }
    Ok(all)
}

/// What is checked of one goroutine.
struct GFields {
    status: u32,
    goid: u64,
    wait_reason: u8,
    gopc: RuntimeAddr,
    startpc: RuntimeAddr,
    m: RuntimeAddr,
    stack: Range<u64>,
    sp: u64,
    pc: RuntimeAddr,
}

/// The fields of a goroutine that contradict neither themselves nor each other; `None` when it is dead. It may move
/// while it is read, so it is read again before it is held against the program.
fn consistent(
    memory: &dyn Memory,
    layout: &Layout,
    g: RuntimeAddr,
) -> Result<Option<GFields>, Distrust> {
    let mut wrong = "an address";
    for _ in 0..TRIES {
        let fields = read(memory, &layout.offsets, g)?;
        match contradiction(layout, &fields) {
            None => {
                // `_Gidle`, `_Gdead` and `_Gdeadextra`, of which nothing else is known; but goid 1 keeps its fields.
                let live = Status::from_number(fields.status).is_some() || fields.goid == 1;
                return Ok(live.then_some(fields));
            }
            Some(what) => wrong = what,
        }
    }
    Err(Distrust::Goroutine { g, what: wrong })
}

/// The field that cannot be.
fn contradiction(layout: &Layout, fields: &GFields) -> Option<&'static str> {
    // src/runtime/runtime2.go: 5 and 7 are not used; `_Gscan` is or-ed in.
    if !matches!(fields.status & !0x1000, 0..=4 | 6 | 8..=11) {
        return Some("a status");
    }
    let status = Status::from_number(fields.status)?;
    let size = fields.stack.end.saturating_sub(fields.stack.start);
    if !PLAUSIBLE_GOID.contains(&fields.goid) {
        return Some("a number");
    }
    if !size.is_power_of_two() || !PLAUSIBLE_STACK.contains(&size) || fields.stack.start == 0 {
        return Some("a stack");
    }
    if status == Status::Waiting {
        // It was switched away from, inside of the runtime and on its own stack.
        if fields.sp <= fields.stack.start || fields.sp > fields.stack.end {
            return Some("a stack pointer");
        }
        if !layout.anchors.code.contains(&fields.pc) {
            return Some("a program counter");
        }
        if u64::from(fields.wait_reason) >= layout.wait_reason_count {
            return Some("a wait reason");
        }
    }
    None
}

fn read(memory: &dyn Memory, offsets: &Offsets, g: RuntimeAddr) -> Result<GFields, MemoryError> {
    let mut bytes = vec![0; span(offsets)];
    memory.read(g, &mut bytes)?;
    let mut fields = Fields(&bytes);
    let low = fields.word(offsets.g_stack as usize);
    Ok(GFields {
        status: fields.half(offsets.g_atomicstatus as usize),
        goid: fields.word(offsets.g_goid as usize),
        wait_reason: fields.byte(offsets.g_waitreason as usize),
        gopc: RuntimeAddr(fields.word(offsets.g_gopc as usize)),
        startpc: RuntimeAddr(fields.word(offsets.g_startpc as usize)),
        m: RuntimeAddr(fields.word(offsets.g_m as usize)),
        stack: low..fields.word(offsets.g_stack as usize + 8),
        sp: fields.word(offsets.g_sched_sp as usize),
        pc: RuntimeAddr(fields.word(offsets.g_sched_pc as usize)),
    })
}

/// Bytes from the start of a `g` to the end of the last field that is checked.
fn span(offsets: &Offsets) -> usize {
    let ends = [
        offsets.g_stack + 16,
        offsets.g_m + 8,
        offsets.g_sched_sp + 8,
        offsets.g_sched_pc + 8,
        offsets.g_atomicstatus + 4,
        offsets.g_goid + 8,
        offsets.g_waitreason + 1,
        offsets.g_gopc + 8,
        offsets.g_startpc + 8,
    ];
    ends.into_iter().max().unwrap_or(0) as usize
}

/// Whether the thread `m` says that it runs `g`.
fn runs(
    memory: &dyn Memory,
    offsets: &Offsets,
    g: RuntimeAddr,
    m: RuntimeAddr,
) -> Result<bool, Distrust> {
    for _ in 0..TRIES {
        match memory.word(m.offset(offsets.m_curg.into())) {
            Ok(curg) if curg == g.0 => return Ok(true),
            Ok(_) | Err(MemoryError::Unmapped { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn check_processors(
    memory: &dyn Memory,
    layout: &Layout,
    seen: &mut SelfCheck,
) -> Result<(), Distrust> {
    /// `_Pdead` (src/runtime/runtime2.go), the last status.
    const P_DEAD: u32 = 4;
    let array = memory.word(layout.allp)?;
    let count = memory.word(layout.allp.offset(8))?;
    if !PLAUSIBLE_PS.contains(&count) {
        return Err(Distrust::Count { what: "Ps", count });
    }
    let all = words(memory, RuntimeAddr(array), count.min(MOST_PS))?;
    for (number, p) in (0..).zip(all) {
        if p.0 == 0 {
            continue;
        }
        let offsets = &layout.offsets;
        let id = half(memory, p.offset(offsets.p_id.into()))?;
        let status = half(memory, p.offset(offsets.p_status.into()))?;
        if u64::from(id) != number || status > P_DEAD {
            return Err(Distrust::Processor(number));
        }
        if status != P_DEAD {
            seen.timers += check_heap(memory, layout, p, number)?;
        }
    }
    Ok(())
}

/// How many timers of a P's heap name it as the one that holds them.
fn check_heap(
    memory: &dyn Memory,
    layout: &Layout,
    p: RuntimeAddr,
    number: u64,
) -> Result<usize, Distrust> {
    let offsets = &layout.offsets;
    let Some(at) = offsets.p_timers else {
        return Ok(0);
    };
    let timers = p.offset(at.into());
    let (header, entry_words, owner, owner_at) = match (offsets.timers_heap, offsets.timer_ts) {
        (Some(heap), Some(ts)) => (timers.offset(heap.into()), 2, timers, ts),
        _ => (timers, 1, p, offsets.timer_pp.unwrap_or_default()),
    };
    // A heap is sifted and reallocated while we look; it does not stay odd.
    for _ in 0..TRIES {
        let (array, length) = (memory.word(header)?, memory.word(header.offset(8))?);
        let capacity = memory.word(header.offset(16))?;
        if length > capacity || capacity > PLAUSIBLE_TIMERS || array % 8 != 0 {
            continue;
        }
        if length == 0 {
            return Ok(0);
        }
        let entries = match words(memory, RuntimeAddr(array), length.min(TIMERS) * entry_words) {
            Ok(entries) => entries,
            Err(MemoryError::Unmapped { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let owned = entries
            .iter()
            .step_by(usize::try_from(entry_words).unwrap_or(1))
            .filter(|timer| memory.word(timer.offset(owner_at.into())) == Ok(owner.0))
            .count();
        if owned > 0 {
            return Ok(owned);
        }
    }
    Err(Distrust::Timers(number))
}

fn words(
    memory: &dyn Memory,
    address: RuntimeAddr,
    count: u64,
) -> Result<Vec<RuntimeAddr>, MemoryError> {
    let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or(0)];
    memory.read(address, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words
        .iter()
        .map(|word| RuntimeAddr(u64::from_le_bytes(*word)))
        .collect())
}

fn half(memory: &dyn Memory, address: RuntimeAddr) -> Result<u32, MemoryError> {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
