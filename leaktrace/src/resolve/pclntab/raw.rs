//! The tables of pclntab as bytes: where each lies, and how one entry is read.
//!
//! Go 1.18 to 1.27 share one layout but for the size of a function's header (src/runtime/runtime2.go: _func) and of an
//! inlined call (src/runtime/symtabinl.go). Every read is bounded; `None` means the table says nothing that makes sense.

use std::ops::Range;

use crate::address::VirtAddr;
use crate::resolve::Arch;
use crate::resolve::elf::{Elf, half_at, word_at};
use crate::resolve::moduledata::ModuleData;

/// Bytes of pclntab's header.
pub const HEADER_BYTES: u64 = 72;
/// The first word of pclntab (src/internal/abi/symtab.go): Go 1.18 and 1.19, and Go 1.20 to 1.27.
const MAGIC_118: u32 = 0xffff_fff0;
const MAGIC_120: u32 = 0xffff_fff1;

/// Steps of a table by pc that are followed: a line for each of 131,072 places in one function.
pub const MAX_STEPS: usize = 1 << 17;
/// The same for sizes of frames, which change at the start and at each end of a function.
const MAX_FRAME_STEPS: usize = 1 << 14;
/// Functions of one program. The largest known have some hundred thousand.
const MAX_FUNCTIONS: u64 = 1 << 21;
/// Bytes of inline trees, and of what lies among them.
const MAX_TREES_BYTES: u64 = 32 << 20;
/// Longest name of a function or file. Names of generic functions reach a few thousand bytes.
const MAX_NAME_BYTES: usize = 1 << 16;
/// How far the function data may reach beyond the last inline tree's start: 65,536 inlined calls.
const LAST_TREE_BYTES: u64 = 1 << 20;

// src/internal/abi/symtab.go: indexes into a function's pc data and function data.
const PCDATA_INL_TREE_INDEX: u32 = 2;
const FUNCDATA_INL_TREE: u8 = 3;

/// Pclntab's header: where its tables start, counted from the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Go 1.18 or 1.19, whose function headers are shorter.
    before_120: bool,
    /// Smallest distance of two instructions.
    quantum: u8,
    /// Functions in the table.
    pub function_count: u64,
    /// Start of the names.
    pub names: u64,
    /// Start of the files by compile unit.
    pub cutab: u64,
    /// Start of the file names.
    pub files: u64,
    /// Start of the tables by pc.
    pub pctab: u64,
    /// Start of the table of functions.
    pub functions: u64,
}

impl Header {
    /// Do these bytes start like a pclntab for this machine? Cheap: made for searching.
    #[must_use]
    pub fn starts(bytes: &[u8], arch: Arch) -> bool {
        let quantum = match arch {
            Arch::Amd64 => 1,
            Arch::Arm64 => 4,
        };
        matches!(half_at(bytes, 0), Some(MAGIC_118 | MAGIC_120))
            && bytes.get(4..8) == Some(&[0, 0, quantum, 8])
    }

    /// Reads the header.
    #[must_use]
    pub fn read(bytes: &[u8], arch: Arch) -> Option<Self> {
        if !Self::starts(bytes, arch) {
            return None;
        }
        // The word at 24 is the start of the code before Go 1.26 and 0 from then on: not used.
        let header = Self {
            before_120: half_at(bytes, 0)? == MAGIC_118,
            quantum: *bytes.get(6)?,
            function_count: word_at(bytes, 8)?,
            names: word_at(bytes, 32)?,
            cutab: word_at(bytes, 40)?,
            files: word_at(bytes, 48)?,
            pctab: word_at(bytes, 56)?,
            functions: word_at(bytes, 64)?,
        };
        let order = [
            HEADER_BYTES,
            header.names,
            header.cutab,
            header.files,
            header.pctab,
            header.functions,
        ];
        let sane = order.is_sorted() && (1..MAX_FUNCTIONS).contains(&header.function_count);
        sane.then_some(header)
    }
}

/// The tables, in memory.
pub struct Tables {
    /// From the header to the end of the last table.
    bytes: Vec<u8>,
    /// The inline trees and whatever else lies among them, from the lowest tree on.
    trees: Vec<u8>,
    /// Position of the first byte of `trees`, counted from `moduledata.gofunc`.
    trees_start: u32,
    text: VirtAddr,
    etext: VirtAddr,
    quantum: u32,
    function_count: u32,
    before_120: bool,
    names: Part,
    cutab: Part,
    files: Part,
    pctab: Part,
    functions: Part,
}

/// A table within pclntab.
#[derive(Clone, Copy)]
struct Part {
    start: usize,
    end: usize,
}

