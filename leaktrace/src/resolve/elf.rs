//! Where things lie in an ELF file: segments, sections, symbols, and linked addresses as file positions.
//!
//! Only the headers are read when a file is opened; everything else is read when it is asked for, so that a
//! server of 100 MB costs a few megabytes. Reads answer `None` when the range is not in the file.

use std::cell::{Cell, OnceCell};

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::read::{ReadCache, ReadCacheOps};

use super::{Arch, ReadAt, Refusal};
use crate::address::{FileOffset, VirtAddr};

/// The longest range that is read at once: more than the tables of any known program. A file may be sparse, and claim
/// to have any size.
const MAX_RANGE: u64 = 96 << 20;
/// The longest symbol table, names apart, and the longest table of relocations: a server of 100 MB has a tenth of it.
const MAX_SYMBOL_BYTES: u64 = 32 << 20;
const MAX_RELOCATION_BYTES: u64 = 64 << 20;
/// The most that all searches together look through. Segments of a real program do not overlap and are far smaller.
const MAX_SEARCH: u64 = 1 << 30;
/// Longest build id that is believed: Go's own have 83 bytes, GNU's 20.
const MAX_ID_BYTES: usize = 128;
/// How much is read at once while searching.
const SEARCH_STEP: u64 = 1 << 20;
/// Segments and sections beyond these numbers are no program that a linker wrote.
const MAX_SEGMENTS: u16 = 1024;
const MAX_SECTIONS: u32 = 1024;
/// Bytes of one ELF64 symbol.
const SYMBOL_BYTES: usize = 24;

/// An opened executable.
pub struct Elf<'f> {
    file: &'f dyn ReadAt,
    arch: Arch,
    pie: bool,
    program_headers: FileOffset,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    dynamic: Option<(u64, u64)>,
    notes: Vec<(u64, u64)>,
    relative: OnceCell<Vec<(u64, u64)>>,
    symbols: OnceCell<Option<SymbolTable>>,
    /// Bytes that searches have looked through so far.
    searched: Cell<u64>,
}

/// A part of the file that the kernel maps (`PT_LOAD`).
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Linked address of its first byte.
    pub address: VirtAddr,
    /// Where that byte lies in the file.
    pub file_offset: FileOffset,
    /// Bytes that the file has of it.
    pub file_size: u64,
    /// May the program write to it?
    pub writable: bool,
    /// May the program execute it?
    pub executable: bool,
}

/// An entry of the section table.
#[derive(Clone, Debug)]
pub struct Section {
    /// Name, such as `.gopclntab`.
    pub name: String,
    /// Linked address; 0 when it is not loaded.
    pub address: VirtAddr,
    /// Where it lies in the file.
    pub file_offset: FileOffset,
    /// Bytes that the file has of it.
    pub size: u64,
    /// Starts with a compression header (`SHF_COMPRESSED`).
    pub compressed: bool,
    kind: elf::SectionType,
    link: u32,
}

struct SymbolTable {
    entries: Vec<u8>,
    names: Vec<u8>,
}

