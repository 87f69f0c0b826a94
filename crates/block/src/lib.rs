//! The copy-on-write block device.
//!
//! ```text
//! front end -> Overlay -> Cache (writes)   base Device (reads)
//! ```
//!
//! Read in this order: [`units`], [`device`], [`tracker`], [`cache`], [`overlay`]. No sockets, no
//! threads of its own, no store: those are the other crates' business.

pub mod cache;
pub mod device;
pub mod files;
mod gate;
pub mod health;
pub mod overlay;
#[doc(hidden)]
pub mod planted;
pub mod read_only;
mod sync;

pub mod tracker;
pub mod units;
pub mod zero;

pub use device::{Device, DeviceError, Extent, FillBuf, Geometry, ReadSink, Room};
pub use units::{BlockCount, BlockIndex, BlockRange, BlockSize, ByteOffset, ByteRange};
