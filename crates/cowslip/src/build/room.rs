//! Is there room for it? Asked before anything is filled, so that the answer says how much is missing.

use cowslip_ext4::Superblock;

use crate::failure::Failure;
use crate::report::bytes;
use cowslip_tree::{Kind, Tree};

/// What every inode can hold of a symbolic link.
const LINK_IN_INODE: usize = 59;
/// What an inode of 256 bytes can hold of attributes, with their names.
const XATTRS_IN_INODE: usize = 90;

/// # Errors
/// How much it takes, and how much there is.
pub(crate) fn check(tree: &Tree, superblock: &Superblock, size_bytes: u64) -> Result<(), Failure> {
    let unit = u64::from(superblock.block_bytes) * u64::from(superblock.cluster_blocks);
    let free = superblock.free_blocks * u64::from(superblock.block_bytes);
    let (mut takes, mut inodes) = (0, 0);
    for id in tree.in_order() {
        inodes += 1;
        let node = tree.node(id);
        let own = match &node.kind {
            Kind::Directory(entries) => {
                let names = entries
                    .keys()
                    .map(|name| 8 + name.len().next_multiple_of(4));
                names.sum::<usize>() as u64
            }
            Kind::File(content) => content.data_bytes(),
            Kind::Symlink(target) if target.len() > LINK_IN_INODE => 1,
            _ => 0,
        };
        let xattrs = node.attributes.xattrs.iter();
        let xattrs: usize = xattrs
            .map(|(name, value)| 16 + name.len() + value.len())
            .sum();
        takes += own.next_multiple_of(unit);
        takes += if xattrs > XATTRS_IN_INODE { unit } else { 0 };
    }
    let inodes_free = u64::from(superblock.inodes - superblock.first_inode.min(superblock.inodes));
    if inodes > inodes_free {
        let message = format!(
            "there are {inodes} files, and an image of {} can have {inodes_free}",
            bytes(size_bytes)
        );
        return Err(Failure::failed(message)
            .hint("--size makes it larger; --knob inode-ratio=4K gives it more"));
    }
    if takes > free {
        let used = size_bytes.saturating_sub(free);
        let wanted = (takes + used + takes / 16).next_multiple_of(1 << 20);
        let message = format!(
            "it takes {}, and an image of {} has room for {}",
            bytes(takes),
            bytes(size_bytes),
            bytes(free)
        );
        return Err(Failure::failed(message).hint(format!("--size {}M is enough", wanted >> 20)));
    }
    Ok(())
}
