//! Debug information as bytes.
//!
//! Form: a byte that says how it is stored (0 plain, 1 as `SHF_COMPRESSED`, 2 as `.zdebug_`, more: the bytes are the
//! stream itself), the length of the abbreviations (2 bytes), the abbreviations, the units.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::elf_file::{ElfFile, READABLE, Section, Segment};
use crate::{number, take};

/// An ELF file with this debug information.
#[must_use]
pub fn file(mut data: &[u8]) -> Vec<u8> {
    let data = &mut data;
    let storage = number(data, 1);
    let length = usize::try_from(number(data, 2)).unwrap_or(0);
    let abbreviations = take(data, length);
    let sections = [(".debug_abbrev", abbreviations), (".debug_info", data)]
        .map(|(name, bytes)| section(storage, name, bytes));
    ElfFile {
        segments: vec![Segment {
            address: 0x40_0000,
            flags: READABLE,
            bytes: vec![0; 16],
        }],
        sections: sections.into(),
        ..ElfFile::default()
    }
    .bytes()
}

fn section(storage: u64, name: &'static str, bytes: &[u8]) -> Section {
    let old_name = match name {
        ".debug_abbrev" => ".zdebug_abbrev",
        _ => ".zdebug_info",
    };
    let stream = if storage > 2 {
        bytes.to_vec()
    } else {
        deflate(bytes)
    };
    match storage {
        0 => Section::unloaded(name, bytes.to_vec()),
        1 | 3 => {
            let mut header = 1_u64.to_le_bytes().to_vec();
            header.extend((bytes.len() as u64).to_le_bytes());
            header.extend(1_u64.to_le_bytes());
            header.extend(stream);
            Section {
                flags: 0x800,
                ..Section::unloaded(name, header)
            }
        }
        _ => {
            let mut header = b"ZLIB".to_vec();
            header.extend((bytes.len() as u64).to_be_bytes());
            header.extend(stream);
            Section::unloaded(old_name, header)
        }
    }
}

/// The bytes as a zlib stream.
#[must_use]
pub fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Writing to a vector cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}
