//! `cowslip export`: a snapshot's image as a sparse raw file, in place only when it is whole.

use std::path::Path;
use std::sync::Arc;

use cowslip_block::files::{Dir, RealDir};
use cowslip_snapshot::export::export;
use cowslip_snapshot::ids::ImageName;
use cowslip_snapshot::image::Image;
use serde::Serialize;

use super::Context;
use crate::args::Export;
use crate::failure::Failure;
use crate::report::{Unit, advance, bytes};

#[derive(Serialize)]
struct Exported<'a> {
    name: &'a ImageName,
    out: &'a Path,
    size_bytes: u64,
    /// What the file takes on disk.
    allocated_bytes: u64,
}

pub(super) fn run(context: &Context, args: &Export) -> Result<(), Failure> {
    let store = context.store()?;
    let (header, _lease) = store.resolve_image_leased(&args.name)?;
    let out = args.out.as_path();
    if !args.replace && out.symlink_metadata().is_ok() {
        let message = format!("{} is there already", out.display());
        return Err(Failure::failed(message).hint("--replace writes over it"));
    }
    let name = out.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
        Failure::usage(format!("{} does not name a file to write", out.display()))
    })?;
    let parent = out
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let dir = RealDir::open(parent).map_err(|e| Failure::file(parent, &e))?;
    // Written beside, then renamed: an export that was cut short is not taken for a whole one.
    let temporary = format!(".{name}.{}.part", std::process::id());
    let failed = |e: std::io::Error| Failure::file(out, &e);
    let file = dir.create(&temporary).map_err(failed)?;
    let bar = context.report.progress("exporting", Unit::Bytes);
    let image = Image::new(Arc::clone(&store), Arc::clone(&header));
    let done = export(&image, &*file, &mut |done, total| {
        advance(&bar, done, total)
    })
    .map_err(Failure::from)
    .and_then(|()| file.sync().map_err(failed))
    .and_then(|()| dir.rename(&temporary, name).map_err(failed));
    bar.finish_and_clear();
    if let Err(failure) = done {
        drop(dir.remove(&temporary));
        return Err(failure.about(format!("exporting to {}", out.display())));
    }
    let exported = Exported {
        name: &args.name,
        out,
        size_bytes: header.size_bytes(),
        allocated_bytes: file.allocated_bytes().map_err(failed)?,
    };
    context.report.result(&exported, || {
        let (size, room) = (bytes(exported.size_bytes), bytes(exported.allocated_bytes));
        format!(
            "exported {} to {}: {size}, {room} on disk",
            exported.name,
            out.display()
        )
    })
}
