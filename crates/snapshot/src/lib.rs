//! What is stored, and how it gets there: layers, headers, snapshots, sessions.
//!
//! ```text
//! seal:  diff -> layer object -> header object -> snapshot name (the commit point, last)
//! read:  snapshot name -> header -> runs of (layer, block) -> frames
//! ```

pub mod host;
