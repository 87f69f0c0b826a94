//! `cowslip kernel-args`: the kernel's command line for a guest whose root is a snapshot.
//!
//! Where the mount options of a template stand, so that its snapshots and forks have them too:
//!
//! | whose | where |
//! |---|---|
//! | ext4's own (`discard`, `commit=`, ...) | in the superblock: whoever mounts it has them, told or not |
//! | Linux's (`noatime`, `lazytime`, ...) | in the template's header, with what made it |
//!
//! What nobody said is the system's: `discard,noatime,lazytime`.
//!
//! Without an initrd the kernel mounts the root by itself, and hands `rootflags=` to ext4 as it is. ext4 takes its own
//! options there, and Linux those of a file system (`lazytime`); those of a mount (`noatime`) are flags of mount(2), which
//! nobody sets: "Unknown parameter 'noatime'", and a panic. With an initrd, mount(8) sorts them out.

use std::sync::Arc;

use cowslip_block::Device;
use cowslip_ext4::{FileSystem, State};
use cowslip_snapshot::MADE_BY;
use cowslip_snapshot::header::Header;
use cowslip_snapshot::image::Image;
use cowslip_snapshot::store::Store;
use serde::Serialize;

use super::Context;
use super::log::parent;
use crate::args::{KernelArgs, Machine};
use crate::failure::Failure;
use crate::profile::{Settings, is_of_linux};
use crate::report::Names;

/// What is appended to the name of the program that built a template; its mount options follow.
const BUILD: &str = " build";
const NOT_SAID: [&str; 2] = ["discard", "noatime,lazytime"];
/// Of Linux's options, those that a file system takes as text.
const FOR_ANY_FILE_SYSTEM: [&str; 4] = ["lazytime", "nolazytime", "sync", "dirsync"];

/// Its field names are a contract.
#[derive(Serialize)]
struct Line {
    name: String,
    /// All of it.
    line: String,
    rootflags: String,
    /// Mount options that the kernel does not take there: for /etc/fstab, or a remount.
    left_out: Vec<String>,
}

/// What made a template, with those of its mount options that its file system cannot carry.
pub(super) fn built_with(settings: &Settings) -> Result<String, Failure> {
    let options = settings.linux_options();
    let made_by = format!("{MADE_BY}{BUILD} {options}");
    let made_by = made_by.trim_end();
    match made_by.len() <= 64 {
        true => Ok(made_by.to_owned()),
        false => Err(Failure::usage(format!(
            "so many mount options cannot be kept: {options}"
        ))),
    }
}

pub(super) fn run(context: &Context, args: &KernelArgs) -> Result<(), Failure> {
    let store = context.store()?;
    let (header, _lease) = store.resolve_leased(&args.name)?;
    let image: Arc<dyn Device> = Arc::new(Image::new(Arc::clone(&store), Arc::clone(&header)));
    let fs = FileSystem::open(image, State::Replayed);
    let fs = fs.map_err(|e| Failure::failed(format!("{} holds no ext4: {e}", args.name)))?;
    let options = options(&store, Some(header), &fs)?;
    let options = options.split(',').filter(|option| !option.is_empty());
    let (taken, left_out): (Vec<&str>, Vec<&str>) =
        options.partition(|option| args.initrd || kernel_takes(option));
    let rootflags = taken.join(",");
    let line = Line {
        name: args.name.to_string(),
        line: line(args.machine, &args.root, &rootflags),
        rootflags,
        left_out: left_out.iter().map(|option| (*option).to_owned()).collect(),
    };
    if !left_out.is_empty() {
        let left_out = left_out.join(",");
        context.report.remark(&format!(
            "not in the line, since a kernel without an initrd panics on it: {left_out}. \
             `mount -o remount,{left_out} /` in the guest, or /etc/fstab, or --initrd"
        ));
    }
    context.report.result(&line, || line.line.clone())
}

/// The mount options of an image: those in its file system, and those of the template that it comes from, if that is known.
pub(super) fn options(
    store: &Store,
    header: Option<Arc<Header>>,
    fs: &FileSystem<'_>,
) -> Result<String, Failure> {
    let carried = carried(fs)?;
    let of_linux = header.map(|header| said_by_template(store, header));
    Ok(match (carried.as_str(), of_linux.transpose()?.flatten()) {
        ("", None) => NOT_SAID.join(","),
        (carried, of_linux) => {
            let of_linux = of_linux.unwrap_or_else(|| NOT_SAID[1].to_owned());
            [carried, &of_linux].join(",")
        }
    })
}

fn kernel_takes(option: &str) -> bool {
    !is_of_linux(option) || FOR_ANY_FILE_SYSTEM.contains(&option)
}

/// All of the line.
pub(super) fn line(machine: Machine, root: &str, rootflags: &str) -> String {
    let machine = match machine {
        Machine::Firecracker => "console=ttyS0 reboot=k panic=1 pci=off",
        Machine::CloudHypervisor => "console=hvc0 panic=1",
        Machine::Qemu => "console=ttyS0 panic=1",
    };
    let rootflags = match rootflags {
        "" => String::new(),
        flags => format!(" rootflags={flags}"),
    };
    format!("{machine} root={root} rw rootfstype=ext4{rootflags}")
}

/// The options in the superblock.
fn carried(fs: &FileSystem<'_>) -> Result<String, Failure> {
    let options = &fs.superblock().mount_options;
    let is_plain = options.iter().all(|b| b.is_ascii_graphic() && *b != b'"');
    let options = std::str::from_utf8(options).ok().filter(|_| is_plain);
    let no_text = || Failure::failed("the mount options in the superblock are no text");
    options.map(str::to_owned).ok_or_else(no_text)
}

/// Linux's options, from the template that the snapshot comes from, if it was built and is still there.
fn said_by_template(store: &Store, header: Arc<Header>) -> Result<Option<String>, Failure> {
    let names = Names::read(store)?;
    let mut next = Some(header);
    while let Some(header) = next {
        if header.meta().parent.is_none() {
            let said = header.meta().made_by.split_once(BUILD);
            return Ok(said.map(|(_, options)| options.trim().to_owned()));
        }
        next = parent(store, &header, &names)?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_takes_by_itself() {
        for yes in [
            "discard",
            "lazytime",
            "commit=30",
            "nodelalloc",
            "noinit_itable",
            "data=writeback",
        ] {
            assert!(kernel_takes(yes), "{yes}");
        }
        for no in [
            "noatime",
            "relatime",
            "nodiratime",
            "nosuid",
            "nodev",
            "noexec",
        ] {
            assert!(!kernel_takes(no), "{no}");
        }
    }
}
