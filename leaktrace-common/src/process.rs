//! Which processes are traced, as the probes look it up at the start of every hit; and which come and go.
//!
//! One probe set can serve all processes of one executable, so that the process is what tells the hits apart. A
//! process that is not in the map leaves nothing but a count of strangers.

/// The traced process: the value in the map of processes, whose key is the thread group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// The probe set that counts for this process (see [`crate::binary::Cookie`]); others do not.
    pub set: u32,
    /// The process's own row in the counters, its binary's in the map of binaries, and part of its stacks' keys.
    pub slot: u16,
    /// Nothing.
    pub padding: u16,
}

/// What happened to a process.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It executed a program.
    Began = 0,
    /// Its first thread ended.
    Ended = 1,
}

/// A process began or ended. Only a hint where to look: /proc tells the truth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifeRecord {
    /// Thread group id, in leaktrace's own pid namespace.
    pub pid: u32,
    /// A [`Life`].
    pub life: u32,
}

const _: () = assert!(size_of::<LifeRecord>() == 8 && align_of::<LifeRecord>() == 4);
const _: () = assert!(size_of::<Enrolment>() == 8 && align_of::<Enrolment>() == 4);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for this promise on every map value")]
mod pod {
    // SAFETY: repr(C), integers only, no padding (the size is asserted above): every bit pattern is a value.
    unsafe impl aya::Pod for super::Enrolment {}
}
