//! `cowslip explain`: whose the blocks are that a snapshot changed.
//!
//! The two images are compared as `diff` does; the owners come from the file system in the newer one. A template
//! is explained against nothing: all that it has is new. How blocks are counted stands on top of `crate::explain`.

mod memory;
mod page;
mod report;
mod whose;

use std::ops::Range;
use std::sync::Arc;

use cowslip_block::{BlockRange, BlockSize, ByteRange, Device};
use cowslip_ext4::{Class, Owner};
use cowslip_snapshot::diff::{DiffKind, DiffRun, diff};
use cowslip_snapshot::header::{Header, Target};
use cowslip_snapshot::image::Image;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::store::Store;

use self::report::{ClassRow, Explained, FileRow, percent};
use self::whose::{Ext4, Whose};
use super::Context;
use super::log::parent;
use crate::args::Explain;
use crate::explain::{Counted, Picture, Share, TableChanges, Tally, advise};
use crate::failure::{Failure, Kind};
use crate::report::{Names, Unit, advance, bytes};

pub(super) fn run(context: &Context, args: &Explain) -> Result<(), Failure> {
    let pair = Pair::open(context, args)?;
    if let Some(disk) = memory::disk_of(&pair.store, args, &pair.now)? {
        return memory::run(context, args, &pair, disk.as_deref());
    }
    let whose = Whose::read(context, pair.image(&pair.now))?;
    let mut picture = args.html.as_ref().map(|_| pair.picture(&whose));
    let found = Found::read(context, &pair, &whose, picture.as_mut())?;
    let explained = explain(context, args, &pair, &whose, &found)?;
    if let (Some(path), Some(picture)) = (&args.html, &picture) {
        let paths = whose.paths(context, picture.owners())?;
        page::write(path, &explained, picture, &paths)?;
    }
    context
        .report
        .result(&explained, || report::text(&explained))
}

/// Two images.
struct Pair {
    store: Arc<Store>,
    now: Arc<Header>,
    before: Option<Arc<Header>>,
    against: Option<String>,
    /// Both stay, whatever becomes of their names. A parent without a name may be collected meanwhile: then reading it
    /// fails, and says so.
    _leases: Vec<Lease>,
}

impl Pair {
    fn open(context: &Context, args: &Explain) -> Result<Self, Failure> {
        let store = context.store()?;
        let (now, lease) = store.resolve_image_leased(&args.name)?;
        let mut pair = Self {
            store,
            now,
            before: None,
            against: None,
            _leases: vec![lease],
        };
        match &args.against {
            Some(name) => {
                let (before, lease) = pair.store.resolve_image_leased(name)?;
                pair.compare_with(before, name.to_string())?;
                pair._leases.push(lease);
            }
            None => pair.compare_with_parent()?,
        }
        Ok(pair)
    }

    fn compare_with_parent(&mut self) -> Result<(), Failure> {
        let Some(id) = self.now.meta().parent else {
            return Ok(());
        };
        let names = Names::read(&self.store)?;
        for name in names.of(id) {
            let (before, lease) = self.store.resolve_image_leased(name)?;
            // Unless the name has another snapshot by now.
            if before.meta().origin == id {
                self._leases.push(lease);
                return self.compare_with(before, name.to_string());
            }
        }
        match parent(&self.store, &self.now, &names)? {
            Some(before) => self.compare_with(before, id.to_string()),
            None => {
                let message = format!("what it was made over, {id}, is not in the store any more");
                Err(Failure::new(Kind::NotFound, message)
                    .hint("--against OTHER compares it with another"))
            }
        }
    }

    fn compare_with(&mut self, before: Arc<Header>, against: String) -> Result<(), Failure> {
        let (one, two) = (before.block_size(), self.now.block_size());
        if one != two {
            let size = |size: BlockSize| bytes(u64::from(size.bytes()));
            let why = format!(
                "{against} is in blocks of {}, and this one of {}",
                size(one),
                size(two)
            );
            return Err(
                Failure::usage(why).hint("only images in blocks of one size can be compared")
            );
        }
        (self.before, self.against) = (Some(before), Some(against));
        Ok(())
    }

