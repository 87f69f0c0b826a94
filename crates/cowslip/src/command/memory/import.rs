//! `cowslip memory import`: a guest's memory, with the disk and the monitor's state that belong to it, becomes one snapshot.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cowslip_block::files::{File, RealFile};
use cowslip_block::{BlockRange, BlockSize, ByteRange};
use cowslip_memory::seal::{MemoryFigures, MemorySpec, PAGE, Step, seal};
use cowslip_snapshot::MADE_BY;
use cowslip_snapshot::error::StoreError;
use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::{HeaderId, ImageName, SnapshotName};
use cowslip_snapshot::import::{ImportOptions, import};
use cowslip_snapshot::parts::{Part, Parts};
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::sparse::SparseFile;
use cowslip_snapshot::store::{Snapshot, Store};
use indicatif::ProgressBar;
use serde::Serialize;

use super::super::Context;
use crate::args::MemoryImport;
use crate::failure::Failure;
use crate::report::{PartInfo, Unit, advance, bytes, count};

/// Its field names are a contract.
#[derive(Serialize)]
pub(super) struct Imported<'a> {
    name: &'a SnapshotName,
    /// Which snapshot.
    id: HeaderId,
    size_bytes: u64,
    page_size_bytes: u32,
    /// Of the whole memory; those that may have changed, each of which is one of the five after the next; those that are other than the
    /// parent's.
    pages: u64,
    looked_at_pages: u64,
    changed_pages: u64,
    zero_pages: u64,
    same_pages: u64,
    disk_pages: u64,
    payload_pages: u64,
    delta_pages: u64,
    /// Frames of the disk that the memory's map leads to.
    disk_frames: u64,
    /// What the memory added to the store.
    payload_bytes: u64,
    /// What of that the deltas take.
    delta_bytes: u64,
    header_bytes: u64,
    stored_bytes: u64,
    parts: Vec<PartInfo>,
}

pub(super) fn run(context: &Context, args: &MemoryImport) -> Result<(), Failure> {
    let memory = open(&args.memory)?;
    let state = args.state.as_deref().map(open).transpose()?;
    let store = context.store_or_new()?;
    if !args.replace && store.has(&args.name)? {
        let name = args.name.to_string();
        return Err(StoreError::AlreadyExists { name }.into());
    }
    let lease = store.lease()?;
    let around = Around::find(&store, args)?;
    let sealed = seal_memory(context, &store, &lease, args, &memory, &around);
    let (header, figures) = sealed.map_err(|f| f.about(args.memory.display()))?;
    let mut parts = Parts::one(Part::Memory, header);
    if let Some((disk, _)) = around.disk {
        parts = parts.with(Part::Disk, disk);
    }
    if let (Some(file), Some(path)) = (&state, &args.state) {
        let header = import_state(&store, &lease, file);
        parts = parts.with(Part::State, header.map_err(|f| f.about(path.display()))?);
    }
    let of = parts.map(|_, header| &**header);
    store.commit_parts(&lease, &args.name, &of, args.replace)?;
    let (_, last) = parts.own().expect("the memory is there");
    let origin = last.meta().origin;
    let snapshot = Snapshot { origin, parts };
    let imported = Imported::new(&store, &args.name, &snapshot, &figures);
    context.report.result(&imported, || imported.text())
}

/// A file to read. A directory, a pipe or a terminal has no size.
fn open(path: &Path) -> Result<RealFile, Failure> {
    let failed = |e: std::io::Error| Failure::file(path, &e);
    if !fs::metadata(path).map_err(failed)?.is_file() {
        let message = format!(
            "{} is no file that can be read from end to end",
            path.display()
        );
        return Err(Failure::failed(message));
    }
    RealFile::open(path).map_err(failed)
}

/// What belongs to the memory, kept until the name is there.
struct Around {
    parent: Option<(Arc<Header>, Lease)>,
    disk: Option<(Arc<Header>, Lease)>,
}

impl Around {
    fn find(store: &Store, args: &MemoryImport) -> Result<Self, Failure> {
        let find = |name: &Option<SnapshotName>, part| {
            let image = name.as_ref().map(|name| ImageName::part(name, part));
            let found = image.map(|image| store.resolve_image_leased(&image));
            found.transpose()
        };
        Ok(Self {
            parent: find(&args.parent, Part::Memory)?,
            disk: find(&args.disk, Part::Disk)?,
        })
    }
}

