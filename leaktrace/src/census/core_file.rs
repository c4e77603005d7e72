//! The memory of a process that is no more: an ELF core file, as the kernel or gcore writes it.
//!
//! A core leaves out what can be read from files; so the executable fills in what the core does not have.

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use super::{Fields, Memory, MemoryError, Piece};
use crate::address::{LoadBias, RuntimeAddr};
use crate::resolve::ReadAt;
use crate::resolve::elf::{Elf, cached};

/// What a core file says of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreFile {
    /// Process id; 0 when the core does not tell.
    pub pid: i32,
    /// Path of the executable; "" when the core does not tell.
    pub exe: String,
    /// Where the kernel put the program headers of the executable (`AT_PHDR`).
    pub program_headers: RuntimeAddr,
    segments: Vec<Segment>,
}

/// A stretch of memory that the core has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    bytes: u64,
    offset: u64,
}

/// Why a core file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// Another kind of file.
    #[error("this is not a core file of a 64-bit Linux process")]
    NotCore,
    /// The part that says where the executable lay is missing.
    #[error("the core file has no auxiliary vector: it does not tell where the program was loaded")]
    NoAuxv,
    /// Too many of something.
    #[error("the core file is damaged: {0} makes no sense")]
    Damaged(&'static str),
}

/// More mappings than the kernel allows by default (vm.max_map_count is 65,530).
const MOST_SEGMENTS: usize = 1 << 20;

/// Most bytes of notes that are looked through: a thread's take some kilobytes.
const MOST_NOTE_BYTES: u64 = 64 << 20;

/// `AT_PHDR` (include/uapi/linux/auxvec.h).
const AT_PHDR: u64 = 3;

impl CoreFile {
    /// Reads the headers and notes.
    ///
    /// # Errors
    /// When it is no core file, or lacks what is needed to find the program in it.
    pub fn open(file: &dyn ReadAt) -> Result<Self, CoreError> {
        let cache = cached(file);
        let e = LittleEndian;
        let header =
            elf::FileHeader64::<LittleEndian>::parse(&cache).map_err(|_| CoreError::NotCore)?;
        if header.e_type(e) != elf::ET_CORE {
            return Err(CoreError::NotCore);
        }
        let damaged = |_| CoreError::Damaged("its table of segments");
        // Asked first: the table is read in one piece.
        let count = header.phnum(e, &cache).map_err(damaged)?;
        if usize::try_from(count).is_ok_and(|count| count > MOST_SEGMENTS) {
            return Err(CoreError::Damaged("its number of segments"));
        }
        let programs = header.program_headers(e, &cache).map_err(damaged)?;
        let mut note_bytes = 0_u64;
        let mut core = Self::default();
        let mut files = Vec::new();
        for program in programs {
            match program.p_type(e) {
                elf::PT_LOAD if program.p_filesz(e) > 0 => core.segments.push(Segment {
                    address: program.p_vaddr(e),
                    bytes: program.p_filesz(e),
                    offset: program.p_offset(e),
                }),
                elf::PT_NOTE => {
                    note_bytes = note_bytes.saturating_add(program.p_filesz(e));
                    if note_bytes > MOST_NOTE_BYTES {
                        return Err(CoreError::Damaged("the length of its notes"));
                    }
                    let notes = program
                        .notes(e, &cache)
                        .map_err(|_| CoreError::Damaged("its notes"))?;
                    let Some(mut notes) = notes else { continue };
                    while let Ok(Some(note)) = notes.next() {
                        core.note(note.n_type(e).0, note.desc(), &mut files);
                    }
                }
                _ => {}
            }
        }
        core.segments
            .sort_unstable_by_key(|segment| segment.address);
        if core.program_headers.0 == 0 {
            return Err(CoreError::NoAuxv);
        }
        let holds = |(start, end, _): &&(u64, u64, String)| {
            (*start..*end).contains(&core.program_headers.0)
        };
        if let Some((_, _, path)) = files.iter().find(holds) {
            core.exe.clone_from(path);
        }
        Ok(core)
    }