/// A function's header, as far as it is used.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Start of the function, counted from the start of the code.
    pub entry: u32,
    /// Position of its name.
    pub name: u32,
    pcsp: u32,
    pcfile: u32,
    pcln: u32,
    cu: u32,
    /// Position of its table of inline tree indexes, 0 when there is none.
    inline_index: u32,
    /// Position of its inline tree, counted from `moduledata.gofunc`.
    inline_tree: Option<u32>,
}

/// One call that the compiler inlined.
#[derive(Clone, Copy, Debug)]
pub struct InlinedCall {
    /// Position of the name of the function that was inlined.
    pub name: u32,
    /// An instruction that stands for the place of the call, counted from the start of the function.
    pub parent: u32,
}

impl Tables {
    /// Reads the tables of the binary.
    #[must_use]
    pub fn read(elf: &Elf<'_>, at: VirtAddr, header: &Header, module: &ModuleData) -> Option<Self> {
        let bytes = elf.read(at, module.pclntab_bytes)?;
        let part = |start: u64, length: u64| {
            let end = start.checked_add(length)?;
            (end <= module.pclntab_bytes).then_some(Part {
                start: usize::try_from(start).ok()?,
                end: usize::try_from(end).ok()?,
            })
        };
        let mut tables = Self {
            trees: Vec::new(),
            trees_start: 0,
            text: module.text,
            etext: module.etext,
            quantum: header.quantum.into(),
            function_count: u32::try_from(header.function_count).ok()?,
            before_120: header.before_120,
            names: part(header.names, module.names_bytes)?,
            cutab: part(header.cutab, module.cutab_entries.checked_mul(4)?)?,
            files: part(header.files, module.files_bytes)?,
            pctab: part(header.pctab, module.pctab_bytes)?,
            functions: part(header.functions, module.functions_bytes)?,
            bytes,
        };
        // Eight bytes for each function must be there, so that a lying count ends here.
        tables.start_of(tables.function_count)?;
        tables.read_trees(elf, module.gofunc)?;
        Some(tables)
    }

    /// Reads the part of the function data that holds inline trees. Nothing tells its length, so take it from the first
    /// tree to somewhat beyond the last.
    fn read_trees(&mut self, elf: &Elf<'_>, gofunc: VirtAddr) -> Option<()> {
        let trees = || (0..self.function_count).filter_map(|index| self.entry(index)?.inline_tree);
        let (Some(first), Some(last)) = (trees().min(), trees().max()) else {
            return Some(());
        };
        let length = u64::from(last - first).checked_add(LAST_TREE_BYTES)?;
        let start = VirtAddr(gofunc.0.checked_add(first.into())?);
        self.trees = elf.read_up_to(start, length.min(MAX_TREES_BYTES))?;
        self.trees_start = first;
        Some(())
    }

    /// The code that the tables cover.
    #[must_use]
    pub fn code(&self) -> Range<VirtAddr> {
        self.text..self.etext
    }

    /// How many functions there are.
    #[must_use]
    pub fn function_count(&self) -> u32 {
        self.function_count
    }

    /// Linked address of a position in the code.
    #[must_use]
    pub fn address(&self, position: u32) -> VirtAddr {
        self.text.offset(position.into())
    }

    /// Position of an address in the code, if it is there.
    #[must_use]
    pub fn position(&self, address: VirtAddr) -> Option<u32> {
        let position = address.0.checked_sub(self.text.0)?;
        (address < self.etext).then(|| u32::try_from(position).ok())?
    }

    /// Where a function starts, counted from the start of the code; for the number of functions, where the last ends.
    #[must_use]
    pub fn start_of(&self, index: u32) -> Option<u32> {
        half_at(
            self.part(self.functions)?,
            usize::try_from(index).ok()?.checked_mul(8)?,
        )
    }

