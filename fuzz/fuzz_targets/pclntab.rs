//! A function table that may hold anything: functions by name and address, frames, files, lines, inlined calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::pclntab(data));