impl<'f> Elf<'f> {
    /// Reads the headers.
    ///
    /// # Errors
    /// A [`Refusal`] when this is no executable for a machine that leaktrace knows, or when the file is
    /// shorter than its headers say.
    pub fn open(file: &'f dyn ReadAt) -> Result<Self, Refusal> {
        let mut ident = [0; 20];
        if file.size() < 4 {
            return Err(Refusal::NotElf);
        }
        let ident_len = ident.len().min(usize::try_from(file.size()).unwrap_or(0));
        if let Some(start) = ident.get_mut(..ident_len) {
            file.read_exact_at(0, start).map_err(Refusal::Read)?;
        }
        if !ident.starts_with(&elf::ELFMAG) {
            return Err(Refusal::NotElf);
        }
        let truncated = |needed: u64| Refusal::Truncated {
            size: file.size(),
            needed,
        };
        if ident[4] == elf::ELFCLASS32.0 {
            return Err(Refusal::Bits32);
        }
        if ident[5] != elf::ELFDATA2LSB.0 {
            return Err(Refusal::BigEndian);
        }
        if file.size() < 64 {
            return Err(truncated(64));
        }

        let cache = cached(file);
        let e = LittleEndian;
        let damaged = |_| Refusal::Damaged {
            what: "its ELF header",
        };
        let header = elf::FileHeader64::<LittleEndian>::parse(&cache).map_err(damaged)?;
        let arch = match header.e_machine(e) {
            elf::EM_X86_64 => Arch::Amd64,
            elf::EM_AARCH64 => Arch::Arm64,
            other => return Err(Refusal::OtherMachine { machine: other.0 }),
        };
        let pie = match header.e_type(e) {
            elf::ET_EXEC => false,
            elf::ET_DYN => true,
            elf::ET_CORE => return Err(Refusal::CoreFile),
            _ => return Err(Refusal::NotExecutable),
        };
        if header.e_phnum(e) > MAX_SEGMENTS
            || header
                .shnum(e, &cache)
                .is_ok_and(|count| count > MAX_SECTIONS)
        {
            return Err(Refusal::Damaged {
                what: "its ELF header",
            });
        }
        let end_of_headers =
            header
                .e_phoff(e)
                .saturating_add(u64::from(header.e_phnum(e)) * u64::from(header.e_phentsize(e)))
                .max(header.e_shoff(e).saturating_add(
                    u64::from(header.e_shnum(e)) * u64::from(header.e_shentsize(e)),
                ));
        let mut needed = end_of_headers;

        let mut elf = Self {
            file,
            arch,
            pie,
            program_headers: FileOffset(header.e_phoff(e)),
            segments: Vec::new(),
            sections: Vec::new(),
            dynamic: None,
            notes: Vec::new(),
            relative: OnceCell::new(),
            symbols: OnceCell::new(),
            searched: Cell::new(0),
        };
        // In a file cut in half the program headers are there and tell how much is missing, while the section
        // table may be gone: so the former come first, and the latter only when nothing is missing.
        if header.e_phoff(e) < file.size() {
            let programs = header
                .program_headers(e, &cache)
                .map_err(|_| truncated(needed))?;
            for program in programs {
                let (offset, size) = (program.p_offset(e), program.p_filesz(e));
                match program.p_type(e) {
                    elf::PT_LOAD => {
                        needed = needed.max(offset.saturating_add(size));
                        elf.segments.push(Segment {
                            address: VirtAddr(program.p_vaddr(e)),
                            file_offset: FileOffset(offset),
                            file_size: size,
                            writable: program.p_flags(e).contains(elf::PF_W),
                            executable: program.p_flags(e).contains(elf::PF_X),
                        });
                    }
                    elf::PT_DYNAMIC => elf.dynamic = Some((offset, size)),
                    elf::PT_NOTE => elf.notes.push((offset, size)),
                    _ => {}
                }
            }
        }
        if needed > file.size() {
            return Err(truncated(needed));
        }
        if elf.segments.is_empty() {
            return Err(Refusal::NotExecutable);
        }
        if let Ok(sections) = header.sections(e, &cache) {
            for section in sections.iter() {
                let kind = section.sh_type(e);
                let in_file = kind != elf::SHT_NULL && kind != elf::SHT_NOBITS;
                let size = if in_file { section.sh_size(e) } else { 0 };
                // An empty section may claim to lie anywhere.
                if size > 0 {
                    needed = needed.max(section.sh_offset(e).saturating_add(size));
                }
                let name = sections.section_name(e, section).unwrap_or_default();
                elf.sections.push(Section {
                    name: String::from_utf8_lossy(name).into_owned(),
                    address: VirtAddr(section.sh_addr(e)),
                    file_offset: FileOffset(section.sh_offset(e)),
                    size,
                    compressed: section.sh_flags(e).contains(elf::SHF_COMPRESSED),
                    kind,
                    link: section.sh_link(e),
                });
            }
            if needed > file.size() {
                return Err(truncated(needed));
            }
        }
        Ok(elf)
    }
    /// The machine.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Does the kernel choose where it lies (`ET_DYN`)?
    #[must_use]
    pub fn pie(&self) -> bool {
        self.pie
    }

