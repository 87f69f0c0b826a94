//! [`Unneeded`]: what a snapshot may leave out, because what is inside the device does not need it.
//!
//! This crate does not know what blocks mean. Whoever opens a session may bring somebody who does, and who is asked
//! about the frozen device, before anything of its snapshot is written.
//!
//! 1. The answer depends on the frozen device alone, which never changes: a seal that is tried again, also after a crash,
//!    asks again and does the same.
//! 2. Blocks that are told to be unneeded read as zeros in the snapshot, *and from then on in the session* that goes
//!    on over it. So it must be known that whoever uses the session, a mounted kernel say, will not look at what they held.

use std::sync::Arc;

use cowslip_block::{BlockRange, Device};

use crate::seal::SealError;

/// Knows which blocks of a device are not needed.
pub trait Unneeded: Send + Sync {
    /// The blocks of a frozen device that nobody needs, in order, none twice.
    ///
    /// # Errors
    /// [`SealError::Refused`] where that is not certain; [`SealError::Read`].
    fn blocks(&self, frozen: &Arc<dyn Device>) -> Result<Vec<BlockRange>, SealError>;
}
