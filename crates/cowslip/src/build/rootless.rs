//! Filling an image without any privilege: debugfs is told everything in scripts, and what it made is read back.
//!
//! 1. *Structure*: directories, files with their contents, links, devices, depth first in the order of names.
//! 2. *Numbers*: the directories are read back by the `ext4` crate. Each must hold exactly the names that the tree has,
//!    which is also what proves that no name was taken for anything but a name; and that says each file's inode.
//! 3. *Attributes*, by inode number: owner, mode, times, further names, attributes.
//!
//! Why not `mkfs.ext4 -d`: it copies a directory in the order in which that lists its names, which is another on each machine,
//! and owners, devices and most attributes would have to be set by such a script all the same. Its 1.47.0 takes no archive.
//! Files are handed over by descriptor (`/proc/PID/fd/N`), so that their names are never part of a command.
//!
//! The result depends on the tree, the size and the settings alone: same input, same blocks.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use cowslip_ext4::{Ext4Error, FileSystem, State};

use super::e2fsprogs::{E2fsprogs, Script};
use crate::failure::Failure;
use crate::report::plain;
use cowslip_tree::{Kind, Node, NodeId, ROOT, Time, Tree};

/// The inode of the root directory.
const ROOT_INODE: u32 = 2;
/// What mkfs.ext4 makes in it.
const LOST_FOUND: &[u8] = b"lost+found";

/// Fills the image; `progress` is told how many bytes of contents are done.
pub(crate) fn fill(
    tools: &E2fsprogs<'_>,
    tree: &Tree,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let mut structure = Structure {
        tools,
        tree,
        script: Script::default(),
        at: Vec::new(),
        made: vec![false; tree.node_count()],
        done: 0,
        progress,
    };
    structure.directory(ROOT)?;
    structure.run()?;
    let image = tools.image.try_clone();
    let image = image.map_err(|e| Failure::failed(format!("the image: {e}")))?;
    let fs = FileSystem::open(image, State::OnDisk).map_err(|e| read_back(&e))?;
    let has_fine_times = fs.superblock().inode_bytes > 128;
    let made = made(&fs, tree)?;
    attributes(tools, tree, &made, has_fine_times)?;
    // A directory of one block is found in as fast without.
    let is_large = |id: &NodeId| {
        let names = tree.entries(*id).map(|(name, _)| name.len() + 12);
        names.sum::<usize>() > 4000
    };
    match tree.in_order().iter().any(is_large) {
        true => tools.index_directories(),
        false => Ok(()),
    }
}

fn read_back(error: &Ext4Error) -> Failure {
    Failure::failed(format!("reading back what debugfs made: {error}"))
}

fn about(name: &[u8]) -> String {
    plain(&String::from_utf8_lossy(name))
}

