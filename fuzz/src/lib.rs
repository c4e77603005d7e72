//! What the fuzz targets share: from a few bytes to an ELF file, to functions, to the memory of a process.
//!
//! Each module turns a target's input into what leaktrace reads, and back: the maker of seeds (`examples/seeds`)
//! writes in the same forms what it cuts out of real programs.

pub mod code;
pub mod debug_info;
pub mod elf_file;
pub mod function_table;
pub mod memory;
pub mod symbols;
pub mod targets;

use std::sync::LazyLock;

use leaktrace::resolve::offsets::{self, Offsets, Release};

/// The offsets of one of the known releases, whichever number is given.
#[must_use]
pub fn offsets_of(number: u8) -> &'static Offsets {
    static TABLE: LazyLock<Vec<Release>> =
        LazyLock::new(|| offsets::table().expect("the table that is checked in"));
    &TABLE[usize::from(number) % TABLE.len()].offsets
}

/// The number by which [`offsets_of`] knows a minor release of Go.
///
/// # Panics
/// When the table has no such release.
#[must_use]
pub fn number_of(minor: u32) -> u8 {
    let table = offsets::table().expect("the table that is checked in");
    let place = table.iter().position(|release| release.minor == minor);
    u8::try_from(place.expect("a known release")).expect("a short table")
}

/// Splits `count` bytes off the front, or fewer where there are fewer.
pub fn take<'d>(data: &mut &'d [u8], count: usize) -> &'d [u8] {
    let (taken, rest) = data.split_at(count.min(data.len()));
    *data = rest;
    taken
}

/// Takes a little-endian number of `bytes` bytes, at most 8; missing bytes are 0.
pub fn number(data: &mut &[u8], bytes: usize) -> u64 {
    let mut word = [0; 8];
    let taken = take(data, bytes.min(8));
    word[..taken.len()].copy_from_slice(taken);
    u64::from_le_bytes(word)
}
