//! A pclntab as bytes, in an ELF file whose module data agrees with its header: what lies deeper gets read.
//!
//! Form: the number of the release whose offsets apply, the length of the inline trees (2 bytes), the trees, the table.

use leaktrace::resolve::offsets::Offsets;

use crate::elf_file::{EXECUTABLE, ElfFile, READABLE, Section, Segment, WRITABLE};
use crate::{number, offsets_of, take};

const TEXT: u64 = 0x40_0000;
const TABLE: u64 = 0x100_0000;
const MODULE: u64 = 0x200_0000;
const TREES: u64 = 0x300_0000;

/// The file, and the offsets to read it with.
#[must_use]
pub fn file(mut data: &[u8]) -> (Vec<u8>, &'static Offsets) {
    let data = &mut data;
    let offsets = offsets_of(u8::try_from(number(data, 1)).unwrap_or(0));
    let length = usize::try_from(number(data, 2)).unwrap_or(0);
    let trees = take(data, length).to_vec();
    let table = data.to_vec();
    let segment = |address, flags, bytes| Segment {
        address,
        flags,
        bytes,
    };
    let file = ElfFile {
        arm64: table.get(6) == Some(&4),
        segments: vec![
            segment(TEXT, EXECUTABLE, vec![0; 16]),
            segment(MODULE, WRITABLE, module_data(&table, offsets)),
            segment(TREES, READABLE, trees),
            segment(TABLE, READABLE, table),
        ],
        sections: vec![Section::named(".gopclntab", TABLE)],
        ..ElfFile::default()
    };
    (file.bytes(), offsets)
}

/// Module data that says about the table what its header says.
fn module_data(table: &[u8], offsets: &Offsets) -> Vec<u8> {
    let header = |at: usize| {
        let mut rest = table.get(at..).unwrap_or_default();
        number(&mut rest, 8)
    };
    let starts: Vec<u64> = [32, 40, 48, 56, 64].map(header).to_vec();
    let mut words = vec![0_u64; 128];
    let mut put = |at: u64, word: u64| {
        if let Some(place) = words.get_mut(usize::try_from(at / 8).unwrap_or(usize::MAX)) {
            *place = word;
        }
    };
    put(0, TABLE);
    // Names, files by unit (entries of 32 bits), files, tables by pc: each ends where the next starts.
    for (index, at) in [(0, 8), (1, 32), (2, 56), (3, 80)] {
        let length = starts[index + 1].saturating_sub(starts[index]);
        let length = if index == 1 { length / 4 } else { length };
        put(at, TABLE.wrapping_add(starts[index]));
        put(at + 8, length);
    }
    put(104, TABLE.wrapping_add(starts[4]));
    put(112, (table.len() as u64).saturating_sub(starts[4]));
    put(128, TABLE.wrapping_add(starts[4]));
    put(136, header(8).wrapping_add(1));
    put(offsets.moduledata_text.into(), TEXT);
    put(offsets.moduledata_etext.into(), TEXT + (16 << 20));
    put(offsets.moduledata_gofunc.into(), TREES);
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
