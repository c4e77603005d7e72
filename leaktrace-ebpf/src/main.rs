//! The kernel side of leaktrace: one program for each kind of event, attached as a uprobe, and two that note which
//! processes come and go.
//!
//! A program asks the map of processes whether the process that it runs in is traced, and by which probe set;
//! its attach cookie tells which set it belongs to and which register holds the object (on kernels without
//! cookies: the map of binaries, by its kind). That map also tells where the binary keeps its fields; a
//! program holds no Go version. It reads, walks at most `STACK_DEPTH` frames, and
//! leaves one record in the ring buffer. It never writes to the target and never wakes the reader.
//!
//! Built by `cargo xtask build-ebpf`. On the host this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// core's atomic types lack fetch_add here, because this target has no compare-and-swap in the compiler's eyes.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "a counter needs nothing but the kernel's atomic add"
    )
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "registers, maps and helpers of the kernel are raw; the verifier checks what the compiler cannot"
    )
)]

#[cfg(target_arch = "bpf")]
mod goroutine;

#[cfg(target_arch = "bpf")]
mod timer;

#[cfg(target_arch = "bpf")]
mod wait;

#[cfg(target_arch = "bpf")]
mod life;

#[cfg(target_arch = "bpf")]
mod context;

#[cfg(target_arch = "bpf")]
mod stack;

#[cfg(target_arch = "bpf")]
mod maps;

/// The helpers that read the target's memory are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier would refuse a program with an endless loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
