//! Timers: armed, stopped, armed again, fired.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    macros::uprobe,
    programs::ProbeContext,
};
use leaktrace_common::event::{Kind, TimerRecord};

use crate::{
    context::{Hit, submit},
    maps::FIRING,
    stack,
};

/// At the call that arms it, inside `time.newTimer` (before Go 1.23: `time.startTimer`), on the stack of
/// the goroutine that wants it.
#[uprobe]
pub fn timer_armed(context: ProbeContext) -> u32 {
    record(context, Kind::Armed, |hit, timer| {
        let bounds = hit.field(hit.current_g(), hit.binary.g_stack);
        let stack = stack::keep(hit, bounds, hit.frame_pointer());
        let what = if hit.binary.armed_in_registers == 0 {
            let function = hit.field(timer, hit.binary.timer_f);
            What {
                when: hit.field(timer, hit.binary.timer_when),
                period: hit.field(timer, hit.binary.timer_period),
                function: code(function),
                callback: code(argument_of(hit, timer)),
            }
        } else {
            // (*timer).modify(when, period, f, arg, seq): an interface takes two registers.
            What {
                when: hit.argument::<1>() as i64,
                period: hit.argument::<2>() as i64,
                function: code(hit.argument::<3>()),
                callback: code(hit.argument::<5>()),
            }
        };
        (what, stack)
    })
}

/// At the call inside `time.stopTimer`.
#[uprobe]
pub fn timer_stopped(context: ProbeContext) -> u32 {
    record(context, Kind::Stopped, |_, _| (What::default(), 0))
}

/// At the call inside `time.resetTimer` or `time.modTimer`: both hand over when and period in registers.
#[uprobe]
pub fn timer_rearmed(context: ProbeContext) -> u32 {
    record(context, Kind::Rearmed, |hit, timer| {
        let what = What {
            when: hit.argument::<1>() as i64,
            period: hit.argument::<2>() as i64,
            function: code(hit.field(timer, hit.binary.timer_f)),
            callback: code(argument_of(hit, timer)),
        };
        (what, 0)
    })
}

/// At the start of `(*timer).unlockAndRun` (before Go 1.23: `runtime.runOneTimer`).
#[uprobe]
pub fn timer_fired(context: ProbeContext) -> u32 {
    record(context, Kind::Fired, |hit, timer| {
        // Its callback may start a goroutine, on this thread. Without room here, that goroutine's timer is not known.
        let _ = FIRING.insert(&bpf_get_current_pid_tgid(), &timer, 0);
        let what = What {
            when: hit.field(timer, hit.binary.timer_when),
            period: hit.field(timer, hit.binary.timer_period),
            function: code(hit.field(timer, hit.binary.timer_f)),
            callback: code(argument_of(hit, timer)),
        };
        (what, 0)
    })
}

#[derive(Default)]
struct What {
    when: i64,
    period: i64,
    function: u64,
    callback: u64,
}

/// Leaves one record; `what_and_stack` reads what this kind knows of the timer.
#[inline(always)]
fn record(
    context: ProbeContext,
    kind: Kind,
    what_and_stack: impl FnOnce(&Hit, u64) -> (What, u64),
) -> u32 {
    let Some(hit) = Hit::new(context, kind) else {
        return 0;
    };
    let Some(entry) = hit.reserve::<TimerRecord>() else {
        return 0;
    };
    let timer = hit.object();
    let (what, stack) = what_and_stack(&hit, timer);
    submit(
        entry,
        TimerRecord {
            header: hit.header(timer, stack),
            when_ns: what.when,
            period_ns: what.period,
            function: what.function,
            callback: what.callback,
        },
    );
    0
}

/// The data word of `timer.arg`, an `any`.
#[inline(always)]
fn argument_of(hit: &Hit, timer: u64) -> u64 {
    hit.field(timer, hit.binary.timer_arg.wrapping_add(8))
}

/// The code of a func value: it points to a word that holds the address. 0 for nil and for what is none:
/// only `time.goFunc` has a function as its argument, so a fault here tells nothing and is not counted.
#[inline(always)]
fn code(function: u64) -> u64 {
    if function == 0 {
        return 0;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(function as *const u64) }.unwrap_or(0)
}
