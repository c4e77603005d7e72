//! Bounds that both sides share.

/// Frames kept of one creation stack. Deeper stacks keep their innermost frames.
pub const STACK_DEPTH: usize = 16;

/// Processes that can be traced at one time: the length of the maps indexed by slot. They take 72 bytes each, and
/// 96 more for each CPU.
pub const SLOTS: u32 = 1024;

/// Default size of the ring buffer in bytes: a power of two, 131,072 records of 64 bytes.
pub const RING_BYTES: u32 = 8 << 20;

/// Size of the ring of processes that come and go: 4096 notes of 8 bytes and their headers.
pub const LIVES_BYTES: u32 = 64 << 10;

/// Default number of distinct creation stacks kept in the kernel.
pub const STACKS: u32 = 16_384;

/// Goroutines whose waits are watched on level `full`: as many as there are at one time.
pub const WAITS: u32 = 128 << 10;

/// Distinct kinds of wait (place of birth, start and reason) whose lengths are added up on level `full`.
pub const WAIT_KINDS: u32 = 4096;

/// Threads for which is remembered which timer they fired last.
pub const FIRING_THREADS: u32 = 1024;
