//! Numbers at fixed places in bytes that nobody vouches for.
//!
//! Past the end of the bytes come zeros: reading a field never fails. ext4 is little-endian, its journal
//! big-endian.

/// Bytes with fields in them.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// What follows from a place on.
    pub(crate) fn from(self, at: usize) -> Self {
        Self(self.0.get(at..).unwrap_or(&[]))
    }

    /// So many bytes from a place on, or what there is.
    pub(crate) fn slice(self, at: usize, len: usize) -> &'a [u8] {
        let rest = self.from(at).0;
        &rest[..len.min(rest.len())]
    }

    /// A field of raw bytes.
    pub(crate) fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut found = [0; N];
        let there = self.slice(at, N);
        found[..there.len()].copy_from_slice(there);
        found
    }

    pub(crate) fn u8(self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub(crate) fn le16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn le32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn le64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// A number in two halves that do not lie together.
    pub(crate) fn le64_split(self, low: usize, high: usize) -> u64 {
        u64::from(self.le32(low)) | u64::from(self.le32(high)) << 32
    }

    pub(crate) fn be16(self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub(crate) fn be32(self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(crate) fn be64(self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_past_the_end_are_zero() {
        let fields = Fields(&[1, 2, 3]);
        assert_eq!((fields.le16(0), fields.be16(1)), (0x201, 0x203));
        assert_eq!(
            (fields.le32(0), fields.le32(2), fields.le64(9)),
            (0x30201, 3, 0)
        );
        assert_eq!(
            (fields.slice(1, 9), fields.slice(9, 1)),
            (&[2, 3][..], &[][..])
        );
    }
}
