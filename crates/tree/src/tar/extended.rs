//! [`Extended`]: what PAX records (POSIX, type `x` and `g`) say of a file, in the place of its header.
//!
//! A record is `LENGTH KEY=VALUE`, newline, where the length counts all of it. Keys that bear on nothing here are
//! passed over. The three ways in which GNU tar notes sparse files in them are
//! [sparse formats 0.0, 0.1 and 1.0](https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html).

use std::collections::BTreeMap;

use super::acl;
use super::header::Span;
use crate::model::Time;
use crate::xattrs;

/// What is not said stands in the header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) name: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) modified: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: Sparse,
}

/// What they say of a sparse file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Formats 0.0 and 0.1.
    pub(super) spans: Option<Vec<Span>>,
    /// Format 1.0: the pieces stand before the data.
    pub(super) in_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Format 0.0: a piece's place, before its length has come.
    offset: Option<u64>,
}

impl Extended {
    /// Takes what these records say, on top of what was said before.
    ///
    /// # Errors
    /// Which record is none.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let (record, rest) = split(records)?;
            let equals = record.iter().position(|b| *b == b'=');
            let equals = equals.ok_or("an extended record without =")?;
            self.say(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    /// May it be said for all files that follow? Attributes and pieces are one file's alone; kept for each, a short archive
    /// would take any amount of memory.
    ///
    /// # Errors
    /// Where it may not.
    pub(super) fn check_for_all(&self) -> Result<(), String> {
        match self.xattrs.is_empty() && self.sparse == Sparse::default() {
            true => Ok(()),
            false => Err("attributes or pieces that are said for all files".into()),
        }
    }

    fn say(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(small(value)?),
            b"gid" => self.gid = Some(small(value)?),
            b"mtime" => self.modified = Some(time(value)?),
            b"SCHILY.acl.access" => self.add_acl(acl::ACCESS, value)?,
            b"SCHILY.acl.default" => self.add_acl(acl::DEFAULT, value)?,
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = Some(decimal(value)?);
            }
            b"GNU.sparse.major" => match value {
                b"0" => {}
                b"1" => self.sparse.in_data = true,
                _ => return Err("a sparse format that is not known".into()),
            },
            b"GNU.sparse.map" => self.sparse.spans = Some(map(value)?),
            b"GNU.sparse.numblocks" => self.sparse.spans = Some(Vec::new()),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take();
                let offset = offset.ok_or("a length of a piece without its place")?;
                let spans = self.sparse.spans.get_or_insert_default();
                spans.push((offset, decimal(value)?));
            }
            _ => self.say_xattr(key, value)?,
        }
        Ok(())
    }

    fn say_xattr(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else {
            return Ok(());
        };
        if !xattrs::is_known(name) || value.len() > xattrs::VALUE_BYTES_MAX {
            let name = name.escape_ascii();
            return Err(format!("an attribute {name} that ext4 cannot have"));
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn add_acl(&mut self, name: &[u8], text: &[u8]) -> Result<(), String> {
        let list = acl::encode(text)?;
        if acl::says_more_than_permissions(name, &list) {
            self.xattrs.insert(name.to_vec(), list);
        }
        Ok(())
    }
}

/// The first record without its length and its newline, and what follows it.
fn split(records: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let bad = || "an extended record whose length is wrong".to_owned();
    let space = records.iter().position(|b| *b == b' ').ok_or_else(bad)?;
    let len = usize::try_from(decimal(&records[..space])?).map_err(|_| bad())?;
    if len <= space + 1 || len > records.len() || records[len - 1] != b'\n' {
        return Err(bad());
    }
    Ok((&records[space + 1..len - 1], &records[len..]))
}

/// Pairs of numbers with commas between all of them.
fn map(value: &[u8]) -> Result<Vec<Span>, String> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = value.split(|b| *b == b',').map(decimal);
    let numbers = numbers.collect::<Result<Vec<u64>, String>>()?;
    if numbers.len() % 2 != 0 {
        return Err("a list of pieces that ends amidst one".into());
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}

/// Seconds, and perhaps a fraction of them, of which nine digits count.
fn time(value: &[u8]) -> Result<Time, String> {
    let bad = || format!("{} is no time", value.escape_ascii());
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let nine: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = nine.parse().map_err(|_| bad())?;
    // Nanoseconds count forwards: -1.25 is 0.75 after -2.
    if text.starts_with('-') && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1).ok_or_else(bad)?;
        let nanoseconds = 1_000_000_000 - nanoseconds;
        return Ok(Time {
            seconds,
            nanoseconds,
        });
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}

pub(super) fn decimal(digits: &[u8]) -> Result<u64, String> {
    let bad = || format!("{} is no number", digits.escape_ascii());
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
    digits.parse().map_err(|_| bad())
}

fn small(value: &[u8]) -> Result<u32, String> {
    let number = decimal(value)?;
    u32::try_from(number).map_err(|_| format!("an owner {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len);
        let start = format!("{} {key}=", len.unwrap());
        [start.as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn what_records_say() {
        let records = [
            record("path", b"a=b\nc"),
            record("uid", b"70000"),
            record("mtime", b"-1.25"),
            record("comment", b"whatever"),
            record("SCHILY.xattr.user.x", b"1\0\n2"),
            record("GNU.sparse.numblocks", b"2"),
            record("GNU.sparse.offset", b"5"),
            record("GNU.sparse.numbytes", b"6"),
            record("GNU.sparse.offset", b"50"),
            record("GNU.sparse.numbytes", b"7"),
        ];
        let mut extended = Extended::default();
        extended.add(&records.concat()).unwrap();
        assert_eq!(extended.name.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!(extended.uid, Some(70_000));
        let modified = extended.modified.unwrap();
        assert_eq!((modified.seconds, modified.nanoseconds), (-2, 750_000_000));
        assert_eq!(extended.xattrs[&b"user.x"[..]], b"1\0\n2");
        assert_eq!(extended.sparse.spans, Some(vec![(5, 6), (50, 7)]));
        assert_eq!(map(b"0,1,2,3"), Ok(vec![(0, 1), (2, 3)]));
    }

    #[test]
    fn what_is_no_record() {
        let bad: [Vec<u8>; 9] = [
            b"5 a=b".to_vec(),
            b"999 a=b\n".to_vec(),
            b"0 a=b\n".to_vec(),
            b"x a=b\n".to_vec(),
            b"6 abc\n".to_vec(),
            b"99999999999999999999999 a=b\n".to_vec(),
            record("size", b"-1"),
            record("SCHILY.xattr.system.evil", b"1"),
            record("GNU.sparse.numbytes", b"1"),
        ];
        for records in bad {
            assert!(
                Extended::default().add(&records).is_err(),
                "{}",
                records.escape_ascii()
            );
        }
    }
}