    fn image(&self, header: &Arc<Header>) -> Arc<dyn Device> {
        Arc::new(Image::new(Arc::clone(&self.store), Arc::clone(header)))
    }

    /// All runs that differ, in order.
    fn runs(&self, context: &Context, visit: &mut dyn FnMut(DiffRun)) -> Result<(), Failure> {
        let Some(before) = &self.before else {
            return self.all_that_is(visit);
        };
        let bar = context.report.progress("comparing", Unit::Blocks);
        let compared = diff(&self.store, before, &self.now, visit, &mut |done, total| {
            advance(&bar, done, total);
        });
        bar.finish_and_clear();
        Ok(compared.map(drop)?)
    }

    /// Everything that is stored is other than zeros.
    fn all_that_is(&self, visit: &mut dyn FnMut(DiffRun)) -> Result<(), Failure> {
        let kind = DiffKind::Changed;
        for run in self.now.runs(self.now.blocks())? {
            if run.to != Target::Zero {
                visit(DiffRun {
                    blocks: run.blocks,
                    kind,
                });
            }
        }
        Ok(())
    }

    /// The newer image, with nothing changed yet.
    fn picture(&self, whose: &Whose) -> Picture {
        let mut picture = Picture::new(self.now.block_size(), self.now.blocks().count().0);
        picture.ground(whose.of(ByteRange::new(0, self.now.size_bytes())));
        picture
    }

    fn bytes_of(&self, blocks: BlockRange) -> ByteRange {
        let all = ByteRange::new(0, self.now.size_bytes());
        self.now.block_size().bytes_of(blocks).intersect(all)
    }
}

/// What differs, counted by owner.
struct Found {
    changed: Tally,
    zeroed: Tally,
    zeroed_blocks: u64,
    /// Changed blocks that hold inodes.
    tables: Vec<BlockRange>,
}

impl Found {
    fn read(
        context: &Context,
        pair: &Pair,
        whose: &Whose,
        mut picture: Option<&mut Picture>,
    ) -> Result<Self, Failure> {
        let size = pair.now.block_size();
        let mut found = Self {
            changed: Tally::new(size),
            zeroed: Tally::new(size),
            zeroed_blocks: 0,
            tables: Vec::new(),
        };
        let Self {
            changed,
            zeroed,
            zeroed_blocks,
            tables,
        } = &mut found;
        pair.runs(context, &mut |DiffRun { blocks, kind }| {
            let range = pair.bytes_of(blocks);
            match kind {
                DiffKind::Changed => changed.add(range, whose.of(range), &mut |share| {
                    tables.extend(blocks_with_inodes(share));
                    picture
                        .iter_mut()
                        .for_each(|picture| picture.add(share, false));
                }),
                DiffKind::Zeroed => {
                    // What is past the end of a smaller image is nobody's.
                    zeroed.add(range, whose.of(range), &mut |share| {
                        picture
                            .iter_mut()
                            .for_each(|picture| picture.add(share, true));
                    });
                    *zeroed_blocks += blocks.count().0;
                }
            }
        })?;
        Ok(found)
    }
}

