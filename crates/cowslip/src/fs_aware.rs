//! [`FileSystems`]: tells a seal what the file system inside a frozen device does not need.
//!
//! ext4 alone, and only where that is certain: `cowslip_ext4::exact` says when it is. The device may hold a session that a
//! mounted kernel goes on with: what is told here is free in that kernel's own books as well, so that it does not read it
//! before it has written it.

use std::sync::Arc;

use cowslip_block::{BlockRange, Device, DeviceError};
use cowslip_ext4::{Ext4Error, FileSystem, State, unneeded};
use cowslip_snapshot::seal::SealError;
use cowslip_snapshot::unneeded::Unneeded;

/// All that can be read here.
pub(crate) struct FileSystems;

impl Unneeded for FileSystems {
    fn blocks(&self, frozen: &Arc<dyn Device>) -> Result<Vec<BlockRange>, SealError> {
        let size = frozen.geometry().block_size;
        let fs = FileSystem::open(Arc::clone(frozen), State::OnDisk).map_err(refused)?;
        let runs = unneeded(&fs, &mut |_| ()).map_err(refused)?;
        let runs = runs.map_err(|inexact| SealError::Refused(inexact.to_string()))?;
        // Of a block that somebody has a part of, all is kept.
        let inside = runs.into_iter().map(|run| size.blocks_inside(run));
        Ok(inside.filter(|blocks| !blocks.is_empty()).collect())
    }
}

fn refused(error: Ext4Error) -> SealError {
    match error {
        Ext4Error::Read { source, .. } => SealError::Read(match source.downcast::<DeviceError>() {
            Ok(error) => error,
            Err(error) => DeviceError::Io(error),
        }),
        error => SealError::Refused(error.to_string()),
    }
}
