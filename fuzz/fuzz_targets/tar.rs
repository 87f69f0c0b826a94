//! libFuzzer's door to [`cowslip_fuzz::tar`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::tar::run(input));
