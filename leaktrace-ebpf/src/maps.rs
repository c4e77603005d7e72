//! Every map, declared once. The loader may change the sizes of `EVENTS`, `STACKS`, `WAITS` and `WAIT_TOTALS`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use leaktrace_common::{
    binary::BinaryConfig,
    event::{Kind, Loss},
    limits::{
        FIRING_THREADS, LIVES_BYTES, RING_BYTES, SLOTS, STACK_DEPTH, STACKS as STACK_COUNT,
        WAIT_KINDS, WAITS as WAIT_COUNT,
    },
    process::Enrolment,
    wait::{TotalsKey, Wait, WaitKey, WaitTotals},
};

use crate::stack::Scratch;

/// The records, in the order in which room was reserved for them.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// The traced processes, by thread group id.
#[map]
pub static PROCESSES: HashMap<u32, Enrolment> = HashMap::with_max_entries(SLOTS, 0);

/// Processes that began or ended.
#[map]
pub static LIVES: RingBuf = RingBuf::with_byte_size(LIVES_BYTES, 0);

/// How often a probe was hit by a process that is not traced: one counter.
#[map]
pub static STRANGERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// How many more hits each process may have on this CPU, by slot. User space fills it up as long as the process keeps
/// within its budget; when it does not, or user space is late, the programs return at once.
#[map]
pub static ALLOWANCE: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// Where each process's binary keeps its fields, by slot.
#[map]
pub static BINARIES: Array<BinaryConfig> = Array::with_max_entries(SLOTS, 0);

/// Creation stacks by `StackKey`: return addresses, innermost first, 0 after the last.
#[map]
pub static STACKS: HashMap<u64, [u64; STACK_DEPTH]> = HashMap::with_max_entries(STACK_COUNT, 0);

/// Where a part of a stack is read to.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What did not arrive, by slot and cause: index `slot * Loss::COUNT + cause`.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS * Loss::COUNT, 0);

/// How often a program ran, by slot and kind: index `slot * Kind::COUNT + kind`.
#[map]
pub static HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS * Kind::COUNT, 0);

/// The timer that each thread fired last, by `bpf_get_current_pid_tgid`: a callback may start a goroutine.
#[map]
pub static FIRING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(FIRING_THREADS, 0);

/// What each goroutine waits for, or did last. Only used on level `full`.
#[map]
pub static WAITS: HashMap<WaitKey, Wait> = HashMap::with_max_entries(WAIT_COUNT, 0);

/// How long waits of each kind took. Only used on level `full`.
#[map]
pub static WAIT_TOTALS: HashMap<TotalsKey, WaitTotals> = HashMap::with_max_entries(WAIT_KINDS, 0);