    /// The header of a function.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<Entry> {
        let functions = self.part(self.functions)?;
        let at = usize::try_from(index)
            .ok()?
            .checked_mul(8)?
            .checked_add(4)?;
        let start = usize::try_from(half_at(functions, at)?).ok()?;
        let header = functions.get(start..)?;
        let header_bytes = if self.before_120 { 40 } else { 44 };
        let pcdata_count = half_at(header, 28)?;
        let funcdata_count = *header.get(header_bytes - 1)?;
        let inline_index = if pcdata_count > PCDATA_INL_TREE_INDEX {
            half_at(header, header_bytes + 4 * PCDATA_INL_TREE_INDEX as usize)?
        } else {
            0
        };
        let inline_tree = if funcdata_count > FUNCDATA_INL_TREE {
            let skipped = usize::try_from(pcdata_count).ok()?;
            let number = skipped.checked_add(FUNCDATA_INL_TREE.into())?;
            let at = number.checked_mul(4)?.checked_add(header_bytes)?;
            Some(half_at(header, at)?).filter(|tree| *tree != u32::MAX)
        } else {
            None
        };
        Some(Entry {
            entry: half_at(header, 0)?,
            name: half_at(header, 4)?,
            pcsp: half_at(header, 16)?,
            pcfile: half_at(header, 20)?,
            pcln: half_at(header, 24)?,
            cu: half_at(header, 32)?,
            inline_index,
            inline_tree,
        })
    }

    /// The name at a position, as bytes.
    #[must_use]
    pub fn name(&self, position: u32) -> Option<&[u8]> {
        string_at(self.part(self.names)?, position)
    }

    /// The hash of the name and the index of every function, sorted. `None` when the names are longer, all told, than
    /// the table of names can hold a few times over: then many functions share a long one, which takes too long.
    #[must_use]
    pub fn by_name(&self, hash: fn(&[u8]) -> u32) -> Option<Vec<(u32, u32)>> {
        const SHARED: usize = 8;
        let mut left = self.part(self.names)?.len().checked_mul(SHARED)?;
        let mut by_name = Vec::new();
        for index in 0..self.function_count {
            let Some(entry) = self.entry(index) else {
                continue;
            };
            let name = self.name(entry.name);
            left = left.checked_sub(name.map_or(MAX_NAME_BYTES, <[u8]>::len))?;
            by_name.extend(name.map(|name| (hash(name), index)));
        }
        by_name.sort_unstable();
        by_name.shrink_to_fit();
        Some(by_name)
    }

    /// The file that the instruction at `position` comes from. `steps` is how far tables may still be followed.
    #[must_use]
    pub fn file(&self, function: &Entry, position: u32, steps: &mut usize) -> Option<&[u8]> {
        let number = self.value(function.pcfile, function.entry, position, steps)?;
        let number = u32::try_from(number).ok()?;
        let at = usize::try_from(function.cu.checked_add(number)?).ok()?;
        let file = half_at(self.part(self.cutab)?, at.checked_mul(4)?)?;
        string_at(self.part(self.files)?, file)
    }

    /// The line that the instruction at `position` comes from.
    #[must_use]
    pub fn line(&self, function: &Entry, position: u32, steps: &mut usize) -> Option<u32> {
        let line = self.value(function.pcln, function.entry, position, steps)?;
        u32::try_from(line).ok()
    }

    /// Bytes that the function has put on the stack when it reaches the instruction at `position`
    /// (src/runtime/symtab.go: funcspdelta).
    #[must_use]
    pub fn frame_bytes(&self, function: &Entry, position: u32) -> Option<u32> {
        let mut steps = MAX_FRAME_STEPS;
        let bytes = self.value(function.pcsp, function.entry, position, &mut steps)?;
        u32::try_from(bytes).ok()
    }

    /// The innermost inlined call that the instruction at `position` is part of.
    #[must_use]
    pub fn inlined_call(
        &self,
        function: &Entry,
        position: u32,
        steps: &mut usize,
    ) -> Option<InlinedCall> {
        let index = self.value(function.inline_index, function.entry, position, steps)?;
        let index = usize::try_from(index).ok()?;
        let tree = usize::try_from(function.inline_tree?.checked_sub(self.trees_start)?).ok()?;
        let (size, name, parent) = if self.before_120 {
            (20, 12, 16)
        } else {
            (16, 4, 8)
        };
        let at = index.checked_mul(size)?.checked_add(tree)?;
        let call = self.trees.get(at..)?;
        Some(InlinedCall {
            name: half_at(call, name)?,
            parent: half_at(call, parent)?,
        })
    }

    /// The value that the table at `table` gives for an instruction (src/runtime/symtab.go: pcvalue): runs of instructions
    /// with one value each, as differences. `None` also for the value -1, which stands for "none", and when there is
    /// none within so many steps, which are taken off `steps`.
    fn value(&self, table: u32, entry: u32, position: u32, steps: &mut usize) -> Option<i32> {
        if table == 0 {
            return None;
        }
        let mut bytes = self.part(self.pctab)?.get(usize::try_from(table).ok()?..)?;
        let mut value = -1_i32;
        let mut end = entry;
        let mut first = true;
        loop {
            *steps = steps.checked_sub(1)?;
            let difference = varint(&mut bytes)?;
            if difference == 0 && !first {
                return None;
            }
            first = false;
            // The lowest bit is the sign.
            let magnitude = (difference >> 1).cast_signed();
            let signed = if difference & 1 == 0 {
                magnitude
            } else {
                !magnitude
            };
            value = value.wrapping_add(signed);
            end = end.checked_add(varint(&mut bytes)?.checked_mul(self.quantum)?)?;
            if position < end {
                return (value != -1).then_some(value);
            }
        }
    }

    fn part(&self, part: Part) -> Option<&[u8]> {
        self.bytes.get(part.start..part.end)
    }
}

