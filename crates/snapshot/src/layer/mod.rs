//! The layer object: packed blocks, immutable, read one frame at a time.
//!
//! ```text
//! frame 0 | frame 1 | ... | index: 8 bytes a frame | bases of delta frames | footer: 64 bytes
//! ```
//!
//! Frames are cut by block count: block n is in frame n / blocks-per-frame, and only the last
//! frame may be shorter. `docs/format.md` has it byte by byte.
//!
//! A frame stands alone, or is a *delta*: each of its blocks is stored as what it differs by from another, its *base*, which lies in a frame of
//! another layer that stands alone. So to read one takes at most as many frames more as it has blocks, 16 of 4 KiB each, one after the
//! other; and no base has a base.
//!
//! Invariants:
//! - 7: a frame's stored bytes are under a CRC-32C in the index, the index under one in the
//!   footer, the footer under its own. Each is checked when it is first read.
//! - 8: the limits of [`crate::limits`] hold for writer and reader.
//! - The footer holds the layer's id, so that an object under a wrong name is noticed.
//! - A frame never decodes to more, or less, than the footer says it holds.
//!
//! Left out: which block of a device a block of a layer is (the header's business), and caching
//! ([`crate::store::Store`]).

mod bases;
mod footer;
mod frame;
mod index;
mod over;
mod reader;
mod remake;
mod writer;

pub use over::Base;
pub use reader::{Layer, blocks_per_frame};
pub(crate) use remake::Remaker;
pub use writer::{LayerSummary, LayerWriter};
