//! What the finders of probe sites and globals may ask of a binary.
//!
//! A trait, so that they can be tested on a few bytes of machine code without an ELF file.

use super::Arch;
use crate::address::{FileOffset, VirtAddr};

/// A function of the binary: where it starts and its machine code.
pub struct Function {
    /// Full name, as in `runtime.newproc1`.
    pub name: String,
    /// Address of its first instruction.
    pub entry: VirtAddr,
    /// Its machine code, with the padding behind it.
    pub code: Vec<u8>,
}
/// What site and global finders need of a binary. Pure look-ups; `None` when there is no such function.
pub trait CodeView {
    /// The machine that the code is for.
    fn arch(&self) -> Arch;
    /// The function with this exact name (`runtime.newproc1`); of several, the real one, not the ABI wrapper.
    fn function(&self, name: &str) -> Option<Function>;
    /// Name and entry of the function that holds `address`.
    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)>;
    /// Where the byte at `address` lies in the file.
    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset>;
    /// An ELF symbol's address and size, when the symbol table is there (`runtime.allgptr`).
    fn symbol(&self, name: &str) -> Option<(VirtAddr, u64)>;
}
