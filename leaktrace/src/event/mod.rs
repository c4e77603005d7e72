//! What did the probes say? Records of the ring buffer, owned and typed.

// What is read here was written by the traced program. A test may panic, this code may not.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod decode;
mod lives;
mod ring;

use std::{fmt, num::NonZeroU64};

pub use decode::{DecodeError, decode};
pub use lives::Lives;
pub use ring::{Drained, Ring};

use crate::address::RuntimeAddr;

/// One thing that happened in a traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Ktime,
    /// In which process: its pid in the initial pid namespace.
    pub pid: u32,
    /// Which probe set saw it.
    pub slot: Slot,
    /// What.
    pub change: Change,
}

/// What happened to a goroutine or a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A goroutine was created.
    Born {
        /// The new goroutine.
        goroutine: Goroutine,
        /// The goroutine that ran the `go` statement; `None` when a timer's callback did, or before Go 1.21.
        parent: Option<Goid>,
        /// Where the `go` statement was reached from; `None` when a timer's callback ran it.
        stack: Option<StackId>,
        /// The timer that fired just before on this thread, when no goroutine ran the `go` statement.
        timer: Option<RuntimeAddr>,
    },
    /// A goroutine ended.
    Ended(Goroutine),
    /// A user timer was armed for the first time.
    Armed {
        /// The timer.
        timer: Timer,
        /// Where it was armed.
        stack: Option<StackId>,
    },
    /// A user timer was stopped; it may have fired before.
    Stopped {
        /// Address of the `runtime.timer`.
        timer: RuntimeAddr,
    },
    /// A user timer was armed again.
    Rearmed(Timer),
    /// A timer fired: a user's, or the runtime's own (sleeps, network deadlines); its function tells which.
    Fired(Timer),
}

/// A goroutine as the runtime's `g` describes it. A field whose page was not present is 0, and counted as
/// `Loss::ReadFault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Its number.
    pub goid: Goid,
    /// Address of its `g`, which another goroutine may use later.
    pub g: RuntimeAddr,
    /// Return address of the `go` statement's call: one past the site.
    pub gopc: RuntimeAddr,
    /// First instruction that it runs.
    pub startpc: RuntimeAddr,
}

/// A timer as the runtime describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Address of the `runtime.timer`.
    pub timer: RuntimeAddr,
    /// When it is due: CLOCK_MONOTONIC, nanoseconds; the target may say anything.
    pub when_ns: i64,
    /// Its period in nanoseconds; 0 for a one-shot timer.
    pub period_ns: i64,
    /// The code that it runs when due: `time.sendTime`, `time.goFunc` or one of the runtime's own; 0 when
    /// it could not be read.
    pub function: RuntimeAddr,
    /// Means something only when `function` is `time.goFunc`: the code of the user's function.
    pub callback: RuntimeAddr,
}

/// A goroutine's number: never used twice in the life of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Goid(pub u64);

impl fmt::Display for Goid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a creation stack: ask `probe::Probes::stack` for its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub NonZeroU64);

/// Index of a probe set in the kernel's maps. Slots are used again, as late as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

/// A reading of CLOCK_MONOTONIC, in nanoseconds: the kernel's clock of events, and Go's clock of timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ktime(pub u64);
