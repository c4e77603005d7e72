//! Records that may hold anything, decoded and booked, with a census now and then: the books must add up.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leaktrace_fuzz::targets::event(data));
