//! Goroutines: born and ended. Both probes run on g0, the scheduler's stack.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::uprobe, programs::ProbeContext};
use leaktrace_common::{
    event::{GoroutineRecord, Kind},
    stack::StackKey,
};

use crate::{
    context::{Hit, Words, submit},
    maps::FIRING,
    stack,
};

/// At the end of `runtime.newproc1`: the new g is complete and on no run queue yet.
#[uprobe]
pub fn goroutine_born(context: ProbeContext) -> u32 {
    record(context, Kind::Born, |hit, facts| {
        let parent = facts.field(hit, hit.binary.g_parent_goid);
        (parent, creation_stack(hit))
    })
}

/// At the start of `runtime.gdestroy` (before Go 1.22: `goexit0`): the g is still intact.
#[uprobe]
pub fn goroutine_ended(context: ProbeContext) -> u32 {
    record(context, Kind::Ended, |_, _| (0, 0))
}

/// Leaves one record; `detail_and_stack` says what this kind has beyond the others.
#[inline(always)]
fn record(
    context: ProbeContext,
    kind: Kind,
    detail_and_stack: impl FnOnce(&Hit, &Facts) -> (u64, u64),
) -> u32 {
    let Some(hit) = Hit::new(context, kind) else {
        return 0;
    };
    let Some(entry) = hit.reserve::<GoroutineRecord>() else {
        return 0;
    };
    let g = hit.object();
    let facts = Facts::read(&hit, g);
    let goid = facts.words.at::<0>();
    let gopc = facts.field(&hit, hit.binary.g_gopc);
    let startpc = facts.field(&hit, hit.binary.g_startpc);
    let (detail, stack) = detail_and_stack(&hit, &facts);
    submit(
        entry,
        GoroutineRecord {
            header: hit.header(g, stack),
            goid,
            gopc,
            startpc,
            detail,
        },
    );
    0
}

/// What a g says of itself, from `goid` to `startpc`: in every release from Go 1.18 to 1.27 at most so many words.
struct Facts {
    g: u64,
    words: Words<21>,
}

impl Facts {
    #[inline(always)]
    fn read(hit: &Hit, g: u64) -> Self {
        Self {
            g,
            words: hit.words(g, hit.binary.g_goid),
        }
    }

    /// One of `parentGoid`, `gopc` and `startpc`; read by itself if it lies elsewhere than in any of those releases.
    #[inline(always)]
    fn field(&self, hit: &Hit, offset: u32) -> u64 {
        match self.words.number(offset) {
            15 => self.words.at::<15>(),
            16 => self.words.at::<16>(),
            17 => self.words.at::<17>(),
            18 => self.words.at::<18>(),
            19 => self.words.at::<19>(),
            20 => self.words.at::<20>(),
            _ => hit.field(self.g, offset),
        }
    }
}

/// The stack of the goroutine that ran the `go` statement; when a timer's callback did, the address of that timer.
///
/// newproc1 runs on g0, and the goroutine below left its frame pointer in `sched.bp` when it switched. A
/// timer's callback runs on g0 itself: then there is no goroutine below, and the frames under g0 belong to
/// whatever ran on this thread before (`mcall` clears the frame pointer only from Go 1.27 on amd64).
#[inline(always)]
fn creation_stack(hit: &Hit) -> u64 {
    let m: u64 = hit.field(hit.current_g(), hit.binary.g_m);
    if m == 0 {
        return 0;
    }
    let creator: u64 = hit.field(m, hit.binary.m_curg);
    if creator == 0 {
        return fired_on_this_thread();
    }
    // From `stack` to `sched.bp` in every release: lo, hi, …, bp.
    let words: Words<14> = hit.words(creator, hit.binary.g_stack);
    let frame = match words.number(hit.binary.g_sched_bp) {
        12 => words.at::<12>(),
        13 => words.at::<13>(),
        _ => hit.field(creator, hit.binary.g_sched_bp),
    };
    stack::keep(hit, [words.at::<0>(), words.at::<1>()], frame)
}

/// The timer that this thread fired last: its callback runs on this thread, before another can fire.
#[inline(always)]
fn fired_on_this_thread() -> u64 {
    let Some(timer) = FIRING.get_ptr(&bpf_get_current_pid_tgid()) else {
        return 0;
    };
    // SAFETY: a pointer into the map, which holds aligned u64s.
    let timer = unsafe { timer.read_volatile() };
    timer & !StackKey::MARK
}
