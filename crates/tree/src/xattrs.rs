//! Which extended attributes a file in ext4 can have, and how large they are at most.

/// Of Linux.
pub const LIST_BYTES_MAX: usize = 65_536;
/// Of Linux.
pub const VALUE_BYTES_MAX: usize = 65_536;

const SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Can ext4 have an attribute of this name? What is not plain text in one line is not taken for a name.
pub fn is_known(name: &[u8]) -> bool {
    let in_space = SPACES
        .iter()
        .any(|space| name.starts_with(space) && name.len() > space.len());
    (in_space || ACLS.contains(&name)) && name.len() <= 255 && name.iter().all(|b| *b >= b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in [
            "user.x",
            "security.capability",
            "trusted.a b",
            "system.posix_acl_access",
        ] {
            assert!(is_known(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "user.",
            "btrfs.compression",
            "system.nfs4_acl",
            "user.a\nb",
            "user.\0",
        ] {
            assert!(!is_known(bad.as_bytes()), "{bad}");
        }
    }
}
