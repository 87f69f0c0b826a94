//! libFuzzer's door to [`cowslip_fuzz::ext4`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cowslip_fuzz::ext4::run(input));
