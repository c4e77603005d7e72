//! Files that claim to be larger than they can be: sparse ones, and tables that cover the same bytes again and again.

use std::cell::Cell;
use std::io;

use leaktrace::census::{CoreError, CoreFile};
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::{self, ReadAt, Refusal};

use crate::allocation;

const MOST_BYTES: usize = 256 << 20;

/// A few bytes, and a terabyte of zeros behind them.
struct Sparse {
    start: Vec<u8>,
    read: Cell<u64>,
}

impl ReadAt for Sparse {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.set(self.read.get() + buffer.len() as u64);
        buffer.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.start.get(start..).unwrap_or_default();
        let length = there.len().min(buffer.len());
        buffer[..length].copy_from_slice(&there[..length]);
        Ok(())
    }
}

/// A program header: kind, flags, offset, address, size.
type Header = (u32, u32, u64, u64, u64);

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// An ELF file of this type with these program headers, and a section table that begins right behind them.
fn elf(kind: u16, headers: &[Header], sections: &[[u64; 8]]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(62_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    let table = 64 + 56 * headers.len() as u64;
    let table = if sections.is_empty() { 0 } else { table };
    for word in [0, 64, table] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [64, 56, headers.len(), 64, sections.len(), 0] {
        bytes.extend(u16::try_from(half).expect("few headers").to_le_bytes());
    }
    for (kind, flags, offset, address, size) in headers {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for word in [*offset, *address, *address, *size, *size, 8] {
            bytes.extend(word.to_le_bytes());
        }
    }
    for words in sections {
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

fn sparse(start: Vec<u8>) -> Sparse {
    let read = Cell::new(0);
    Sparse { start, read }
}

/// A thousand writable segments of a gigabyte, all of the same zeros: nothing is found, and not for long.
#[test]
fn what_is_searched_is_bounded() {
    let headers: Vec<Header> = (0..1000)
        .map(|number| (LOAD, 6, 1 << 20, number << 32, 1 << 30))
        .collect();
    let file = sparse(elf(2, &headers, &[]));
    let before = allocation::start();
    let refusal = resolve::resolve(&file).err();
    assert!(matches!(refusal, Some(Refusal::NotGo)), "{refusal:?}");
    assert!(allocation::most_since(before) < MOST_BYTES);
    assert!(file.read.get() < 2 << 30, "{} bytes read", file.read.get());
}

/// Symbols, strings and relocations of 400 MB each.
#[test]
fn what_is_kept_is_bounded() {
    let table = |kind: u64, link: u64| [kind << 32, 0, 0, 1 << 20, 400 << 20, link, 0, 0];
    let sections = [[0; 8], table(2, 2), table(3, 0)];
    let dynamic: Vec<u8> = [7, 0x10_0000, 8, 400 << 20_u64, 0, 0]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    let headers = [(LOAD, 6, 0, 0, 1 << 30), (2, 6, 1024, 1024, 48)];
    let mut start = elf(3, &headers, &sections);
    start.resize(1024, 0);
    start.extend(dynamic);
    let file = sparse(start);
    let before = allocation::start();
    let elf = Elf::open(&file).expect("the headers are sound");
    assert_eq!(elf.symbol("runtime.allgptr"), None);
    assert_eq!(elf.pointer(leaktrace::address::VirtAddr(0x2000)), Some(0));
    assert!(allocation::most_since(before) < MOST_BYTES);
}

#[test]
fn a_build_id_is_short() {
    let mut note = vec![4, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0];
    note[5] = 0xf0;
    note[6] = 0;
    note.extend(b"GNU\0");
    note.resize(0xf010 + 16, 0xab);
    let headers = [(LOAD, 6, 0, 0, 1 << 20), (NOTE, 4, 1024, 1024, 0xf010)];
    let mut start = elf(2, &headers, &[]);
    start.resize(1024, 0);
    start.extend(note);
    let file = sparse(start);
    let elf = Elf::open(&file).expect("the headers are sound");
    let id = elf.build_id();
    assert!(
        id.starts_with("abab") && id.len() <= 256,
        "{} characters",
        id.len()
    );
}

#[test]
fn the_notes_of_a_core_are_bounded() {
    let headers: Vec<Header> = (0..100)
        .map(|number| (NOTE, 4, number << 25, 0, 32 << 20))
        .collect();
    let file = sparse(elf(4, &headers, &[]));
    let before = allocation::start();
    let error = CoreFile::open(&file).err();
    assert!(matches!(error, Some(CoreError::Damaged(_))), "{error:?}");
    assert!(allocation::most_since(before) < MOST_BYTES);

    // The number of program headers in the first section: four thousand million.
    let sections = [[0, 0, 0, 0, 0, u64::from(u32::MAX) << 32, 0, 0]];
    let mut start = elf(4, &[], &sections);
    start[56..58].copy_from_slice(&[0xff, 0xff]);
    let file = sparse(start);
    let before = allocation::start();
    let error = CoreFile::open(&file).err();
    assert!(matches!(error, Some(CoreError::Damaged(_))), "{error:?}");
    assert!(allocation::most_since(before) < 1 << 20);
}
