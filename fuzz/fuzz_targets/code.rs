//! Functions with any code: are sites and globals found, and is every site an instruction of its function?
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::code(data));