    /// Takes what is needed of one note (include/uapi/linux/elf.h; fs/binfmt_elf.c: fill_files_note).
    fn note(&mut self, kind: u32, bytes: &[u8], files: &mut Vec<(u64, u64, String)>) {
        /// Offset of `pr_pid` in `struct elf_prstatus` (include/linux/elfcore.h).
        const PR_PID: usize = 32;
        const NT_PRSTATUS: u32 = 1;
        const NT_AUXV: u32 = 6;
        const NT_FILE: u32 = 0x4649_4c45;
        let mut fields = Fields(bytes);
        match kind {
            // The first is that of the thread that the process is named after.
            NT_PRSTATUS if self.pid == 0 => self.pid = fields.half(PR_PID).cast_signed(),
            NT_AUXV => {
                for pair in bytes.chunks_exact(16) {
                    let mut pair = Fields(pair);
                    if pair.word(0) == AT_PHDR {
                        self.program_headers = RuntimeAddr(pair.word(8));
                    }
                }
            }
            NT_FILE => {
                let count = usize::try_from(fields.word(0)).unwrap_or(usize::MAX);
                let Some(entries) = count
                    .checked_mul(24)
                    .and_then(|end| bytes.get(16..)?.get(..end))
                else {
                    return;
                };
                let names = bytes.get(16 + entries.len()..).unwrap_or_default();
                for (entry, name) in entries.chunks_exact(24).zip(names.split(|byte| *byte == 0)) {
                    let mut entry = Fields(entry);
                    let path = String::from_utf8_lossy(name).into_owned();
                    files.push((entry.word(0), entry.word(8), path));
                }
            }
            _ => {}
        }
    }
}

/// A core file together with the executable that it came from.
pub struct CoreMemory<'f> {
    core: &'f CoreFile,
    file: &'f dyn ReadAt,
    executable: &'f Elf<'f>,
    bias: LoadBias,
}

impl<'f> CoreMemory<'f> {
    /// The memory that `core` describes, whose bytes are in `file`; `executable` lay at `bias`.
    #[must_use]
    pub fn new(
        core: &'f CoreFile,
        file: &'f dyn ReadAt,
        executable: &'f Elf<'f>,
        bias: LoadBias,
    ) -> Self {
        Self {
            core,
            file,
            executable,
            bias,
        }
    }

    /// Fills `buffer` from the core's segments, which may lie side by side.
    fn copy_from_core(&self, mut address: u64, mut buffer: &mut [u8]) -> bool {
        while !buffer.is_empty() {
            let segments = &self.core.segments;
            let after = segments.partition_point(|segment| segment.address <= address);
            let Some(segment) = after.checked_sub(1).and_then(|at| segments.get(at)) else {
                return false;
            };
            let into = address - segment.address;
            let left = segment.bytes.saturating_sub(into);
            let length = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let (Some(offset), true) = (segment.offset.checked_add(into), length > 0) else {
                return false;
            };
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(length);
            if self.file.read_exact_at(offset, now).is_err() {
                return false;
            }
            address = address.saturating_add(length as u64);
            buffer = rest;
        }
        true
    }
}

impl Memory for CoreMemory<'_> {
    fn read_pieces(&self, pieces: &[Piece], buffer: &mut [u8]) -> Result<Vec<bool>, MemoryError> {
        let mut rest = buffer;
        let mut read = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let bytes = piece.bytes.min(rest.len());
            let (now, next) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = next;
            let found = now.len() == piece.bytes
                && (self.copy_from_core(piece.address.0, now)
                    || self.copy_from_executable(piece, now));
            if !found {
                now.fill(0);
            }
            read.push(found);
        }
        Ok(read)
    }
}

impl CoreMemory<'_> {
    fn copy_from_executable(&self, piece: &Piece, buffer: &mut [u8]) -> bool {
        let linked = self.bias.to_linked(piece.address);
        match self.executable.read(linked, piece.bytes as u64) {
            Some(bytes) if bytes.len() == buffer.len() => {
                buffer.copy_from_slice(&bytes);
                true
            }
            _ => false,
        }
    }
}
