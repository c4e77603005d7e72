//! The types of package runtime that leaktrace reads, cut out of a program's debug information.

use std::io::Read as _;

use flate2::read::ZlibDecoder;
use gimli::{EndianSlice, LittleEndian, UnitOffset};
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::offsets::Offsets;

/// The abbreviations, and one unit; `None` when the program has no debug information.
pub fn runtime_types(elf: &Elf<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let abbreviations = section(elf, ".debug_abbrev")?;
    let info = section(elf, ".debug_info")?;
    let strings = section(elf, ".debug_str").unwrap_or_default();
    let strings = gimli::DebugStr::new(&strings, LittleEndian);
    let debug_info = gimli::DebugInfo::new(&info, LittleEndian);
    let mut units = debug_info.units();
    while let Ok(Some(header)) = units.next() {
        let table = gimli::DebugAbbrev::new(&abbreviations, LittleEndian)
            .abbreviations(header.debug_abbrev_offset())
            .ok()?;
        let name = |value: Option<gimli::AttributeValue<EndianSlice<'_, LittleEndian>>>| {
            let bytes = value?.string_value(&strings)?;
            Some(String::from_utf8_lossy(bytes.slice()).into_owned())
        };
        let mut entries = header.entries(&table);
        let root = entries.next_dfs().ok()??;
        if name(root.attr_value(gimli::DW_AT_name)).as_deref() != Some("runtime") {
            continue;
        }
        // (start, end) of the entries to keep, counted from the unit's start.
        let mut kept: Vec<(UnitOffset, UnitOffset)> = Vec::new();
        let mut open = Some(root.offset());
        while let Ok(Some(entry)) = entries.next_dfs() {
            if entry.depth() > 1 {
                continue;
            }
            if let Some(start) = open.take() {
                kept.push((start, entry.offset()));
            }
            let is_structure = entry.tag() == gimli::DW_TAG_structure_type;
            if is_structure
                && name(entry.attr_value(gimli::DW_AT_name)).is_some_and(|name| is_wanted(&name))
            {
                open = Some(entry.offset());
            }
        }
        if kept.len() < 2 {
            continue;
        }
        let start = header.debug_info_offset()?.0;
        let first = kept.first()?.0.0;
        let mut unit = info.get(start..start + first)?.to_vec();
        for (from, to) in kept {
            unit.extend(info.get(start + from.0..start + to.0)?);
        }
        // The end of the root's children.
        unit.push(0);
        let length = u32::try_from(unit.len() - 4).ok()?;
        unit.get_mut(..4)?.copy_from_slice(&length.to_le_bytes());
        return Some((abbreviations, unit));
    }
    None
}

fn is_wanted(structure: &str) -> bool {
    let mut names = Offsets::NAMES
        .iter()
        .flat_map(|names| names.iter())
        .flat_map(|name| name.split('+'));
    structure.strip_prefix("runtime.").is_some_and(|short| {
        names.any(|name| {
            name.split_once('.')
                .is_some_and(|(owner, _)| owner == short)
        })
    })
}

/// A debug section, inflated.
fn section(elf: &Elf<'_>, name: &str) -> Option<Vec<u8>> {
    let section = elf.section(name)?;
    let bytes = elf.read_file(section.file_offset, section.size)?;
    if !section.compressed {
        return Some(bytes);
    }
    let mut inflated = Vec::new();
    ZlibDecoder::new(bytes.get(24..)?)
        .read_to_end(&mut inflated)
        .ok()?;
    Some(inflated)
}
