//! Processes that come and go: a note for each, so that nobody has to wait until /proc is read again.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, macros::raw_tracepoint, programs::RawTracePointContext,
};
use leaktrace_common::process::{Life, LifeRecord};

use crate::{context::own_pids, maps::LIVES};

/// `sched_process_exec`: a process has begun to run another program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_began(_: RawTracePointContext) -> i32 {
    note(Life::Began)
}

/// `sched_process_exit`: a thread ends. That of a process's first thread nearly always is the process's end.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_ended(_: RawTracePointContext) -> i32 {
    note(Life::Ended)
}

#[inline(always)]
fn note(life: Life) -> i32 {
    let (pid, thread) = own_pids();
    if pid == 0 || pid != thread {
        return 0;
    }
    // A full ring loses nothing but time: /proc is read every few seconds all the same.
    if let Some(mut entry) = LIVES.reserve::<LifeRecord>(0) {
        entry.write(LifeRecord {
            pid,
            life: life as u32,
        });
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
    0
}
