//! Walks `runtime.allgs`: every goroutine that ever was has a slot there, the dead ones too.

use super::{Census, CensusError, Fields, Layout, Memory, for_each_structure, read_addresses};
use crate::address::RuntimeAddr;
use crate::event::Goid;
use crate::resolve::offsets::Offsets;

/// One goroutine that was alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// `g.goid`: never used again in the life of the process.
    pub goid: Goid,
    /// Address of its `g`, which is used again after its end.
    pub g: RuntimeAddr,
    /// What it does.
    pub status: Status,
    /// Index into the wait reasons; means something only while waiting.
    pub wait_reason: u8,
    /// Return address of the `go` statement that made it; 0 for a C thread's goroutine.
    pub gopc: RuntimeAddr,
    /// The first instruction that it ran.
    pub startpc: RuntimeAddr,
    /// Bytes of its stack; 4 GiB for whatever claims to be larger (`runtime.maxstacksize` is 1 GB).
    pub stack_bytes: u32,
    /// Bytes of its stack in use, while it waits or is in a system call. Goroutines of one site in one state that use
    /// equally much are almost always stuck at the same place. 4 GiB for whatever claims more.
    pub depth: u32,
    /// Since when it waits at the latest, if the garbage collector has seen it waiting: CLOCK_MONOTONIC, nanoseconds; else 0
    /// (`g.waitsince`, set in src/runtime/mgcmark.go: markroot).
    pub waiting_since_ns: u64,
    /// The `sudog` that it waits by (`g.waiting`); 0 when it waits for something else.
    pub waiting: u64,
    /// How often it has stopped running, modulo 256 (`g.trackingSeq`): when two readings differ it ran in between. 0 where
    /// the offset is not known.
    pub stops: u8,
    /// Whether the runtime itself found that nobody can wake it, when somebody last asked it for its goroutineleak profile
    /// (`_Gleaked`, Go ≥ 1.26).
    pub leaked: bool,
}

// There may be millions: one lies in one line of the processor's cache.
const _: () = assert!(size_of::<Goroutine>() == 64);

/// `g.atomicstatus` without the scan bit (src/runtime/runtime2.go: _Gidle and on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// On a run queue.
    Runnable,
    /// Executing Go code; also while its stack is moved.
    Running,
    /// In a system call or C code.
    Syscall,
    /// Blocked in the runtime.
    Waiting,
    /// Stopped itself to be suspended.
    Preempted,
}

/// `_Gscan`: or-ed in while the collector owns the stack.
const SCAN: u32 = 0x1000;
/// `_Gleaked`
const LEAKED: u32 = 10;

impl Status {
    /// The status of a live goroutine; `None` for idle, dead and unknown numbers.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        match number & !SCAN {
            1 => Some(Self::Runnable),
            // 8 is _Gcopystack: it runs, on a stack that is being moved.
            2 | 8 => Some(Self::Running),
            3 => Some(Self::Syscall),
            // 10 is _Gleaked (Go ≥ 1.26): the leak profile's name for waiting.
            4 | 10 => Some(Self::Waiting),
            9 => Some(Self::Preempted),
            _ => None,
        }
    }
}

/// Most slots of allgs that we read: 16 Mi of them are 128 MB of pointers, and at least 32 GB of stacks.
const MOST_SLOTS: u64 = 16 << 20;

/// Most goroutines that may be alive at one time.
const MOST_ALIVE: usize = 8 << 20;

/// Goroutines of which even those that wait are read twice.
const MOST_READ_TWICE: usize = 200_000;

/// How often the list may change under us before we give up.
const TRIES: u32 = 5;

