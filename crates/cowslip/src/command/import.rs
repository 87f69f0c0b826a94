//! `cowslip import`: a disk image becomes a snapshot. Raw images are read as they are; others go
//! through qemu-img into a sparse temporary file first.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use cowslip_block::BlockSize;
use cowslip_block::files::{File, RealFile};
use cowslip_snapshot::MADE_BY;
use cowslip_snapshot::error::StoreError;
use cowslip_snapshot::ids::SnapshotName;
use cowslip_snapshot::import::{ImportOptions, import};

use super::Context;
use crate::args::Import;
use crate::failure::{Failure, Kind};
use crate::report::{Info, Names, Unit, advance, bytes};

pub(super) fn run(context: &Context, args: &Import) -> Result<(), Failure> {
    let kind = fs::metadata(&args.image).map_err(|e| Failure::file(&args.image, &e))?;
    if kind.is_dir() {
        let message = format!("{} is a directory, not a disk image", args.image.display());
        return Err(Failure::failed(message));
    }
    let store = context.store_or_new()?;
    if !args.replace && store.has(&args.name)? {
        return Err(StoreError::AlreadyExists {
            name: args.name.to_string(),
        }
        .into());
    }
    let converted = match format_of(args)? {
        None => None,
        Some(format) => Some(convert(context, &args.image, &format)?),
    };
    let path = converted
        .as_ref()
        .map_or(args.image.as_path(), |file| file.path());
    let source = RealFile::open(path).map_err(|e| Failure::file(path, &e))?;
    let size = image_size(&source, &args.image)?;
    let wanted = Wanted {
        name: &args.name,
        replace: args.replace,
        made_by: MADE_BY.into(),
    };
    let info = store_raw(context, &source, size, &wanted);
    let info = info.map_err(|f| f.about(args.image.display()))?;
    context.report.result(&info, || {
        let size = bytes(info.size_bytes);
        format!("imported {} ({size}): {}", info.name, info.diff())
    })
}

/// What becomes of a raw image.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a SnapshotName,
    pub(super) replace: bool,
    pub(super) made_by: String,
}

/// Stores a raw image as a template.
pub(super) fn store_raw(
    context: &Context,
    source: &RealFile,
    size: u64,
    wanted: &Wanted<'_>,
) -> Result<Info, Failure> {
    let store = context.store()?;
    let bar = context.report.progress("importing", Unit::Bytes);
    let options = ImportOptions {
        block_size: BlockSize::DISK,
        made_by: wanted.made_by.clone(),
    };
    let lease = store.lease()?;
    let header = import(
        &store,
        &lease,
        source,
        size,
        &options,
        &mut |done, total| {
            advance(&bar, done, total);
        },
    );
    bar.finish_and_clear();
    let header = header?;
    store.commit(&lease, wanted.name, &header, wanted.replace)?;
    // A template has no parent to be named.
    Ok(Info::new(
        &store,
        &wanted.name.into(),
        &header,
        &Names::default(),
    ))
}

/// A file's length, or a block device's.
fn image_size(source: &RealFile, path: &Path) -> Result<u64, Failure> {
    use std::io::{Seek, SeekFrom};
    let len = source.len().map_err(|e| Failure::file(path, &e))?;
    if len > 0 {
        return Ok(len);
    }
    let end = fs::File::open(path).and_then(|mut f| f.seek(SeekFrom::End(0)));
    end.map_err(|e| Failure::file(path, &e))
}

/// The format that qemu-img is to be told; nothing for raw. A raw image is whatever has none of
/// the well-known magic numbers: its guest may have written anything else into it.
fn format_of(args: &Import) -> Result<Option<String>, Failure> {
    match args.format.as_str() {
        "raw" => return Ok(None),
        "auto" => {}
        other => return Ok(Some(other.to_owned())),
    }
    let mut start = Vec::new();
    let file = fs::File::open(&args.image).and_then(|f| f.take(16).read_to_end(&mut start));
    file.map_err(|e| Failure::file(&args.image, &e))?;
    let known: [(&[u8], &str); 5] = [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"QED\0", "qed"),
    ];
    let found = known.iter().find(|(magic, _)| start.starts_with(magic));
    Ok(found.map(|(_, format)| (*format).to_owned()))
}

fn convert(
    context: &Context,
    image: &Path,
    format: &str,
) -> Result<tempfile::NamedTempFile, Failure> {
    context.report.remark(&format!(
        "{} is {format}: reading it with qemu-img",
        image.display()
    ));
    // Beside the store: that is where the room is expected.
    let beside = context.store_path()?;
    let raw = tempfile::Builder::new()
        .prefix(".import-")
        .suffix(".raw")
        .tempfile_in(&beside);
    let raw = raw.map_err(|e| Failure::file(&beside, &e))?;
    let run = Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "raw", "--"])
        .args([image, raw.path()])
        .stdin(Stdio::null())
        .output();
    let output = run.map_err(|e| {
        Failure::new(Kind::Failed, format!("running qemu-img: {e}"))
            .hint("install qemu-utils, or convert the image to raw yourself")
    })?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.trim();
        return Err(Failure::failed(format!(
            "qemu-img cannot read {}: {why}",
            image.display()
        )));
    }
    Ok(raw)
}
