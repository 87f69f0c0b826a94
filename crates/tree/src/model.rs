//! [`Tree`]: what a file system is to hold, whichever source it is read from and whichever way it is filled.
//!
//! Names of an archive are untrusted, and are resolved here, in memory, where there is nothing to escape to:
//!
//! | a name that | is |
//! |---|---|
//! | begins with `/` | taken from the root of the tree, as GNU tar does |
//! | has `..` in it, NUL, a part of more than 255 bytes, more than 256 parts | refused |
//! | leads through what is no directory, a symbolic link too | refused |
//! | leads through what is not there | given directories, 0755, of root |
//! | is there already | replaced, the later wins; a directory over a directory takes its attributes and keeps what is in it; what is no directory does not replace a directory that has something in it |
//! | is a hard link | to the same file as its target, which must be there already; its target's name obeys the same rules |
//!
//! Invariants: 1. the root, node 0, is a directory. 2. A directory has one name, so the names form a tree. 3. `links` of
//! a node is the number of names that it has.
//!
//! Not here: where contents come from (`content`), and how the tree gets into an image.

use std::collections::BTreeMap;

use crate::content::Content;

/// Of ext4, and of Linux.
const NAME_BYTES_MAX: usize = 255;
/// Directories in directories. Both fillers go down as deep.
const DEPTH_MAX: usize = 256;

/// A node's place in the tree's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// The root directory.
pub const ROOT: NodeId = NodeId(0);

/// A point in time: seconds since 1970, which may be before that, and nanoseconds after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Since 1970.
    pub seconds: i64,
    /// After that second.
    pub nanoseconds: u32,
}

/// What every kind of file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permissions, set-id bits and the sticky bit.
    pub mode: u16,
    /// When its content was last changed.
    pub modified: Time,
    /// Extended attributes, by their whole names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a file is.
#[derive(Debug)]
pub enum Kind {
    /// What is in it, by name.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file.
    File(Content),
    /// With what it says, whatever that is.
    Symlink(Vec<u8>),
    /// A device's number, and whether it is one of blocks or of characters.
    Device {
        /// Of blocks.
        block: bool,
        /// The driver's number.
        major: u32,
        /// The device's.
        minor: u32,
    },
    /// A pipe with a name.
    Fifo,
}

impl Kind {
    /// The bits of an inode's mode that say the kind.
    pub fn mode_bits(&self) -> u16 {
        match self {
            Self::Directory(_) => 0o040_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
            Self::Device { block: true, .. } => 0o060_000,
            Self::Device { block: false, .. } => 0o020_000,
            Self::Fifo => 0o010_000,
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// One file, of whatever kind.
#[derive(Debug)]
pub struct Node {
    /// What every kind has.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
    /// How many names it has.
    pub links: u32,
}

/// All of it.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    nodes_max: usize,
}

/// How many of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Names, hard links counted each.
    pub names: u64,
    /// The root is one.
    pub directories: u64,
    /// Regular ones.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices and FIFOs.
    pub special: u64,
    /// The lengths of the files, each once.
    pub content_bytes: u64,
}

impl Tree {
    /// An empty root directory. More than `nodes_max` files are refused.
    pub fn new(nodes_max: usize) -> Self {
        let root = Node {
            attributes: implied(),
            kind: Kind::Directory(BTreeMap::new()),
            links: 1,
        };
        Self {
            nodes: vec![root],
            nodes_max,
        }
    }

    /// The file of this number, which is one of this tree's.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Is that one a directory?
    pub fn is_directory(&self, id: NodeId) -> bool {
        self.nodes[id.0].kind.is_directory()
    }

