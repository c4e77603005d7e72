//! The clock that the kernel stamps events with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the same clock as `bpf_ktime_get_ns` and the Go runtime's timers.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // The clock exists on every Linux; 0 would only make ages wrong, never addresses.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, nanoseconds)
}

/// CLOCK_BOOTTIME in nanoseconds: the clock of the start times in `/proc/PID/stat`, which nobody can set and which goes on
/// while the machine sleeps.
#[must_use]
pub fn boot_ns() -> u64 {
    // The clock exists on every Linux; 0 would only make every process new.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, nanoseconds)
}

/// CLOCK_THREAD_CPUTIME_ID in nanoseconds: what this thread has worked. What others do on its processor meanwhile, and what it
/// waits for, does not count.
#[must_use]
pub fn worked_ns() -> u64 {
    // The clock exists on every Linux; 0 would only make work cost nothing.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, nanoseconds)
}

/// The time of day, in seconds since the epoch, at which [`monotonic_ns`] was this.
#[must_use]
pub fn unix_of(at_ns: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let ago = Duration::from_nanos(monotonic_ns().saturating_sub(at_ns));
    // A machine whose clock stands before 1970 has no time of day to tell.
    now.map_or(0.0, |now| now.saturating_sub(ago).as_secs_f64())
}

fn nanoseconds(time: TimeSpec) -> u64 {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}
