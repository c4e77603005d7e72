//! A process whose memory may hold anything, and may change while it is read.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::census(data));