    /// How many nodes there are, those included that have no name any more.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What is in a directory, in the order of the names' bytes; nothing in what is none.
    pub fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let entries = match &self.nodes[id.0].kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        };
        let entries = entries.into_iter().flatten();
        entries.map(|(name, id)| (name.as_slice(), *id))
    }

    /// Puts a file where its name says.
    ///
    /// # Errors
    /// Why the name, or the file under it, cannot be: see the top of the file.
    pub fn insert(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<NodeId, String> {
        let parts = parts(name)?;
        let Some((last, parents)) = parts.split_last() else {
            return self.replace_root(attributes, &kind);
        };
        let parent = self.directory(parents)?;
        if let Some(old) = self.entry(parent, last) {
            if kind.is_directory() && self.nodes[old.0].kind.is_directory() {
                self.nodes[old.0].attributes = attributes;
                return Ok(old);
            }
            self.check_replaceable(old)?;
        }
        let id = self.push(attributes, kind)?;
        self.name(parent, last, id);
        Ok(id)
    }

    /// Gives a file that is there another name.
    ///
    /// # Errors
    /// As [`Tree::insert`]; where there is no such file, or it is a directory.
    pub fn link(&mut self, name: &[u8], target: &[u8]) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(target).escape_debug().to_string();
        let target_parts = parts(target).map_err(|why| format!("a link to {}: {why}", shown()))?;
        let found = self.find(&target_parts);
        let id =
            found.ok_or_else(|| format!("a link to {}, which is not there before it", shown()))?;
        if self.nodes[id.0].kind.is_directory() {
            return Err(format!("a hard link to {}, a directory", shown()));
        }
        let parts = parts(name)?;
        let Some((last, parents)) = parts.split_last() else {
            return Err("the root cannot be a link".into());
        };
        let parent = self.directory(parents)?;
        if let Some(old) = self.entry(parent, last) {
            if old == id {
                return Ok(());
            }
            self.check_replaceable(old)?;
        }
        self.name(parent, last, id);
        Ok(())
    }

    /// Counts what has a name.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in self.nodes.iter().filter(|node| node.links > 0) {
            counts.names += u64::from(node.links);
            match &node.kind {
                Kind::Directory(_) => counts.directories += 1,
                Kind::File(content) => {
                    counts.files += 1;
                    let bytes = content.size_bytes();
                    // Holes cost an archive nothing.
                    counts.content_bytes = counts.content_bytes.saturating_add(bytes);
                }
                Kind::Symlink(_) => counts.symlinks += 1,
                Kind::Device { .. } | Kind::Fifo => counts.special += 1,
            }
        }
        counts
    }

    /// All nodes that have a name, each once: parents before what is in them, and in the order of names.
    pub fn in_order(&self) -> Vec<NodeId> {
        let mut seen = vec![false; self.nodes.len()];
        let mut order = Vec::new();
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            if std::mem::replace(&mut seen[id.0], true) {
                continue;
            }
            order.push(id);
            let entries: Vec<NodeId> = self.entries(id).map(|(_, id)| id).collect();
            todo.extend(entries.into_iter().rev());
        }
        order
    }

    fn replace_root(&mut self, attributes: Attributes, kind: &Kind) -> Result<NodeId, String> {
        if !kind.is_directory() {
            return Err("the root can only be a directory".into());
        }
        self.nodes[ROOT.0].attributes = attributes;
        Ok(ROOT)
    }

    fn push(&mut self, attributes: Attributes, kind: Kind) -> Result<NodeId, String> {
        if self.nodes.len() >= self.nodes_max {
            let max = self.nodes_max;
            return Err(format!(
                "there are more files than the image can have, {max}"
            ));
        }
        self.nodes.push(Node {
            attributes,
            kind,
            links: 0,
        });
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// What had the name has one name less.
    fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Directory(entries) = &mut self.nodes[parent.0].kind {
            let old = entries.insert(name.to_vec(), id);
            self.nodes[id.0].links += 1;
            if let Some(old) = old {
                self.nodes[old.0].links -= 1;
            }
        }
    }

    fn entry(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[parent.0].kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn find(&self, parts: &[&[u8]]) -> Option<NodeId> {
        let mut parts = parts.iter();
        parts.try_fold(ROOT, |id, part| self.entry(id, part))
    }

    fn check_replaceable(&self, old: NodeId) -> Result<(), String> {
        match self.entries(old).next() {
            Some(_) => Err("it is a directory that has something in it".into()),
            None => Ok(()),
        }
    }

    /// The directory that these parts lead to, made where it is missing.
    fn directory(&mut self, parts: &[&[u8]]) -> Result<NodeId, String> {
        let mut at = ROOT;
        for (i, part) in parts.iter().enumerate() {
            at = match self.entry(at, part) {
                Some(id) if self.nodes[id.0].kind.is_directory() => id,
                Some(id) => {
                    let what = match self.nodes[id.0].kind {
                        Kind::Symlink(_) => "a symbolic link",
                        _ => "a file",
                    };
                    let path = parts[..=i].join(&b'/');
                    let path = String::from_utf8_lossy(&path).escape_debug().to_string();
                    return Err(format!("it would lie behind {path}, which is {what}"));
                }
                None => {
                    let id = self.push(implied(), Kind::Directory(BTreeMap::new()))?;
                    self.name(at, part, id);
                    id
                }
            };
        }
        Ok(at)
    }
}

/// Of directories that nothing is said about.
fn implied() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

