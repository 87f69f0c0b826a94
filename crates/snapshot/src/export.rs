//! Export: an image becomes a raw, sparse file. Zeros are left as holes.

use std::io;
use std::ops::ControlFlow;

use cowslip_block::files::File;
use cowslip_block::{ByteRange, FillBuf};

use crate::error::StoreError;
use crate::header::{MapRun, Target};
use crate::image::Image;

/// Read and written at one go.
const CHUNK_BYTES: u64 = 1 << 20;

/// Writes the image to `out`, which must be empty, and syncs it. `progress` is told how many bytes
/// are done, and of how many.
///
/// # Errors
/// `Invalid` where `out` is not empty; `Corrupt` where the image is damaged; `NoSpace`, `Io`.
pub fn export(
    image: &Image,
    out: &dyn File,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), StoreError> {
    let size = image.header().size_bytes();
    if out.len().map_err(writing)? != 0 {
        return Err(StoreError::Invalid(
            "the file to export to is not empty".to_owned(),
        ));
    }
    out.set_len(size).map_err(writing)?;
    let block_size = image.header().block_size();
    let mut buf = Vec::new();
    image
        .header()
        .for_each_run(image.header().blocks(), &mut |run: MapRun| {
            let bytes = block_size.bytes_of(run.blocks);
            let end = bytes.end.0.min(size);
            let mut at = bytes.start.0;
            while run.to != Target::Zero && at < end {
                let len = CHUNK_BYTES.min(end - at);
                buf.resize(usize::try_from(len).expect("a chunk fits in memory"), 0);
                image.read_stored(ByteRange::new(at, at + len), &mut FillBuf::new(&mut buf))?;
                out.write_at(&buf, at).map_err(writing)?;
                at += len;
                progress(at, size);
            }
            progress(end, size);
            Ok::<_, StoreError>(ControlFlow::Continue(()))
        })?;
    out.sync().map_err(writing)
}

fn writing(error: io::Error) -> StoreError {
    StoreError::io("writing the exported image", error)
}
