//! The executable itself, reduced to what leaktrace reads: each piece at its own address, in a segment of its own.

use anyhow::{Context, Result};
use leaktrace::address::VirtAddr;
use leaktrace::resolve::code::Function;
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::{Arch, GlobalsSource, Program};
use leaktrace_fuzz::elf_file::{EXECUTABLE, ElfFile, READABLE, Section, Segment, WRITABLE};

use crate::table::{Original, Small};

/// Where the dynamic section and the relocations of a position independent seed lie.
const DYNAMIC: u64 = 0x7000_0000;
const RELOCATIONS: u64 = 0x7100_0000;
const NOTE: u64 = 0x7200_0000;
const BUILD_INFO: u64 = 0x7300_0000;
const HEADERS: u64 = 0x7400_0000;
const NAMES: u64 = 0x7500_0000;

pub struct Cut<'p> {
    pub elf: &'p Elf<'p>,
    pub program: &'p Program,
    pub original: &'p Original,
    pub small: &'p Small,
    pub functions: &'p [Function],
    pub build_info: &'p [u8],
    pub debug_info: Option<&'p (Vec<u8>, Vec<u8>)>,
}

impl Cut<'_> {
    pub fn executable(&self) -> Result<Vec<u8>> {
        let mut file = ElfFile {
            arm64: self.program.arch == Arch::Arm64,
            pie: self.program.pie,
            headers: HEADERS,
            ..ElfFile::default()
        };
        let mut add = |address: u64, flags, bytes: Vec<u8>| {
            file.segments.push(Segment {
                address,
                flags,
                bytes,
            });
            file.segments.len() - 1
        };
        for function in self.functions {
            add(function.entry.0, EXECUTABLE, function.code.clone());
        }
        // The start of the code has to be executable, whatever is there.
        let text = self.original.module.text;
        add(text.0, EXECUTABLE, vec![0; 16]);
        add(self.original.address.0, READABLE, self.small.table.clone());
        add(
            self.original.module.gofunc.0,
            READABLE,
            self.small.trees.clone(),
        );
        add(BUILD_INFO, WRITABLE, self.build_info.to_vec());
        let (names, name_headers) = self.wait_reasons().context("the wait reasons")?;
        add(NAMES, READABLE, names);
        let (module_address, module_words) = self.module_data()?;
        let tables = [
            (self.program.globals.wait_reasons.0, name_headers),
            (module_address, module_words),
        ];
        if self.program.pie {
            let mut relocations = Vec::new();
            let kind: u64 = match self.program.arch {
                Arch::Amd64 => 8,
                Arch::Arm64 => 1027,
            };
            for (address, words) in &tables {
                for (at, word) in (0..).step_by(8).zip(words).filter(|(_, word)| **word != 0) {
                    for value in [address + at, kind, *word] {
                        relocations.extend(value.to_le_bytes());
                    }
                }
                add(*address, WRITABLE, vec![0; words.len() * 8]);
            }
            let bytes = relocations.len() as u64;
            add(RELOCATIONS, READABLE, relocations);
            let dynamic = [7, RELOCATIONS, 8, bytes, 0, 0_u64];
            let dynamic = dynamic.into_iter().flat_map(u64::to_le_bytes).collect();
            let index = add(DYNAMIC, WRITABLE, dynamic);
            file.marks.push((2, index));
        } else {
            for (address, words) in &tables {
                let bytes = words.iter().flat_map(|word| word.to_le_bytes());
                add(*address, WRITABLE, bytes.collect());
            }
        }
        let note = b"\x04\0\0\0\x08\0\0\0\x04\0\0\0Go\0\0seedseed".to_vec();
        file.segments.push(Segment {
            address: NOTE,
            flags: READABLE,
            bytes: note,
        });
        file.marks.push((4, file.segments.len() - 1));
        file.sections
            .push(Section::named(".gopclntab", self.original.address.0));
        file.sections
            .push(Section::named(".go.buildinfo", BUILD_INFO));
        if self.program.globals_source == GlobalsSource::Symtab {
            self.add_symbols(&mut file);
        }
        if let Some((abbreviations, units)) = self.debug_info {
            for (name, bytes) in [(".debug_abbrev", abbreviations), (".debug_info", units)] {
                file.sections.push(Section::unloaded(name, bytes.clone()));
            }
        }
        Ok(file.bytes())
    }

    /// The names of the wait reasons, and the headers of these strings.
    fn wait_reasons(&self) -> Option<(Vec<u8>, Vec<u64>)> {
        let globals = &self.program.globals;
        let (mut names, mut headers) = (Vec::new(), Vec::new());
        for number in 0..globals.wait_reason_count {
            let header = globals.wait_reasons.offset(number * 16);
            let start = VirtAddr(self.elf.pointer(header)?);
            let length = self.elf.pointer(header.offset(8))?;
            headers.extend([NAMES + names.len() as u64, length]);
            if length > 0 {
                names.extend(self.elf.read(start, length)?);
            }
        }
        Some((names, headers))
    }

    /// Where the module data is, and its words, which describe the small table.
    fn module_data(&self) -> Result<(u64, Vec<u64>)> {
        let table = self.original.address;
        let is_module = |at: &VirtAddr| {
            let pointer = |offset| self.elf.pointer(at.offset(offset));
            pointer(self.program.offsets.moduledata_text.into())
                == Some(self.original.module.text.0)
        };
        let own = self
            .elf
            .section(".go.module")
            .map(|section| section.address);
        let address = own
            .into_iter()
            .chain(self.elf.words_with_value(table.0))
            .find(is_module)
            .context("the module data")?;
        let mut words = Vec::new();
        for at in (0..640).step_by(8) {
            words.push(self.elf.pointer(address.offset(at)).unwrap_or(0));
        }
        let mut put = |at: usize, word: u64| {
            if let Some(place) = words.get_mut(at / 8) {
                *place = word;
            }
        };
        let mut start = 72;
        for (at, length) in [8, 32, 56, 80].into_iter().zip(self.small.parts) {
            let entries = if at == 32 { length / 4 } else { length };
            put(at, table.0 + start);
            put(at + 8, entries);
            start += length;
        }
        put(104, table.0 + self.small.functions);
        put(112, self.small.table.len() as u64 - self.small.functions);
        put(128, table.0 + self.small.functions);
        put(136, self.small.count + 1);
        Ok((address.0, words))
    }

    fn add_symbols(&self, file: &mut ElfFile) {
        let globals = &self.program.globals;
        let mut names = vec![0];
        let mut symbols = vec![0; 24];
        let lists = [
            ("runtime.allglen", globals.allglen, 8),
            ("runtime.allgptr", globals.allgptr, 8),
            ("runtime.allp", globals.allp, 24_u64),
            (
                "runtime.waitReasonStrings",
                globals.wait_reasons,
                globals.wait_reason_count * 16,
            ),
        ];
        let roots = (globals.semtable).map(|address| ("runtime.semtable", address, 8));
        for (name, address, size) in lists.into_iter().chain(roots) {
            let at = u32::try_from(names.len()).unwrap_or(0);
            symbols.extend(at.to_le_bytes());
            symbols.extend([0x11, 0, 1, 0]);
            symbols.extend(address.0.to_le_bytes());
            symbols.extend(size.to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let next = u32::try_from(file.sections.len()).unwrap_or(0) + 2;
        let mut table = Section::unloaded(".symtab", symbols);
        table.kind = 2;
        table.link = next;
        file.sections.push(table);
        let mut strings = Section::unloaded(".strtab", names);
        strings.kind = 3;
        file.sections.push(strings);
    }
}
