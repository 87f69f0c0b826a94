//! A UUID for a file system, from what it is made of: the same input gives the same UUID, and so the same blocks.
//!
//! It is over the names, kinds, attributes and lengths of all files, the image's size and how it is made; the contents are not
//! read for it. Two trees that differ in contents alone, with every time the same, get one UUID, as forks of one image do.

use uuid::Uuid;

use cowslip_tree::{Kind, NodeId, Tree};

/// The UUID of what this tree becomes, made this way.
pub(crate) fn uuid_of(tree: &Tree, size_bytes: u64, mkfs_args: &[String]) -> Uuid {
    let mut hash = Hash(blake3::Hasher::new());
    hash.number(size_bytes);
    mkfs_args.iter().for_each(|arg| hash.bytes(arg.as_bytes()));
    let order = tree.in_order();
    let mut places = vec![0; tree.node_count()];
    for (place, id) in (0u64..).zip(&order) {
        places[id.0] = place;
    }
    for id in order {
        hash.node(tree, id, &places);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.0.finalize().as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

struct Hash(blake3::Hasher);

impl Hash {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn node(&mut self, tree: &Tree, id: NodeId, places: &[u64]) {
        let node = tree.node(id);
        let own = &node.attributes;
        self.number(u64::from(own.uid) << 32 | u64::from(own.gid));
        self.number((node.kind.mode_bits() | own.mode).into());
        self.number(own.modified.seconds.cast_unsigned());
        self.number(own.modified.nanoseconds.into());
        self.number(own.xattrs.len() as u64);
        for (name, value) in &own.xattrs {
            self.bytes(name);
            self.bytes(value);
        }
        match &node.kind {
            Kind::Directory(entries) => {
                self.number(entries.len() as u64);
                for (name, id) in entries {
                    self.bytes(name);
                    self.number(places[id.0]);
                }
            }
            Kind::File(content) => self.number(content.size_bytes()),
            Kind::Symlink(target) => self.bytes(target),
            Kind::Device { major, minor, .. } => {
                self.number(u64::from(*major) << 32 | u64::from(*minor));
            }
            Kind::Fifo => {}
        }
    }
}
