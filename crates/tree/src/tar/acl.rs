//! Access control lists: archives have them as text, files as an attribute of the form that Linux gives it.
//!
//! The attribute: version 2 in 4 bytes, then for each entry tag (2 bytes), permissions (2) and id (4, all bits set
//! where the tag has none), little-endian, in order of tag and id.

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const HEAD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const NO_ID: u32 = u32::MAX;

/// The attribute for a text as acl(5) has it: `user::rw-,user:1000:r--,...`. Star writes the number behind the
/// permissions as well. GNU tar writes names alone: as it does, they are looked up in this machine's files.
///
/// # Errors
/// Which entry is none.
pub(super) fn encode(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "an access control list that is no text")?;
    let entries = text.split([',', '\n']).map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty() && !entry.starts_with('#'));
    let mut entries = entries.map(entry).collect::<Result<Vec<_>, String>>()?;
    entries.sort_unstable();
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Ok(out)
}

/// An archive may list what the permissions say for every file: owner, group, others. Linux keeps no such list.
pub(super) fn says_more_than_permissions(name: &[u8], list: &[u8]) -> bool {
    let entries = (list.len() - HEAD_BYTES) / ENTRY_BYTES;
    entries > if name == ACCESS { 3 } else { 0 }
}

/// Tag, id, permissions.
fn entry(text: &str) -> Result<(u16, u32, u16), String> {
    let bad = || format!("{text:?} in an access control list");
    let fields: Vec<&str> = text.split(':').collect();
    let [kind, who, permissions, rest @ ..] = fields.as_slice() else {
        return Err(bad());
    };
    let tag = match (*kind, who.is_empty()) {
        ("user" | "u", true) => 0x01,
        ("user" | "u", false) => 0x02,
        ("group" | "g", true) => 0x04,
        ("group" | "g", false) => 0x08,
        ("mask" | "m", true) => 0x10,
        ("other" | "o", true) => 0x20,
        _ => return Err(bad()),
    };
    let id = match (who.is_empty(), rest) {
        (true, _) => NO_ID,
        (false, [id]) => id.parse().map_err(|_| bad())?,
        (false, _) => match who.parse() {
            Ok(id) => id,
            Err(_) => {
                id_of(who, tag).ok_or_else(|| format!("{}: nobody knows {who} here", bad()))?
            }
        },
    };
    let bit = |letter| u16::from(permissions.contains(letter));
    if !permissions.chars().all(|c| "rwx-".contains(c)) {
        return Err(bad());
    }
    Ok((tag, id, bit('r') << 2 | bit('w') << 1 | bit('x')))
}

/// The number of a user or a group on this machine.
fn id_of(name: &str, tag: u16) -> Option<u32> {
    let file = if tag == 0x02 {
        "/etc/passwd"
    } else {
        "/etc/group"
    };
    let lines = std::fs::read_to_string(file).ok()?;
    let fields = lines
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let mut found = fields.filter(|fields| fields.first() == Some(&name));
    found.next()?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_linux_has_it() {
        let text = b"user::rw-,user:joe:r--:1000,group::r--,mask::r--,other::---";
        let entry = |tag: u8, permissions: u8, id: u32| {
            [&[tag, 0, permissions, 0][..], &id.to_le_bytes()].concat()
        };
        let wanted = [
            vec![2, 0, 0, 0],
            entry(1, 6, NO_ID),
            entry(2, 4, 1000),
            entry(4, 4, NO_ID),
            entry(16, 4, NO_ID),
            entry(32, 0, NO_ID),
        ];
        assert_eq!(encode(text).unwrap(), wanted.concat());
        assert!(says_more_than_permissions(ACCESS, &encode(text).unwrap()));
        let plain = encode(b"user::rw-,group::r--,other::r--").unwrap();
        assert!(!says_more_than_permissions(ACCESS, &plain));
        assert!(says_more_than_permissions(DEFAULT, &plain));
        for bad in [
            "user",
            "user:no such user:r--",
            "user::rq-",
            "nobody::rwx",
            "mask:3:rwx",
            "\u{ff}",
        ] {
            assert!(encode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
