//! What kind of executable a file is, by its ELF header alone: a second opinion on what leaktrace says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// `ET_DYN`: position independent (elf.h).
const POSITION_INDEPENDENT: u16 = 3;
/// `PT_INTERP`: the program is handed to a dynamic linker.
const INTERPRETER: u32 = 3;
/// Bytes of the header of a 64-bit file, and of one program header.
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;

/// What kind of executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfKind {
    /// The kernel chooses where it lies.
    pub position_independent: bool,
    /// It needs no dynamic linker.
    pub linked_statically: bool,
}

impl ElfKind {
    /// Reads the header and the program headers.
    pub fn of(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let file = File::open(path)?;
            let mut header = [0; HEADER_BYTES];
            file.read_exact_at(&mut header, 0)?;
            // 64 bits, little-endian.
            ensure!(
                header.starts_with(b"\x7fELF\x02\x01"),
                "another kind of file"
            );
            let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
            let mut place = [0; 8];
            place.copy_from_slice(&header[32..40]);
            let place = u64::from_le_bytes(place);
            let mut linked_statically = true;
            for number in 0..u64::from(short(56)) {
                let mut kind = [0; 4];
                file.read_exact_at(&mut kind, place + number * PROGRAM_HEADER_BYTES)?;
                linked_statically &= u32::from_le_bytes(kind) != INTERPRETER;
            }
            Ok(Self {
                position_independent: short(16) == POSITION_INDEPENDENT,
                linked_statically,
            })
        };
        read().with_context(|| format!("reading the ELF header of {}", path.display()))
    }

    /// As in the table.
    pub fn name(self) -> &'static str {
        match (self.position_independent, self.linked_statically) {
            (false, false) => "EXEC",
            (false, true) => "static EXEC",
            (true, false) => "PIE",
            (true, true) => "static PIE",
        }
    }
}
