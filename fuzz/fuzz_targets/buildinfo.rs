//! Build information that may hold anything, in a segment where it is searched for; and any text as a release.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::buildinfo(data));
