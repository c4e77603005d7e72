//! Where the fields of the runtime's structures lie, from the debug information of the binary itself.
//!
//! Go puts its types into a compile unit named `runtime` (DWARF 4, and 5 from Go 1.25), somewhere in the middle of
//! `.debug_info`, which is tens of megabytes in a big server and usually compressed. So the section is read as a
//! stream, one unit at a time; units with another name are skipped, and reading ends with the unit that has the types.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read};
use std::ops::RangeInclusive;

use flate2::read::ZlibDecoder;
use gimli::{Abbreviations, EndianSlice, LittleEndian};

use super::elf::{Elf, half_at, word_at};
use super::heap::HeapOffsets;
use super::offsets::Offsets;
use crate::address::FileOffset;

/// A unit outside of this is passed over, not kept in memory. The one with the types of package runtime has some
/// hundred thousand bytes; small ones, of which there may be a great many, are of assembly files and C code.
const UNIT_BYTES: RangeInclusive<u64> = 4 << 10..=16 << 20;
/// Go's abbreviations take a few hundred bytes; those of C code linked in may take more.
const MAX_ABBREV_BYTES: u64 = 16 << 20;
/// The abbreviations of one unit. Where they are longer, the unit is not Go's.
const MAX_UNIT_ABBREV_BYTES: usize = 8 << 10;
/// How often the abbreviations of another unit are read. Go's units all have the same.
const MAX_ABBREV_READS: u32 = 4096;
/// Attributes of one entry: Go's have ten at most.
const MAX_ATTRIBUTES: usize = 64;
/// Bytes of units named `runtime` that are looked through.
const MAX_RUNTIME_BYTES: usize = 32 << 20;
/// Strings outside of the units. Go has next to none.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// A table of debug information that inflates beyond this is not worth waiting for.
const MAX_INFO_BYTES: u64 = 512 << 20;

/// No structure of the runtime is this large (`runtime.p`, the largest, has 16 KB). Who reads a structure relies on it.
const MAX_OFFSET: u64 = 1 << 16;
/// But for `runtime.mheap`, of which one field is read by itself.
const MAX_HEAP_OFFSET: u64 = 1 << 24;

/// Reads the offsets; `None` when the binary has no debug information, or not enough of it.
#[must_use]
pub fn offsets(elf: &Elf<'_>) -> Option<Offsets> {
    read(elf).map(|(offsets, _)| offsets)
}

/// The same, and those of the heap, if they are there.
#[must_use]
pub fn read(elf: &Elf<'_>) -> Option<(Offsets, Option<HeapOffsets>)> {
    let abbreviations = read_all(elf, "abbrev", MAX_ABBREV_BYTES)?;
    let strings = read_all(elf, "str", MAX_STRING_BYTES).unwrap_or_default();
    let mut wanted = Wanted::new();
    let mut info = section(elf, "info")?.take(MAX_INFO_BYTES);
    while let Some(unit) = next_unit(&mut info) {
        // A unit that cannot be read is passed over: what is then missing shows below.
        let _: Option<()> = wanted.read_unit(&unit, &abbreviations, &strings);
        // Other units have the same name (assembly files), but one of them has all the types.
        if !wanted.found.is_empty() {
            break;
        }
    }
    let lookup = |name: &str| wanted.found.get(name).copied();
    let offsets = Offsets::collect(lookup).ok()?;
    Some((offsets, HeapOffsets::collect(lookup)))
}

/// The members looked for, and those found.
struct Wanted {
    /// `runtime.g` and so on: structures not seen yet.
    structures: BTreeSet<String>,
    /// `g.goid` and so on.
    members: BTreeSet<&'static str>,
    found: BTreeMap<&'static str, u32>,
    /// The abbreviations read last, with their offset, and how many were read before.
    abbreviations: (u64, Abbreviations),
    abbreviation_reads: u32,
    runtime_bytes: usize,
}

impl Wanted {
    fn new() -> Self {
        let members: BTreeSet<&str> = Offsets::NAMES
            .iter()
            .flat_map(|names| names.iter())
            .flat_map(|name| name.split('+'))
            .chain(HeapOffsets::NAMES)
            .collect();
        Self {
            structures: members
                .iter()
                .filter_map(|name| Some(format!("runtime.{}", name.split_once('.')?.0)))
                .collect(),
            members,
            found: BTreeMap::new(),
            abbreviations: (u64::MAX, Abbreviations::default()),
            abbreviation_reads: 0,
            runtime_bytes: 0,
        }
    }