struct Structure<'a> {
    tools: &'a E2fsprogs<'a>,
    tree: &'a Tree,
    script: Script,
    /// The directory that the script is in, from the root.
    at: Vec<Vec<u8>>,
    made: Vec<bool>,
    /// Bytes of contents in the scripts so far.
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Structure<'_> {
    fn directory(&mut self, id: NodeId) -> Result<(), Failure> {
        let tree = self.tree;
        for (name, id) in tree.entries(id) {
            // A further name of a file comes with the attributes.
            if std::mem::replace(&mut self.made[id.0], true) {
                continue;
            }
            let node = tree.node(id);
            self.file(name, node).map_err(|f| f.about(about(name)))?;
            if matches!(node.kind, Kind::Directory(_)) {
                self.say("cd", &[&[b"./", name].concat()])?;
                self.at.push(name.to_vec());
                self.directory(id)?;
                self.at.pop();
                self.say("cd", &[b".."])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &[u8], node: &Node) -> Result<(), Failure> {
        if self.script.is_long() {
            self.run()?;
        }
        match &node.kind {
            Kind::Directory(_) if self.at.is_empty() && name == LOST_FOUND => Ok(()),
            Kind::Directory(_) => self.say("mkdir", &[name]),
            Kind::Symlink(target) => self.say("symlink", &[name, target]),
            Kind::Fifo => self.say("mknod", &[name, b"p"]),
            Kind::Device {
                block,
                major,
                minor,
            } => {
                let kind: &[u8] = if *block { b"b" } else { b"c" };
                let (major, minor) = (major.to_string(), minor.to_string());
                self.say("mknod", &[name, kind, major.as_bytes(), minor.as_bytes()])
            }
            Kind::File(content) => {
                let failed = |e: std::io::Error| Failure::failed(e.to_string());
                let opened = content.open().map_err(failed)?;
                let file = if opened.is_whole {
                    opened.file
                } else {
                    let copy = tempfile::tempfile_in(self.tools.room).map_err(failed)?;
                    opened.copy_to(&copy).map_err(failed)?;
                    Arc::new(copy)
                };
                let path = self.script.hold(file);
                self.done += content.size_bytes();
                self.say("write", &[&path, name])
            }
        }
    }

    fn say(&mut self, command: &str, words: &[&[u8]]) -> Result<(), Failure> {
        self.script.line(command, words).map_err(|why| {
            Failure::failed(why).hint("--as-root can do it: it asks the kernel instead")
        })
    }

    /// Runs what there is so far. The next script begins where this one ended.
    fn run(&mut self) -> Result<(), Failure> {
        if self.script.is_empty() {
            return Ok(());
        }
        self.tools.debugfs(&std::mem::take(&mut self.script))?;
        (self.progress)(self.done);
        let at = std::mem::take(&mut self.at);
        for name in &at {
            self.say("cd", &[&[b"./", &name[..]].concat()])?;
        }
        self.at = at;
        Ok(())
    }
}

/// Names in one directory.
type Names<'t> = Vec<(&'t [u8], NodeId)>;

/// What debugfs made.
struct Made<'t> {
    /// The inode of each node.
    numbers: Vec<u32>,
    /// Further names of files, by directory: they are not there yet.
    further: Vec<(NodeId, Names<'t>)>,
}

/// All names of a directory must be there, but for further names of a file, and no others.
fn made<'t>(fs: &FileSystem<'_>, tree: &'t Tree) -> Result<Made<'t>, Failure> {
    let mut numbers = vec![0; tree.node_count()];
    numbers[ROOT.0] = ROOT_INODE;
    let mut further = Vec::new();
    let order = tree.in_order();
    for id in order.iter().copied().filter(|id| tree.is_directory(*id)) {
        let mut found = names_in(fs, numbers[id.0]).map_err(|e| read_back(&e))?;
        let mut missing = Vec::new();
        for (name, entry) in tree.entries(id) {
            match found.remove(name) {
                Some(number) => numbers[entry.0] = number,
                None => missing.push((name, entry)),
            }
        }
        found.retain(|name, _| id != ROOT || name != LOST_FOUND);
        if let Some((name, _)) = found.first_key_value() {
            let message = format!("debugfs made {}, which nobody asked for", about(name));
            return Err(Failure::failed(message));
        }
        if !missing.is_empty() {
            further.push((id, missing));
        }
    }
    let names = further.iter().flat_map(|(_, names)| names);
    if let Some((name, _)) = names.into_iter().find(|(_, id)| numbers[id.0] == 0) {
        return Err(Failure::failed(format!(
            "debugfs did not make {}",
            about(name)
        )));
    }
    Ok(Made { numbers, further })
}

fn names_in(fs: &FileSystem<'_>, number: u32) -> Result<BTreeMap<Vec<u8>, u32>, Ext4Error> {
    let mut found = BTreeMap::new();
    fs.read_directory(&fs.inode(number)?, &mut |entry| {
        if !entry.is_dots() {
            found.insert(entry.name.to_vec(), entry.inode);
        }
    })?;
    Ok(found)
}

