//! The Network Block Device protocol: a server over any [`cowslip_block::Device`], and a client.
//!
//! ```text
//! listen -> server -> handshake -> connection -> check -> execute -> Device
//!                                      |                     |
//!                                    wire                  reply, flush
//! ```
//!
//! Read in this order: [`limits`], `wire` (bytes), `check` (the door), `execute` and `reply` (meaning),
//! `connection` (the loop), `handshake`, [`server`]. The [`client`] stands apart; it shares the bytes.
//!
//! Not here: TLS, extended headers, more than one export a server. The kernel's client is served, past a handshake that it does not know
//! ([`Server::serve_transmission`]); who makes a device of it is another crate.

mod budget;
mod buffer;
mod check;
pub mod client;
mod connection;
mod counters;
mod errno;
mod execute;
mod flush;
mod handshake;
pub mod limits;
mod listen;
mod reply;
mod said;
pub mod server;
mod stdio;
mod timed;
pub mod wire;

pub use client::{Client, ClientError, Cookie, Reply};
pub use counters::Counters;
pub use errno::Errno;
pub use listen::{Bound, Listen, ListenError, SocketFile, connect_unix};
pub use server::{Export, Gone, Report, Served, Server};