    /// Takes the wanted structures out of a unit if it is one of package runtime.
    fn read_unit(&mut self, unit: &[u8], abbreviations: &[u8], strings: &[u8]) -> Option<()> {
        let header = gimli::DebugInfo::new(unit, LittleEndian)
            .units()
            .next()
            .ok()??;
        let offset = header.debug_abbrev_offset().0;
        if self.abbreviations.0 != offset as u64 {
            self.abbreviation_reads = self.abbreviation_reads.checked_add(1)?;
            if self.abbreviation_reads > MAX_ABBREV_READS {
                return None;
            }
            let rest = abbreviations.get(offset..)?;
            let own = rest.get(..MAX_UNIT_ABBREV_BYTES).unwrap_or(rest);
            let read = gimli::DebugAbbrev::new(own, LittleEndian)
                .abbreviations(gimli::DebugAbbrevOffset(0));
            self.abbreviations = (offset as u64, read.ok()?);
        }
        let abbreviations = &self.abbreviations.1;
        let strings = gimli::DebugStr::new(strings, LittleEndian);
        let name = |value: &gimli::AttributeValue<EndianSlice<'_, LittleEndian>>| {
            let bytes = value.string_value(&strings)?;
            str::from_utf8(bytes.slice()).ok().map(str::to_owned)
        };
        let mut entries = header.entries(abbreviations);
        let root = entries.next_dfs().ok()??;
        if name(&root.attr_value(gimli::DW_AT_name)?)? != "runtime" {
            return None;
        }
        self.runtime_bytes = self.runtime_bytes.checked_add(unit.len())?;
        if self.runtime_bytes > MAX_RUNTIME_BYTES {
            return None;
        }
        // The structure that the entries at hand belong to.
        let mut inside: Option<String> = None;
        while let Some(entry) = entries.next_dfs().ok()? {
            // Attributes may take no bytes at all, so that a short unit could hold any number of them.
            if entry.attrs().len() > MAX_ATTRIBUTES {
                return None;
            }
            match (entry.depth(), entry.tag()) {
                (1, gimli::DW_TAG_structure_type) => {
                    inside = entry
                        .attr_value(gimli::DW_AT_name)
                        .and_then(|value| name(&value))
                        .filter(|name| self.structures.remove(name));
                }
                (1, _) => inside = None,
                (2, gimli::DW_TAG_member) => {
                    let Some(structure) = &inside else { continue };
                    let short = structure.strip_prefix("runtime.").unwrap_or(structure);
                    let Some(member) = entry.attr_value(gimli::DW_AT_name).and_then(|v| name(&v))
                    else {
                        continue;
                    };
                    let offset = entry.attr_value(gimli::DW_AT_data_member_location);
                    let offset = offset
                        .and_then(|value| value.udata_value())
                        .filter(|offset| {
                            *offset
                                < match short {
                                    "mheap" => MAX_HEAP_OFFSET,
                                    _ => MAX_OFFSET,
                                }
                        });
                    let known = self.members.get(format!("{short}.{member}").as_str());
                    if let (Some(known), Some(offset)) = (known, offset) {
                        self.found.insert(known, u32::try_from(offset).ok()?);
                    }
                }
                _ => {}
            }
        }
        Some(())
    }
}

/// The next unit of `.debug_info`, its length included; empty when it was passed over.
fn next_unit(info: &mut impl Read) -> Option<Vec<u8>> {
    let mut unit = vec![0; 4];
    info.read_exact(&mut unit).ok()?;
    // Go's linker writes the 32-bit format only; the 64-bit one has 0xffffffff here and ends the search.
    let length = u64::from(half_at(&unit, 0)?);
    if length >= 0xffff_fff0 {
        return None;
    }
    let mut body = info.take(length);
    if !UNIT_BYTES.contains(&length) {
        io::copy(&mut body, &mut io::sink()).ok()?;
        return Some(Vec::new());
    }
    let read = body.read_to_end(&mut unit).ok()?;
    (u64::try_from(read).ok()? == length).then_some(unit)
}

/// All of a debug section, inflated, unless it is longer than `limit`.
fn read_all(elf: &Elf<'_>, name: &str, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = section(elf, name)?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    (u64::try_from(read).ok()? < limit).then_some(bytes)
}

