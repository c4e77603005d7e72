//! What is in this binary? Bytes in, tables out.
//!
//! [`resolve`] reads one Go executable and answers with a [`Program`]: its release and build, where its
//! functions and lines are, where the fields of the runtime's structures lie, where the runtime keeps its
//! lists, and on which instructions probes can sit. Whatever it cannot prove it refuses with a sentence
//! ([`Refusal`]); it never guesses an address. It does no I/O of its own: the file comes in as [`ReadAt`].

pub mod code;
pub mod decode;
pub mod globals;
pub mod sites;

use std::io;

use leaktrace_common::event::Kind;

use crate::address::{FileOffset, VirtAddr};

/// A source of bytes with random access: an open executable, or bytes in memory.
pub trait ReadAt {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills `buffer` from `offset`; an error when fewer bytes are there.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Everything known about one executable.
pub struct Program {
    /// Go release, module, version control facts.
    pub build: BuildInfo,
    /// GNU or Go build id, in hexadecimal or as Go wrote it; "" when there is none.
    pub build_id: String,
    /// Machine that it runs on.
    pub arch: Arch,
    /// Position independent: the kernel chooses where it lies.
    pub pie: bool,
    /// Functions, files, lines, inlined calls.
    pub functions: pclntab::Pclntab,
    /// Offsets of the fields of the runtime's structures.
    pub offsets: offsets::Offsets,
    /// Where those came from.
    pub offsets_source: OffsetsSource,
    /// Addresses of the runtime's own lists.
    pub globals: Globals,
    /// Where `globals` came from.
    pub globals_source: GlobalsSource,
    /// For each kind of event, where to probe it, or why it cannot be.
    pub sites: Vec<SiteChoice>,
}

/// A machine architecture that leaktrace can trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

/// Where struct offsets came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetsSource {
    /// The binary's own DWARF.
    Dwarf,
    /// The table by release that `cargo xtask offsets` generates.
    Table,
}

/// Where the addresses of the runtime's variables came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalsSource {
    /// The ELF symbol table.
    Symtab,
    /// Decoded from the instructions of small runtime functions that use them.
    Code,
}

/// Addresses of the runtime's variables that the census starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Globals {
    /// `runtime.allglen`, a word.
    pub allglen: VirtAddr,
    /// `runtime.allgptr`, a `**g`.
    pub allgptr: VirtAddr,
    /// `runtime.allp`, a slice header of `*p`.
    pub allp: VirtAddr,
    /// `runtime.waitReasonStrings`, an array of string headers.
    pub wait_reasons: VirtAddr,
    /// How many entries `wait_reasons` has.
    pub wait_reason_count: u64,
}

/// What was found for one kind of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteChoice {
    /// The event.
    pub kind: Kind,
    /// The instructions to probe (usually one), or why there is none.
    pub found: Result<Vec<ProbeSite>, String>,
}

/// One instruction to put a probe on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// Function that holds the instruction.
    pub function: String,
    /// Address of the instruction.
    pub address: VirtAddr,
    /// The same in the file: what the kernel wants.
    pub file_offset: FileOffset,
    /// Bytes from the function's first instruction.
    pub offset_in_function: u64,
    /// The instruction's bytes; read again and compared before a probe goes on.
    pub bytes: Vec<u8>,
    /// The instruction as text, for people.
    pub text: String,
    /// How the kernel executes it under a probe.
    pub execution: Execution,
    /// Register (hardware number, see `leaktrace_common::binary::Cookie`) that holds the object.
    pub register: u8,
}

/// How the kernel gets a probed instruction executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// It emulates the instruction: one trap, about 1 µs.
    Emulated,
    /// It single-steps a copy: two traps, 10 to 20 µs. The last resort.
    SingleStepped,
}
