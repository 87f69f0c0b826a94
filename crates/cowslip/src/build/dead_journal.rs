//! The journal of a file system that was unmounted holds nothing, but its blocks still hold what it held: copies of metadata
//! that every snapshot of the template would carry. They become a hole, all but the first, which says how the journal is.

use std::fs::File;

use cowslip_ext4::mapping::Piece;
use cowslip_ext4::{Ext4Error, FileSystem, State};
use rustix::fs::{FallocateFlags, fallocate};

use crate::failure::Failure;

/// Only for an image that was unmounted and found clean.
pub(crate) fn clear(image: &File) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("the image: {e}"));
    let reader = image.try_clone().map_err(failed)?;
    let unread = |e: Ext4Error| Failure::failed(format!("the journal: {e}"));
    let fs = FileSystem::open(reader, State::OnDisk).map_err(unread)?;
    let superblock = fs.superblock();
    if superblock.journal_inode == 0 {
        return Ok(());
    }
    let block = u64::from(superblock.block_bytes);
    let mut runs = Vec::new();
    let inode = fs.inode(superblock.journal_inode).map_err(unread)?;
    fs.pieces(&inode, &mut |piece| {
        if let Piece::Data {
            logical,
            start,
            count,
            ..
        } = piece
        {
            let keep = u64::from(logical == 0);
            runs.push(((start + keep) * block, (count - keep) * block));
        }
        Ok(())
    })
    .map_err(unread)?;
    for (at, len) in runs.into_iter().filter(|(_, len)| *len > 0) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(image, flags, at, len).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}
