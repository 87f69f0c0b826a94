//! For tests: a header object that is small, well-formed and hostile.

use cowslip_block::{BlockIndex, BlockRange};

use super::build::Builder;
use super::crafted::meta;
use super::map::{MapRun, Target};
use super::meta::Tail;
use super::{Nodes, Slot};
use crate::error::StoreError;
use crate::ids::{HeaderId, LayerId};
use crate::limits::{INNER_SLOTS, span};

/// A map so high in which each node has equal children; all of them lead to block 0 of the layer.
pub(crate) fn leads_everywhere(
    id: HeaderId,
    nodes: &Nodes,
    layer: LayerId,
    height: u8,
) -> Result<Vec<u8>, StoreError> {
    let mut builder = Builder::new(nodes, id);
    let block = MapRun {
        blocks: BlockRange::new(0, 1),
        to: Target::Layer { id: layer, at: 0 },
    };
    let mut root = builder.put_leaf(&[block], BlockIndex(0), &Slot::Nil)?;
    for level in 1..=height {
        root = builder.put_inner(level, Box::new([root; INNER_SLOTS]), &Slot::Nil)?;
    }
    let mut out = builder.into_bytes();
    let nodes_bytes = out.len() as u64;
    let tail = Tail {
        meta: meta(id, span(height)),
        root,
        nodes_bytes,
    };
    out.extend(tail.encode());
    Ok(out)
}
