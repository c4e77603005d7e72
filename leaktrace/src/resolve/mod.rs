//! What is in this binary? Bytes in, tables out.
//!
//! [`resolve`] reads one Go executable and answers with a [`Program`]: its release and build, where its
//! functions and lines are, where the fields of the runtime's structures lie, where the runtime keeps its
//! lists, and on which instructions probes can sit. Whatever it cannot prove it refuses with a sentence
//! ([`Refusal`]); it never guesses an address. It does no I/O of its own: the file comes in as [`ReadAt`].

// What is read here was written by the traced program. A test may panic, this code may not.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

use std::io;

use leaktrace_common::event::Kind;

use crate::address::{FileOffset, VirtAddr};

pub mod buildinfo;
pub mod code;
pub mod decode;
pub mod dwarf;
pub mod elf;
pub mod globals;
pub mod heap;
pub mod moduledata;
pub mod offsets;
pub mod pclntab;
pub mod release;
pub mod sites;

use buildinfo::{BuildInfo, GoVersion};
use code::{CodeView, Function};
use elf::Elf;
use globals::GlobalsError;
use offsets::TableError;
use pclntab::Pclntab;

/// The oldest and the newest minor release that leaktrace knows the runtime of.
const OLDEST_MINOR: u32 = 18;
const NEWEST_MINOR: u32 = 27;
/// No function of the runtime that is looked into is this long.
const MAX_FUNCTION_BYTES: u64 = 128 << 10;

/// Finds out everything about one executable.
///
/// # Errors
/// A [`Refusal`] that says what is wrong with the file, and what can be done.
pub fn resolve(file: &dyn ReadAt) -> Result<Program, Refusal> {
    let program = resolve_running(file)?;
    if program.release == ReleaseKnown::No {
        let version = program.build.go.text;
        return Err(Refusal::GoTooNew { version });
    }
    Ok(program)
}

/// The same for the executable of a process. A release that is newer than those known passes if its DWARF tells
/// where the fields lie, but without a place to probe: what it says is to be believed only after
/// [`crate::census::self_check`] has found it true of the process.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_running(file: &dyn ReadAt) -> Result<Program, Refusal> {
    let elf = Elf::open(file)?;
    if elf.packed() {
        return Err(Refusal::Packed);
    }
    let build = buildinfo::read(&elf)?;
    let release = check_release(&build)?;
    let version = || build.go.text.clone();
    let mut heap_offsets = None;
    let (mut offsets, from_table) = match (dwarf::read(&elf), release) {
        (Some((offsets, heap)), _) => {
            heap_offsets = heap;
            (offsets, None)
        }
        (None, ReleaseKnown::No) => return Err(Refusal::GoTooNew { version: version() }),
        (None, ReleaseKnown::Yes) => {
            let found = offsets::release(&build.go).map_err(|reason| Refusal::NoOffsets {
                version: version(),
                reason,
            })?;
            (found.offsets.clone(), Some(found))
        }
    };
    let functions = Pclntab::read(&elf, &offsets)?;
    let view = Code {
        elf: &elf,
        functions: &functions,
    };
    let (globals, globals_source) = globals::find(&view)?;
    if let Some(found) = &from_table {
        offsets = release::check(&elf, &view, &build.go, &globals, found)?;
    }
    let sites = match release {
        ReleaseKnown::Yes => sites::find(&view, build.go.minor),
        ReleaseKnown::No => Kind::ALL
            .into_iter()
            .map(|kind| SiteChoice {
                kind,
                found: Err(format!("leaktrace does not know {}", build.go.text)),
            })
            .collect(),
    };
    Ok(Program {
        build_id: elf.build_id(),
        arch: elf.arch(),
        pie: elf.pie(),
        program_headers: elf.program_headers().ok_or(Refusal::Damaged {
            what: "the place of the program headers",
        })?,
        build,
        release,
        functions,
        offsets,
        offsets_source: match from_table {
            Some(_) => OffsetsSource::Table,
            None => OffsetsSource::Dwarf,
        },
        globals,
        globals_source,
        heap: heap_offsets.and_then(|offsets| heap::find(&elf, offsets)),
        sites,
    })
}

/// Is this a release and a kind of binary that leaktrace knows?
fn check_release(build: &BuildInfo) -> Result<ReleaseKnown, Refusal> {
    let GoVersion {
        major, minor, text, ..
    } = &build.go;
    let version = text.clone();
    if *major != 1 {
        return Err(Refusal::GoTooNew { version });
    }
    if *minor < OLDEST_MINOR {
        return Err(Refusal::GoTooOld { version });
    }
    if matches!(build.build_mode.as_str(), "c-shared" | "plugin" | "shared") {
        return Err(Refusal::NotProgram {
            build_mode: build.build_mode.clone(),
        });
    }
    Ok(if *minor > NEWEST_MINOR {
        ReleaseKnown::No
    } else {
        ReleaseKnown::Yes
    })
}