/// The string at a position in a table of strings that each end with a zero byte.
fn string_at(table: &[u8], position: u32) -> Option<&[u8]> {
    let rest = table.get(usize::try_from(position).ok()?..)?;
    let rest = rest.get(..MAX_NAME_BYTES).unwrap_or(rest);
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

/// A number in groups of seven bits, lowest first; `bytes` moves behind it.
fn varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_groups_of_seven_bits() {
        let mut bytes: &[u8] = &[0x05, 0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(varint(&mut bytes), Some(5));
        assert_eq!(varint(&mut bytes), Some(128));
        assert_eq!(varint(&mut bytes), Some(u32::MAX));
        assert_eq!(varint(&mut bytes), None);
        let mut endless: &[u8] = &[0xff; 9];
        assert_eq!(varint(&mut endless), None);
    }

    /// A function of 16 bytes at position 0x10: value 3 for its first 4 bytes, 2 for the rest.
    #[test]
    fn values_by_pc() {
        let pctab = vec![0, /* +4 */ 8, 4, /* -1 */ 1, 12, 0];
        let all = Part {
            start: 0,
            end: pctab.len(),
        };
        let tables = Tables {
            bytes: pctab,
            trees: Vec::new(),
            trees_start: 0,
            text: VirtAddr(0x1000),
            etext: VirtAddr(0x2000),
            quantum: 1,
            function_count: 0,
            before_120: false,
            names: all,
            cutab: all,
            files: all,
            pctab: all,
            functions: all,
        };
        let value = |table, position| tables.value(table, 0x10, position, &mut 10);
        assert_eq!(value(1, 0x10), Some(3));
        assert_eq!(value(1, 0x13), Some(3));
        assert_eq!(value(1, 0x14), Some(2));
        assert_eq!(value(1, 0x1f), Some(2));
        assert_eq!(value(1, 0x20), None);
        assert_eq!(value(0, 0x10), None);
        assert_eq!(value(99, 0x10), None);
        // Each run costs a step, and without steps there is no answer.
        let mut steps = 3;
        assert_eq!(tables.value(1, 0x10, 0x14, &mut steps), Some(2));
        assert_eq!(steps, 1);
        assert_eq!(tables.value(1, 0x10, 0x14, &mut steps), None);
    }

    /// Functions that all have the name at position 0.
    fn namesakes(name: &[u8], count: u32) -> Tables {
        let (name_bytes, table_bytes) = (name.len(), count as usize * 8 + 4);
        let mut bytes = name.to_vec();
        for index in 0..count {
            bytes.extend(index.to_le_bytes());
            // All share one header, behind the table.
            bytes.extend(
                u32::try_from(table_bytes)
                    .expect("a small table")
                    .to_le_bytes(),
            );
        }
        bytes.extend(count.to_le_bytes());
        bytes.extend([0; 44]);
        let end = bytes.len();
        let part = |start, end| Part { start, end };
        Tables {
            bytes,
            trees: Vec::new(),
            trees_start: 0,
            text: VirtAddr(0x1000),
            etext: VirtAddr(0x2000),
            quantum: 1,
            function_count: count,
            before_120: false,
            names: part(0, name_bytes),
            cutab: part(0, 0),
            files: part(0, 0),
            pctab: part(0, 0),
            functions: part(name_bytes, end),
        }
    }

    #[test]
    fn a_long_name_of_many_functions_is_not_read_again_and_again() {
        let length = |name: &[u8]| u32::try_from(name.len()).unwrap_or(0);
        let found = namesakes(b"main\0", 3).by_name(length);
        assert_eq!(found, Some(vec![(4, 0), (4, 1), (4, 2)]));
        let mut long = vec![b'x'; 60_000];
        long.push(0);
        assert_eq!(namesakes(&long, 500_000).by_name(length), None);
        // Nor is one that does not end.
        assert_eq!(
            namesakes(&vec![b'x'; 1 << 17], 500_000).by_name(length),
            None
        );
    }

    #[test]
    fn headers_for_another_machine_or_release_are_not_taken() {
        let mut bytes = vec![0; 72];
        bytes[..8].copy_from_slice(&[0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]);
        bytes[8] = 1;
        for (at, value) in [(32, 72), (40, 80), (48, 88), (56, 96), (64, 104)] {
            bytes[at] = value;
        }
        assert!(Header::read(&bytes, Arch::Amd64).is_some());
        assert_eq!(Header::read(&bytes, Arch::Arm64), None);
        assert_eq!(Header::read(&bytes[..71], Arch::Amd64), None);
        bytes[0] = 0xfa;
        assert_eq!(Header::read(&bytes, Arch::Amd64), None);
    }
}
