//! `cowslip build`: a directory or an archive becomes an ext4, and that a template.

mod profiles;

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use cowslip_attach::mounts;
use cowslip_block::BlockSize;
use cowslip_block::files::RealFile;
use cowslip_snapshot::error::StoreError;
use indicatif::ProgressBar;
use serde::Serialize;
use uuid::Uuid;

use super::Context;
use super::import::{Wanted, store_raw};
use super::kernel_args::built_with;
use crate::args::Build;
use crate::build::{self, Image, Plan, Step, inside, path_of};
use crate::failure::Failure;
use crate::profile::{self, Settings};
use crate::report::{Info, Unit, advance, bytes, count};
use cowslip_tree::Counts;

/// What was built. Its field names are a contract.
#[derive(Serialize)]
struct Built<'a> {
    #[serde(flatten)]
    info: Info,
    profile: &'a str,
    /// `rootless` or `as-root`.
    way: &'static str,
    uuid: Uuid,
    mkfs_args: Vec<String>,
    /// For guests: `kernel-args` has those that a kernel takes.
    mount_options: String,
    contents: Counts,
    seconds: f64,
}

pub(super) fn run(context: &Context, args: &Build) -> Result<(), Failure> {
    if args.list_profiles {
        return profiles::list(context);
    }
    let begun = Instant::now();
    let (source, name) = (args.source.as_ref(), args.name.as_ref());
    let (source, name) = source
        .zip(name)
        .expect("clap wants both, unless profiles are listed");
    let settings = settings(args)?;
    let made_by = built_with(&settings)?;
    check_size(args.size.0)?;
    let is_rooted = args.as_root || !args.run.is_empty();
    if is_rooted {
        inside::enter()?;
    }
    let store = context.store_or_new()?;
    if !args.replace && store.has(name)? {
        let name = name.to_string();
        return Err(StoreError::AlreadyExists { name }.into());
    }
    let room = context.store_path()?;
    check_source(source, &room)?;
    let bar = Bar::new(context);
    let mut progress = |step, done, total| bar.show(step, done, total);
    let (tree, remarks) = build::read(source, args.size.0, &room, &mut progress)?;
    remarks
        .iter()
        .for_each(|remark| context.report.remark(remark));
    // It exists here as on every machine that attaches, and what we mount there nobody else sees.
    let plan = Plan {
        size_bytes: args.size.0,
        settings: &settings,
        label: args.label.as_deref(),
        uuid: args.uuid,
        mounted: is_rooted.then_some((&args.run_dir.path, &args.run)),
        room: &room,
    };
    let image = build::make(&plan, &tree, &mut progress)?;
    bar.end();
    let info = store_image(context, args, &image, made_by)?;
    let built = Built {
        info,
        profile: &args.profile,
        way: if is_rooted { "as-root" } else { "rootless" },
        uuid: image.uuid,
        mkfs_args: image.mkfs_args,
        mount_options: settings.mount_options(),
        contents: tree.counts(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.report.result(&built, || text(&built))
}

/// The profile, then what was said besides, each in its order.
fn settings(args: &Build) -> Result<Settings, Failure> {
    let unknown = |what: &str, name: &str| {
        let hint = "`cowslip build --list-profiles` lists profiles and knobs";
        Failure::usage(format!("there is no {what} {name:?}")).hint(hint)
    };
    let profile =
        profile::profile(&args.profile).ok_or_else(|| unknown("profile", &args.profile))?;
    let mut settings = profile.settings();
    for name in &args.knobs {
        settings.turn(profile::knob(name).ok_or_else(|| unknown("knob", name))?);
    }
    for option in &args.mkfs {
        settings.add_mkfs_text(option).map_err(Failure::usage)?;
    }
    for options in &args.mount_options {
        if options.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
            return Err(Failure::usage(format!("{options:?} are no mount options")));
        }
        settings.add_mount(options);
    }
    Ok(settings)
}

fn check_size(size: u64) -> Result<(), Failure> {
    let block = u64::from(BlockSize::DISK.bytes());
    match size {
        0..0x10_0000 => Err(Failure::usage("an image has 1 MiB at least")),
        _ if !size.is_multiple_of(block) => Err(Failure::usage("a size is a multiple of 4 KiB")),
        _ => Ok(()),
    }
}

/// A store that is part of its own template would not end.
fn check_source(source: &Path, store: &Path) -> Result<(), Failure> {
    if source == Path::new("-")
        || std::fs::metadata(source)
            .map_err(|e| Failure::file(source, &e))?
            .is_file()
    {
        return Ok(());
    }
    if mounts::lies_in(store, source) {
        let (store, source) = (store.display(), source.display());
        let message =
            format!("the store {store} lies in {source}: it would become a part of itself");
        return Err(Failure::usage(message));
    }
    Ok(())
}

fn store_image(
    context: &Context,
    args: &Build,
    image: &Image,
    made_by: String,
) -> Result<Info, Failure> {
    let path = path_of(&image.file);
    let source = RealFile::open(&path).map_err(|e| Failure::file(&path, &e))?;
    let wanted = Wanted {
        name: args.name.as_ref().expect("clap wants it"),
        replace: args.replace,
        made_by,
    };
    store_raw(context, &source, args.size.0, &wanted)
}

fn text(built: &Built<'_>) -> String {
    let info = &built.info;
    let counts = &built.contents;
    format!(
        "built {} ({}) {}, profile {}: {} of contents in {}, {}, {}; {}",
        info.name,
        bytes(info.size_bytes),
        built.way,
        built.profile,
        bytes(counts.content_bytes),
        count(counts.files, "file"),
        count(counts.directories, "directory").replace("directorys", "directories"),
        count(counts.symlinks, "link"),
        info.diff()
    )
}

/// One bar after the other.
struct Bar<'a> {
    context: &'a Context,
    now: RefCell<Option<(Step, ProgressBar)>>,
}

impl<'a> Bar<'a> {
    fn new(context: &'a Context) -> Self {
        let now = RefCell::new(None);
        Self { context, now }
    }

    fn show(&self, step: Step, done: u64, total: u64) {
        let mut now = self.now.borrow_mut();
        if now.as_ref().is_none_or(|(at, _)| *at != step) {
            if let Some((_, bar)) = now.take() {
                bar.finish_and_clear();
            }
            let (what, unit) = match step {
                Step::Reading => ("reading", Unit::Files),
                Step::Unpacking => ("unpacking", Unit::Bytes),
                Step::Filling => ("filling", Unit::Bytes),
                Step::Checking => ("checking", Unit::Bytes),
            };
            *now = Some((step, self.context.report.progress(what, unit)));
        }
        if let Some((_, bar)) = &*now {
            advance(bar, done, total.max(done));
        }
    }

    fn end(&self) {
        if let Some((_, bar)) = self.now.take() {
            bar.finish_and_clear();
        }
    }
}
