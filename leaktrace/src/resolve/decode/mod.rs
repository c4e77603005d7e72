//! What does this machine code do, as far as placing a probe needs to know?
//!
//! [`Listing::decode`] turns a function's bytes into instructions that answer the few questions that the
//! finders ask: where does control go, does the kernel emulate it under a probe, which register does it
//! write, which variable does it read. Two machines, one vocabulary; it knows nothing of Go's runtime.

mod amd64;
mod arm64;

use super::code::Function;
use super::{Arch, Execution};
use crate::address::VirtAddr;

/// A function longer than this is not looked at: none of those that carry a probe has 8 KiB.
pub const MAX_FUNCTION_BYTES: usize = 64 << 10;

/// A function's instructions, in the order of their addresses.
pub struct Listing {
    /// The function's name.
    pub function: String,
    /// Address of its first instruction.
    pub entry: VirtAddr,
    /// The instructions; never empty.
    pub instructions: Vec<Instruction>,
    arch: Arch,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Where it lies.
    pub address: VirtAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where control goes after it.
    pub flow: Flow,
    /// How the kernel executes it under a uprobe; `None` when it refuses a probe there, or may.
    pub execution: Option<Execution>,
    machine: Machine,
}

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// Into a function at this address, and back.
    Call(VirtAddr),
    /// Into a function that a register or memory names, and back.
    IndirectCall,
    /// To this address.
    Jump(VirtAddr),
    /// To an address that a register or memory names.
    IndirectJump,
    /// To `target` if the condition holds, else to the next instruction.
    Branch {
        /// The condition.
        when: Condition,
        /// Where to.
        target: VirtAddr,
    },
    /// Back to the caller.
    Return,
    /// Nowhere: a trap.
    Trap,
}

/// The condition of a branch, as far as the finders tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Unsigned less (`jb`, `b.lo`).
    Below,
    /// Unsigned less or equal (`jbe`, `b.ls`): the stack check's.
    BelowOrEqual,
    /// Any other.
    Other,
}

/// An instruction that names a variable by its address relative to the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The variable's address.
    pub address: VirtAddr,
    /// What is done with it.
    pub usage: Usage,
    /// The register that receives the word, or the address.
    pub register: u8,
}

/// What a [`Reference`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// It loads a 64-bit word.
    Load,
    /// It takes the address.
    Address,
}

/// Why a function could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Bytes that are no instruction.
    #[error("{function} has bytes at {address} that are no instruction")]
    Invalid {
        /// The function.
        function: String,
        /// Where decoding stopped.
        address: VirtAddr,
    },
    /// Beyond [`MAX_FUNCTION_BYTES`], or empty.
    #[error("{function} has {bytes} bytes of code, which cannot be right")]
    Size {
        /// The function.
        function: String,
        /// How many it has.
        bytes: usize,
    },
}

#[derive(Clone, Debug)]
enum Machine {
    Amd64(iced_x86::Instruction),
    Arm64(u32),
}

impl Listing {
    /// Decodes a whole function. Go puts no data among its code on these machines, so one pass from the
    /// first byte meets every instruction.
    pub fn decode(arch: Arch, function: &Function) -> Result<Self, DecodeError> {
        let bytes = function.code.len();
        let name = || function.name.clone();
        if bytes == 0 || bytes > MAX_FUNCTION_BYTES {
            let function = name();
            return Err(DecodeError::Size { function, bytes });
        }
        let decoded = match arch {
            Arch::Amd64 => amd64::decode(&function.code, function.entry),
            Arch::Arm64 => arm64::decode(&function.code, function.entry),
        };
        match decoded {
            Ok(instructions) => Ok(Self {
                function: name(),
                entry: function.entry,
                instructions,
                arch,
            }),
            Err(address) => Err(DecodeError::Invalid {
                function: name(),
                address,
            }),
        }
    }

    /// The branch of the stack check that the function begins with, if it does: its index.
    ///
    /// cmd/internal/obj/x86/obj6.go and arm64/obj7.go, `stacksplit`, for frames below 4 KiB. Only the
    /// shape is checked; that the branch leads to `morestack` is for the caller to see.
    #[must_use]
    pub fn stack_check(&self) -> Option<usize> {
        match self.arch {
            Arch::Amd64 => amd64::stack_check(&self.instructions),
            Arch::Arm64 => arm64::stack_check(&self.instructions),
        }
    }

    /// The variables that the function reads or whose address it takes, in the order of the code.
    #[must_use]
    pub fn references(&self) -> Vec<Reference> {
        match self.arch {
            Arch::Amd64 => amd64::references(&self.instructions),
            Arch::Arm64 => arm64::references(&self.instructions),
        }
    }

    /// The addresses that the code names relative to itself, whatever it does there.
    #[must_use]
    pub fn addresses(&self) -> Vec<VirtAddr> {
        match self.arch {
            Arch::Amd64 => amd64::addresses(&self.instructions),
            Arch::Arm64 => arm64::references(&self.instructions)
                .iter()
                .map(|reference| reference.address)
                .collect(),
        }
    }

    /// Where in structures the function reads words, in the order of the code: distances from a register, none of
    /// them on the stack. On arm64 only those that are too far for a load to name.
    #[must_use]
    pub fn fields_read(&self) -> Vec<u64> {
        match self.arch {
            Arch::Amd64 => amd64::fields_read(&self.instructions),
            Arch::Arm64 => arm64::fields_read(&self.instructions),
        }
    }

    /// Index of the instruction at `address`.
    #[must_use]
    pub fn index_of(&self, address: VirtAddr) -> Option<usize> {
        self.instructions
            .binary_search_by_key(&address, |instruction| instruction.address)
            .ok()
    }
}

impl Instruction {
    /// The instruction as text: Intel syntax, or ARM's.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.machine {
            Machine::Amd64(instruction) => amd64::text(instruction),
            Machine::Arm64(word) => arm64::text(*word, self.address),
        }
    }

    /// Whether it changes this general register, wholly or in part. On arm64 the answer may be a
    /// cautious yes.
    #[must_use]
    pub fn writes(&self, register: u8) -> bool {
        match &self.machine {
            Machine::Amd64(instruction) => amd64::writes(instruction, register),
            Machine::Arm64(word) => arm64::writes(*word, register),
        }
    }

    /// `(to, from)` when all it does is to copy one 64-bit general register to another.
    #[must_use]
    pub fn copies(&self) -> Option<(u8, u8)> {
        match &self.machine {
            Machine::Amd64(instruction) => amd64::copies(instruction),
            Machine::Arm64(word) => arm64::copies(*word),
        }
    }

    /// Whether it loads element `[register + 8 × index]`: the register holds an array of words.
    #[must_use]
    pub fn loads_element_of(&self, register: u8) -> bool {
        match &self.machine {
            Machine::Amd64(instruction) => amd64::loads_element_of(instruction, register),
            Machine::Arm64(word) => arm64::loads_element_of(*word, register),
        }
    }

    /// The constant that it compares a register with.
    #[must_use]
    pub fn compares_with(&self) -> Option<u64> {
        match &self.machine {
            Machine::Amd64(instruction) => amd64::compares_with(instruction),
            Machine::Arm64(word) => arm64::compares_with(*word),
        }
    }
}

#[cfg(test)]
mod tests;
