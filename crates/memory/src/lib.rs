//! Guest memory: restored page by page as the guest touches it, and of what it wrote only what changed is stored.

pub mod handshake;
pub mod limits;
pub mod page;
pub mod regions;
pub mod sys;