/// Everything about inodes that are there, and their further names.
fn attributes(
    tools: &E2fsprogs<'_>,
    tree: &Tree,
    made: &Made<'_>,
    has_fine_times: bool,
) -> Result<(), Failure> {
    let mut script = Script::default();
    for id in tree.in_order() {
        let number = made.numbers[id.0];
        let said = say_attributes(&mut script, tools, tree.node(id), number, has_fine_times);
        said.map_err(|why| Failure::failed(format!("inode {number}: {why}")))?;
        if script.is_long() {
            tools.debugfs(&std::mem::take(&mut script))?;
        }
    }
    for (directory, names) in &made.further {
        let said = say_links(&mut script, made.numbers[directory.0], names, &made.numbers);
        said.map_err(Failure::failed)?;
    }
    tools.debugfs(&script)
}

fn say_links(
    script: &mut Script,
    directory: u32,
    further: &[(&[u8], NodeId)],
    numbers: &[u32],
) -> Result<(), String> {
    script.line(&format!("cd <{directory}>"), &[])?;
    for (name, id) in further {
        script.line(&format!("ln <{}>", numbers[id.0]), &[name])?;
    }
    Ok(())
}

fn say_attributes(
    script: &mut Script,
    tools: &E2fsprogs<'_>,
    node: &Node,
    number: u32,
    has_fine_times: bool,
) -> Result<(), String> {
    let attributes = &node.attributes;
    let mode = node.kind.mode_bits() | attributes.mode;
    let (low, extra) = encoded(attributes.modified);
    let mut set =
        |field: &str, value: String| script.line(&format!("sif <{number}> {field} {value}"), &[]);
    set("mode", format!("0{mode:o}"))?;
    set("uid", attributes.uid.to_string())?;
    set("gid", attributes.gid.to_string())?;
    set("mtime", format!("@{low}"))?;
    if has_fine_times {
        set("mtime_extra", extra.to_string())?;
    }
    if node.links > 1 {
        set("links_count", node.links.to_string())?;
    }
    for (name, value) in &attributes.xattrs {
        let file = || {
            let mut file = tempfile::tempfile_in(tools.room)?;
            std::io::Write::write_all(&mut file, value)?;
            Ok(file)
        };
        let file: File = file().map_err(|e: std::io::Error| e.to_string())?;
        let path = script.hold(Arc::new(file));
        let inode = format!("<{number}>");
        script.line("ea_set -f", &[&path, inode.as_bytes(), name])?;
    }
    Ok(())
}

/// A time as ext4 has it: 32 bits of seconds, and another field with two more of them and the nanoseconds. What does not
/// fit is the nearest that does, which the kernel does as well.
fn encoded(time: Time) -> (u32, u32) {
    let seconds = time
        .seconds
        .clamp(i64::from(i32::MIN), (3 << 32) + i64::from(i32::MAX));
    let bytes = seconds.to_le_bytes();
    let low = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let epoch = (seconds - i64::from(low.cast_signed())) >> 32;
    let epoch = u32::try_from(epoch & 3).expect("two bits");
    (low, time.nanoseconds << 2 | epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_ext4_has_them() {
        let encode = |seconds, nanoseconds| {
            encoded(Time {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(encode(0, 5), (0, 20));
        assert_eq!(encode(-1, 0), (u32::MAX, 0));
        assert_eq!(encode(i64::from(i32::MAX), 0), (0x7fff_ffff, 0));
        assert_eq!(encode(i64::from(i32::MAX) + 1, 0), (0x8000_0000, 1));
        assert_eq!(encode(u32::MAX.into(), 0), (u32::MAX, 1));
        assert_eq!(encode(1 << 32, 1), (0, 5));
        assert_eq!(encode(i64::MAX, 0), (0x7fff_ffff, 3));
        assert_eq!(encode(i64::MIN, 0), (0x8000_0000, 0));
    }
}
