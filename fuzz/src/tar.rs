//! An archive of tar, read into a tree.
//!
//! ```text
//! input  0 how: 0 as it is, else the checksum of each header is made right   1 the archive
//! ```

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use cowslip_tree::{Content, Kind, NodeId, ROOT, Tree, tar};

use crate::input::Input;

const BLOCK: usize = 512;
const NODES_MAX: usize = 1000;
const SIZE_MAX: u64 = 1 << 50;

/// Reads it, and looks at all that came of it.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let right = input.byte() != 0;
    let mut archive = input.0.to_vec();
    if right {
        make_right(&mut archive);
    }
    let mut tree = Tree::new(NODES_MAX);
    // What was read before an error is a tree as well.
    let read = tar::read(
        &Arc::new(in_memory(&archive)),
        &mut tree,
        SIZE_MAX,
        &mut |_| {},
    );
    if let Err(error) = read {
        assert!(
            !error.to_string().contains('\u{1b}'),
            "it goes to a terminal"
        );
    }
    assert!(tree.node_count() <= NODES_MAX);
    let mut links = vec![0; tree.node_count()];
    go_over(&tree, ROOT, 0, archive.len() as u64, &mut links);
    for id in tree.in_order() {
        assert_eq!(tree.node(id).links, links[id.0].max(u32::from(id == ROOT)));
    }
    let names: u64 = links.iter().map(|n| u64::from(*n)).sum();
    assert_eq!(
        tree.counts().names,
        1 + names,
        "the root has one without an entry"
    );
}

fn in_memory(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("archive", flags).expect("memory"));
    file.write_all(bytes).expect("memory");
    file
}

/// What the module of the tree, and that of tar, say that always holds.
fn go_over(tree: &Tree, directory: NodeId, depth: usize, archive_bytes: u64, links: &mut [u32]) {
    assert!(depth <= 256);
    for (name, id) in tree.entries(directory) {
        assert!((1..=255).contains(&name.len()) && name != b"." && name != b"..");
        assert!(!name.contains(&b'/') && !name.contains(&0));
        links[id.0] += 1;
        let node = tree.node(id);
        match &node.kind {
            Kind::Directory(_) => {
                assert_eq!(links[id.0], 1, "a directory has one name");
                go_over(tree, id, depth + 1, archive_bytes, links);
            }
            Kind::File(Content::Pieces {
                size_bytes, pieces, ..
            }) => {
                let mut done = 0;
                for piece in pieces {
                    assert!(piece.at >= done && piece.len > 0);
                    done = piece.at + piece.len;
                    assert!(piece.from + piece.len <= archive_bytes);
                }
                assert!(done <= *size_bytes && *size_bytes <= SIZE_MAX);
            }
            Kind::File(Content::Path { .. }) => panic!("an archive has no paths of this machine"),
            Kind::Symlink(to) => assert!((1..=4095).contains(&to.len()) && !to.contains(&0)),
            Kind::Device { .. } | Kind::Fifo => {}
        }
        for (name, value) in &node.attributes.xattrs {
            assert!(name.len() <= 255 && value.len() <= 65_536);
        }
    }
}

/// The sum of each header in its place, as far as headers can be found.
fn make_right(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + BLOCK) {
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = block[124..135].iter().map(|byte| usize::from(byte & 7));
        let len = digits.fold(0, |len, digit| len * 8 + digit);
        at += BLOCK + len.next_multiple_of(BLOCK);
    }
}

fn header(name: &[u8], kind: u8, len: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{len:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

fn entry(name: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    let mut out = header(name, kind, data.len()).to_vec();
    out.extend(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn linked(name: &[u8], kind: u8, to: &[u8]) -> Vec<u8> {
    let mut out = header(name, kind, 0).to_vec();
    out[157..157 + to.len()].copy_from_slice(to);
    out
}

fn record(text: &str) -> Vec<u8> {
    let whole = |n: usize| text.len() + 2 + n.to_string().len() == n;
    let len = (1..)
        .find(|n| whole(*n))
        .expect("there is a length that counts itself");
    format!("{len} {text}\n").into_bytes()
}

/// Every type of file, every kind of sparse file, records of every key.
pub fn seeds() -> Vec<Vec<u8>> {
    let end = vec![0; 2 * BLOCK];
    let plain = [
        entry(b"d/", b'5', b""),
        entry(b"d/file", b'0', b"abc"),
        linked(b"d/again", b'1', b"d/file"),
        linked(b"link", b'2', b"d/file"),
        entry(b"null", b'3', b""),
        entry(b"disk", b'4', b""),
        entry(b"pipe", b'6', b""),
        entry(b"old/", 0, b""),
        entry(b"l", b'L', b"a/long/name\0"),
        entry(b"l", b'K', b"a long target\0"),
        linked(b"short", b'2', b"short"),
        entry(b"volume", b'V', b""),
        entry(b"list", b'D', b"Yfile\0\0"),
    ];
    let records = [
        "path=d/named",
        "size=3",
        "uid=7",
        "gid=8",
        "mtime=1600000000.5",
        "SCHILY.xattr.user.x=value",
        "SCHILY.acl.access=user::rw-,user:7:rwx,group::r--,mask::rwx,other::r--",
        "SCHILY.acl.default=user::rwx,group::r-x,other::---",
        "LIBARCHIVE.creationtime=1",
    ];
    let extended = [
        entry(
            b"g",
            b'g',
            &[record("uid=3"), record("comment=all of them")].concat(),
        ),
        entry(b"x", b'x', &records.map(record).concat()),
        entry(b"file", b'0', b"abc"),
        entry(b"x", b'x', &record("linkpath=elsewhere")),
        linked(b"link", b'2', b"here"),
    ];
    let mut old = header(b"old", b'S', 3);
    old[386..410].copy_from_slice(b"00000000144 00000000003 ");
    old[483..494].copy_from_slice(b"00000000310");
    let old = [&old[..], b"abc", &[0; BLOCK - 3]].concat();
    let said = |records: &[&str], data: &[u8]| {
        let records: Vec<u8> = records.iter().flat_map(|text| record(text)).collect();
        [entry(b"x", b'x', &records), entry(b"sparse", b'0', data)].concat()
    };
    let mut with_map = b"1\n5\n3\n".to_vec();
    with_map.resize(BLOCK, 0);
    with_map.extend(b"abc");
    let sparse = [
        old,
        said(&["GNU.sparse.size=9", "GNU.sparse.map=1,1,5,2"], b"abc"),
        said(
            &[
                "GNU.sparse.size=9",
                "GNU.sparse.numblocks=1",
                "GNU.sparse.offset=2",
                "GNU.sparse.numbytes=3",
            ],
            b"abc",
        ),
        said(
            &[
                "GNU.sparse.major=1",
                "GNU.sparse.minor=0",
                "GNU.sparse.name=n",
                "GNU.sparse.realsize=9",
            ],
            &with_map,
        ),
    ];
    [plain.concat(), extended.concat(), sparse.concat()]
        .map(|archive| [vec![1], archive, end.clone()].concat())
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_archives() {
        for seed in seeds() {
            let mut archive = seed[1..].to_vec();
            make_right(&mut archive);
            let mut tree = Tree::new(NODES_MAX);
            tar::read(
                &Arc::new(in_memory(&archive)),
                &mut tree,
                SIZE_MAX,
                &mut |_| {},
            )
            .unwrap();
            assert!(tree.counts().names > 3);
        }
    }
}
