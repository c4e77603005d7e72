//! What a probe saw: the only records that travel from the kernel to user space.
//!
//! Two shapes of 64 bytes share their first 32: [`GoroutineRecord`] and [`TimerRecord`]. `kind` tells
//! which; it is a plain integer because the reader must survive any value.

/// What happened. The numbers are the wire format; they are also the index of a probe in the counter maps.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A goroutine was created (`runtime.newproc1` is about to return it).
    Born = 0,
    /// A goroutine ended (`runtime.gdestroy`, or `runtime.goexit0` before Go 1.22).
    Ended = 1,
    /// A goroutine blocked (`runtime.park_m`). Leaves no record, but an open wait.
    Parked = 2,
    /// A goroutine was made runnable (`runtime.ready`). Leaves no record, but the length of its wait.
    Readied = 3,
    /// A user timer was armed (`time.newTimer`, or `time.startTimer` before Go 1.23).
    Armed = 4,
    /// A user timer was stopped (`time.stopTimer`).
    Stopped = 5,
    /// A user timer was armed again (`time.resetTimer`, `time.modTimer`).
    Rearmed = 6,
    /// A timer fired (`(*timer).unlockAndRun`, or `runtime.runOneTimer` before Go 1.23).
    Fired = 7,
}

impl Kind {
    /// How many kinds there are: the stride of the counter maps.
    pub const COUNT: u32 = 8;

    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Born,
        Self::Ended,
        Self::Parked,
        Self::Readied,
        Self::Armed,
        Self::Stopped,
        Self::Rearmed,
        Self::Fired,
    ];

    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Why something that happened is not in the ring buffer. The number is the index in the loss counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The ring buffer had no room.
    RingFull = 0,
    /// The map of creation stacks had no room: the event arrived, without its stack.
    StacksFull = 1,
    /// A field of the runtime's structure could not be read: its page was not present.
    ReadFault = 2,
    /// The process's slot was not filled by user space.
    UnknownSlot = 3,
    /// The map of waits had no room: how long a goroutine was blocked is not known.
    WaitsFull = 4,
    /// The process has used up the hits that user space allowed it: the probes returned at once.
    OverBudget = 5,
}

impl Loss {
    /// How many causes there are: the stride of the loss counters.
    pub const COUNT: u32 = 6;

    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::RingFull,
        Self::StacksFull,
        Self::ReadFault,
        Self::UnknownSlot,
        Self::WaitsFull,
        Self::OverBudget,
    ];
}

/// The first half of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// Address of the `runtime.g` or `runtime.timer`: its identity while it lives.
    pub object: u64,
    /// Key of the creation stack in the map of stacks (a `StackKey`); 0 means none was taken. For a goroutine that a
    /// timer's callback started: the address of that timer, if it is known.
    pub stack: u64,
    /// Thread group id, in leaktrace's own pid namespace.
    pub pid: u32,
    /// A [`Kind`].
    pub kind: u16,
    /// The slot of the process.
    pub slot: u16,
}

/// A goroutine was born or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoroutineRecord {
    /// Common to all records; `object` is the `*g`.
    pub header: Header,
    /// `g.goid`: never used again in the life of a process.
    pub goid: u64,
    /// `g.gopc`: the return address of the `go` statement's call.
    pub gopc: u64,
    /// `g.startpc`: the first instruction that the goroutine runs.
    pub startpc: u64,
    /// Born: `g.parentGoid` (0 when unknown). Else 0.
    pub detail: u64,
}

/// A timer was armed, stopped, armed again or fired.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerRecord {
    /// Common to all records; `object` is the `*timer`.
    pub header: Header,
    /// When it is due: CLOCK_MONOTONIC, nanoseconds. 0 for stopped.
    pub when_ns: i64,
    /// Its period in nanoseconds; 0 for a one-shot timer.
    pub period_ns: i64,
    /// The code that it runs when due (`*t.f`): `time.sendTime`, `time.goFunc` or one of the runtime's own.
    pub function: u64,
    /// For `time.goFunc`: the code of the user's function (`*t.arg.data`). Else 0.
    pub callback: u64,
}

/// Bytes of every record in the ring buffer.
pub const RECORD_BYTES: usize = 64;

const _: () = assert!(size_of::<Header>() == 32 && align_of::<Header>() == 8);
const _: () = assert!(size_of::<GoroutineRecord>() == RECORD_BYTES);
const _: () = assert!(size_of::<TimerRecord>() == RECORD_BYTES);
