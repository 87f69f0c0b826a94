//! What debugfs and dumpe2fs say of an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cowslip_ext4::Owner;

use super::rig::{Image, run};

/// What they say of some blocks.
pub(crate) struct Oracle {
    /// Of each block: its inode, and whether it is in use.
    pub(crate) blocks: BTreeMap<u64, (Option<u32>, bool)>,
    /// Of each inode of these.
    pub(crate) inodes: BTreeMap<u32, Stat>,
    layout: Vec<(u64, u64, Owner)>,
    boot: u64,
}

#[derive(Default, Debug)]
pub(crate) struct Stat {
    pub(crate) kind: String,
    pub(crate) flags: u32,
    pub(crate) links: u32,
    pub(crate) xattr_block: u64,
    pub(crate) tree: BTreeSet<u64>,
    pub(crate) paths: BTreeSet<String>,
}

impl Oracle {
    pub(crate) fn ask(image: &Image, blocks: &BTreeSet<u64>) -> Self {
        let blocks: Vec<u64> = blocks.iter().copied().collect();
        let mut commands = String::new();
        for some in blocks.chunks(200) {
            let numbers: Vec<String> = some.iter().map(u64::to_string).collect();
            writeln!(commands, "icheck {}", numbers.join(" ")).unwrap();
        }
        for block in &blocks {
            writeln!(commands, "testb {block}").unwrap();
        }
        let said = image.debugfs(false, &commands);
        let mut found: BTreeMap<u64, (Option<u32>, bool)> = BTreeMap::new();
        for line in said.lines() {
            if let Some((block, inode)) = line.split_once('\t')
                && let Ok(block) = block.parse()
            {
                found.entry(block).or_default().0 = inode.parse().ok();
            } else if let Some(rest) = line.strip_prefix("Block ")
                && let Some((block, used)) = rest.split_once(' ')
                && let Ok(block) = block.parse()
            {
                found.entry(block).or_default().1 = used == "marked in use";
            }
        }
        assert_eq!(found.len(), blocks.len(), "{said}");
        let inodes: BTreeSet<u32> = found.values().filter_map(|(inode, _)| *inode).collect();
        let (layout, boot) = layout(image);
        Self {
            blocks: found,
            inodes: stats(image, &inodes),
            layout,
            boot,
        }
    }

    /// Is this what they say of a block?
    pub(crate) fn agrees(&self, block: u64, owner: Owner) -> bool {
        let (inode, used) = self.blocks[&block];
        let Some(number) = inode else {
            let on_it = |(from, to, _): &&(u64, u64, Owner)| (*from..=*to).contains(&block);
            return match self.layout.iter().find(on_it) {
                Some((_, _, wanted)) => owner == *wanted,
                None if block < self.boot => owner == Owner::Superblock,
                None => owner == Owner::Free && !used,
            };
        };
        let stat = &self.inodes[&number];
        match owner {
            _ if number == 7 => matches!(owner, Owner::Descriptors | Owner::Special { inode: 7 }),
            Owner::Journal { .. } => number == 8 && !stat.tree.contains(&block),
            Owner::ExtentTree { inode } => inode == number && stat.tree.contains(&block),
            Owner::Xattr { inode } if stat.flags & 0x20_0000 != 0 => {
                // debugfs names the inode that holds the value, we the one that has the attribute.
                inode != number
            }
            Owner::Xattr { inode } => inode == number && stat.xattr_block == block,
            Owner::Directory { inode } => inode == number && stat.kind == "directory",
            Owner::File { inode } => {
                let plain = block != stat.xattr_block && !stat.tree.contains(&block);
                inode == number && plain && ["regular", "symlink"].contains(&&*stat.kind)
            }
            Owner::Special { inode } => inode == number && number < 11 || number > 10,
            _ => false,
        }
    }
}

fn stats(image: &Image, inodes: &BTreeSet<u32>) -> BTreeMap<u32, Stat> {
    let mut commands = String::new();
    for inode in inodes {
        writeln!(commands, "stat <{inode}>").unwrap();
    }
    let numbers: Vec<String> = inodes.iter().map(u32::to_string).collect();
    for some in numbers.chunks(500) {
        writeln!(commands, "ncheck {}", some.join(" ")).unwrap();
    }
    let mut all: BTreeMap<u32, Stat> = BTreeMap::new();
    let mut at = 0;
    for line in image.debugfs(false, &commands).lines() {
        let after = |what: &str| -> Option<String> {
            let rest = line.split_once(what)?.1.trim_start();
            Some(rest.split_whitespace().next().unwrap_or("").to_owned())
        };
        if let Some((number, path)) = line.split_once('\t')
            && let Ok(number) = number.parse::<u32>()
        {
            all.entry(number)
                .or_default()
                .paths
                .insert(path.trim_end().replacen("//", "/", 1));
            continue;
        }
        if line.starts_with("Inode: ") {
            at = after("Inode:").unwrap().parse().unwrap();
            all.entry(at).or_default().kind = after("Type:").unwrap();
        }
        let stat = all.entry(at).or_default();
        if let Some(flags) = after("Flags: 0x") {
            stat.flags = u32::from_str_radix(&flags, 16).unwrap();
        }
        if let Some(links) = after("Links:") {
            stat.links = links.parse().unwrap();
        }
        if let Some(block) = after("File ACL:") {
            stat.xattr_block = block.parse().unwrap();
        }
        for part in line.split(", ") {
            let tree = ["(ETB", "(IND)", "(DIND)", "(TIND)"];
            if let Some((what, block)) = part.split_once(':')
                && tree.iter().any(|start| what.starts_with(start))
                && let Ok(block) = block.trim().parse()
            {
                stat.tree.insert(block);
            }
        }
    }
    all.remove(&0);
    all
}

/// The layout as dumpe2fs lists it, and the first block of the first group.
fn layout(image: &Image) -> (Vec<(u64, u64, Owner)>, u64) {
    let said = run("dumpe2fs", [image.path.as_os_str()]);
    let mut layout = Vec::new();
    let mut boot = 0;
    let mut push = |text: &str, owner| {
        let number = |text: &str| {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u64>().ok()
        };
        let Some(from) = number(text) else { return };
        let to = text.split_once('-').and_then(|(before, to)| {
            before
                .chars()
                .all(|c| c.is_ascii_digit())
                .then(|| number(to))
                .flatten()
        });
        layout.push((from, to.unwrap_or(from), owner));
    };
    for line in said.lines() {
        for (what, owner) in [
            ("rimary superblock at ", Owner::Superblock),
            ("ackup superblock at ", Owner::Superblock),
            ("roup descriptors at ", Owner::Descriptors),
            ("roup descriptor at ", Owner::Descriptors),
            ("eserved GDT blocks at ", Owner::Descriptors),
            ("lock bitmap at ", Owner::Bitmap),
            ("node bitmap at ", Owner::Bitmap),
            ("node table at ", Owner::InodeTable),
        ] {
            if let Some((_, rest)) = line.split_once(what) {
                push(rest, owner);
            }
        }
        if let Some((_, rest)) = line.split_once("Primary superblock at ") {
            boot = rest
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap();
        }
    }
    assert!(layout.len() > 3, "{said}");
    (layout, boot)
}
