//! The checksums of ext4 and of its journal.
//!
//! Both use CRC-32C without the usual inversion at the end, chained from a seed. Group descriptors of older
//! file systems have a CRC-16.

/// CRC-32C of `bytes`, going on from `seed`, not inverted.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The CRC-16 of group descriptors (polynomial 0x8005, reflected), going on from `seed`.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            let carry = if crc & 1 == 1 { 0xa001 } else { 0 };
            (crc >> 1) ^ carry
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The usual check values, of "123456789"; that of CRC-32C is inverted at the end.
        assert_eq!(crc32c(!0, b"123456789"), !0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), !0xe306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