    /// Where the program headers were linked: in the segment whose part of the file holds them, as the kernel
    /// works it out for `AT_PHDR` (fs/binfmt_elf.c: load_elf_binary).
    #[must_use]
    pub fn program_headers(&self) -> Option<VirtAddr> {
        self.segments.iter().find_map(|segment| {
            let into = self
                .program_headers
                .0
                .checked_sub(segment.file_offset.0)
                .filter(|into| *into < segment.file_size)?;
            Some(segment.address.offset(into))
        })
    }

    /// The parts that are mapped.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The section with this name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Where the byte at `address` lies in the file; `None` when the file does not hold it.
    #[must_use]
    pub fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.locate(address).map(|(offset, _)| offset)
    }

    /// Where the byte at `address` lies, and how many bytes of its segment follow in the file, itself included.
    fn locate(&self, address: VirtAddr) -> Option<(FileOffset, u64)> {
        self.segments.iter().find_map(|segment| {
            let into = address.0.checked_sub(segment.address.0)?;
            let left = segment
                .file_size
                .checked_sub(into)
                .filter(|left| *left > 0)?;
            Some((FileOffset(segment.file_offset.0.checked_add(into)?), left))
        })
    }

    /// The `length` bytes at `address` as the file has them, no relocation applied.
    #[must_use]
    pub fn read(&self, address: VirtAddr, length: u64) -> Option<Vec<u8>> {
        let (offset, left) = self.locate(address)?;
        if length > left {
            return None;
        }
        self.read_file(offset, length)
    }

    /// Like [`Elf::read`], but shorter where the segment ends first.
    #[must_use]
    pub fn read_up_to(&self, address: VirtAddr, length: u64) -> Option<Vec<u8>> {
        let (offset, left) = self.locate(address)?;
        self.read_file(offset, length.min(left))
    }

    /// `length` bytes of the file.
    #[must_use]
    pub fn read_file(&self, offset: FileOffset, length: u64) -> Option<Vec<u8>> {
        let end = offset.0.checked_add(length)?;
        if length > MAX_RANGE || end > self.file.size() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.file.read_exact_at(offset.0, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The word at `address` as the running program sees it, before the load bias: relocations applied.
    #[must_use]
    pub fn pointer(&self, address: VirtAddr) -> Option<u64> {
        let relative = self.relative();
        if let Ok(found) = relative.binary_search_by_key(&address.0, |(at, _)| *at) {
            return relative.get(found).map(|(_, value)| *value);
        }
        // Relocations packed as RELR keep the linked address in place, so they need no table.
        word_at(&self.read(address, 8)?, 0)
    }

    /// Where the program keeps words with this value: relocated ones first, then those in writable segments.
    pub fn words_with_value(&self, value: u64) -> impl Iterator<Item = VirtAddr> {
        let relocated = self
            .relative()
            .iter()
            .filter(move |(_, target)| *target == value)
            .map(|(at, _)| VirtAddr(*at));
        let pattern = value.to_le_bytes();
        relocated.chain(self.search(
            |segment| segment.writable,
            8,
            move |bytes| bytes.starts_with(&pattern),
        ))
    }

    /// Addresses, multiples of `align` (a power of two, at most `SEARCH_STEP`), in the chosen segments whose bytes pass `matches`; it
    /// sees at least the 16 bytes there unless the segment ends. Reads a megabyte at a time.
    pub fn search(
        &self,
        choose: impl Fn(&Segment) -> bool,
        align: u64,
        matches: impl Fn(&[u8]) -> bool,
    ) -> impl Iterator<Item = VirtAddr> {
        const TAIL: u64 = 16;
        let chosen: Vec<Segment> = self
            .segments
            .iter()
            .filter(|s| choose(s))
            .copied()
            .collect();
        let steps = chosen.into_iter().flat_map(move |segment| {
            let first = segment
                .address
                .0
                .checked_next_multiple_of(align)
                .map_or(segment.file_size, |aligned| aligned - segment.address.0);
            (first..segment.file_size)
                .step_by(usize::try_from(SEARCH_STEP).unwrap_or(usize::MAX))
                .map(move |at| segment.address.offset(at))
        });
        let within_budget = move |_: &VirtAddr| {
            let searched = self.searched.get().saturating_add(SEARCH_STEP);
            self.searched.set(searched);
            searched <= MAX_SEARCH
        };
        steps.take_while(within_budget).flat_map(move |address| {
            let bytes = self
                .read_up_to(address, SEARCH_STEP + TAIL)
                .unwrap_or_default();
            let mut hits = Vec::new();
            let mut at = 0;
            while at < SEARCH_STEP {
                let Some(here) = usize::try_from(at).ok().and_then(|at| bytes.get(at..)) else {
                    break;
                };
                if matches(here) {
                    hits.push(address.offset(at));
                }
                at += align;
            }
            hits
        })
    }

    /// What the `R_*_RELATIVE` relocations write, as (address, linked value), sorted.
    fn relative(&self) -> &[(u64, u64)] {
        self.relative
            .get_or_init(|| self.read_relative().unwrap_or_default())
    }

    fn read_relative(&self) -> Option<Vec<(u64, u64)>> {
        let (offset, size) = self.dynamic?;
        let (mut table, mut table_bytes) = (None, None);
        // The dynamic section of a program has some 30 entries; a page of them is generous.
        let entries = self.read_file(FileOffset(offset), size.min(4096))?;
        for entry in entries.chunks_exact(16) {
            let (tag, value) = (word_at(entry, 0)?, word_at(entry, 8)?);
            if tag == elf::DT_RELA.0.cast_unsigned() {
                table = Some(VirtAddr(value));
            } else if tag == elf::DT_RELASZ.0.cast_unsigned() {
                table_bytes = Some(value);
            }
        }
        let relative_kind = match self.arch {
            Arch::Amd64 => u64::from(elf::R_X86_64_RELATIVE.0),
            Arch::Arm64 => u64::from(elf::R_AARCH64_RELATIVE.0),
        };
        let table_bytes = table_bytes.filter(|bytes| *bytes <= MAX_RELOCATION_BYTES)?;
        let mut relative: Vec<(u64, u64)> = self
            .read(table?, table_bytes)?
            .chunks_exact(24)
            .filter_map(|entry| {
                let kind = word_at(entry, 8)? & u64::from(u32::MAX);
                (kind == relative_kind).then_some((word_at(entry, 0)?, word_at(entry, 16)?))
            })
            .collect();
        relative.sort_unstable();
        Some(relative)
    }

    /// Address and size of the ELF symbol with this name, when there is a symbol table.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<(VirtAddr, u64)> {
        let table = self.symbols.get_or_init(|| self.read_symbols()).as_ref()?;
        table.entries.chunks_exact(SYMBOL_BYTES).find_map(|entry| {
            let name_offset = usize::try_from(half_at(entry, 0)?).ok()?;
            let rest = table
                .names
                .get(name_offset..)?
                .strip_prefix(name.as_bytes())?;
            let section = u16::from_le_bytes([*entry.get(6)?, *entry.get(7)?]);
            (rest.first() == Some(&0) && section != elf::SHN_UNDEF.0)
                .then_some((VirtAddr(word_at(entry, 8)?), word_at(entry, 16)?))
        })
    }

    fn read_symbols(&self) -> Option<SymbolTable> {
        let symbols = self.sections.iter().find(|s| s.kind == elf::SHT_SYMTAB)?;
        let names = self.sections.get(usize::try_from(symbols.link).ok()?)?;
        let read = |section: &Section| {
            (section.size <= MAX_SYMBOL_BYTES)
                .then(|| self.read_file(section.file_offset, section.size))?
        };
        Some(SymbolTable {
            entries: read(symbols)?,
            names: read(names)?,
        })
    }

    /// The build id: GNU's in hexadecimal, else Go's as it stands, else "".
    #[must_use]
    pub fn build_id(&self) -> String {
        let notes: Vec<Vec<u8>> = self
            .notes
            .iter()
            .take(16)
            .filter_map(|(offset, size)| self.read_file(FileOffset(*offset), (*size).min(1 << 16)))
            .collect();
        let find = |owner: &[u8], kind| notes.iter().find_map(|bytes| note(bytes, owner, kind));
        if let Some(id) = find(b"GNU\0", elf::NT_GNU_BUILD_ID.0) {
            let id = id.iter().take(MAX_ID_BYTES);
            return id.map(|byte| format!("{byte:02x}")).collect();
        }
        // cmd/link/internal/ld/elf.go: ELF_NOTE_GOBUILDID_TAG.
        let go = find(b"Go\0\0", 4).unwrap_or_default();
        String::from_utf8_lossy(go.get(..MAX_ID_BYTES).unwrap_or(go)).into_owned()
    }

    /// Was it packed with UPX? The packer leaves its mark right behind the program headers.
    #[must_use]
    pub fn packed(&self) -> bool {
        let start = self.read_file(FileOffset(0), self.file.size().min(1024));
        start.is_some_and(|bytes| bytes.windows(4).any(|window| window == b"UPX!"))
    }
}

