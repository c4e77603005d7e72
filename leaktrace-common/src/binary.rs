//! What user space tells the probes about one binary: where the fields of the runtime's structures lie.
//!
//! The programs hold no Go version; all they know of one comes from here, looked up by the slot of the
//! process (see [`crate::process`]).

use crate::event::Kind;

/// Offsets in bytes, and a few facts, of the Go runtime in one binary.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BinaryConfig {
    /// `g.stack.lo`; `hi` follows it.
    pub g_stack: u32,
    /// `g.m`.
    pub g_m: u32,
    /// `g.sched.bp`: the saved frame pointer.
    pub g_sched_bp: u32,
    /// `g.goid`.
    pub g_goid: u32,
    /// `g.waitreason`, one byte.
    pub g_waitreason: u32,
    /// `g.gopc`.
    pub g_gopc: u32,
    /// `g.startpc`.
    pub g_startpc: u32,
    /// `g.parentGoid` (Go ≥ 1.21), or [`BinaryConfig::ABSENT`].
    pub g_parent_goid: u32,
    /// `m.curg`.
    pub m_curg: u32,
    /// `timer.when`.
    pub timer_when: u32,
    /// `timer.period`.
    pub timer_period: u32,
    /// `timer.f`.
    pub timer_f: u32,
    /// `timer.arg`, an interface: its data word is 8 bytes on.
    pub timer_arg: u32,
    /// 1 when the armed probe finds when, period, f and arg in registers (Go ≥ 1.23), 0 when in the timer.
    pub armed_in_registers: u32,
    /// 1 when the frame pointer chain can be walked (amd64; arm64 from Go 1.21).
    pub frame_pointers: u32,
    /// Set to 1 by user space once the slot is filled; 0 makes the probes return at once.
    pub filled: u32,
    /// By kind, the register that holds the object, numbered as in [`Cookie::register`]: for kernels without
    /// attach cookies.
    pub registers: [u8; Kind::COUNT as usize],
    /// 1 when the object stands for the running g too: leaktrace measures on itself what a hit costs, and has none.
    pub object_is_current_g: u32,
}

impl BinaryConfig {
    /// Stands for "this release has no such field".
    pub const ABSENT: u32 = u32::MAX;
}

const _: () = assert!(size_of::<BinaryConfig>() == 76 && align_of::<BinaryConfig>() == 4);

/// The attach cookie of a probe: the set that it belongs to, and the register that holds the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Number of the probe set. A process is counted by the one set that its enrolment names, so that a set
    /// can be exchanged for another without a gap, and two sets on one file do not both count.
    pub set: u32,
    /// Number of the register that holds the `*g` or `*timer`: the hardware's own numbering
    /// (amd64: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi, 8–15 r8–r15; arm64: 0–30 x0–x30).
    pub register: u8,
}

impl Cookie {
    /// Packs into the 64 bits that the kernel hands to the program.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.set) | u64::from(self.register) << 32
    }

    /// Unpacks; bits that mean nothing are ignored.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each field is cut out of the word on purpose"
    )]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            set: bits as u32,
            register: (bits >> 32) as u8,
        }
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for this promise on every map value")]
mod pod {
    // SAFETY: repr(C), integers only, no padding (the size is asserted above): every bit pattern is a value.
    unsafe impl aya::Pod for super::BinaryConfig {}
}
