//! The name of a creation stack in the kernel's map of stacks.

use crate::limits::SLOTS;

/// Key of a stack: a hash of its frames, and the slot of the process whose stack it is.
///
/// The slot keeps one target from ever answering for another's stacks, and lets user space throw away
/// the stacks of a slot that it uses again. Every key has its highest bit set and no address of user space has, so a record
/// can say "no stack" with 0, and hold an address in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackKey(u64);

impl StackKey {
    const SLOT_BITS: u32 = 10;

    /// The bit that is set in every key.
    pub const MARK: u64 = 1 << 63;

    /// Makes the key of a stack from the hash of its frames.
    #[must_use]
    pub fn new(hash: u64, slot: u16) -> Self {
        Self(
            (hash | Self::MARK) & !((1 << Self::SLOT_BITS) - 1)
                | u64::from(slot) & ((1 << Self::SLOT_BITS) - 1),
        )
    }

    /// The key as a record or the map holds it; `None` for what is none.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        if bits & Self::MARK == 0 {
            None
        } else {
            Some(Self(bits))
        }
    }

    /// What goes into a record and into the map.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The slot of the process whose stack this is.
    #[must_use]
    pub fn slot(self) -> u16 {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as u16
    }
}

const _: () = assert!(SLOTS == 1 << StackKey::SLOT_BITS);
