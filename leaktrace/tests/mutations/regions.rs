//! Where a binary is read: the parts of the file worth damaging.

use std::ops::Range;

use leaktrace::resolve;
use leaktrace::resolve::elf::Elf;

/// Parts of the file, as positions in it.
pub fn of(binary: &Vec<u8>) -> Vec<Range<u64>> {
    let elf = Elf::open(binary).expect("a fixture is an ELF file");
    let program = resolve::resolve(binary).expect("a fixture is resolved");
    let word = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&binary[at..at + bytes]);
        u64::from_le_bytes(word)
    };
    // Elf64_Ehdr: e_phoff, e_shoff, and the numbers and sizes of their entries.
    let (programs, sections) = (word(32, 8), word(40, 8));
    let mut regions = vec![
        0..64,
        programs..programs + word(54, 2) * word(56, 2),
        sections..sections + word(58, 2) * word(60, 2),
    ];
    let named = [
        ".gopclntab",
        ".data.rel.ro.gopclntab",
        ".go.module",
        ".go.buildinfo",
        ".debug_info",
        ".debug_abbrev",
        ".symtab",
        ".strtab",
        ".shstrtab",
        ".dynamic",
        ".rela",
        ".rela.dyn",
        ".note.go.buildid",
        ".noptrdata",
    ];
    for section in named.iter().filter_map(|name| elf.section(name)) {
        if section.size > 0 {
            regions.push(section.file_offset.0..section.file_offset.0 + section.size);
        }
    }
    // What is found by looking for it: the record of the build, the function table, the module data.
    let magic = b"\xff Go buildinf:";
    let build = elf.search(
        |segment| segment.writable,
        16,
        |bytes| bytes.starts_with(magic),
    );
    regions.extend(build.filter_map(|at| place(&elf, at.0, 512)).take(1));
    let pclntab = |bytes: &[u8]| {
        bytes
            .first()
            .is_some_and(|byte| matches!(byte, 0xf0 | 0xf1))
            && bytes.get(1..6) == Some(&[0xff, 0xff, 0xff, 0, 0])
    };
    for table in elf.search(|_| true, 8, pclntab).take(4) {
        regions.extend(place(&elf, table.0, 72));
        for module in elf.words_with_value(table.0).take(4) {
            regions.extend(place(&elf, module.0, 640));
        }
    }
    // The code that sites and lists are found in.
    let names = program
        .sites
        .iter()
        .flat_map(|choice| choice.found.iter().flatten());
    let mut names: Vec<&str> = names.map(|site| site.function.as_str()).collect();
    names.extend([
        "runtime.forEachGRace",
        "runtime.preemptall",
        "runtime.waitReason.String",
        "runtime.morestack_noctxt",
    ]);
    names.sort_unstable();
    names.dedup();
    for name in names {
        let found = program.functions.function_named(name);
        regions.extend(
            found.and_then(|found| place(&elf, found.entry.0, found.end.0 - found.entry.0)),
        );
    }
    regions
}

fn place(elf: &Elf<'_>, address: u64, bytes: u64) -> Option<Range<u64>> {
    let start = elf.file_offset(leaktrace::address::VirtAddr(address))?.0;
    Some(start..start + bytes)
}
