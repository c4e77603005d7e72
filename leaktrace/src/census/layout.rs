//! Where, in one process, the runtime keeps what the census reads: only the fields that are read.

use std::ops::Range;

use crate::address::{LoadBias, RuntimeAddr};
use crate::census::TimerKind;
use crate::resolve::heap::HeapOffsets;
use crate::resolve::offsets::Offsets;
use crate::resolve::{Arch, Program};

/// The runtime's lists at their addresses in the process, and the offsets of the fields in them.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `runtime.allglen`.
    pub allglen: RuntimeAddr,
    /// `runtime.allgptr`.
    pub allgptr: RuntimeAddr,
    /// `runtime.allp`.
    pub allp: RuntimeAddr,
    /// `runtime.waitReasonStrings`.
    pub wait_reasons: RuntimeAddr,
    /// How many entries `wait_reasons` has.
    pub wait_reason_count: u64,
    /// `runtime.semtable`, if it is known where that is.
    pub semaphores: Option<SemaphoreTable>,
    /// The heap, if the binary tells where it is.
    pub heap: Option<HeapLayout>,
    /// Offsets of the fields.
    pub offsets: Offsets,
    /// What the functions that timers run mean.
    pub timer_functions: TimerFunctions,
    /// What every Go program has, whatever its release.
    pub anchors: Anchors,
}

/// Where pointers are to be followed.
#[derive(Clone, Debug)]
pub struct HeapLayout {
    /// `runtime.mheap_`.
    pub mheap: RuntimeAddr,
    /// Offsets of its fields and of those of its spans.
    pub offsets: HeapOffsets,
    /// The program's variables with pointers in them.
    pub variables: [Range<RuntimeAddr>; 2],
    /// `runtime.itabTable`, if it is known where that is.
    pub itab_table: Option<RuntimeAddr>,
    /// The methods `cancel` of the contexts that others are made of.
    pub cancels: Vec<RuntimeAddr>,
    /// What the goroutines of a connection run, if the program has HTTP clients.
    pub connection_loops: Option<ConnectionLoops>,
}

/// The code of the two goroutines that each connection of an HTTP client has.
#[derive(Clone, Debug)]
pub struct ConnectionLoops {
    /// `net/http.(*Transport).dialConn`, which starts both.
    pub starts: Range<RuntimeAddr>,
    /// `net/http.(*persistConn).readLoop`.
    pub reads: Range<RuntimeAddr>,
    /// `net/http.(*persistConn).writeLoop`.
    pub writes: Range<RuntimeAddr>,
}

/// The roots of the trees of goroutines that wait for semaphores.
#[derive(Clone, Copy, Debug)]
pub struct SemaphoreTable {
    /// The first root.
    pub roots: RuntimeAddr,
    /// Bytes from one root to the next: a cache line (src/internal/cpu: `CacheLinePadSize`).
    pub stride: u64,
}

/// Places in the code that a self-check relies on.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    /// The program's Go code.
    pub code: Range<RuntimeAddr>,
    /// Entry of `runtime.main`, in which goroutine 1 begins.
    pub main: Option<RuntimeAddr>,
    /// Entry of `runtime.forcegchelper`, whose goroutine every program has and which never ends.
    pub force_gc: Option<RuntimeAddr>,
}

/// Entry points of the functions that tell a timer's kind, in the process.
#[derive(Clone, Debug, Default)]
pub struct TimerFunctions(Vec<(RuntimeAddr, TimerKind)>);

impl TimerFunctions {
    /// The kind of a timer that runs the code at `function`; `None` for the runtime's own.
    ///
    /// `time.sendTime` serves timers and tickers alike: the period tells which.
    #[must_use]
    pub fn kind(&self, function: RuntimeAddr, period_ns: i64) -> Option<TimerKind> {
        let (_, kind) = self.0.iter().find(|(entry, _)| *entry == function)?;
        Some(match kind {
            TimerKind::Timer if period_ns > 0 => TimerKind::Ticker,
            kind => *kind,
        })
    }

    /// The table with these entries.
    #[must_use]
    pub fn new(entries: Vec<(RuntimeAddr, TimerKind)>) -> Self {
        Self(entries)
    }
}

/// Functions by which a timer's kind is known (src/time/sleep.go, src/runtime/time.go and netpoll.go, Go 1.18 to 1.27).
const FUNCTIONS: [(&str, TimerKind); 6] = [
    ("time.sendTime", TimerKind::Timer),
    ("time.goFunc", TimerKind::AfterFunc),
    ("runtime.goroutineReady", TimerKind::Sleep),
    ("runtime.netpollDeadline", TimerKind::Deadline),
    ("runtime.netpollReadDeadline", TimerKind::Deadline),
    ("runtime.netpollWriteDeadline", TimerKind::Deadline),
];

/// The contexts that others are made of (src/context/context.go, Go 1.18 to 1.27).
const CANCELS: [&str; 3] = [
    "context.(*cancelCtx).cancel",
    "context.(*timerCtx).cancel",
    "context.(*afterFuncCtx).cancel",
];

impl Layout {
    /// The layout of `program` in a process that the kernel moved by `bias`.
    #[must_use]
    pub fn new(program: &Program, bias: LoadBias) -> Self {
        let globals = &program.globals;
        let entry = |name: &str| {
            let function = program.functions.function_named(name)?;
            Some(bias.to_runtime(function.entry))
        };
        let code = |name: &str| {
            let function = program.functions.function_named(name)?;
            Some(bias.to_runtime(function.entry)..bias.to_runtime(function.end))
        };
        let connection_loops = || {
            Some(ConnectionLoops {
                starts: code("net/http.(*Transport).dialConn")?,
                reads: code("net/http.(*persistConn).readLoop")?,
                writes: code("net/http.(*persistConn).writeLoop")?,
            })
        };
        let timer_functions = FUNCTIONS
            .iter()
            .filter_map(|(name, kind)| Some((entry(name)?, *kind)))
            .collect();
        Self {
            allglen: bias.to_runtime(globals.allglen),
            allgptr: bias.to_runtime(globals.allgptr),
            allp: bias.to_runtime(globals.allp),
            wait_reasons: bias.to_runtime(globals.wait_reasons),
            wait_reason_count: globals.wait_reason_count,
            semaphores: globals.semtable.map(|roots| SemaphoreTable {
                roots: bias.to_runtime(roots),
                stride: match program.arch {
                    Arch::Amd64 => 64,
                    Arch::Arm64 => 128,
                },
            }),
            heap: program.heap.as_ref().map(|heap| HeapLayout {
                mheap: bias.to_runtime(heap.mheap),
                offsets: heap.offsets,
                variables: (heap.variables.clone())
                    .map(|part| bias.to_runtime(part.start)..bias.to_runtime(part.end)),
                itab_table: heap.itab_table.map(|table| bias.to_runtime(table)),
                cancels: CANCELS.iter().filter_map(|name| entry(name)).collect(),
                connection_loops: connection_loops(),
            }),
            offsets: program.offsets.clone(),
            timer_functions: TimerFunctions(timer_functions),
            anchors: Anchors {
                code: bias.to_runtime(program.functions.code().start)
                    ..bias.to_runtime(program.functions.code().end),
                main: entry("runtime.main"),
                force_gc: entry("runtime.forcegchelper"),
            },
        }
    }
}
