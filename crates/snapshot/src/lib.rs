//! What is stored, and how it gets there: layers, headers, snapshots, sessions.
//!
//! ```text
//! seal:  diff -> layer object -> header object -> snapshot name (the commit point, last)
//! read:  snapshot name -> header -> runs of (layer, block) -> frames
//! ```
//!
//! Read in this order: [`limits`], [`layer`], [`header`], [`parts`], [`store`], [`image`], then [`session`] and
//! [`seal`], and [`roots`] and [`gc`] for what keeps an object. The bytes are
//! described in `docs/format.md`.

pub mod compact;
pub mod diff;
pub mod error;
pub mod export;
pub mod gc;
pub mod header;
pub mod host;
pub mod ids;
pub mod image;
pub mod import;
pub mod layer;
pub mod limits;
pub mod parts;
pub mod reads;
pub mod repair;
pub mod roots;
pub mod seal;
pub mod session;
pub mod sparse;
pub mod store;
pub mod unneeded;
pub mod verify;

/// What headers say that they were made by.
pub const MADE_BY: &str = concat!("cowslip ", env!("CARGO_PKG_VERSION"));

mod caches;
mod checked_json;
mod codec;
mod complaints;
mod pending;
mod record;

pub use error::{ObjectError, StoreError};
pub use header::{DiffFigures, Header, HeaderMeta, HeaderSpec, MapRun, Target};
pub use ids::{HeaderId, ImageName, LayerId, SnapshotName};
pub use image::Image;
pub use layer::{Layer, LayerSummary, LayerWriter};
pub use parts::{Part, Parts};
pub use store::{Caches, Listed, Snapshot, StandsFor, Store, StoredBytes};
