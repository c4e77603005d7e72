//! Where the runtime says its tables are: `runtime.firstmoduledata`.
//!
//! The one place that tells where the code starts (the header of pclntab does not from Go 1.26 on, and the `.text`
//! section lies when C code is linked in). It is found by its first two words, which point to pclntab and to the
//! names in it, and believed only when all its tables lie where pclntab says.

use super::elf::Elf;
use super::offsets::Offsets;
use super::pclntab::raw::Header;
use crate::address::VirtAddr;

// Positions that have not moved since Go 1.18 (src/runtime/symtab.go: moduledata): slices of three words each.
const FUNCNAMETAB: u64 = 8;
const CUTAB: u64 = 32;
const FILETAB: u64 = 56;
const PCTAB: u64 = 80;
const PCLNTABLE: u64 = 104;
const FTAB: u64 = 128;

/// Places that hold the address of pclntab and are not the module data: the `.dynamic` section, copies in tests.
const MAX_CANDIDATES: usize = 64;

/// What is taken from the module data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleData {
    /// Start of the code that the function table is relative to.
    pub text: VirtAddr,
    /// End of the code.
    pub etext: VirtAddr,
    /// Base of the function data.
    pub gofunc: VirtAddr,
    /// Bytes of pclntab from its header to its end.
    pub pclntab_bytes: u64,
    /// Bytes of the names.
    pub names_bytes: u64,
    /// Entries (32 bits each) of the files by compile unit.
    pub cutab_entries: u64,
    /// Bytes of the file names.
    pub files_bytes: u64,
    /// Bytes of the tables by pc.
    pub pctab_bytes: u64,
    /// Bytes of the table of functions and what it points to.
    pub functions_bytes: u64,
    /// Entries in the table of functions, the one that marks the end included.
    pub ftab_entries: u64,
}

/// Finds the module data that belongs to the pclntab at `table`.
#[must_use]
pub fn find(
    elf: &Elf<'_>,
    table: VirtAddr,
    header: &Header,
    offsets: &Offsets,
) -> Option<ModuleData> {
    // Go 1.26 gave it a section of its own, which starts with it.
    let own = elf.section(".go.module").map(|section| section.address);
    own.into_iter()
        .chain(elf.words_with_value(table.0))
        .take(MAX_CANDIDATES)
        .find_map(|address| read(elf, address, table, header, offsets))
}

/// Reads the module data at `address`, if that is what lies there.
fn read(
    elf: &Elf<'_>,
    address: VirtAddr,
    table: VirtAddr,
    header: &Header,
    offsets: &Offsets,
) -> Option<ModuleData> {
    let pointer = |at: u64| elf.pointer(address.offset(at));
    // The length of the slice at `at`, which must start `from` bytes into pclntab.
    let slice = |at: u64, from: u64| {
        let starts_there = pointer(at)? == table.0.checked_add(from)?;
        let length = pointer(at.checked_add(8)?)?;
        starts_there.then_some(length)
    };
    if pointer(0)? != table.0 {
        return None;
    }
    let functions_bytes = slice(PCLNTABLE, header.functions)?;
    let found = ModuleData {
        text: VirtAddr(pointer(offsets.moduledata_text.into())?),
        etext: VirtAddr(pointer(offsets.moduledata_etext.into())?),
        gofunc: VirtAddr(pointer(offsets.moduledata_gofunc.into())?),
        pclntab_bytes: header.functions.checked_add(functions_bytes)?,
        names_bytes: slice(FUNCNAMETAB, header.names)?,
        cutab_entries: slice(CUTAB, header.cutab)?,
        files_bytes: slice(FILETAB, header.files)?,
        pctab_bytes: slice(PCTAB, header.pctab)?,
        functions_bytes,
        ftab_entries: slice(FTAB, header.functions)?,
    };
    let one_more = header.function_count.checked_add(1)?;
    let in_code = elf.segments().iter().any(|segment| {
        let into = found.text.0.checked_sub(segment.address.0);
        segment.executable && into.is_some_and(|into| into < segment.file_size)
    });
    let sane = found.ftab_entries == one_more && found.text < found.etext && in_code;
    sane.then_some(found)
}