/// A name's parts; the rules that it must obey by itself.
fn parts(name: &[u8]) -> Result<Vec<&[u8]>, String> {
    let parts = name.split(|b| *b == b'/');
    let parts: Vec<&[u8]> = parts.filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err("a name with .. in it could lead anywhere".into());
    }
    if parts.len() > DEPTH_MAX {
        return Err(format!("it lies more than {DEPTH_MAX} directories deep"));
    }
    if parts.iter().any(|p| p.len() > NAME_BYTES_MAX) {
        return Err(format!("a name of more than {NAME_BYTES_MAX} bytes"));
    }
    if name.contains(&0) {
        return Err("a name with a NUL in it".into());
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Kind {
        Kind::Directory(BTreeMap::new())
    }

    fn with(mode: u16) -> Attributes {
        Attributes {
            mode,
            ..Attributes::default()
        }
    }

    fn put(tree: &mut Tree, name: &str, kind: Kind) -> Result<NodeId, String> {
        tree.insert(name.as_bytes(), with(0o700), kind)
    }

    fn names(tree: &Tree, id: NodeId) -> Vec<String> {
        let mut all = Vec::new();
        for (name, id) in tree.entries(id) {
            let name = String::from_utf8_lossy(name).into_owned();
            all.extend(names(tree, id).into_iter().map(|n| format!("{name}/{n}")));
            all.push(name);
        }
        all
    }

    #[test]
    fn names_that_cannot_be() {
        let mut tree = Tree::new(100);
        put(&mut tree, "link", Kind::Symlink(b"/etc".to_vec())).unwrap();
        put(&mut tree, "file", Kind::Fifo).unwrap();
        put(&mut tree, "full/of", Kind::Fifo).unwrap();
        let long = "x".repeat(256);
        let deep = "d/".repeat(257);
        let refused = [
            ("..", ".."),
            ("a/../b", ".."),
            ("/..", ".."),
            ("a\0b", "NUL"),
            (long.as_str(), "255"),
            (deep.as_str(), "256"),
            ("link/x", "link, which is a symbolic link"),
            ("link/x/y", "symbolic link"),
            ("file/x", "file, which is a file"),
            ("full", "has something in it"),
            ("/", "root"),
            (".", "root"),
        ];
        for (name, why) in refused {
            let said = put(&mut tree, name, Kind::Fifo).unwrap_err();
            assert!(said.contains(why), "{name}: {said}");
        }
        assert_eq!(names(&tree, ROOT), ["file", "full/of", "full", "link"]);
        for (name, target, why) in [
            ("new", "nothing", "not there"),
            ("new", "full", "directory"),
            ("new", "../x", ".."),
            ("new", "link/passwd", "not there"),
            ("full", "file", "has something"),
            ("../new", "file", ".."),
            (".", "file", "root"),
        ] {
            let said = tree.link(name.as_bytes(), target.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{name} -> {target}: {said}");
        }
    }

    #[test]
    fn the_later_wins() {
        let mut tree = Tree::new(100);
        let first = put(&mut tree, "/d/a", Kind::Fifo).unwrap();
        tree.link(b"d/b", b"./d//a").unwrap();
        tree.link(b"d/b", b"d/b").unwrap();
        assert_eq!(tree.node(first).links, 2);
        let second = put(&mut tree, "d/a", Kind::Symlink(b"x".to_vec())).unwrap();
        assert_eq!((tree.node(first).links, tree.node(second).links), (1, 1));
        tree.insert(b"d", with(0o711), directory()).unwrap();
        assert_eq!(names(&tree, ROOT), ["d/a", "d/b", "d"]);
        let d = tree.entries(ROOT).next().unwrap().1;
        assert_eq!(tree.node(d).attributes.mode, 0o711);
        // A directory takes a link's place, and an empty directory gives way to a file.
        put(&mut tree, "d/a", directory()).unwrap();
        put(&mut tree, "d/a/x", Kind::Fifo).unwrap();
        put(&mut tree, "e", directory()).unwrap();
        put(&mut tree, "e", Kind::Fifo).unwrap();
        assert_eq!(names(&tree, ROOT), ["d/a/x", "d/a", "d/b", "d", "e"]);
        tree.insert(b"./", with(0o500), directory()).unwrap();
        assert_eq!(tree.node(ROOT).attributes.mode, 0o500);
        let counts = tree.counts();
        assert_eq!(
            (counts.directories, counts.special, counts.names),
            (3, 3, 6)
        );
        assert_eq!(tree.in_order().len(), 6);
    }

    #[test]
    fn so_many_and_no_more() {
        let mut tree = Tree::new(3);
        put(&mut tree, "a", Kind::Fifo).unwrap();
        put(&mut tree, "b", Kind::Fifo).unwrap();
        assert!(put(&mut tree, "c", Kind::Fifo).unwrap_err().contains('3'));
    }
}
