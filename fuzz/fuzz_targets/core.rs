//! A core file that may hold anything, with itself for an executable.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::core(data));
