//! Three kinds of address that must not be mixed up, as three types.
//!
//! A [`VirtAddr`] is what the linker wrote into the file; a [`RuntimeAddr`] is where that lies in one
//! process; a [`FileOffset`] is where its bytes lie in the file. [`LoadBias`] joins the first two, the
//! program headers (`resolve::elf`) the first and the last.

use std::fmt;

/// An address as linked, before the kernel moved the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtAddr(pub u64);

/// An address in a running process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuntimeAddr(pub u64);

/// A position in the executable's file, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileOffset(pub u64);

/// What the kernel added to every linked address when it mapped the program: 0 unless it is PIE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadBias(pub u64);

impl LoadBias {
    /// Where a linked address lies in the process.
    #[must_use]
    pub fn to_runtime(self, address: VirtAddr) -> RuntimeAddr {
        RuntimeAddr(address.0.wrapping_add(self.0))
    }

    /// Where a process address was linked.
    #[must_use]
    pub fn to_linked(self, address: RuntimeAddr) -> VirtAddr {
        VirtAddr(address.0.wrapping_sub(self.0))
    }
}

impl VirtAddr {
    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl RuntimeAddr {
    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for RuntimeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
