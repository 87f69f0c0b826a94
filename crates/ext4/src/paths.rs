//! [`Paths`]: names of inodes, for those that somebody asks about.
//!
//! Directories point down; a path needs the way up. One pass over all directories keeps the name of each
//! directory, and of the wanted inodes: their first name and how many there are. Memory: some 80 bytes and the name for each of these.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use crate::error::Ext4Error;
use crate::file_system::FileSystem;
use crate::inode::{self, Inode, Kind, ROOT};
use crate::limits::PATH_DEPTH_MAX;
use crate::mapping::Seen;
use crate::problems::Problems;

/// A name, and the directory that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    directory: u32,
    name: Box<[u8]>,
    names: u32,
}

/// The paths of some inodes.
#[derive(Clone, Debug)]
pub struct Paths {
    names: HashMap<u32, Name>,
    problems: Problems,
}

/// A path, and how many others the inode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathOf {
    /// From `/`; from `<N>/`, where inode N is a directory that has no name, or that is too deep.
    pub path: Vec<u8>,
    /// Names that were found, this one included.
    pub names: u32,
}

impl Paths {
    /// Finds the paths of these inodes. `progress` hears how many groups are done, of twice [`crate::Superblock::groups`].
    ///
    /// # Errors
    /// Where the file system cannot be read.
    pub fn read(
        fs: &FileSystem<'_>,
        wanted: impl IntoIterator<Item = u32>,
        progress: &mut dyn FnMut(u32),
    ) -> Result<Self, Ext4Error> {
        let mut problems = Problems::default();
        let wanted: RoaringBitmap = wanted.into_iter().collect();
        let sound = fs.sound_tables(&mut Problems::default());
        let groups = fs.superblock().groups();
        let sound = |group: &u32| sound[*group as usize];
        let mut directories = RoaringBitmap::new();
        for group in (0..groups).filter(sound) {
            fs.scan_table(group, &mut |raw| {
                if inode::raw_kind(raw.bytes) == Kind::Directory && inode::raw_links(raw.bytes) > 0
                {
                    directories.insert(raw.number);
                }
                Ok(())
            })?;
            progress(group + 1);
        }
        let (mut names, mut seen) = (HashMap::new(), Seen::default());
        for group in (0..groups).filter(sound) {
            fs.scan_table(group, &mut |raw| {
                if !directories.contains(raw.number) {
                    return Ok(());
                }
                let inode = Inode::parse(raw.number, raw.bytes, fs.superblock());
                fs.directory_entries(&inode, &mut seen, &mut problems, &mut |entry| {
                    let keep = directories.contains(entry.inode) || wanted.contains(entry.inode);
                    if keep && !entry.is_dots() {
                        let first = || Name {
                            directory: raw.number,
                            name: entry.name.into(),
                            names: 0,
                        };
                        names.entry(entry.inode).or_insert_with(first).names += 1;
                    }
                })
            })?;
            progress(groups + group + 1);
        }
        Ok(Self { names, problems })
    }

    /// The path of an inode, if it was asked for and has one. Directories always are.
    pub fn get(&self, inode: u32) -> Option<PathOf> {
        if inode == ROOT {
            return Some(PathOf {
                path: b"/".to_vec(),
                names: 1,
            });
        }
        let found = self.names.get(&inode)?;
        let (mut parts, mut at) = (vec![&found.name], found.directory);
        while at != ROOT && parts.len() < PATH_DEPTH_MAX {
            let Some(name) = self.names.get(&at) else {
                break;
            };
            parts.push(&name.name);
            at = name.directory;
        }
        let start = if at == ROOT {
            String::new()
        } else {
            format!("<{at}>")
        };
        let mut path = start.into_bytes();
        for part in parts.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Some(PathOf {
            path,
            names: found.names,
        })
    }

    /// What was wrong with directories.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }
}
