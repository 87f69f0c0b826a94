//! Reading and writing numbers in stored bytes: little-endian, and LEB128 where most are small.
//!
//! [`Reader`] is the only thing that walks over untrusted bytes. It never panics, never reads past
//! the end, and every refusal says at which byte of the object it was.

use uuid::Uuid;

use crate::error::ObjectError;

/// The hash of a node or of a header's tail: the first 16 bytes of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hash(pub(crate) [u8; 16]);

impl Hash {
    pub(crate) const LEN: usize = 16;

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut short = [0; Self::LEN];
        short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..Self::LEN]);
        Self(short)
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Uuid::from_bytes(self.0).simple().fmt(f)
    }
}

/// Walks over bytes that nobody vouches for.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
}

impl<'a> Reader<'a> {
    /// `bytes` begin at `base` of their object.
    pub(crate) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, at: 0, base }
    }

    /// A refusal at the byte that comes next.
    pub(crate) fn refuse(&self, why: impl Into<String>) -> ObjectError {
        let place = format!("byte {}", self.base.saturating_add(self.at as u64));
        ObjectError::damaged(place, why)
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], ObjectError> {
        let Some(found) = self.bytes[self.at..].first_chunk::<N>() else {
            return Err(self.refuse(format!("{N} bytes are wanted, and it ends before")));
        };
        self.at += N;
        Ok(*found)
    }

    pub(crate) fn slice(&mut self, len: usize) -> Result<&'a [u8], ObjectError> {
        let Some(found) = self.bytes[self.at..].get(..len) else {
            return Err(self.refuse(format!("{len} bytes are wanted, and it ends before")));
        };
        self.at += len;
        Ok(found)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ObjectError> {
        Ok(self.take::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ObjectError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ObjectError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, ObjectError> {
        Ok(Uuid::from_bytes(self.take()?))
    }

    pub(crate) fn hash(&mut self) -> Result<Hash, ObjectError> {
        Ok(Hash(self.take()?))
    }

    /// LEB128 of 64 bits, in its shortest form only: a number has one encoding.
    pub(crate) fn varint(&mut self) -> Result<u64, ObjectError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if (part << shift) >> shift != part {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(self.refuse("a number ends here that is longer than it may be"))
    }

    /// A varint that is at most `max`, as something smaller than 64 bits.
    pub(crate) fn varint_to<T: TryFrom<u64>>(
        &mut self,
        what: &str,
        max: u64,
    ) -> Result<T, ObjectError> {
        let value = self.varint()?;
        let fits = (value <= max).then(|| T::try_from(value).ok()).flatten();
        fits.ok_or_else(|| self.refuse(format!("{what} {value}, where at most {max} is allowed")))
    }

    /// A number stored as its distance from the one that was expected.
    pub(crate) fn delta(&mut self, expected: u64) -> Result<u64, ObjectError> {
        let zigzag = self.varint()?;
        let distance = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        Ok(expected.wrapping_add(distance))
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), ObjectError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(self.refuse(format!("{} bytes too many", self.bytes.len() - self.at)))
    }
}

/// Appends the number as LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends the number as its distance from the one that is expected.
pub(crate) fn put_delta(out: &mut Vec<u8>, value: u64, expected: u64) {
    let distance = value.wrapping_sub(expected).cast_signed();
    put_varint(out, ((distance << 1) ^ (distance >> 63)).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, expected: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_delta(&mut out, value, expected);
            let mut reader = Reader::new(&out, 0);
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert_eq!(reader.delta(expected).unwrap(), value);
            reader.finish().unwrap();
        }

        #[test]
        fn what_is_read_has_no_other_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes, 0);
            if let Ok(value) = reader.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&bytes[..reader.at], &out[..]);
            }
        }
    }

    #[test]
    fn refusals_say_where() {
        let mut reader = Reader::new(&[1, 2], 40);
        reader.u8().unwrap();
        let why = reader.u32().unwrap_err().to_string();
        assert!(why.contains("byte 41"), "{why}");
        assert!(reader.finish().is_err());
    }
}