/// The bytes of `.debug_<name>`, inflated as they are read.
fn section<'e>(elf: &'e Elf<'_>, name: &str) -> Option<Box<dyn Read + 'e>> {
    const ZLIB: u32 = 1;
    let stream = |start: u64, size: u64, skip: u64| -> Option<SectionReader<'e, '_>> {
        Some(SectionReader {
            elf,
            at: start.checked_add(skip)?,
            end: start.checked_add(size)?,
        })
    };
    if let Some(section) = elf.section(&format!(".debug_{name}")) {
        let (start, size) = (section.file_offset.0, section.size);
        if !section.compressed {
            return Some(Box::new(BufReader::new(stream(start, size, 0)?)));
        }
        // Elf64_Chdr: type, reserved, size, alignment; 24 bytes. Go compresses with zlib only.
        let header = elf.read_file(section.file_offset, 24)?;
        return (half_at(&header, 0)? == ZLIB && word_at(&header, 8).is_some())
            .then(|| stream(start, size, 24).map(inflate))?;
    }
    // Before Go 1.19: "ZLIB", the size as eight bytes, big-endian, then the stream.
    let section = elf.section(&format!(".zdebug_{name}"))?;
    let header = elf.read_file(section.file_offset, 12)?;
    header.starts_with(b"ZLIB").then_some(())?;
    stream(section.file_offset.0, section.size, 12).map(inflate)
}

fn inflate<'r>(compressed: impl Read + 'r) -> Box<dyn Read + 'r> {
    Box::new(BufReader::new(ZlibDecoder::new(BufReader::with_capacity(
        1 << 16,
        compressed,
    ))))
}

/// Reads a part of the file from front to back.
struct SectionReader<'e, 'f> {
    elf: &'e Elf<'f>,
    at: u64,
    end: u64,
}

impl Read for SectionReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at);
        let count = left.min(buffer.len() as u64);
        let bytes = self
            .elf
            .read_file(FileOffset(self.at), count)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let target = buffer
            .get_mut(..bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        target.copy_from_slice(&bytes);
        self.at = self.at.saturating_add(count);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abbreviations of a unit named `runtime`, and of a structure with so many attributes that take no room.
    fn abbreviations(attributes: usize) -> Vec<u8> {
        // DW_TAG_compile_unit with children, DW_AT_name as a string.
        let mut bytes = vec![1, 0x11, 1, 0x03, 0x08, 0, 0];
        // DW_TAG_structure_type without, DW_FORM_flag_present.
        bytes.extend([2, 0x13, 0]);
        for _ in 0..attributes {
            bytes.extend([0x3c, 0x19]);
        }
        bytes.extend([0, 0, 0]);
        bytes
    }

    /// A unit of DWARF 4 with that many structures.
    fn unit(structures: usize) -> Vec<u8> {
        let mut body = vec![4, 0, 0, 0, 0, 0, 8, 1];
        body.extend(b"runtime\0");
        body.extend(vec![2; structures]);
        body.push(0);
        let length = u32::try_from(body.len()).expect("a small unit");
        [&length.to_le_bytes(), body.as_slice()].concat()
    }

    #[test]
    fn entries_full_of_nothing_are_not_read_through() {
        let mut wanted = Wanted::new();
        assert_eq!(
            wanted.read_unit(&unit(100), &abbreviations(3), &[]),
            Some(())
        );
        // Two thousand attributes in each of ten million entries would take minutes.
        let bomb = abbreviations(2000);
        assert_eq!(Wanted::new().read_unit(&unit(10 << 20), &bomb, &[]), None);
        assert_eq!(
            Wanted::new().read_unit(&unit(1), &abbreviations(65), &[]),
            None
        );
    }

    #[test]
    fn units_named_runtime_are_read_so_far_and_no_further() {
        let mut wanted = Wanted::new();
        let large = unit(9 << 20);
        let few = abbreviations(1);
        for _ in 0..3 {
            assert_eq!(wanted.read_unit(&large, &few, &[]), Some(()));
        }
        assert_eq!(wanted.read_unit(&large, &few, &[]), None);
    }

    #[test]
    fn abbreviations_are_read_again_only_so_often() {
        let two = [abbreviations(1), abbreviations(1)].concat();
        let mut other = unit(1);
        other[6] = u8::try_from(two.len() / 2).expect("a short table");
        let units = [unit(1), other];
        let mut wanted = Wanted::new();
        let mut read = 0;
        for number in 0..10_000 {
            let unit = units.get(number % 2).expect("one of two");
            read += u32::from(wanted.read_unit(unit, &two, &[]).is_some());
        }
        // Those that need none read anew are read on.
        assert_eq!(read, MAX_ABBREV_READS + (10_000 - MAX_ABBREV_READS) / 2);
    }

    #[test]
    fn units_too_small_or_too_large_for_the_types_are_passed_over() {
        let huge = (17_u32 << 20).to_le_bytes();
        let mut info =
            io::Cursor::new([unit(1), unit(5000), huge.to_vec(), vec![0; 17 << 20]].concat());
        assert_eq!(next_unit(&mut info), Some(Vec::new()));
        assert_eq!(next_unit(&mut info), Some(unit(5000)));
        assert_eq!(next_unit(&mut info), Some(Vec::new()));
        assert_eq!(next_unit(&mut info), None);
    }
}
