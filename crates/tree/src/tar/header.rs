//! [`Header`]: one block of 512 bytes of an archive, as v7, POSIX (ustar) and GNU lay it out.
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 100 | name |
//! | 100, 108, 116 | 8 each | mode, uid, gid |
//! | 124, 136 | 12 each | size, time of modification |
//! | 148 | 8 | checksum: the sum of all bytes, these eight taken as spaces |
//! | 156 | 1 | type |
//! | 157 | 100 | what a link links to |
//! | 257 | 8 | `ustar`, NUL, `00` for POSIX; `ustar`, two spaces, NUL for GNU |
//! | 329, 337 | 8 each | major, minor |
//! | 345 | 155 | POSIX: what stands before the name, with a `/` |
//! | 386, 482, 483 | 96, 1, 12 | GNU, type `S`: four pieces, whether more follow, the real size |
//!
//! Numbers are octal digits, or, where the first bit is set, big-endian in two's complement.

pub(super) const BLOCK_BYTES: usize = 512;

/// A block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK_BYTES]);

/// Where a piece lies in the file, and how long it is.
pub(super) type Span = (u64, u64);

impl<'a> Header<'a> {
    /// # Errors
    /// Where the checksum says that this is none.
    pub(super) fn check(block: &'a [u8; BLOCK_BYTES]) -> Result<Self, String> {
        let bytes = || {
            let fields = block[..148].iter().chain(&[b' '; 8]);
            fields.chain(&block[156..])
        };
        let unsigned: i64 = bytes().map(|b| i64::from(*b)).sum();
        // Some old ones summed signed bytes.
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        let said = number(&block[148..156])?;
        if said != unsigned && said != signed {
            return Err("the checksum of its header does not match".into());
        }
        Ok(Self(block))
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let is_posix = self.0[257..263] == *b"ustar\0";
        match text(&self.0[345..500]) {
            prefix if is_posix && !prefix.is_empty() => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, String> {
        let mode = number(&self.0[100..108])? & 0o7777;
        Ok(u16::try_from(mode).expect("twelve bits"))
    }

    pub(super) fn uid(&self) -> Result<u32, String> {
        small(&self.0[108..116], "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, String> {
        small(&self.0[116..124], "gid")
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        size(&self.0[124..136])
    }

    pub(super) fn modified(&self) -> Result<i64, String> {
        number(&self.0[136..148])
    }

    pub(super) fn device(&self) -> Result<(u32, u32), String> {
        let (major, minor) = (
            small(&self.0[329..337], "major")?,
            small(&self.0[337..345], "minor")?,
        );
        // What Linux can have.
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(format!("a device {major}:{minor}"));
        }
        Ok((major, minor))
    }

    /// Of type `S`: the pieces, whether a block with more of them follows, and the real size.
    pub(super) fn sparse(&self) -> Result<(Vec<Span>, bool, u64), String> {
        let real = size(&self.0[483..495])?;
        Ok((spans(&self.0[386..482])?, self.0[482] != 0, real))
    }
}

/// The pieces in a block that follows one of type `S`, and whether another follows.
pub(super) fn more_sparse(block: &[u8; BLOCK_BYTES]) -> Result<(Vec<Span>, bool), String> {
    Ok((spans(&block[..504])?, block[504] != 0))
}

/// Pairs of numbers of twelve bytes, up to the first that is empty.
fn spans(bytes: &[u8]) -> Result<Vec<Span>, String> {
    let pairs = bytes.chunks_exact(24).take_while(|pair| pair[0] != 0);
    pairs
        .map(|pair| Ok((size(&pair[..12])?, size(&pair[12..])?)))
        .collect()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or(field)
}

fn small(field: &[u8], what: &str) -> Result<u32, String> {
    let value = number(field)?;
    u32::try_from(value).map_err(|_| format!("a {what} of {value}"))
}

fn size(field: &[u8]) -> Result<u64, String> {
    let value = number(field)?;
    u64::try_from(value).map_err(|_| format!("a size of {value}"))
}

fn number(field: &[u8]) -> Result<i64, String> {
    let bad = || format!("{} is no number", field.escape_ascii());
    if field[0] & 0x80 != 0 {
        // The first bit says that it is binary; the second is the sign.
        let start = if field[0] & 0x40 == 0 {
            field[0] & 0x7f
        } else {
            field[0]
        };
        let sign = i128::from(start.cast_signed());
        let rest = field[1..].iter();
        let value = rest.fold(sign, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| bad());
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| [b' ', 0].contains(b));
    let digits = &digits[..end.unwrap_or(digits.len())];
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
    i64::from_str_radix(digits, 8).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let good: [(&[u8], i64); 8] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"7777777 ", 0o777_7777),
            (b"77777777", 0o7777_7777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\x80\0\0\0\x01\0\0\0\0\0\0\0", 1 << 56),
        ];
        for (field, value) in good {
            assert_eq!(number(field), Ok(value), "{}", field.escape_ascii());
        }
        let bad: [&[u8]; 4] = [b"8000000\0", b"abc", b"0x10\0", &[0xbf; 12]];
        for field in bad {
            assert!(number(field).is_err(), "{}", field.escape_ascii());
        }
    }
}