fn explain(
    context: &Context,
    args: &Explain,
    pair: &Pair,
    whose: &Whose,
    found: &Found,
) -> Result<Explained, Failure> {
    let total_blocks = found.changed.total().blocks;
    let unknown_blocks = found.changed.class(Class::Unknown).blocks;
    let mut explained = Explained {
        name: args.name.to_string(),
        against: pair.against.clone(),
        file_system: None,
        remark: String::new(),
        size_bytes: pair.now.size_bytes(),
        block_size_bytes: pair.now.block_size().bytes(),
        total_blocks,
        zeroed_blocks: found.zeroed_blocks,
        stored_bytes: pair.store.stored_bytes(&pair.now).total(),
        classes: found
            .changed
            .classes()
            .into_iter()
            .map(ClassRow::of)
            .collect(),
        files: Vec::new(),
        files_total: 0,
        unknown_blocks,
        named_percent: percent(total_blocks - unknown_blocks, total_blocks),
        advice: Vec::new(),
        shadow: found.changed.shadow(),
        problems: Vec::new(),
        examples: Vec::new(),
    };
    match whose {
        Whose::Unknown(why) => {
            explained.remark = format!("whose the blocks are cannot be told: {why}");
        }
        Whose::Ext4(ext4) => {
            let tables = table_changes(pair, ext4, &found.tables)?;
            explained.advice = advise(pair.now.block_size(), &found.changed, &found.zeroed, tables);
            explained.file_system = Some("ext4");
            explained.remark = ext4.in_words();
            (explained.problems, explained.examples) = ext4.wrong();
            let files = found.changed.files();
            explained.files_total = files.len() as u64;
            explained.files = files_of(context, ext4, files, args.top)?;
        }
    }
    Ok(explained)
}

/// The first `top` files, or all, with their paths.
fn files_of(
    context: &Context,
    ext4: &Ext4,
    mut files: Vec<(u32, Counted)>,
    top: usize,
) -> Result<Vec<FileRow>, Failure> {
    if top > 0 {
        files.truncate(top);
    }
    let inodes: Vec<u32> = files.iter().map(|(inode, _)| *inode).collect();
    let mut paths = ext4.paths(context, &inodes)?;
    let row = |(inode, Counted { blocks, bytes })| FileRow {
        path: paths.remove(&inode).unwrap_or_default(),
        blocks,
        bytes,
        inode,
    };
    Ok(files.into_iter().map(row).collect())
}

/// The blocks of a share that hold inodes.
fn blocks_with_inodes(share: Share<'_>) -> Option<BlockRange> {
    match share {
        Share::Whole(blocks, Owner::InodeTable) => Some(blocks),
        Share::Split(block, parts) => {
            let has = parts.iter().any(|(owner, _)| *owner == Owner::InodeTable);
            has.then(|| BlockRange::one(block))
        }
        Share::Whole(..) => None,
    }
}

/// What changed in blocks that hold inodes.
fn table_changes(pair: &Pair, ext4: &Ext4, tables: &[BlockRange]) -> Result<TableChanges, Failure> {
    let mut changes = TableChanges::default();
    let (unit, inode) = (
        pair.now.block_size().bytes(),
        ext4.fs.superblock().inode_bytes,
    );
    let Some(before) = pair.before.as_ref().filter(|_| inode <= unit) else {
        return Ok(changes);
    };
    let (old, new) = (pair.image(before), pair.image(&pair.now));
    let mut bytes = [vec![0; unit as usize], vec![0; unit as usize]];
    for block in tables.iter().flat_map(|blocks| blocks.iter()) {
        let range = pair.now.block_size().bytes_of(BlockRange::one(block));
        // A part of a block, at an end of one of the images, is not looked at.
        if range.end.0 > before.size_bytes().min(pair.now.size_bytes()) {
            continue;
        }
        for (device, bytes) in [&old, &new].into_iter().zip(&mut bytes) {
            device.read_at(range.start, bytes)?;
        }
        let tables: Vec<Range<usize>> = ext4
            .owners
            .runs(range)
            .filter(|owned| owned.owner == Owner::InodeTable)
            .map(|owned| {
                let at = |offset: u64| usize::try_from(offset - range.start.0).expect("in a block");
                at(owned.range.start.0)..at(owned.range.end.0)
            })
            .collect();
        changes.add(&bytes[0], &bytes[1], &tables, inode as usize);
    }
    Ok(changes)
}
