//! A pclntab with a few of the functions of another, everything renumbered.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use leaktrace::address::VirtAddr;
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::moduledata::{self, ModuleData};
use leaktrace::resolve::offsets::Offsets;
use leaktrace::resolve::pclntab::raw::{HEADER_BYTES, Header};

/// The table of a program.
pub struct Original {
    /// Where it lies.
    pub address: VirtAddr,
    /// What its module data says.
    pub module: ModuleData,
    header: Header,
    bytes: Vec<u8>,
    trees: Vec<u8>,
}

/// A small table.
pub struct Small {
    /// The table, from its header on.
    pub table: Vec<u8>,
    /// The inline trees of its functions.
    pub trees: Vec<u8>,
    /// Bytes of each part: names, files by unit, files, tables by pc.
    pub parts: [u64; 4],
    /// Where the table of functions starts.
    pub functions: u64,
    /// How many functions it has.
    pub count: u64,
}

/// The index of the pc data, and of the function data, that tell inlined calls (src/internal/abi/symtab.go).
const INLINE_INDEX: usize = 2;
const INLINE_TREE: usize = 3;

impl Original {
    pub fn read(elf: &Elf<'_>, offsets: &Offsets) -> Result<Self> {
        let found = elf
            .search(|_| true, 8, |bytes| Header::starts(bytes, elf.arch()))
            .find_map(|address| {
                let header = Header::read(&elf.read(address, HEADER_BYTES)?, elf.arch())?;
                let module = moduledata::find(elf, address, &header, offsets)?;
                Some((address, header, module))
            });
        let (address, header, module) = found.context("no pclntab")?;
        let bytes = elf.read(address, module.pclntab_bytes);
        let trees = elf.read_up_to(module.gofunc, 4 << 20);
        Ok(Self {
            address,
            header,
            bytes: bytes.context("pclntab is not in the file")?,
            trees: trees.context("the function data is not in the file")?,
            module,
        })
    }

    /// The table of the functions that start at these addresses.
    pub fn keep(&self, entries: &[VirtAddr]) -> Result<Small> {
        let mut kept: Vec<u32> = Vec::new();
        let count = u32::try_from(self.header.function_count)?;
        for entry in entries {
            let position = u32::try_from(entry.0 - self.module.text.0)?;
            let index = (0..count).find(|index| self.start_of(*index) == Some(position));
            kept.push(index.context("a function's index")?);
        }
        kept.sort_unstable();
        kept.dedup();
        let mut writer = Writer {
            original: self,
            names: vec![0],
            files: Vec::new(),
            cutab: Vec::new(),
            units: BTreeMap::new(),
            used: BTreeMap::new(),
            pctab: vec![0],
            trees: Vec::new(),
        };
        for index in &kept {
            writer.note_files(*index).context("a function's files")?;
        }
        let mut entries = Vec::new();
        for index in kept {
            let start = self.start_of(index).context("a function's start")?;
            let end = self.start_of(index + 1).context("a function's end")?;
            let header = writer.function(index).context("a function's header")?;
            // What lay between two functions is one that nobody knows anything about.
            if let Some((last, header)) = entries.last_mut()
                && *last == start
            {
                *header = Vec::new();
                entries.pop();
            }
            entries.push((start, header));
            entries.push((end, vec![0; 44]));
        }
        writer.finish(&entries)
    }

    fn functions(&self) -> Option<&[u8]> {
        self.bytes
            .get(usize::try_from(self.header.functions).ok()?..)
    }

    fn start_of(&self, index: u32) -> Option<u32> {
        half(self.functions()?, index as usize * 8)
    }

    fn before_120(&self) -> bool {
        self.bytes.first() == Some(&0xf0)
    }

    /// The table by pc at a position: its bytes, and the values in it (src/runtime/symtab.go: pcvalue).
    fn values(&self, position: u32) -> Option<(&[u8], Vec<i32>)> {
        let start = usize::try_from(self.header.pctab).ok()? + position as usize;
        let table = self.bytes.get(start..)?;
        let (mut value, mut used) = (-1_i32, 0);
        let mut values = Vec::new();
        loop {
            let difference = varint(table, &mut used)?;
            if difference == 0 && used > 1 {
                return Some((table.get(..used)?, values));
            }
            let magnitude = (difference >> 1).cast_signed();
            value += if difference & 1 == 0 {
                magnitude
            } else {
                !magnitude
            };
            values.push(value);
            varint(table, &mut used)?;
        }
    }

    /// The string at a position of a part of the table.
    fn string(&self, part: u64, position: u32) -> Option<&[u8]> {
        let rest = self
            .bytes
            .get(usize::try_from(part).ok()? + position as usize..)?;
        rest.split_inclusive(|byte| *byte == 0).next()
    }
}

struct Writer<'o> {
    original: &'o Original,
    names: Vec<u8>,
    files: Vec<u8>,
    cutab: Vec<u32>,
    /// Where the list of each unit's files went.
    units: BTreeMap<u32, u32>,
    /// Which of each unit's files are used.
    used: BTreeMap<u32, BTreeSet<u32>>,
    pctab: Vec<u8>,
    trees: Vec<u8>,
}

