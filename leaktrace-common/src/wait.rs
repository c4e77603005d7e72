//! How long goroutines are blocked: kept in the kernel on level `full`, because an event for each park would cost more.

use crate::histogram::Histogram;

/// Names a `g` of one process: the key of the map of open waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitKey {
    /// Address of the `runtime.g`.
    pub g: u64,
    /// The slot of the process; eight bytes, because the kernel compares keys byte by byte.
    pub slot: u64,
}

/// What a `g` waits for, or did last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// When it blocked: CLOCK_MONOTONIC, nanoseconds. 0 when it was made runnable since.
    pub since_ns: u64,
    /// `g.goid`: the same `g` is another goroutine later.
    pub goid: u64,
    /// Which histogram this wait belongs to.
    pub totals: TotalsKey,
}

/// Names the waits of one kind: the key of the map of histograms.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TotalsKey {
    /// `g.gopc`.
    pub gopc: u64,
    /// `g.startpc`.
    pub startpc: u64,
    /// The slot of the process.
    pub slot: u32,
    /// `g.waitreason`; four bytes, because the kernel compares keys byte by byte.
    pub reason: u32,
}

/// All waits of one kind that have ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitTotals {
    /// From being parked to being made runnable.
    pub lengths: Histogram,
    /// Waits whose end was not heard: `runtime.ready` is not the only way to wake a goroutine, the network poller has
    /// others (src/runtime/proc.go: injectglist).
    pub unheard: u64,
}

const _: () = assert!(size_of::<WaitKey>() == 16);
const _: () = assert!(size_of::<TotalsKey>() == 24);
const _: () = assert!(size_of::<Wait>() == 40);
const _: () = assert!(size_of::<WaitTotals>() == size_of::<Histogram>() + 8);

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "aya asks for this promise on every map key and value"
)]
mod pod {
    // SAFETY: repr(C), integers only, no padding (the sizes are asserted above): every bit pattern is a value.
    unsafe impl aya::Pod for super::WaitKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Wait {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::TotalsKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::WaitTotals {}
}
