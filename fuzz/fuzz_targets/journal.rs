//! libFuzzer's door to [`cowslip_fuzz::journal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::journal::run(input));
