//! Verify: reads what is stored, from the files and not from the caches, and lists what is damaged.
//!
//! | call             | reads                                                                   |
//! |------------------|-------------------------------------------------------------------------|
//! | [`verify_store`] | every object of a store, once, and the maps that names and sessions need |
//! | [`verify_image`] | what one image uses: its map, and the frames with blocks of it            |
//!
//! Invariants:
//! - Damage is no error: it is in the report, by object and place, each place once.
//! - The work is bounded by what is stored: each node and each frame is read once, also where a hostile
//!   map leads everywhere many times.
//! - Nothing is changed, and nothing has to stand still meanwhile: an object that a collection removed
//!   is damage only if something that is there still needs it.
//!
//! Bytes that the disk refuses to give (EIO) are damage as well.
//!
//! Left out: what to do about it ([`crate::repair`]).

mod bases;
mod findings;
mod image;
mod impact;
mod lost;
mod map;
mod objects;
mod roots;
mod store;

pub use findings::{DAMAGE_LISTED_MAX, Damage};
pub(crate) use findings::{Spot, damage, is_bad_disk};
pub use image::{Report, verify, verify_image};
pub use impact::{DamagedObject, NEEDED_BY_MAX};
pub(crate) use impact::{Impact, who_needs};
pub(crate) use objects::own_nodes;
pub(crate) use roots::{Root, Rooted};
pub(crate) use store::{Checked, check_store};
pub use store::{StoreReport, verify_store};

/// How closely frames are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Their stored bytes have their checksum.
    Stored,
    /// They also decode to exactly their payload.
    Decoded,
}

#[cfg(test)]
mod tests;
