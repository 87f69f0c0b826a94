//! libFuzzer's door to [`cowslip_fuzz::header`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::header::run(input));
