//! [`Impact`]: what damage costs: which damaged objects an image needs, and which of its bytes
//! cannot be read.
//!
//! What lies below a node is found once for all images, so that the work is bounded by what is
//! stored; only the parts of a map below which something is damaged are walked for each image.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use cowslip_block::BlockSize;

use super::findings::{Findings, Spot};
use super::roots::Rooted;
use crate::header::{Header, Node, NodePtr, Slot, object_name};
use crate::ids::{HeaderId, LayerId};
use crate::layer::blocks_per_frame;
use crate::limits::span;
use crate::store::layer_name;

/// Names and sessions that are listed for one damaged object; more are only counted.
pub const NEEDED_BY_MAX: usize = 100;

/// An object with damage in it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DamagedObject {
    /// Its path in the store.
    pub object: String,
    /// Names, and sessions as `session <id>`, that cannot be read wholly because of it: at most
    /// [`NEEDED_BY_MAX`].
    pub needed_by: Vec<String>,
    /// All of those.
    pub needed_by_count: u64,
}

/// A damaged object that a map leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Needed {
    Header(HeaderId),
    Layer(LayerId),
}

impl Needed {
    fn name(self) -> String {
        match self {
            Self::Header(id) => object_name(id),
            Self::Layer(id) => layer_name(id),
        }
    }
}

type Below = Rc<BTreeSet<Needed>>;

/// See the module.
pub(crate) struct Impact<'a> {
    pub(super) findings: &'a Findings,
    below: HashMap<(NodePtr, u8, BlockSize), Below>,
    nothing: Below,
}

impl<'a> Impact<'a> {
    pub(crate) fn new(findings: &'a Findings) -> Self {
        Self {
            findings,
            below: HashMap::new(),
            nothing: Below::default(),
        }
    }

    /// Is there no damage below the slot?
    pub(super) fn is_whole(&mut self, header: &Header, slot: &Slot, level: u8) -> bool {
        self.slot(header, slot, level).is_empty()
    }

    /// Does what lies below the slot come by damage in the layer?
    pub(crate) fn leads_to(
        &mut self,
        header: &Header,
        slot: &Slot,
        level: u8,
        layer: LayerId,
    ) -> bool {
        self.slot(header, slot, level)
            .contains(&Needed::Layer(layer))
    }

    /// The damaged objects that reading all of the image comes by, besides the tail of its header.
    fn needs(&mut self, header: &Header) -> Below {
        self.slot(header, &header.root(), header.height())
    }

    fn slot(&mut self, header: &Header, slot: &Slot, level: u8) -> Below {
        let size = header.block_size();
        let ptr = match *slot {
            Slot::Nil => return Rc::clone(&self.nothing),
            Slot::Run { layer, at } => {
                let mut needed = BTreeSet::new();
                self.run(size, (layer, at, span(level)), &mut needed);
                return match needed.is_empty() {
                    true => Rc::clone(&self.nothing),
                    false => Rc::new(needed),
                };
            }
            Slot::Node(ptr) => ptr,
        };
        let key = (ptr, level, size);
        if let Some(known) = self.below.get(&key) {
            return Rc::clone(known);
        }
        let mut needed = BTreeSet::new();
        match self.node(header, &ptr, level).as_deref() {
            None => {
                needed.insert(Needed::Header(ptr.header));
            }
            Some(Node::Leaf(runs)) => {
                for run in runs {
                    let run = (run.layer, run.at, u64::from(run.count));
                    self.run(size, run, &mut needed);
                }
            }
            Some(Node::Inner { slots, .. }) => {
                for slot in slots.iter() {
                    needed.extend(self.slot(header, slot, level - 1).iter().copied());
                }
            }
        }
        let needed = match needed.is_empty() {
            true => Rc::clone(&self.nothing),
            false => Rc::new(needed),
        };
        self.below.insert(key, Rc::clone(&needed));
        needed
    }

    /// The node, unless it is damaged.
    pub(super) fn node(
        &self,
        header: &Header,
        ptr: &NodePtr,
        level: u8,
    ) -> Option<std::sync::Arc<Node>> {
        let damaged = self.findings.has(&Spot::Node(*ptr));
        let node = (!damaged).then(|| header.nodes().get(ptr, level).ok());
        node.flatten()
    }

    /// The damaged layers that reading the run comes by.
    fn run(
        &self,
        size: BlockSize,
        (layer, at, count): (LayerId, u64, u64),
        needed: &mut BTreeSet<Needed>,
    ) {
        let per_frame = blocks_per_frame(size);
        let frames = at / per_frame..(at + count).div_ceil(per_frame);
        let findings = self.findings;
        if findings.has(&Spot::Layer(layer)) || findings.has_frames(layer, frames.clone()) {
            needed.insert(Needed::Layer(layer));
        }
        for (_, bases) in findings.lacking(layer, frames) {
            needed.extend(bases.iter().copied().map(Needed::Layer));
        }
    }
}

/// Each damaged object, with the names and sessions that cannot be read wholly because of it.
pub(crate) fn who_needs(findings: &Findings, roots: &[Rooted]) -> Vec<DamagedObject> {
    let mut objects: BTreeMap<&str, DamagedObject> = BTreeMap::new();
    // Damage that is met before a map is walked.
    let mut of_header: BTreeMap<HeaderId, Vec<&str>> = BTreeMap::new();
    for damage in &findings.listed {
        let object = objects.entry(&damage.object).or_default();
        match &damage.spot {
            Spot::Record(name) => object.needs(name.to_string()),
            Spot::Header(id) | Spot::Map(id) => {
                of_header.entry(*id).or_default().push(&damage.object);
            }
            _ => {}
        }
    }
    let mut impact = Impact::new(findings);
    for (root, header) in roots {
        let mut needed: Vec<String> = Vec::new();
        if let Some(objects) = of_header.get(&root.header()) {
            needed.extend(objects.iter().map(|object| (*object).to_owned()));
        }
        if let Some(header) = header {
            needed.extend(impact.needs(header).iter().map(|object| object.name()));
        }
        needed.sort();
        needed.dedup();
        for object in needed {
            if let Some(object) = objects.get_mut(object.as_str()) {
                object.needs(root.label());
            }
        }
    }
    let named = objects.into_iter().map(|(object, damaged)| DamagedObject {
        object: object.to_owned(),
        ..damaged
    });
    named.collect()
}

impl DamagedObject {
    fn needs(&mut self, who: String) {
        // A session may have several headers, which come one after the other.
        if self.needed_by.last() == Some(&who) {
            return;
        }
        self.needed_by_count += 1;
        if self.needed_by.len() < NEEDED_BY_MAX {
            self.needed_by.push(who);
        }
    }
}