fn seal_memory(
    context: &Context,
    store: &Arc<Store>,
    lease: &Lease,
    args: &MemoryImport,
    file: &RealFile,
    around: &Around,
) -> Result<(Arc<Header>, MemoryFigures), Failure> {
    let size_bytes = length(file)?;
    let source = SparseFile::new(file, size_bytes)?;
    let dirty = match args.diff_file {
        true => Some(pages(source.written()?)),
        false => None,
    };
    let spec = MemorySpec {
        source: &source,
        size_bytes,
        parent: around.parent.as_ref().map(|(header, _)| header),
        disk: around.disk.as_ref().map(|(header, _)| header),
        dirty: dirty.as_deref(),
        disk_frames_max: args.disk_frames,
    };
    let mut bar: Option<(Step, ProgressBar)> = None;
    let sealed = seal(store, lease, &spec, &mut |step, done, total| {
        if bar.as_ref().is_none_or(|(before, _)| *before != step) {
            if let Some((_, before)) = bar.take() {
                before.finish_and_clear();
            }
            let what = match step {
                Step::Compare => "comparing",
                Step::Search => "searching",
                Step::Store => "storing",
            };
            bar = Some((step, context.report.progress(what, Unit::Bytes)));
        }
        if let Some((_, bar)) = &bar {
            advance(bar, done, total);
        }
    });
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    Ok(sealed?)
}

fn length(file: &RealFile) -> Result<u64, Failure> {
    let len = file.len();
    len.map_err(|e| Failure::failed(format!("how long is it? {e}")))
}

/// The pages that these touch, in order, none twice.
fn pages(written: Vec<ByteRange>) -> Vec<BlockRange> {
    let mut all: Vec<BlockRange> = Vec::with_capacity(written.len());
    for pages in written.into_iter().map(|bytes| PAGE.blocks_touched(bytes)) {
        match all.last_mut() {
            Some(last) if pages.start <= last.end => last.end = last.end.max(pages.end),
            _ => all.push(pages),
        }
    }
    all
}

pub(super) fn import_state(
    store: &Store,
    lease: &Lease,
    file: &RealFile,
) -> Result<Arc<Header>, Failure> {
    let options = ImportOptions {
        block_size: BlockSize::DISK,
        made_by: MADE_BY.into(),
    };
    let size = length(file)?;
    Ok(import(store, lease, file, size, &options, &mut |_, _| {})?)
}

impl<'a> Imported<'a> {
    pub(super) fn new(
        store: &Store,
        name: &'a SnapshotName,
        snapshot: &Snapshot,
        figures: &MemoryFigures,
    ) -> Self {
        let memory = snapshot.parts.get(Part::Memory).expect("it was imported");
        let stored = store.stored_parts(snapshot);
        let stored = stored.get(Part::Memory).expect("it was imported");
        Self {
            name,
            id: snapshot.origin,
            size_bytes: memory.size_bytes(),
            page_size_bytes: PAGE.bytes(),
            pages: figures.pages,
            looked_at_pages: figures.looked_at,
            changed_pages: figures.changed(),
            zero_pages: figures.zero,
            same_pages: figures.same,
            disk_pages: figures.disk,
            payload_pages: figures.payload,
            delta_pages: figures.delta,
            disk_frames: figures.disk_frames,
            payload_bytes: stored.payload,
            delta_bytes: figures.delta_bytes,
            header_bytes: stored.header,
            stored_bytes: stored.total(),
            parts: PartInfo::all(store, snapshot),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "imported {} ({} of memory): {} changed; of {}, {} are zero, {} as the parent's, {} on the disk, {} stored, {} as deltas ({}); stored {} (payload {}, header {})",
            self.name,
            bytes(self.size_bytes),
            count(self.changed_pages, "page"),
            count(self.looked_at_pages, "page"),
            self.zero_pages,
            self.same_pages,
            self.disk_pages,
            self.payload_pages,
            self.delta_pages,
            bytes(self.delta_bytes),
            bytes(self.stored_bytes),
            bytes(self.payload_bytes),
            bytes(self.header_bytes),
        );
        for part in self.parts.iter().filter(|part| part.part != Part::Memory) {
            text += &format!("; with its {}, {}", part.part, bytes(part.size_bytes));
        }
        text
    }
}