impl Writer<'_> {
    /// A function's header with the lists behind it, and the size of the fixed part.
    fn header(&self, index: u32) -> Option<(Vec<u8>, usize)> {
        let functions = self.original.functions()?;
        let start = half(functions, index as usize * 8 + 4)? as usize;
        let fixed = if self.original.before_120() { 40 } else { 44 };
        let header = functions.get(start..)?;
        let pcdata = half(header, 28)? as usize;
        let funcdata = usize::from(*header.get(fixed - 1)?);
        let length = fixed + 4 * (pcdata + funcdata);
        Some((header.get(..length)?.to_vec(), fixed))
    }

    fn note_files(&mut self, index: u32) -> Option<()> {
        let (header, _) = self.header(index)?;
        let (_, values) = self.original.values(half(&header, 20)?)?;
        let used = self.used.entry(half(&header, 32)?).or_default();
        used.extend(
            values
                .into_iter()
                .filter_map(|value| u32::try_from(value).ok()),
        );
        Some(())
    }

    /// Copies a function's header and all that it points to.
    fn function(&mut self, index: u32) -> Option<Vec<u8>> {
        let (mut copy, fixed) = self.header(index)?;
        let pcdata = half(&copy, 28)? as usize;
        let funcdata = usize::from(*copy.get(fixed - 1)?);
        self.rename(&mut copy, 4)?;
        for at in [16, 20, 24] {
            self.values(&mut copy, at)?;
        }
        let unit = self.unit(half(&copy, 32)?)?;
        put(&mut copy, 32, unit)?;
        let mut highest_call = -1;
        for number in 0..pcdata {
            let highest = self.values(&mut copy, fixed + 4 * number)?;
            if number == INLINE_INDEX {
                highest_call = highest;
            }
        }
        for number in 0..funcdata {
            let at = fixed + 4 * (pcdata + number);
            let tree = half(&copy, at)?;
            let moved = if number == INLINE_TREE && tree != u32::MAX && highest_call >= 0 {
                self.tree(tree, usize::try_from(highest_call).ok()? + 1)?
            } else {
                u32::MAX
            };
            put(&mut copy, at, moved)?;
        }
        Some(copy)
    }

    fn rename(&mut self, bytes: &mut [u8], at: usize) -> Option<()> {
        let original = self.original;
        let name = original.string(original.header.names, half(bytes, at)?)?;
        let moved = u32::try_from(self.names.len()).ok()?;
        self.names.extend(name);
        put(bytes, at, moved)
    }

    /// Copies the table by pc whose position is at `at`; answers the highest value in it.
    fn values(&mut self, header: &mut [u8], at: usize) -> Option<i32> {
        let position = half(header, at)?;
        if position == 0 {
            return Some(-1);
        }
        let (table, values) = self.original.values(position)?;
        let moved = u32::try_from(self.pctab.len()).ok()?;
        self.pctab.extend(table);
        put(header, at, moved)?;
        values.into_iter().max()
    }

    /// Copies the list of a unit's files, with the names of those that are used.
    fn unit(&mut self, unit: u32) -> Option<u32> {
        if let Some(known) = self.units.get(&unit) {
            return Some(*known);
        }
        let original = self.original;
        let used = self.used.get(&unit)?;
        let moved = u32::try_from(self.cutab.len()).ok()?;
        let start = usize::try_from(original.header.cutab).ok()?;
        for number in 0..=*used.last()? {
            let mut place = u32::MAX;
            if used.contains(&number) {
                let file = half(&original.bytes, start + (unit + number) as usize * 4)?;
                place = u32::try_from(self.files.len()).ok()?;
                self.files
                    .extend(original.string(original.header.files, file)?);
            }
            self.cutab.push(place);
        }
        self.units.insert(unit, moved);
        Some(moved)
    }

    fn tree(&mut self, position: u32, calls: usize) -> Option<u32> {
        let (size, name) = if self.original.before_120() {
            (20, 12)
        } else {
            (16, 4)
        };
        let start = position as usize;
        let trees = &self.original.trees;
        let mut copy = trees.get(start..start + size * calls)?.to_vec();
        for call in copy.chunks_exact_mut(size) {
            self.rename(call, name)?;
        }
        let moved = u32::try_from(self.trees.len()).ok()?;
        self.trees.extend(copy);
        Some(moved)
    }

    fn finish(mut self, entries: &[(u32, Vec<u8>)]) -> Result<Small> {
        ensure!(!entries.is_empty(), "no function is kept");
        let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
        align(&mut self.names);
        align(&mut self.files);
        align(&mut self.pctab);
        let mut cutab: Vec<u8> = self.cutab.iter().flat_map(|at| at.to_le_bytes()).collect();
        align(&mut cutab);
        // The last entry marks the end and has no header.
        let count = entries.len() - 1;
        let mut table = Vec::new();
        let mut headers: Vec<u8> = Vec::new();
        for (start, header) in entries {
            let at = entries.len() * 8 + headers.len();
            table.extend(start.to_le_bytes());
            table.extend(u32::try_from(at)?.to_le_bytes());
            headers.extend(header);
        }
        table.extend(headers);
        let mut bytes = self.original.bytes[..72].to_vec();
        let mut place =
            |at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        let parts = [&self.names, &cutab, &self.files, &self.pctab].map(|part| part.len() as u64);
        place(8, count as u64);
        place(16, 0);
        let mut start = HEADER_BYTES;
        for (at, length) in [32, 40, 48, 56].into_iter().zip(parts) {
            place(at, start);
            start += length;
        }
        place(64, start);
        for part in [self.names, cutab, self.files, self.pctab, table] {
            bytes.extend(part);
        }
        Ok(Small {
            table: bytes,
            trees: self.trees,
            parts,
            functions: start,
            count: count as u64,
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let half = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*half))
}

fn put(bytes: &mut [u8], at: usize, value: u32) -> Option<()> {
    bytes
        .get_mut(at..at + 4)?
        .copy_from_slice(&value.to_le_bytes());
    Some(())
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
