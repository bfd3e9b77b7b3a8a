#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd_fuzz_targets::kept(bytes));
