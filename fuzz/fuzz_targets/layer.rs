//! libFuzzer's door to [`cowslip_fuzz::layer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::layer::run(input));