/// The contents of the note with this owner and kind in a segment of notes.
fn note<'n>(mut bytes: &'n [u8], owner: &[u8], kind: u32) -> Option<&'n [u8]> {
    while bytes.len() >= 12 {
        let name_size = usize::try_from(half_at(bytes, 0)?).ok()?;
        let size = usize::try_from(half_at(bytes, 4)?).ok()?;
        let this_kind = half_at(bytes, 8)?;
        let name_end = name_size.checked_add(12)?;
        let start = name_end.checked_next_multiple_of(4)?;
        let end = start.checked_add(size)?;
        let contents = bytes.get(start..end)?;
        if this_kind == kind && bytes.get(12..name_end) == Some(owner) {
            return Some(contents);
        }
        bytes = bytes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// The little-endian 64-bit word at a position.
#[must_use]
pub(super) fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

/// The little-endian 32-bit number at a position.
#[must_use]
pub(super) fn half_at(bytes: &[u8], at: usize) -> Option<u32> {
    let half = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*half))
}

/// What the parsers of `object` read a file through: it keeps the ranges that were read.
pub(crate) fn cached(file: &dyn ReadAt) -> ReadCache<Cursor<'_>> {
    ReadCache::new(Cursor { file, at: 0 })
}

/// A [`ReadAt`] with a position: what the header parser of `object` reads through.
pub(crate) struct Cursor<'f> {
    file: &'f dyn ReadAt,
    at: u64,
}

impl ReadCacheOps for Cursor<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.file.size())
    }

    fn seek(&mut self, position: u64) -> Result<u64, ()> {
        self.at = position;
        Ok(position)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let left = self.file.size().saturating_sub(self.at);
        let count = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.read_exact(buffer.get_mut(..count).ok_or(())?)?;
        Ok(count)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        self.file.read_exact_at(self.at, buffer).map_err(|_| ())?;
        self.at = self.at.saturating_add(buffer.len() as u64);
        Ok(())
    }
}
