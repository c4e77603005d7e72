//! An ELF file that may hold anything: everything that can be asked of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::elf(data));
