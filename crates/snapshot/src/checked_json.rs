//! Small files that are read by people as well: one line of JSON, and one with its checksum.
//!
//! ```text
//! {"version":1,...}
//! crc32c:0123abcd
//! ```
//!
//! The checksum covers the first line with its newline. Such a file is always replaced as a whole.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value).map_err(std::io::Error::other)?;
    bytes.push(b'\n');
    let check = checksum(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    Ok(bytes)
}

/// What is wrong, for a message that begins with the file's name.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let json = checked(bytes).ok_or("does not match its checksum")?;
    serde_json::from_slice(json).map_err(|e| format!("does not parse: {e}"))
}

/// Are they as they were written, whoever can read them?
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    checked(bytes).is_some()
}

fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|b| *b == b'\n');
    let (json, check) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
    (check == checksum(json).as_bytes()).then_some(json)
}

fn checksum(line: &[u8]) -> String {
    format!("crc32c:{:08x}\n", crc32c::crc32c(line))
}
