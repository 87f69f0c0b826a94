//! libFuzzer's door to [`cowslip_fuzz::nbd`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::nbd::run(input));
