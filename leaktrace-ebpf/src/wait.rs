//! Waits: parked and readied. No event is left, for these are too many; the lengths are added up here.
//!
//! Both probes run on g0. The runtime parks a goroutine before anybody can find it to wake it, so for one `g` the two
//! programs never run at the same time.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::uprobe, programs::ProbeContext,
};
use leaktrace_common::{
    event::{Kind, Loss},
    histogram::{BUCKETS, bucket},
    wait::{TotalsKey, Wait, WaitKey, WaitTotals},
};

use crate::{
    context::Hit,
    maps::{WAIT_TOTALS, WAITS},
};

/// At the start of `runtime.park_m`.
#[uprobe]
pub fn goroutine_parked(context: ProbeContext) -> u32 {
    let Some(hit) = Hit::new(context, Kind::Parked) else {
        return 0;
    };
    let key = key(&hit);
    let goid: u64 = hit.field(key.g, hit.binary.g_goid);
    let reason: u8 = hit.field(key.g, hit.binary.g_waitreason);
    let wait = match WAITS.get_ptr_mut(&key) {
        // SAFETY: a pointer into the map; nobody else handles this g now.
        Some(wait) => unsafe { &mut *wait },
        None => {
            let wait = Wait {
                since_ns: now(),
                goid,
                totals: totals_key(&hit, &key, reason),
            };
            if WAITS.insert(&key, &wait, u64::from(BPF_NOEXIST)).is_err() {
                hit.lose(Loss::WaitsFull);
            }
            return 0;
        }
    };
    if wait.since_ns != 0
        && let Some(totals) = totals(&hit, &wait.totals)
    {
        // SAFETY: a field of a value of the map, which is aligned.
        unsafe { add(&raw mut (*totals).unheard, 1) };
    }
    if wait.goid != goid {
        wait.goid = goid;
        wait.totals = totals_key(&hit, &key, reason);
    }
    wait.totals.reason = reason.into();
    wait.since_ns = now();
    0
}

/// At the start of `runtime.ready`.
#[uprobe]
pub fn goroutine_readied(context: ProbeContext) -> u32 {
    let Some(hit) = Hit::new(context, Kind::Readied) else {
        return 0;
    };
    let Some(wait) = WAITS.get_ptr_mut(&key(&hit)) else {
        // It was blocked before the probes went on.
        return 0;
    };
    // SAFETY: a pointer into the map; nobody else handles this g now.
    let wait = unsafe { &mut *wait };
    if wait.since_ns == 0 {
        return 0;
    }
    let length = now().wrapping_sub(wait.since_ns);
    wait.since_ns = 0;
    if let Some(totals) = totals(&hit, &wait.totals) {
        let index = bucket(length);
        if index < BUCKETS {
            // SAFETY: fields of a value of the map, which are aligned; the index is inside the array.
            unsafe {
                add(&raw mut (*totals).lengths.sum_ns, length);
                let counts = (&raw mut (*totals).lengths.counts).cast::<u64>();
                add(counts.add(index), 1);
            }
        }
    }
    0
}

#[inline(always)]
fn key(hit: &Hit) -> WaitKey {
    WaitKey {
        g: hit.object(),
        slot: hit.slot().into(),
    }
}

#[inline(always)]
fn totals_key(hit: &Hit, key: &WaitKey, reason: u8) -> TotalsKey {
    TotalsKey {
        gopc: hit.field(key.g, hit.binary.g_gopc),
        startpc: hit.field(key.g, hit.binary.g_startpc),
        slot: hit.slot().into(),
        reason: reason.into(),
    }
}

/// The histogram of a kind of wait, made when it is first asked for.
#[inline(always)]
fn totals(hit: &Hit, key: &TotalsKey) -> Option<*mut WaitTotals> {
    if let Some(totals) = WAIT_TOTALS.get_ptr_mut(key) {
        return Some(totals);
    }
    // All zeros; too large for a probe's stack of 512 bytes together with the rest, so it lies with the constants.
    static NOTHING: WaitTotals = WaitTotals {
        lengths: leaktrace_common::histogram::Histogram {
            sum_ns: 0,
            counts: [0; BUCKETS],
        },
        unheard: 0,
    };
    // Another processor may have made it meanwhile.
    let _ = WAIT_TOTALS.insert(key, &NOTHING, u64::from(BPF_NOEXIST));
    let totals = WAIT_TOTALS.get_ptr_mut(key);
    if totals.is_none() {
        hit.lose(Loss::WaitsFull);
    }
    totals
}

/// # Safety
/// `counter` points to an aligned u64 in a map.
#[inline(always)]
unsafe fn add(counter: *mut u64, more: u64) {
    // SAFETY: the caller's promise; nobody has a reference to it.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, more) };
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