/// Why an executable cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The file could not be read.
    #[error("the file cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Anything but an ELF file.
    #[error("this is not an ELF executable; name a Linux program compiled by Go")]
    NotElf,
    /// A 32-bit program.
    #[error("this is a 32-bit program; leaktrace traces 64-bit ones (GOARCH amd64 and arm64)")]
    Bits32,
    /// A big-endian program.
    #[error("this is a big-endian program; leaktrace traces GOARCH amd64 and arm64")]
    BigEndian,
    /// Another machine.
    #[error(
        "this is a program for another machine (ELF number {machine}); leaktrace traces GOARCH amd64 and arm64"
    )]
    OtherMachine {
        /// `e_machine` of the ELF header.
        machine: u16,
    },
    /// A core dump.
    #[error("this is a core dump, not a program; name the executable that it came from")]
    CoreFile,
    /// An object file or the like.
    #[error("this is an ELF file but not an executable; name a program that can be started")]
    NotExecutable,
    /// Shorter than its headers say.
    #[error(
        "the file is cut short: it has {size} bytes of the {needed} that its headers promise; copy it again"
    )]
    Truncated {
        /// Bytes that are there.
        size: u64,
        /// Bytes that must be there.
        needed: u64,
    },
    /// Something in it makes no sense.
    #[error("the file is damaged: {what} makes no sense; copy or build it again")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// Packed with UPX.
    #[error("the program is packed with UPX; unpack it with `upx -d`, or ship it unpacked")]
    Packed,
    /// Not compiled by Go.
    #[error("this is not a Go program: it has no Go build information")]
    NotGo,
    /// A library or plugin.
    #[error(
        "this is Go code for another program to load (-buildmode={build_mode}); leaktrace traces Go programs only"
    )]
    NotProgram {
        /// The build mode.
        build_mode: String,
    },
    /// The release does not look like one.
    #[error("the Go release \"{}\" is not understood; rebuild with a release from 1.18 to 1.27", version.escape_debug())]
    UnknownVersion {
        /// What the binary says.
        version: String,
    },
    /// Before Go 1.18.
    #[error("compiled by {}, which is too old; rebuild with Go 1.18 or newer", version.escape_debug())]
    GoTooOld {
        /// The release.
        version: String,
    },
    /// After the newest release that is known.
    #[error("compiled by {}, which this leaktrace does not know; it knows Go 1.18 to 1.27, look for a newer leaktrace", version.escape_debug())]
    GoTooNew {
        /// The release.
        version: String,
    },
    /// Neither DWARF nor the table tell where the fields of the runtime's structures lie.
    #[error("struct offsets of {} are not known: the binary is stripped, and {reason}; build it without -ldflags=-s -w", version.escape_debug())]
    NoOffsets {
        /// The release.
        version: String,
        /// Why the table does not tell.
        reason: TableError,
    },
    /// The binary shows another release than it claims, or a patched runtime.
    #[error("{} is what this program claims to be compiled by, but {reason}; trace an unaltered build, or one with DWARF", version.escape_debug())]
    OtherRelease {
        /// What it claims.
        version: String,
        /// What contradicts it.
        reason: &'static str,
    },
    /// No pclntab with its module data.
    #[error(
        "the function table (pclntab) is not found: the binary was altered after linking; trace an unaltered build"
    )]
    NoFunctionTable,
    /// The runtime's lists are not found.
    #[error("the runtime's lists are not found: {0}; trace an unaltered build")]
    Globals(#[from] GlobalsError),
}

/// A binary as the finders of sites and globals see it.
struct Code<'p> {
    elf: &'p Elf<'p>,
    functions: &'p Pclntab,
}

impl CodeView for Code<'_> {
    fn arch(&self) -> Arch {
        self.elf.arch()
    }

    fn function(&self, name: &str) -> Option<Function> {
        let found = self.functions.function_named(name)?;
        let length = found.end.0.checked_sub(found.entry.0)?;
        Some(Function {
            name: name.to_owned(),
            entry: found.entry,
            code: self.elf.read(found.entry, length.min(MAX_FUNCTION_BYTES))?,
        })
    }

    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)> {
        let found = self.functions.find(address)?;
        Some((self.functions.name(found), found.entry))
    }

    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.elf.file_offset(address)
    }

    fn symbol(&self, name: &str) -> Option<(VirtAddr, u64)> {
        self.elf.symbol(name)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

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
    /// Whether leaktrace knows the release.
    pub release: ReleaseKnown,
    /// GNU or Go build id, in hexadecimal or as Go wrote it; "" when there is none.
    pub build_id: String,
    /// Machine that it runs on.
    pub arch: Arch,
    /// Position independent: the kernel chooses where it lies.
    pub pie: bool,
    /// Where the program headers were linked: the kernel tells where they lie in a process.
    pub program_headers: VirtAddr,
    /// Functions, files, lines, inlined calls.
    pub functions: Pclntab,
    /// Offsets of the fields of the runtime's structures.
    pub offsets: offsets::Offsets,
    /// Where those came from.
    pub offsets_source: OffsetsSource,
    /// Addresses of the runtime's own lists.
    pub globals: Globals,
    /// Where `globals` came from.
    pub globals_source: GlobalsSource,
    /// Where its heap is, if the binary tells.
    pub heap: Option<heap::HeapPlace>,
    /// For each kind of event, where to probe it, or why it cannot be.
    pub sites: Vec<SiteChoice>,
}

impl Arch {
    /// Go's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A machine architecture that leaktrace can trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

/// Whether a program was compiled by a release that leaktrace was tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseKnown {
    /// It was.
    Yes,
    /// By a later one: only what the program proves itself holds.
    No,
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
    /// `runtime.semtable`: the roots of all trees of goroutines that wait for a semaphore, which is what a mutex or a
    /// wait group is made of. `None` when neither symbol nor code tells.
    pub semtable: Option<VirtAddr>,
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