/// Adds every live goroutine to `census`.
pub(super) fn walk(
    memory: &dyn Memory,
    layout: &Layout,
    census: &mut Census,
) -> Result<(), CensusError> {
    let mut addresses = list(memory, layout)?;
    let mut read: Vec<Goroutine> = Vec::new();
    let mut alive = 0_usize;
    let size = span(&layout.offsets);
    let (unreadable, goroutines) = (&mut census.unreadable, &mut census.goroutines);
    for_each_structure(
        memory,
        &mut addresses,
        size,
        unreadable,
        |address, fields| {
            if let Some(goroutine) = parse(layout, address, fields) {
                alive += 1;
                if alive <= MOST_ALIVE {
                    read.push(goroutine);
                }
            }
        },
    )?;
    if alive > MOST_ALIVE {
        return Err(CensusError::Implausible {
            what: "live goroutines",
            count: alive as u64,
            limit: MOST_ALIVE as u64,
        });
    }
    // Who is the same in two readings was alive all the time between them, so all of these were alive at one moment: when
    // the first reading ended. Who is another by then was born after it. One that waits is copied in some ten nanoseconds,
    // far less than it takes to end and be used again; where there are very many, once is enough for those.
    if read.len() > MOST_READ_TWICE {
        let mut moving = Vec::new();
        read.retain(|goroutine| {
            let waits = goroutine.status == Status::Waiting;
            if !waits {
                moving.push(*goroutine);
            }
            waits
        });
        *goroutines = std::mem::replace(&mut read, moving);
    }
    let mut before = read.iter();
    let mut addresses = read.iter().map(|goroutine| goroutine.g.0).collect();
    for_each_structure(
        memory,
        &mut addresses,
        size,
        unreadable,
        |address, fields| {
            // Both are in the order of their addresses; what could not be read again is not in the second.
            let before = before.find(|goroutine| goroutine.g.0 == address);
            let now = parse(layout, address, fields);
            if let (Some(before), Some(now)) = (before, now)
                && (now.goid, now.gopc) == (before.goid, before.gopc)
            {
                goroutines.push(now);
            }
        },
    )?;
    Ok(())
}

/// The addresses of all gs. `allgadd` (src/runtime/proc.go) stores the pointer before the length, so we read
/// the length first; a pointer that changed meanwhile means that the array was moved and the old one freed.
fn list(memory: &dyn Memory, layout: &Layout) -> Result<Vec<u64>, CensusError> {
    for _ in 0..TRIES {
        let count = memory.word(layout.allglen)?;
        if count > MOST_SLOTS {
            return Err(CensusError::Implausible {
                what: "goroutines",
                count,
                limit: MOST_SLOTS,
            });
        }
        let array = memory.word(layout.allgptr)?;
        let read = read_addresses(memory, RuntimeAddr(array), count, 8);
        if memory.word(layout.allgptr)? != array {
            continue;
        }
        return Ok(read?);
    }
    Err(CensusError::Unsteady {
        what: "goroutines",
        tries: TRIES,
    })
}

/// Bytes from the start of a `g` to the end of the last field that we read.
fn span(offsets: &Offsets) -> usize {
    let ends = [
        offsets.g_stack + 16,
        offsets.g_sched_sp + 8,
        offsets.g_syscallsp + 8,
        offsets.g_waiting + 8,
        offsets.g_waitsince + 8,
        offsets.g_atomicstatus + 4,
        offsets.g_goid + 8,
        offsets.g_waitreason + 1,
        offsets.g_gopc + 8,
        offsets.g_startpc + 8,
        offsets.g_tracking_seq.map_or(0, |offset| offset + 1),
    ];
    ends.into_iter().max().unwrap_or(0) as usize
}

fn parse(layout: &Layout, address: u64, mut fields: Fields<'_>) -> Option<Goroutine> {
    let offsets = &layout.offsets;
    let status = Status::from_number(fields.half(offsets.g_atomicstatus as usize))?;
    let goid = fields.word(offsets.g_goid as usize);
    if goid == 0 {
        return None;
    }
    let (low, high) = (
        fields.word(offsets.g_stack as usize),
        fields.word(offsets.g_stack as usize + 8),
    );
    let stack_pointer = match status {
        Status::Waiting | Status::Preempted => fields.word(offsets.g_sched_sp as usize),
        Status::Syscall => fields.word(offsets.g_syscallsp as usize),
        Status::Running | Status::Runnable => high,
    };
    Some(Goroutine {
        goid: Goid(goid),
        g: RuntimeAddr(address),
        status,
        wait_reason: fields.byte(offsets.g_waitreason as usize),
        gopc: RuntimeAddr(fields.word(offsets.g_gopc as usize)),
        startpc: RuntimeAddr(fields.word(offsets.g_startpc as usize)),
        stack_bytes: bytes_between(low, high),
        depth: bytes_between(stack_pointer, high),
        waiting_since_ns: match status {
            Status::Waiting => fields.word(offsets.g_waitsince as usize),
            _ => 0,
        },
        waiting: fields.word(offsets.g_waiting as usize),
        leaked: fields.half(offsets.g_atomicstatus as usize) & !SCAN == LEAKED,
        stops: match offsets.g_tracking_seq {
            Some(offset) => fields.byte(offset as usize),
            None => 0,
        },
    })
}

fn bytes_between(low: u64, high: u64) -> u32 {
    u32::try_from(high.saturating_sub(low)).unwrap_or(u32::MAX)
}
